//! Powers of e, sixteen at a time: the same bits on every instruction set.

/// Numbers that are computed together: one register of AVX-512, two of AVX2.
pub(super) const LANES: usize = 16;

/// What turns differences of logits into weights: `exp(difference / temperature)`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exponential {
    /// From differences to powers of two.
    scale: f32,
    /// Differences from here down have a weight below `2^-125`.
    least: f32,
}

impl Exponential {
    pub(super) fn new(temperature: f32) -> Self {
        // So that neither the scale nor the least difference leaves the range of finite numbers.
        let scale = (std::f32::consts::LOG2_E / temperature).clamp(1e-36, f32::MAX);
        Self { scale, least: -125.0 / scale }
    }

    /// Weights of `differences`, which are not above 0; exactly 1 for 0. What is too little (or NaN) weighs `2^-125`: nothing, beside
    /// the 1 that is in each sum.
    ///
    /// The relative error is below `2^-22 + 2^-24 * |difference / temperature|`. After Cody and Waite 1980: `2^n * 2^f` with a whole `n`
    /// and `f` in `-0.5..=0.5`; the polynomial is the best of degree 5 with `p(0) = 1`, found by Remez' exchange (relative error 9.7e-8).
    /// A fused multiplication and addition is rounded once wherever it is computed, so that bits agree; where the processor has none,
    /// a library function is called and the row costs a hundred times as much.
    #[inline(always)]
    #[expect(clippy::approx_constant, reason = "fitted: a little less than ln 2 is better here")]
    pub(super) fn weights(self, differences: [f32; LANES]) -> [f32; LANES] {
        /// Numbers of this size have no room for fractions, and their last bits hold what was added.
        const TO_WHOLE: f32 = 1.5 * (1u32 << 23) as f32;
        let mut weights = [0.0; LANES];
        for (weight, difference) in weights.iter_mut().zip(differences) {
            let difference = if difference > self.least { difference } else { self.least };
            let shifted = difference.mul_add(self.scale, TO_WHOLE);
            let whole = shifted - TO_WHOLE;
            let f = difference.mul_add(self.scale, -whole);
            // By Estrin's scheme: what waits for what is half as long as in Horner's.
            let square = f * f;
            let low = 0.693_147_f32.mul_add(f, 1.0);
            let middle = 0.055_506_51_f32.mul_add(f, 0.240_222_25);
            let high = 0.001_330_353_1_f32.mul_add(f, 0.009_672_646);
            let power = high.mul_add(square, middle).mul_add(square, low);
            *weight = f32::from_bits(power.to_bits().wrapping_add(shifted.to_bits() << 23));
        }
        weights
    }

    /// As [`Exponential::weights`], but what is too little (or NaN) weighs nothing at all.
    #[inline(always)]
    pub(super) fn weights_or_zero(self, differences: [f32; LANES]) -> [f32; LANES] {
        let mut weights = self.weights(differences);
        for (weight, difference) in weights.iter_mut().zip(differences) {
            *weight = if difference > self.least { *weight } else { 0.0 };
        }
        weights
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_within_their_error() {
        for temperature in [0.05f32, 0.7, 1.0, 3.0] {
            let exponential = Exponential::new(temperature);
            for index in 0..40_000 {
                let difference = -temperature * index as f32 * (86.0 / 40_000.0);
                let x = f64::from(difference) / f64::from(temperature);
                let error = f64::from(exponential.weights_or_zero([difference; LANES])[3]) / x.exp() - 1.0;
                assert!(error.abs() < 2f64.powi(-22) - x * 2f64.powi(-24), "exp({x}): {error:e}");
            }
        }
    }

    #[test]
    fn ends_of_the_range_are_one_and_nothing() {
        for temperature in [1e-40, 1e-30, 1e-3, 1.0, 100.0, 1e30, f32::MAX] {
            let exponential = Exponential::new(temperature);
            assert_eq!(exponential.weights_or_zero([0.0; LANES]), [1.0; LANES]);
            for impossible in [f32::NEG_INFINITY, f32::NAN] {
                assert_eq!(exponential.weights_or_zero([impossible; LANES]), [0.0; LANES]);
                let [weight, ..] = exponential.weights([impossible; LANES]);
                assert!((0.0..1e-37).contains(&weight), "{weight:e}");
            }
        }
    }
}
