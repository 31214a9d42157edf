//! compressed-tensors, as llm-compressor writes them: integers in words or bytes, or eight-bit floats.
//!
//! | tensor | type | shape |
//! | --- | --- | --- |
//! | `weight_packed` | I32 | `[out, ceil(in * bits / 32)]`, lowest bits first, codes without sign |
//! | `weight_zero_point` | I32 | `[ceil(out * bits / 32), groups]`, likewise; or I8 `[out, groups]`; absent: the middle |
//! | `weight_g_idx` | I32 | `[in]`: the group of each input feature; -1: as they come |
//! | `weight_shape` | I64 or I32 | `[2]`: out, in |
//! | `weight` | I8 | `[out, in]`, instead of words |
//! | `weight_scale` | float | `[out, groups]`; `[out, 1]`; `[1]` |
//!
//! A weight is `(code - zero) * scale`. Which of these a module has says what it is. Source: the compressed-tensors package.

use pelton_backend::{Bits, IntGroups};

use super::fp8::Fp8;
use super::integers::{Codes, Cut, per_word, transposed, unpack_rows};
use super::{FLOATS, Module, Problem, Spelling};
use crate::weights::safetensors::ElementType;
use crate::weights::{CheckpointError, Matrix};

/// What a configuration says of compressed tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Compressed {
    /// Input features of a group, unless a module differs; `None`: all.
    pub(super) features: Option<usize>,
    /// Rows and columns of a block of floats with one scale.
    pub(super) block: Option<[usize; 2]>,
}

#[derive(Debug)]
struct Integers {
    cut: Cut,
    /// In words; else a byte each.
    packed: bool,
    /// One scale for the whole matrix.
    one_scale: bool,
}

impl Compressed {
    pub(super) fn spell(&self, module: &Module<'_>) -> Result<Option<Box<dyn Spelling>>, Problem> {
        let [out_features, in_features] = module.shape;
        let (bits, packed) = match (module.find("weight_packed"), module.find("weight")) {
            (Some(_), _) => (self.packed_bits(module)?, true),
            (None, Some((ElementType::I8, _))) => {
                module.expect("weight", &[ElementType::I8], &[&[out_features, in_features]])?;
                (Bits::Eight, false)
            }
            (None, Some((ElementType::F8E4M3, _))) => return Fp8 { block: self.block }.spell(module),
            _ => return Ok(None),
        };
        let scales = module.typed("weight_scale", FLOATS)?;
        let one_scale = matches!(scales, [] | [1] | [1, 1]) && out_features * self.num_groups(in_features) != 1;
        let features = match scales {
            _ if one_scale => Some(in_features),
            [rows, groups] if *rows == out_features => Cut::features(in_features, *groups, self.features),
            [rows] if *rows == out_features => Some(in_features),
            _ => None,
        };
        let Some(features) = features else {
            return Err(format!(
                "{} has shape {scales:?}, expected [{out_features}, {}], [{out_features}, 1] or [1]",
                module.tensor_name("weight_scale"),
                self.num_groups(in_features)
            )
            .into());
        };
        let mut cut = Cut { bits, in_features, features, zeros: false, group_of: None };
        if module.find("weight_zero_point").is_some() {
            let groups = cut.num_groups();
            let rows = if one_scale { 1 } else { out_features };
            let words: &[usize] = &[rows.div_ceil(per_word(bits)), groups];
            let bytes: &[usize] = &[rows, groups];
            let types = [ElementType::I32, ElementType::I8];
            match module.find("weight_zero_point") {
                Some((ElementType::I32, _)) if packed => module.expect("weight_zero_point", &types[..1], &[words])?,
                _ => module.expect("weight_zero_point", &types[1..], &[bytes, &bytes[..1]])?,
            }
            cut.zeros = true;
        }
        if module.find("weight_g_idx").is_some() {
            module.expect("weight_g_idx", &[ElementType::I32], &[&[in_features]])?;
            let group_of = module.words("weight_g_idx")?;
            if group_of.iter().any(|&group| group != u32::MAX) {
                cut = cut.sorted(module, "weight_g_idx", group_of)?;
            }
        }
        let mut integers = Integers { cut, packed, one_scale };
        // Some symmetric checkpoints store zero points too, all of them the middle.
        if integers.cut.zeros {
            integers.cut.zeros = integers.zeros(module)?.iter().any(|&zero| zero != bits.middle());
        }
        Ok(Some(Box::new(integers)))
    }

    fn num_groups(&self, in_features: usize) -> usize {
        in_features.div_ceil(self.features.unwrap_or(in_features).max(1))
    }

    fn packed_bits(&self, module: &Module<'_>) -> Result<Bits, Problem> {
        let [out_features, in_features] = module.shape;
        let [four, eight] = [Bits::Four, Bits::Eight].map(|bits| [out_features, in_features.div_ceil(per_word(bits))]);
        module.expect("weight_packed", &[ElementType::I32], &[&four, &eight])?;
        if module.find("weight_shape").is_some() {
            module.expect("weight_shape", &[ElementType::I64, ElementType::I32], &[&[2]])?;
            let bytes = module.bytes("weight_shape")?;
            let stated: Vec<u64> = match bytes.as_slice().len() {
                8 => module.words("weight_shape")?.into_iter().map(u64::from).collect(),
                _ => bytes.as_slice().as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect(),
            };
            if stated != module.shape.map(|dim| dim as u64) {
                let expected = module.shape;
                return Err(
                    format!("{} is {stated:?}, expected {expected:?}", module.tensor_name("weight_shape")).into()
                );
            }
        }
        Ok(match module.find("weight_packed") {
            Some((_, shape)) if *shape == four => Bits::Four,
            _ => Bits::Eight,
        })
    }
}

impl Spelling for Integers {
    fn integers(&self) -> Option<IntGroups> {
        self.cut.kept()
    }

    fn group_of(&self) -> Option<&[u32]> {
        self.cut.group_of.as_deref()
    }

    fn read(&self, module: &Module<'_>) -> Result<Matrix, CheckpointError> {
        let [out_features, _] = module.shape;
        let codes = match self.packed {
            true => unpack_rows(&module.words("weight_packed")?, module.shape, self.cut.bits),
            false => unsigned(module.bytes("weight")?.as_slice(), self.cut.bits),
        };
        let mut scales = module.floats("weight_scale")?;
        let mut zeros = self.cut.zeros.then(|| self.zeros(module)).transpose()?;
        if self.one_scale {
            scales = vec![scales[0]; out_features];
            zeros = zeros.map(|zeros| vec![zeros[0]; out_features]);
        }
        self.cut.matrix(module, Codes { codes, scales, zeros })
    }
}

impl Integers {
    /// `[out, groups]`.
    fn zeros(&self, module: &Module<'_>) -> Result<Vec<u8>, CheckpointError> {
        let Some((ElementType::I32, _)) = module.find("weight_zero_point") else {
            return Ok(unsigned(module.bytes("weight_zero_point")?.as_slice(), self.cut.bits));
        };
        // Packed along output features: a row of words holds several rows.
        let groups = self.cut.num_groups();
        let rows = if self.one_scale { 1 } else { module.shape[0] };
        let words = transposed(&module.words("weight_zero_point")?, groups);
        Ok(transposed(&unpack_rows(&words, [groups, rows], self.cut.bits), rows))
    }
}

/// Codes without sign of bytes with one.
fn unsigned(bytes: &[u8], bits: Bits) -> Vec<u8> {
    bytes.iter().map(|&byte| byte.wrapping_add(bits.middle())).collect()
}
