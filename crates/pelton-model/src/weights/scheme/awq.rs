//! AWQ in the layout of its GEMM kernels: codes and zero points packed along output features, in an order of their own.
//!
//! | tensor | type | shape |
//! | --- | --- | --- |
//! | `qweight` | I32 | `[in, out / 8]` |
//! | `qzeros` | I32 | `[groups, out / 8]` |
//! | `scales` | float | `[groups, out]` |
//!
//! Nibble `i` of a word, from the lowest bits, is column `8 j + [0, 2, 4, 6, 1, 3, 5, 7][i]`. A weight is `(code - zero) * scale`. Source:
//! AutoAWQ's `WQLinear_GEMM`.

use pelton_backend::{Bits, IntGroups};

use super::integers::{Codes, Cut, transposed, unpacked};
use super::{FLOATS, Module, Problem, Spelling};
use crate::weights::safetensors::ElementType;
use crate::weights::{CheckpointError, Matrix};

/// What a configuration says of AWQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Awq {
    /// Input features of a group; `None`: all.
    pub(super) features: Option<usize>,
}

#[derive(Debug)]
struct Packed {
    cut: Cut,
}

/// Codes in a word.
const PER_WORD: usize = 8;
/// The column of each nibble.
const COLUMNS: [usize; PER_WORD] = [0, 2, 4, 6, 1, 3, 5, 7];

impl Awq {
    pub(super) fn spell(&self, module: &Module<'_>) -> Result<Option<Box<dyn Spelling>>, Problem> {
        if module.find("qweight").is_none() {
            return Ok(None);
        }
        let [out_features, in_features] = module.shape;
        if !out_features.is_multiple_of(PER_WORD) {
            return Err(format!("{} has {out_features} output features, AWQ packs {PER_WORD}", module.name).into());
        }
        let words = out_features / PER_WORD;
        module.expect("qweight", &[ElementType::I32], &[&[in_features, words]])?;
        let scales = module.typed("scales", FLOATS)?;
        let features = match scales {
            [groups, columns] if *columns == out_features => Cut::features(in_features, *groups, self.features),
            _ => None,
        };
        let Some(features) = features else {
            let groups = in_features.div_ceil(self.features.unwrap_or(in_features).max(1));
            return Err(format!(
                "{} has shape {scales:?}, expected [{groups}, {out_features}]",
                module.tensor_name("scales")
            )
            .into());
        };
        let cut = Cut { bits: Bits::Four, in_features, features, zeros: true, group_of: None };
        module.expect("qzeros", &[ElementType::I32], &[&[cut.num_groups(), words]])?;
        Ok(Some(Box::new(Packed { cut })))
    }
}

impl Spelling for Packed {
    fn integers(&self) -> Option<IntGroups> {
        self.cut.kept()
    }

    fn read(&self, module: &Module<'_>) -> Result<Matrix, CheckpointError> {
        let out_features = module.shape[0];
        let codes = columns(&module.words("qweight")?, out_features);
        let scales = transposed(&module.floats("scales")?, out_features);
        let zeros = columns(&module.words("qzeros")?, out_features);
        self.cut.matrix(module, Codes { codes, scales, zeros: Some(zeros) })
    }
}

/// `[columns, rows]` codes of words `[rows, columns / 8]`.
fn columns(words: &[u32], columns: usize) -> Vec<u8> {
    let row_words = columns / PER_WORD;
    let rows = words.len() / row_words;
    let mut codes = vec![0; rows * columns];
    for (word, codes) in codes.chunks_exact_mut(PER_WORD * rows).enumerate() {
        for row in 0..rows {
            let (bytes, _) = unpacked(words[row * row_words + word], Bits::Four);
            for (byte, column) in bytes.into_iter().zip(COLUMNS) {
                codes[column * rows + row] = byte;
            }
        }
    }
    codes
}
