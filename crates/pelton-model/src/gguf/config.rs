//! A GGUF file's metadata as the `config.json` of the model it was made of.

use serde_json::{Value, json};

use crate::gguf::{Gguf, GgufError};

/// How a GGUF architecture is called in Transformers, and how it differs from others of its kind.
pub(super) struct Architecture {
    /// `general.architecture`.
    pub(super) name: &'static str,
    /// In `architectures` of a `config.json`.
    transformers: &'static str,
    /// Whether query and key rows of a head stand in pairs that are rotated together, as llama.cpp wants them, and not in halves.
    pub(super) paired_rows: bool,
}

const ARCHITECTURES: [Architecture; 3] = [
    Architecture { name: "llama", transformers: "LlamaForCausalLM", paired_rows: true },
    Architecture { name: "qwen2", transformers: "Qwen2ForCausalLM", paired_rows: false },
    Architecture { name: "qwen3", transformers: "Qwen3ForCausalLM", paired_rows: false },
];

/// The factors by which frequencies are divided, one for each pair of rotated dimensions.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

impl Gguf {
    pub(super) fn architecture(&self) -> Result<&'static Architecture, GgufError> {
        let name = self.header.text("general.architecture");
        ARCHITECTURES.iter().find(|known| Some(known.name) == name).ok_or_else(|| {
            let known = ARCHITECTURES.each_ref().map(|known| known.name).join(", ");
            let what = format!("general.architecture {:?}", name.unwrap_or_default());
            self.unsupported(&what, &format!("known are {known}"))
        })
    }

    /// A count under `<architecture>.<key>`.
    fn size(&self, key: &str) -> Result<usize, GgufError> {
        self.optional_size(key)?.ok_or_else(|| self.refuse(key, "a count"))
    }

    pub(super) fn optional_size(&self, key: &str) -> Result<Option<usize>, GgufError> {
        let full = self.key(key)?;
        match self.header.integer(&full) {
            Some(size) => usize::try_from(size).map(Some).map_err(|_| self.refuse(key, "a count")),
            None if self.header.has(&full) => Err(self.refuse(key, "a count, the same for all layers")),
            None => Ok(None),
        }
    }

    fn float(&self, key: &str) -> Result<Option<f64>, GgufError> {
        Ok(self.header.float(&self.key(key)?))
    }

    fn key(&self, key: &str) -> Result<String, GgufError> {
        Ok(format!("{}.{key}", self.architecture()?.name))
    }

    fn refuse(&self, key: &str, expected: &str) -> GgufError {
        let key = match self.key(key) {
            Ok(key) => key,
            Err(error) => return error,
        };
        let found = if self.header.has(&key) { "something else" } else { "absent" };
        GgufError::Key { file: self.file.clone(), key, found: found.to_owned(), expected: expected.to_owned() }
    }

    pub(super) fn has_tensor(&self, name: &str) -> bool {
        self.ranges.contains_key(name)
    }
}

