//! What the schemes of integers have in common: codes in words, groups that kernels have or that are decoded, sorted inputs.

use pelton_backend::{Bits, Group, GroupedWeight, IntGroups};

use super::{Module, Problem, dense};
use crate::weights::{CheckpointError, Matrix};

/// How a matrix of integers is cut.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) bits: Bits,
    /// Input features of the matrix.
    pub(super) in_features: usize,
    /// Input features of a group; the last may have fewer.
    pub(super) features: usize,
    /// Whether groups have zero points of their own.
    pub(super) zeros: bool,
    /// The group of each input feature, where they do not lie as they come.
    pub(super) group_of: Option<Vec<u32>>,
}

/// What the tensors of a module say: codes `[out, in]`, scales and zeros `[out, groups]`.
pub(super) struct Codes {
    pub(super) codes: Vec<u8>,
    pub(super) scales: Vec<f32>,
    pub(super) zeros: Option<Vec<u8>>,
}

impl Cut {
    /// The group size `stated` in the configuration (`None`: a row) if it makes `num_groups` of `in_features`, else the one that does,
    /// since single modules may be quantised in another.
    pub(super) fn features(in_features: usize, num_groups: usize, stated: Option<usize>) -> Option<usize> {
        let stated = stated.unwrap_or(in_features).clamp(1, in_features.max(1));
        if in_features.div_ceil(stated) == num_groups {
            return Some(stated);
        }
        (num_groups > 0 && in_features.is_multiple_of(num_groups)).then(|| in_features / num_groups)
    }

    /// Groups of a row.
    pub(super) fn num_groups(&self) -> usize {
        self.in_features.div_ceil(self.features)
    }

    /// The same with the group of each input feature: each must exist. An index that says nothing new is left out.
    pub(super) fn sorted(mut self, module: &Module<'_>, suffix: &str, group_of: Vec<u32>) -> Result<Self, Problem> {
        let num_groups = self.num_groups();
        if let Some(feature) = group_of.iter().position(|&group| group as usize >= num_groups) {
            return Err(Problem::Line(format!(
                "{} puts input feature {feature} into group {}, there are {num_groups}",
                module.tensor_name(suffix),
                group_of[feature] as i32
            )));
        }
        let as_they_come =
            group_of.iter().enumerate().all(|(feature, &group)| feature / self.features == group as usize);
        self.group_of = (!as_they_come).then_some(group_of);
        Ok(self)
    }

    /// The format it is kept in; `None` when no kernel has such groups, or input features are not sorted into groups of one size.
    pub(super) fn kept(&self) -> Option<IntGroups> {
        let in_features = self.in_features;
        let group = match self.features {
            features if features >= in_features => Group::Row,
            32 => Group::Of32,
            64 => Group::Of64,
            128 => Group::Of128,
            _ => return None,
        };
        if let Some(group_of) = &self.group_of {
            let mut sizes = vec![0; self.num_groups()];
            group_of.iter().for_each(|&group| sizes[group as usize] += 1);
            let wanted = |group: usize| self.features.min(in_features - group * self.features);
            if sizes.iter().enumerate().any(|(group, &size)| size != wanted(group)) {
                return None;
            }
        }
        Some(IntGroups { bits: self.bits, group, zeros: self.zeros })
    }

    /// The matrix that `codes` mean.
    pub(super) fn matrix(&self, module: &Module<'_>, codes: Codes) -> Result<Matrix, CheckpointError> {
        let Codes { codes, scales, zeros } = codes;
        let [out_features, in_features] = module.shape;
        let Some(format) = self.kept() else {
            return Ok(dense(module.shape, &self.decoded(module.shape, &codes, &scales, zeros.as_deref())));
        };
        let weight = GroupedWeight::new(format, [out_features, in_features], codes, scales, zeros.map(Into::into));
        let sorted = weight.and_then(|weight| match &self.group_of {
            Some(group_of) => weight.with_group_index(group_of),
            None => Ok(weight),
        });
        sorted.map(Matrix::Grouped).map_err(|error| module.refuse("weight", error))
    }

