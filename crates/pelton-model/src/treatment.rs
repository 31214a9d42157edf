//! What is asked for with `--quantize`, against what a checkpoint is: what becomes of its matrices.

use std::fmt;
use std::str::FromStr;

use pelton_backend::IntGroups;

use crate::weights::{Codebook, Scheme};

/// How matrices shall be quantised: by quantising them while they are loaded, or by having been before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantize {
    /// Eight bits, one scale for each output feature.
    Int8,
    /// Four bits in groups of 32 in layers, eight bits where tokens come in and logits go out.
    Int4,
    /// Numbers, also where they arrive quantised.
    Numbers,
    /// [`Quantize::Int8`], in another server's word.
    Eetq,
    /// A checkpoint of bitsandbytes, or else [`Quantize::Int8`].
    Bitsandbytes,
    /// A checkpoint of bitsandbytes, or else numbers of its codebook for normally distributed weights, in blocks of 64.
    BitsandbytesNf4,
    /// A checkpoint of bitsandbytes, or else numbers of its codebook of four-bit floats, in blocks of 64.
    BitsandbytesFp4,
    /// A checkpoint in eight-bit floats, or else numbers rounded to them with a scale for each output feature.
    Fp8,
    /// A checkpoint in GPTQ.
    Gptq,
    /// The same: what a GPU packs for one of its kernels is packed for this machine's.
    Marlin,
    /// A checkpoint in AWQ.
    Awq,
    /// A checkpoint that llm-compressor wrote.
    CompressedTensors,
}

/// Words and what they mean.
const WORDS: [(&str, Quantize); 12] = [
    ("int8", Quantize::Int8),
    ("int4", Quantize::Int4),
    ("none", Quantize::Numbers),
    ("eetq", Quantize::Eetq),
    ("bitsandbytes", Quantize::Bitsandbytes),
    ("bitsandbytes-nf4", Quantize::BitsandbytesNf4),
    ("bitsandbytes-fp4", Quantize::BitsandbytesFp4),
    ("fp8", Quantize::Fp8),
    ("gptq", Quantize::Gptq),
    ("marlin", Quantize::Marlin),
    ("awq", Quantize::Awq),
    ("compressed-tensors", Quantize::CompressedTensors),
];

impl fmt::Display for Quantize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(WORDS.iter().find(|(_, known)| known == self).map_or("", |(word, _)| word))
    }
}

impl FromStr for Quantize {
    type Err = QuantizeError;

    fn from_str(word: &str) -> Result<Self, QuantizeError> {
        match WORDS.iter().find(|(known, _)| *known == word) {
            Some((_, quantize)) => Ok(*quantize),
            None if word == "exl2" => Err(QuantizeError::Exl2),
            None => {
                let known = WORDS.map(|(word, _)| word).join(", ");
                Err(QuantizeError::Unknown { word: word.to_owned(), known })
            }
        }
    }
}

/// A quantisation that cannot be had, or not of this checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantizeError {
    /// Not one of the words.
    #[error("--quantize {word} is not known; known are {known}")]
    Unknown {
        /// As it was given.
        word: String,
        /// What may be.
        known: String,
    },
    /// Readable by one kernel alone.
    #[error(
        "--quantize exl2: the layout and mixed widths of ExLlama are read by its GPU kernels alone; take the model in GPTQ or AWQ, or in \
         bfloat16 with --quantize int4"
    )]
    Exl2,
    /// The word names a kind of checkpoint, and this is another.
    #[error("--quantize {asked} needs a checkpoint quantised so, but this one is {found}; {instead}")]
    NotSo {
        /// What was asked for.
        asked: Quantize,
        /// What the checkpoint is.
        found: String,
        /// What can be done.
        instead: &'static str,
    },
    /// The checkpoint is in integers, and stays so.
    #[error(
        "--quantize {asked} contradicts the checkpoint, which is quantised as {found} already; leave the flag out (or say {found}) to serve \
         it as it is"
    )]
    Already {
        /// What was asked for.
        asked: Quantize,
        /// What the checkpoint is.
        found: String,
    },
}

/// What becomes of matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Treatment {
    /// Those in integers stay so, all others are numbers.
    AsTheyCome,
    /// All are numbers.
    Numbers,
    /// All become integers.
    Integers {
        /// Matrices of layers.
        layers: IntGroups,
        /// The embedding and the head.
        vocab: IntGroups,
    },
    /// All are numbers, those of layers of a codebook.
    Rounded(Codebook),
}

impl Treatment {
    const INT8: Self = Self::Integers { layers: IntGroups::INT8, vocab: IntGroups::INT8 };
    const INT4: Self = Self::Integers { layers: IntGroups::INT4, vocab: IntGroups::INT8 };

