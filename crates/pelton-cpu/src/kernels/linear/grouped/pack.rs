//! Integers in groups as panels of 32 output features.
//!
//! ```text
//! codes, 8 bits:  [panel][k / 4][32][4]
//! codes, 4 bits:  [panel][k / 8][32][4]     features 8 s to 8 s + 3 in the lower halves of a step's bytes, the next four in the upper
//! scales, zeros:  [panel][group][32]
//! factors:        [panel][32]
//! ```
//!
//! A scale is half precision times the factor of its output feature, a power of two that makes use of the range halves have: scales of
//! eleven bits are exact, whatever their size. What fills up the last step or panel has zeros in all lists.

use half::f16;
use pelton_backend::{BackendError, Bits, Group, GroupedRow, IntGroups};

use crate::buffer::Buffer;
use crate::kernels::linear::PANEL;
use crate::pool::{Pool, SharedMut};

/// A packed matrix of integers in groups.
pub(crate) struct GroupedPanels {
    pub format: IntGroups,
    /// Steps of a panel.
    pub steps: usize,
    /// Steps of a group; the last one may have fewer.
    pub group_steps: usize,
    pub codes: Buffer<u8>,
    pub scales: Buffer<f16>,
    pub factors: Buffer<f32>,
    /// Only where groups have zero points.
    pub zeros: Option<Buffer<u8>>,
    /// Which input feature lies at each place of `k`, where they do not lie as they come.
    pub order: Option<Vec<u32>>,
}

impl GroupedPanels {
    /// Packs what `row` gives for each output feature, input features in `order`.
    pub fn new(
        pool: &Pool,
        format: IntGroups,
        [out_features, in_features]: [usize; 2],
        order: Option<&[u32]>,
        row: impl Fn(usize) -> GroupedRow + Sync,
    ) -> Result<Self, BackendError> {
        let step = step_features(format.bits);
        let (steps, num_groups) = (in_features.div_ceil(step), format.num_groups(in_features));
        let group_steps = format.group.features(in_features).div_ceil(step);
        let num_panels = out_features.div_ceil(PANEL);
        let by_group = num_panels.saturating_mul(num_groups * PANEL);
        let mut codes = Buffer::new("a linear weight", num_panels.saturating_mul(steps * PANEL * 4))?;
        let mut scales = Buffer::new("scales of a linear weight", by_group)?;
        let mut factors = Buffer::new("factors of a linear weight", num_panels * PANEL)?;
        let mut zeros = format.zeros.then(|| Buffer::<u8>::new("zeros of a linear weight", by_group)).transpose()?;
        let scales_out = SharedMut::new(scales.as_mut_slice());
        let factors_out = SharedMut::new(factors.as_mut_slice());
        let zeros_out = zeros.as_mut().map(|zeros| SharedMut::new(zeros.as_mut_slice()));
        pool.run_pieces(codes.as_mut_slice(), steps * PANEL * 4, |_, panel, codes| {
            let group_len = num_groups * PANEL;
            // SAFETY: panels have groups of their own.
            let scales: &mut [f16] = unsafe { scales_out.slice(panel * group_len, group_len) };
            // SAFETY: and columns.
            let factors = unsafe { factors_out.slice(panel * PANEL, PANEL) };
            // SAFETY: as for scales.
            let mut zeros = zeros_out.as_ref().map(|zeros| unsafe { zeros.slice(panel * group_len, group_len) });
            for column in 0..PANEL.min(out_features - panel * PANEL) {
                let row = row(panel * PANEL + column);
                let factor = factor(format, &row.scales);
                factors[column] = factor;
                for (group, scale) in row.scales.iter().enumerate() {
                    scales[group * PANEL + column] = f16::from_f32(scale / factor);
                }
                if let Some(zeros) = &mut zeros {
                    for (group, &zero) in row.zeros.iter().enumerate() {
                        zeros[group * PANEL + column] = zero;
                    }
                }
                for (k, code) in row.codes.into_iter().enumerate() {
                    let (at, shift) = place(format.bits, k, column);
                    codes[at] |= code << shift;
                }
            }
        });
        let order = order.map(<[u32]>::to_vec);
        Ok(Self { format, steps, group_steps, codes, scales, factors, zeros, order })
    }