/// What the family in `families` will read.
pub(super) fn config(gguf: &Gguf) -> Result<Value, GgufError> {
    let architecture = gguf.architecture()?;
    if let Some(experts) = gguf.optional_size("expert_count")?.filter(|&count| count > 0) {
        let what = format!("{} with {experts} experts", architecture.name);
        return Err(gguf.unsupported(&what, "only dense models are read from GGUF"));
    }
    let heads = gguf.size("attention.head_count")?;
    let hidden = gguf.size("embedding_length")?;
    let head_dim = match gguf.optional_size("attention.key_length")? {
        Some(head_dim) => head_dim,
        None => hidden.checked_div(heads).ok_or_else(|| gguf.refuse("attention.head_count", "at least one"))?,
    };
    for (key, what) in [
        ("attention.value_length", "values of another width than keys"),
        ("rope.dimension_count", "rotation of a part of each head"),
    ] {
        if gguf.optional_size(key)?.is_some_and(|width| width != head_dim) {
            return Err(gguf.unsupported(&format!("{}.{key}", architecture.name), what));
        }
    }
    let vocab = gguf.header.tensors.get("token_embd.weight").and_then(|info| info.shape.first().copied());
    let theta = gguf.float("rope.freq_base")?.unwrap_or(10_000.0);
    let mut config = json!({
        "architectures": [architecture.transformers],
        "vocab_size": vocab.ok_or_else(|| mismatch(gguf, "token_embd.weight is missing"))?,
        "hidden_size": hidden,
        "num_hidden_layers": gguf.size("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": gguf.optional_size("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_dim,
        "intermediate_size": gguf.size("feed_forward_length")?,
        "hidden_act": "silu",
        "max_position_embeddings": gguf.size("context_length")?,
        "rms_norm_eps": gguf.float("attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| gguf.refuse("attention.layer_norm_rms_epsilon", "a number"))?,
        "rope_theta": theta,
        "tie_word_embeddings": !gguf.has_tensor("output.weight"),
        "attention_bias": gguf.has_tensor("blk.0.attn_q.bias"),
        "mlp_bias": gguf.has_tensor("blk.0.ffn_gate.bias"),
    });
    if let Some(scaling) = scaling(gguf, theta, head_dim)? {
        config["rope_scaling"] = scaling;
    }
    Ok(config)
}

fn mismatch(gguf: &Gguf, problem: &str) -> GgufError {
    GgufError::Mismatch { file: gguf.file.clone(), count: 1, problems: problem.to_owned() }
}

/// The rule that stretches rotary frequencies, from keys or from [`ROPE_FACTORS`].
fn scaling(gguf: &Gguf, theta: f64, head_dim: usize) -> Result<Option<Value>, GgufError> {
    if gguf.has_tensor(ROPE_FACTORS) {
        let factors = gguf.numbers(ROPE_FACTORS)?;
        return llama3(&factors, theta, head_dim).map(Some).ok_or_else(|| {
            gguf.unsupported(
                ROPE_FACTORS,
                "its factors are not those of Llama 3.1 and its kin over 8192 trained tokens",
            )
        });
    }
    let kind = gguf.key("rope.scaling.type")?;
    let factor = || gguf.float("rope.scaling.factor")?.ok_or_else(|| gguf.refuse("rope.scaling.factor", "a number"));
    match gguf.header.text(&kind).unwrap_or("none") {
        "none" => Ok(None),
        "linear" => Ok(Some(json!({"rope_type": "linear", "factor": factor()?}))),
        "yarn" => {
            let mut scaling = json!({"rope_type": "yarn", "factor": factor()?});
            if let Some(original) = gguf.optional_size("rope.scaling.original_context_length")? {
                scaling["original_max_position_embeddings"] = original.into();
            }
            for (key, name) in [
                ("rope.scaling.attn_factor", "attention_factor"),
                ("rope.scaling.yarn_beta_fast", "beta_fast"),
                ("rope.scaling.yarn_beta_slow", "beta_slow"),
            ] {
                if let Some(value) = gguf.float(key)? {
                    scaling[name] = value.into();
                }
            }
            Ok(Some(scaling))
        }
        other => Err(gguf.unsupported(&format!("{kind} {other:?}"), "known are none, linear, yarn")),
    }
}

/// The parameters of Llama 3's rule that give `factors`. Only the greatest factor differs among the models there are.
fn llama3(factors: &[f32], theta: f64, head_dim: usize) -> Option<Value> {
    const ORIGINAL: f64 = 8192.0;
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    let factor = factors.iter().copied().fold(1.0f32, f32::max);
    let rule = |i: usize| {
        let turns = ORIGINAL * theta.powf(-2.0 * i as f64 / head_dim as f64) / std::f64::consts::TAU;
        let blend = ((turns - LOW) / (HIGH - LOW)).clamp(0.0, 1.0);
        1.0 / ((1.0 - blend) / f64::from(factor) + blend)
    };
    // Computed in float32 by the one who wrote them.
    let alike = |(i, &found): (usize, &f32)| (f64::from(found) / rule(i) - 1.0).abs() < 1e-4;
    (factors.len() * 2 == head_dim && factors.iter().enumerate().all(alike)).then(|| {
        json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": LOW, "high_freq_factor": HIGH,
            "original_max_position_embeddings": ORIGINAL,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `rope_freqs.weight` as llama.cpp's converter computes it of Llama 3.1's parameters.
    fn factors(factor: f32, original: f32) -> Vec<f32> {
        let theta = 500_000.0f32;
        (0..64)
            .map(|i| {
                let wavelength = std::f32::consts::TAU * theta.powf(2.0 * i as f32 / 128.0);
                let (long, short) = (original, original / 4.0);
                if wavelength < short {
                    1.0
                } else if wavelength > long {
                    factor
                } else {
                    let smooth = (original / wavelength - 1.0) / 3.0;
                    1.0 / ((1.0 - smooth) / factor + smooth)
                }
            })
            .collect()
    }

    #[test]
    fn factors_of_llama_3_become_its_rule() {
        for factor in [8.0, 32.0] {
            let rule = llama3(&factors(factor, 8192.0), 500_000.0, 128).unwrap();
            assert_eq!(
                (rule["rope_type"].as_str(), rule["factor"].as_f64()),
                (Some("llama3"), Some(f64::from(factor)))
            );
        }
        assert_eq!(llama3(&factors(8.0, 4096.0), 500_000.0, 128), None);
        assert_eq!(llama3(&factors(8.0, 8192.0), 10_000.0, 128), None);
        assert_eq!(llama3(&factors(8.0, 8192.0)[1..], 500_000.0, 128), None);
        assert_eq!(llama3(&[f32::NAN; 64], 500_000.0, 128), None);
    }
}