    /// What `asked` means for a checkpoint of `scheme` (`None`: numbers), of which some matrices are `in_integers`.
    pub(crate) fn of(
        asked: Option<Quantize>,
        scheme: Option<&Scheme>,
        in_integers: bool,
    ) -> Result<Self, QuantizeError> {
        let Some(asked) = asked else { return Ok(Self::AsTheyCome) };
        let found = scheme.map(Scheme::to_string);
        let made = match asked {
            Quantize::Numbers => return Ok(Self::Numbers),
            Quantize::Gptq | Quantize::Marlin | Quantize::Awq | Quantize::CompressedTensors => None,
            Quantize::Int8 | Quantize::Eetq | Quantize::Bitsandbytes => Some(Self::INT8),
            Quantize::Int4 => Some(Self::INT4),
            Quantize::BitsandbytesNf4 => Some(Self::Rounded(Codebook::Nf4)),
            Quantize::BitsandbytesFp4 => Some(Self::Rounded(Codebook::Fp4)),
            Quantize::Fp8 => Some(Self::Rounded(Codebook::Fp8)),
        };
        let is_so = match scheme {
            Some(Scheme::Gptq(_)) => matches!(asked, Quantize::Gptq | Quantize::Marlin),
            Some(Scheme::Awq(_)) => asked == Quantize::Awq,
            Some(Scheme::Compressed(_)) => asked == Quantize::CompressedTensors,
            Some(Scheme::Fp8(_)) => asked == Quantize::Fp8,
            Some(Scheme::Bitsandbytes) if in_integers => asked == Quantize::Bitsandbytes,
            Some(Scheme::Bitsandbytes) => matches!(asked, Quantize::BitsandbytesNf4 | Quantize::BitsandbytesFp4),
            None => false,
        };
        // What arrives in numbers may become integers, wherever the numbers came from.
        match (made, found) {
            _ if is_so => Ok(Self::AsTheyCome),
            (Some(made @ Self::Integers { .. }), _) if !in_integers => Ok(made),
            (Some(made), None) => Ok(made),
            (Some(_), Some(found)) => Err(QuantizeError::Already { asked, found }),
            (None, Some(found)) => {
                Err(QuantizeError::NotSo { asked, found, instead: "leave the flag out to serve it as it is" })
            }
            (None, None) => Err(QuantizeError::NotSo {
                asked,
                found: "in numbers".to_owned(),
                instead: "--quantize int8 or int4 quantises it while it is loaded",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HfConfig;
    use crate::files::ModelFiles;
    use crate::weights::scheme_of;

    fn scheme(text: &str) -> Scheme {
        let config =
            HfConfig::parse("config.json", format!(r#"{{"quantization_config": {text}}}"#).as_bytes()).unwrap();
        scheme_of(&config, &ModelFiles::embedded(&[])).unwrap().unwrap()
    }

    #[test]
    fn every_word_means_something_for_every_checkpoint() {
        let gptq = scheme(r#"{"quant_method": "gptq", "bits": 4}"#);
        let awq = scheme(r#"{"quant_method": "awq"}"#);
        let fp8 = scheme(r#"{"quant_method": "fp8"}"#);
        let bitsandbytes = scheme(r#"{"quant_method": "bitsandbytes"}"#);
        let (so, rounded) = ("AsTheyCome", "Rounded");
        for (word, of_numbers, of_gptq, of_awq, of_fp8, of_bytes, of_codes) in [
            ("int8", "Integers", "Already", "Already", "Integers", "Already", "Integers"),
            ("int4", "Integers", "Already", "Already", "Integers", "Already", "Integers"),
            ("none", "Numbers", "Numbers", "Numbers", "Numbers", "Numbers", "Numbers"),
            ("eetq", "Integers", "Already", "Already", "Integers", "Already", "Integers"),
            ("bitsandbytes", "Integers", "Already", "Already", "Integers", so, "Integers"),
            ("bitsandbytes-nf4", rounded, "Already", "Already", "Already", "Already", so),
            ("bitsandbytes-fp4", rounded, "Already", "Already", "Already", "Already", so),
            ("fp8", rounded, "Already", "Already", so, "Already", "Already"),
            ("gptq", "NotSo", so, "NotSo", "NotSo", "NotSo", "NotSo"),
            ("marlin", "NotSo", so, "NotSo", "NotSo", "NotSo", "NotSo"),
            ("awq", "NotSo", "NotSo", so, "NotSo", "NotSo", "NotSo"),
            ("compressed-tensors", "NotSo", "NotSo", "NotSo", "NotSo", "NotSo", "NotSo"),
        ] {
            let asked: Quantize = word.parse().unwrap();
            assert_eq!(asked.to_string(), word);
            for (scheme, in_integers, expected) in [
                (None, false, of_numbers),
                (Some(&gptq), true, of_gptq),
                (Some(&awq), true, of_awq),
                (Some(&fp8), false, of_fp8),
                (Some(&bitsandbytes), true, of_bytes),
                (Some(&bitsandbytes), false, of_codes),
            ] {
                let found = match Treatment::of(Some(asked), scheme, in_integers) {
                    Ok(treatment) => format!("{treatment:?}"),
                    Err(error) => format!("{error:?}"),
                };
                assert!(found.starts_with(expected), "{word} on {scheme:?}: {found}");
            }
        }
    }

    #[test]
    fn refusals_name_both_sides_and_a_way_out() {
        assert_eq!(
            "exl2".parse::<Quantize>().unwrap_err().to_string(),
            "--quantize exl2: the layout and mixed widths of ExLlama are read by its GPU kernels alone; take the model in GPTQ or AWQ, or \
             in bfloat16 with --quantize int4"
        );
        assert!(
            "int3"
                .parse::<Quantize>()
                .unwrap_err()
                .to_string()
                .starts_with("--quantize int3 is not known; known are int8,")
        );
        let gptq = scheme(r#"{"quant_method": "gptq", "bits": 4}"#);
        let error = Treatment::of(Some(Quantize::Eetq), Some(&gptq), true).unwrap_err().to_string();
        assert!(
            error.starts_with("--quantize eetq contradicts the checkpoint, which is quantised as gptq already"),
            "{error}"
        );
        let error = Treatment::of(Some(Quantize::Awq), None, false).unwrap_err().to_string();
        assert_eq!(
            error,
            "--quantize awq needs a checkpoint quantised so, but this one is in numbers; --quantize int8 or int4 quantises it while it is \
             loaded"
        );
    }
}