    /// Fills `out` with output feature `column`.
    pub fn read(&self, column: usize, out: &mut [f32]) {
        let (panel, lane) = (column / PANEL, column % PANEL);
        let num_groups = self.steps.div_ceil(self.group_steps);
        let codes = &self.codes.as_slice()[panel * self.steps * PANEL * 4..];
        let factor = self.factors.as_slice()[column];
        let step = step_features(self.format.bits);
        for k in 0..out.len() {
            let group = (panel * num_groups + k / step / self.group_steps) * PANEL + lane;
            let zero = self.zeros.as_ref().map_or(self.format.bits.middle(), |zeros| zeros.as_slice()[group]);
            let (at, shift) = place(self.format.bits, k, lane);
            let code = codes[at] >> shift & self.format.bits.largest();
            let scale = self.scales.as_slice()[group].to_f32() * factor;
            let feature = self.order.as_ref().map_or(k, |order| order[k] as usize);
            out[feature] = (f32::from(code) - f32::from(zero)) * scale;
        }
    }
}

/// Input features of a step.
fn step_features(bits: Bits) -> usize {
    match bits {
        Bits::Four => 8,
        Bits::Eight => 4,
    }
}

/// Byte of the panel and first bit in it.
fn place(bits: Bits, k: usize, column: usize) -> (usize, usize) {
    let step = step_features(bits);
    ((k / step * PANEL + column) * 4 + k % 4, k % step / 4 * 4)
}

/// What divides the scales of one output feature so that halves hold them.
fn factor(format: IntGroups, scales: &[f32]) -> f32 {
    if format.group == Group::Row {
        // A single one, kept in full precision; its half is one.
        return if scales[0] == 0.0 { 1.0 } else { scales[0] };
    }
    let largest =
        scales.iter().filter(|scale| scale.is_finite()).fold(0.0f32, |largest, scale| largest.max(scale.abs()));
    // The largest becomes a half between 2^14 and 2^15. Smaller than normal numbers the factor must not get, and need not.
    let power = f32::from_bits(largest.to_bits() & 0x7f80_0000);
    (power / 16_384.0).max(f32::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use pelton_backend::GroupedWeight;

    use super::*;
    use crate::kernels::linear::{PackedLinear, Panels};

    #[test]
    fn integers_come_back_element_by_element_whatever_the_size_of_scales() {
        let pool = Pool::new(2, &[]).unwrap();
        for (bits, group, zeros) in [
            (Bits::Four, Group::Of32, false),
            (Bits::Four, Group::Of64, true),
            (Bits::Eight, Group::Of128, true),
            (Bits::Four, Group::Row, false),
        ] {
            let format = IntGroups { bits, group, zeros };
            for (n, k) in [(1, 1), (31, 32), (33, 33), (64, 129), (70, 300)] {
                let num_groups = format.num_groups(k);
                let codes: Vec<u8> = (0..n * k).map(|i| (i * 31 % 256) as u8 & bits.largest()).collect();
                // Eleven significant bits each; rows from the smallest to the largest, groups of a row within a few binary places.
                let scale = |i: usize| {
                    let (row, group) = (i / num_groups, i % num_groups);
                    (1024 + i % 1024) as f32 * 2f32.powi(row as i32 * 3 - 110 + group as i32 % 5)
                };
                let scales: Vec<f32> = (0..n * num_groups).map(scale).collect();
                let zeros: Vec<u8> = (0..n * num_groups).map(|i| (i % 17) as u8).collect();
                let weight =
                    GroupedWeight::new(format, [n, k], codes, scales, format.zeros.then(|| zeros.into())).unwrap();
                let packed = PackedLinear::from_grouped(&pool, std::slice::from_ref(&weight)).unwrap();
                let Panels::Grouped(panels) = &packed.panels else { panic!("kept in {format}") };
                let mut found = vec![0.0; k];
                for row in 0..n {
                    panels.read(row, &mut found);
                    let expected: Vec<f64> = weight.row(row).values(group.features(k)).collect();
                    assert_eq!(
                        found.iter().map(|&x| f64::from(x)).collect::<Vec<_>>(),
                        expected,
                        "{format}, row {row}"
                    );
                }
            }
        }
    }
}
