//! Codebooks that matrices of numbers are rounded to while they are loaded: for measuring what a format costs, and for words that other
//! servers know.
//!
//! No kernel computes in them: the rounded numbers are kept in the model's precision, so quality is lost and memory is not saved.

use super::scheme::fp8;

/// What numbers are rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codebook {
    /// [`NF4`], in blocks.
    Nf4,
    /// [`FP4`], in blocks.
    Fp4,
    /// Eight-bit floats, with a scale for each output feature.
    Fp8,
}

/// Numbers of a block that share a scale, its largest magnitude; blocks run on over rows.
const BLOCK: usize = 64;

/// Quantiles of the normal distribution, the largest made 1, with a zero. Source: Dettmers et al. 2023 (QLoRA), appendix E.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Floats with two bits of exponent and one of fraction, as bitsandbytes has them, over the largest, 12.
const FP4: [f32; 15] = [
    -1.0,
    -8.0 / 12.0,
    -6.0 / 12.0,
    -4.0 / 12.0,
    -3.0 / 12.0,
    -2.0 / 12.0,
    -0.062_5 / 12.0,
    0.0,
    0.062_5 / 12.0,
    2.0 / 12.0,
    3.0 / 12.0,
    4.0 / 12.0,
    6.0 / 12.0,
    8.0 / 12.0,
    1.0,
];

impl std::fmt::Display for Codebook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
            Self::Fp8 => "fp8",
        })
    }
}

impl Codebook {
    /// Rounds `values`, `[rows, columns]`.
    pub(crate) fn round(self, values: &mut [f32], columns: usize) {
        match self {
            Self::Nf4 => values.chunks_mut(BLOCK).for_each(|block| round(block, &NF4)),
            Self::Fp4 => values.chunks_mut(BLOCK).for_each(|block| round(block, &FP4)),
            Self::Fp8 => fp8::round(values, columns),
        }
    }
}

/// Rounds a block to the nearest numbers of `codebook`, which ascends. One that is all zeros, or not all finite, stays.
fn round(block: &mut [f32], codebook: &[f32]) {
    let largest = block.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    if largest < f32::MIN_POSITIVE || block.iter().any(|x| !x.is_finite()) {
        return;
    }
    for x in block {
        let scaled = *x / largest;
        let above = codebook.partition_point(|&number| number < scaled).clamp(1, codebook.len() - 1);
        let (low, high) = (codebook[above - 1], codebook[above]);
        *x = largest * if scaled - low <= high - scaled { low } else { high };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_the_nearest_of_their_block() {
        for codebook in [&NF4[..], &FP4] {
            assert!(codebook.is_sorted());
            let mut block: Vec<f32> = (-40..=23).map(|i| i as f32 / 10.0).collect();
            let before = block.clone();
            round(&mut block, codebook);
            for (x, before) in block.iter().zip(before) {
                let nearest = |y: f32| codebook.iter().map(|number| (number * 4.0 - y).abs()).fold(f32::MAX, f32::min);
                assert!(((x - before).abs() - nearest(before)).abs() < 1e-6, "{before} became {x}");
            }
        }
        let mut same: Vec<f32> = NF4.iter().map(|number| number * 0.3).collect();
        let before = same.clone();
        Codebook::Nf4.round(&mut same, 4);
        assert_eq!(same, before);
    }

    #[test]
    fn zeros_and_what_is_not_finite_stay() {
        let mut values = vec![0.0; 128];
        values[64] = f32::INFINITY;
        values[65] = 0.3;
        let before = values.clone();
        for codebook in [Codebook::Nf4, Codebook::Fp4, Codebook::Fp8] {
            codebook.round(&mut values, 64);
            assert_eq!(values, before, "{codebook}");
        }
    }
}