    fn decoded(&self, [rows, columns]: [usize; 2], codes: &[u8], scales: &[f32], zeros: Option<&[u8]>) -> Vec<f32> {
        let num_groups = self.num_groups();
        let mut values = Vec::with_capacity(rows * columns);
        for row in 0..rows {
            for k in 0..columns {
                let group = self.group_of.as_ref().map_or(k / self.features, |group_of| group_of[k] as usize);
                let at = row * num_groups + group;
                let zero = zeros.map_or(self.bits.middle(), |zeros| zeros[at]);
                let code = i32::from(codes[row * columns + k]) - i32::from(zero);
                values.push((f64::from(code) * f64::from(scales[at])) as f32);
            }
        }
        values
    }
}

/// Codes in a word.
pub(super) fn per_word(bits: Bits) -> usize {
    32 / bits.count()
}

/// The codes of a word, lowest bits first.
#[inline]
pub(super) fn unpacked(word: u32, bits: Bits) -> ([u8; 8], usize) {
    match bits {
        Bits::Eight => {
            let [a, b, c, d] = word.to_le_bytes();
            ([a, b, c, d, 0, 0, 0, 0], 4)
        }
        Bits::Four => {
            // Halves, bytes, then nibbles move apart.
            let mut spread = u64::from(word);
            spread = (spread | spread << 16) & 0x0000_ffff_0000_ffff;
            spread = (spread | spread << 8) & 0x00ff_00ff_00ff_00ff;
            spread = (spread | spread << 4) & 0x0f0f_0f0f_0f0f_0f0f;
            (spread.to_le_bytes(), 8)
        }
    }
}

/// `[rows, columns]` codes of words packed along rows: `[rows, ceil(columns / per word)]`.
pub(super) fn unpack_rows(words: &[u32], [rows, columns]: [usize; 2], bits: Bits) -> Vec<u8> {
    let per_word = per_word(bits);
    let mut codes = Vec::with_capacity(rows * columns);
    for words in words.chunks_exact(columns.div_ceil(per_word).max(1)).take(rows) {
        for (index, &word) in words.iter().enumerate() {
            let (bytes, _) = unpacked(word, bits);
            codes.extend_from_slice(&bytes[..per_word.min(columns - index * per_word)]);
        }
    }
    codes
}

/// `[columns, rows]` of `values`, `[rows, columns]`.
pub(super) fn transposed<T: Copy>(values: &[T], columns: usize) -> Vec<T> {
    let rows = values.len() / columns.max(1);
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_open_lowest_bits_first() {
        assert_eq!(unpacked(0xfedc_ba98, Bits::Four), ([8, 9, 10, 11, 12, 13, 14, 15], 8));
        assert_eq!(unpacked(0x0403_0201, Bits::Eight), ([1, 2, 3, 4, 0, 0, 0, 0], 4));
        assert_eq!(unpack_rows(&[0x7654_3210, 0xf, 0x8888_8888, 0x1], [2, 9], Bits::Four)[7..11], [7, 15, 8, 8]);
        assert_eq!(transposed(&[1, 2, 3, 4, 5, 6], 3), [1, 4, 2, 5, 3, 6]);
    }

    #[test]
    fn group_sizes_are_those_of_the_tensors() {
        for (in_features, num_groups, stated, features) in [
            (256, 2, Some(128), Some(128)),
            (200, 2, Some(128), Some(128)),
            (256, 8, Some(128), Some(32)),
            (256, 1, Some(128), Some(256)),
            (256, 1, None, Some(256)),
            (100, 1, Some(128), Some(100)),
            (200, 3, None, None),
            (200, 0, Some(128), None),
        ] {
            assert_eq!(Cut::features(in_features, num_groups, stated), features, "{in_features} in {num_groups}");
        }
    }
}
