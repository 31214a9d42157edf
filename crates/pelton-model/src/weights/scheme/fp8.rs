//! Eight-bit floats (e4m3) with a scale for the matrix, for each output feature, or for each block: decoded to numbers.
//!
//! | tensor | type | shape |
//! | --- | --- | --- |
//! | `weight` | F8_E4M3 | `[out, in]` |
//! | `weight_scale` | float | `[]`, `[1]`, `[out]`, `[out, 1]`, or by block |
//! | `weight_scale_inv` | float | `[ceil(out / rows), ceil(in / columns)]` for blocks of `[rows, columns]`; despite its name it multiplies |
//!
//! A weight is the float times its scale, rounded to float32 once.

use pelton_backend::IntGroups;

use super::{FLOATS, Module, Problem, Spelling, dense};
use crate::weights::safetensors::ElementType;
use crate::weights::{CheckpointError, Matrix};

/// What a configuration says of eight-bit floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fp8 {
    /// Rows and columns of a block with one scale.
    pub(super) block: Option<[usize; 2]>,
}

#[derive(Debug)]
struct Floats {
    scales: &'static str,
    /// Rows and columns with one scale.
    block: [usize; 2],
}

impl Fp8 {
    pub(super) fn spell(&self, module: &Module<'_>) -> Result<Option<Box<dyn Spelling>>, Problem> {
        let Some((ElementType::F8E4M3, _)) = module.find("weight") else { return Ok(None) };
        let [out_features, in_features] = module.shape;
        module.expect("weight", &[ElementType::F8E4M3], &[&[out_features, in_features]])?;
        let scales = if module.find("weight_scale_inv").is_some() { "weight_scale_inv" } else { "weight_scale" };
        let found = module.typed(scales, FLOATS)?;
        let blocks = |[rows, columns]: [usize; 2]| [out_features.div_ceil(rows), in_features.div_ceil(columns)];
        let block = match found {
            [] | [1] | [1, 1] => [out_features, in_features],
            [rows] if *rows == out_features => [1, in_features],
            [rows, 1] if *rows == out_features => [1, in_features],
            _ => match self.block.filter(|&block| *found == blocks(block)) {
                Some(block) => block,
                None => {
                    let by_block = self.block.map_or(String::new(), |block| format!(", by block {:?}", blocks(block)));
                    return Err(format!(
                        "{} has shape {found:?}, expected [1] or [{out_features}, 1]{by_block}",
                        module.tensor_name(scales)
                    )
                    .into());
                }
            },
        };
        Ok(Some(Box::new(Floats { scales, block })))
    }
}

impl Spelling for Floats {
    fn integers(&self) -> Option<IntGroups> {
        None
    }

    fn read(&self, module: &Module<'_>) -> Result<Matrix, CheckpointError> {
        let (scales, codes) = (module.floats(self.scales)?, module.bytes("weight")?);
        let columns = module.shape[1];
        let [block_rows, block_columns] = self.block;
        let mut values = Vec::with_capacity(codes.as_slice().len());
        for (row, codes) in codes.as_slice().chunks_exact(columns).enumerate() {
            let scales = &scales[row / block_rows * columns.div_ceil(block_columns)..];
            for (codes, scale) in codes.chunks(block_columns).zip(scales) {
                values.extend(codes.iter().map(|&code| TABLE[usize::from(code)] * scale));
            }
        }
        Ok(dense(module.shape, &values))
    }
}

/// What each code means.
static TABLE: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = decoded(code as u8);
        code += 1;
    }
    table
};

/// Sign, four bits of exponent with a bias of 7, three of fraction; all ones are not a number, there are no infinities.
const fn decoded(code: u8) -> f32 {
    let (exponent, fraction) = ((code >> 3 & 15) as i32, (code & 7) as f32);
    if code & 0x7f == 0x7f {
        return f32::NAN;
    }
    let mut value = if exponent == 0 { fraction / 512.0 } else { (8.0 + fraction) / 512.0 };
    let mut doublings = 1;
    while doublings < exponent {
        value *= 2.0;
        doublings += 1;
    }
    if code & 0x80 == 0 { value } else { -value }
}

/// The code nearest to `x`, ties to even, those beyond the largest cut to it; `x` is not NaN.
fn nearest(x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = x.abs().min(LARGEST);
    // Steps are an eighth of the power of two below, and no finer than 2^-9.
    let power = (magnitude.to_bits() >> 23) as i32 - 127;
    let exponent = power.max(-6);
    let steps = (magnitude * 2f32.powi(3 - exponent)).round_ties_even() as u8;
    // Eight steps begin the next exponent; both halves of the code count on.
    sign | (((exponent + 6) as u8) * 8 + steps)
}

/// The largest number.
const LARGEST: f32 = 448.0;

/// `values`, `[rows, columns]`, rounded to eight-bit floats with a scale for each row, its largest magnitude over 448; those of a row
/// that is all zeros, or not all finite, stay.
pub(crate) fn round(values: &mut [f32], columns: usize) {
    for row in values.chunks_exact_mut(columns.max(1)) {
        let largest = row.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let scale = largest / LARGEST;
        if scale < f32::MIN_POSITIVE || row.iter().any(|x| !x.is_finite()) {
            continue;
        }
        row.iter_mut().for_each(|x| *x = TABLE[usize::from(nearest(*x / scale))] * scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_mean_what_the_format_says() {
        for (code, value) in [
            (0x00, 0.0),
            (0x01, 1.0 / 512.0),
            (0x07, 7.0 / 512.0),
            (0x08, 1.0 / 64.0),
            (0x38, 1.0),
            (0x39, 1.125),
            (0x7e, 448.0),
            (0xc0, -2.0),
            (0xfe, -448.0),
        ] {
            assert_eq!(decoded(code), value, "{code:#x}");
        }
        assert!(TABLE[0x7f].is_nan() && TABLE[0xff].is_nan());
    }

    #[test]
    fn every_code_is_nearest_to_itself_and_ties_go_to_even() {
        for code in (0..=255u8).filter(|code| code & 0x7f != 0x7f) {
            assert_eq!(nearest(TABLE[usize::from(code)]), code, "{code:#x}");
        }
        for code in 0..0x7eu8 {
            let [low, high] = [code, code + 1].map(|code| TABLE[usize::from(code)]);
            assert_eq!(nearest((low + high) / 2.0), code + (code & 1), "between {low} and {high}");
            assert_eq!(nearest(low + (high - low) * 0.51), code + 1);
        }
        assert_eq!([nearest(1e9), nearest(-1e9), nearest(1e-9)], [0x7e, 0xfe, 0]);
    }

    #[test]
    fn rows_are_rounded_in_their_own_scale() {
        let mut values = [448.0, 17.0, 1.0, 0.0, 4.48, 0.17, f32::NAN, 1.0, 0.3];
        round(&mut values, 2);
        assert_eq!(values[..4], [448.0, 16.0, 1.0, 0.0]);
        assert!((values[5] - 0.16).abs() < 1e-6);
        assert!(values[6].is_nan() && values[7..] == [1.0, 0.3]);
    }
}
