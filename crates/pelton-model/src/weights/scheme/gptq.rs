//! GPTQ: codes packed along input features, zero points along output features, groups sorted by `g_idx`.
//!
//! | tensor | type | shape |
//! | --- | --- | --- |
//! | `qweight` | I32 | `[in * bits / 32, out]`, lowest bits first |
//! | `qzeros` | I32 | `[groups, out * bits / 32]`, likewise |
//! | `scales` | float | `[groups, out]` |
//! | `g_idx` | I32 | `[in]`: the group of each input feature |
//!
//! A weight is `(code - zero) * scale`. The first form of the format stores zero points less one, modulo the codes there are; `gptq_v2`
//! stores them as they are. Source: AutoGPTQ's and GPTQModel's `QuantLinear`.

use pelton_backend::{Bits, IntGroups};

use super::integers::{Codes, Cut, per_word, transposed, unpack_rows, unpacked};
use super::{FLOATS, Module, Problem, Spelling};
use crate::weights::safetensors::ElementType;
use crate::weights::{CheckpointError, Matrix};

/// What a configuration says of GPTQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gptq {
    /// Input features of a group, unless a module differs; `None`: all.
    pub(super) features: Option<usize>,
    /// Whether zero points are stored less one.
    pub(super) zeros_less_one: bool,
    /// Whether input features are sorted, so that `g_idx` must be there.
    pub(super) sorted: bool,
}

#[derive(Debug)]
struct Packed {
    cut: Cut,
    zeros_less_one: bool,
}

/// Columns that are unpacked together: a line of words.
const COLUMNS: usize = 16;

impl Gptq {
    pub(super) fn spell(&self, module: &Module<'_>) -> Result<Option<Box<dyn Spelling>>, Problem> {
        if module.find("qweight").is_none() {
            return Ok(None);
        }
        let [out_features, in_features] = module.shape;
        let packed = module.typed("qweight", &[ElementType::I32])?;
        let bits = match packed {
            [rows, columns] if *columns == out_features && in_features > 0 => match rows * 32 {
                words if words == in_features * 4 => Bits::Four,
                words if words == in_features * 8 => Bits::Eight,
                words if words == in_features * 2 || words == in_features * 3 => {
                    return Err(format!(
                        "{} is in {} bits; GPTQ is read in 4 and 8 bits",
                        module.tensor_name("qweight"),
                        words / in_features
                    )
                    .into());
                }
                _ => return Err(self.wrong_shape(module, packed)),
            },
            _ => return Err(self.wrong_shape(module, packed)),
        };
        let scales = module.typed("scales", FLOATS)?;
        let features = match scales {
            [groups, columns] if *columns == out_features => Cut::features(in_features, *groups, self.features),
            _ => None,
        };
        let Some(features) = features else {
            let expected = self.features.unwrap_or(in_features).max(1);
            return Err(format!(
                "{} has shape {scales:?}, expected [{}, {out_features}]",
                module.tensor_name("scales"),
                in_features.div_ceil(expected)
            )
            .into());
        };
        let num_groups = in_features.div_ceil(features);
        module.expect("qzeros", &[ElementType::I32], &[&[num_groups, out_features.div_ceil(per_word(bits))]])?;
        let mut cut = Cut { bits, in_features, features, zeros: true, group_of: None };
        if module.find("g_idx").is_some() {
            module.expect("g_idx", &[ElementType::I32], &[&[in_features]])?;
            cut = cut.sorted(module, "g_idx", module.words("g_idx")?)?;
        } else if self.sorted {
            return Err(format!("{} is missing, although desc_act is true", module.tensor_name("g_idx")).into());
        }
        let mut packed = Packed { cut, zeros_less_one: self.zeros_less_one };
        // Symmetric checkpoints store zero points too, all of them the middle.
        packed.cut.zeros = packed.zeros(module)?.iter().any(|&zero| zero != bits.middle());
        Ok(Some(Box::new(packed)))
    }

    fn wrong_shape(&self, module: &Module<'_>, found: &[usize]) -> Problem {
        let [out_features, in_features] = module.shape;
        Problem::Line(format!(
            "{} has shape {found:?}, expected [{}, {out_features}] in 4 bits or [{}, {out_features}] in 8",
            module.tensor_name("qweight"),
            in_features / 8,
            in_features / 4
        ))
    }
}

impl Packed {
    /// `[groups, out]`.
    fn zeros(&self, module: &Module<'_>) -> Result<Vec<u8>, CheckpointError> {
        let shape = [self.cut.num_groups(), module.shape[0]];
        let mut zeros = unpack_rows(&module.words("qzeros")?, shape, self.cut.bits);
        if self.zeros_less_one {
            zeros.iter_mut().for_each(|zero| *zero = zero.wrapping_add(1) & self.cut.bits.largest());
        }
        Ok(zeros)
    }
}

impl Spelling for Packed {
    fn integers(&self) -> Option<IntGroups> {
        self.cut.kept()
    }

    fn group_of(&self) -> Option<&[u32]> {
        self.cut.group_of.as_deref()
    }

    fn read(&self, module: &Module<'_>) -> Result<Matrix, CheckpointError> {
        let [out_features, in_features] = module.shape;
        let words = module.words("qweight")?;
        let mut codes = vec![0; out_features * in_features];
        for first in (0..out_features).step_by(COLUMNS) {
            for (index, words) in words.chunks_exact(out_features).enumerate() {
                for (column, &word) in words.iter().enumerate().skip(first).take(COLUMNS) {
                    let (bytes, count) = unpacked(word, self.cut.bits);
                    codes[column * in_features + index * count..][..count].copy_from_slice(&bytes[..count]);
                }
            }
        }
        let scales = transposed(&module.floats("scales")?, out_features);
        let zeros = self.cut.zeros.then(|| self.zeros(module)).transpose()?;
        let zeros = zeros.map(|zeros| transposed(&zeros, out_features));
        self.cut.matrix(module, Codes { codes, scales, zeros })
    }
}
