//! The exponential function on sixteen lanes, and the soft cap made of it.

use super::Lanes;

/// `e^x` with an error of at most 2 units in the last place where the result is a normal number.
///
/// 0 below -87.3 (so also at minus infinity), infinity above 88.3; not a number stays so.
///
/// `x = n ln 2 + r` with whole `n` and `|r| <= ln 2 / 2`; `e^r` by its Taylor polynomial of degree 7 (the next term is below
/// 2^-27.5), then `2^n` by the exponent bits. `ln 2` is taken away in two parts, the first with so few bits that `n` times it is exact.
#[inline(always)]
pub(crate) fn exp<L: Lanes>(isa: L, x: L::V) -> L::V {
    /// Adding and taking it away rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = -2.121_944_4e-4;

    let round = isa.splat(ROUND);
    let n = isa.sub(isa.fma(x, isa.splat(std::f32::consts::LOG2_E), round), round);
    let r = isa.fma(n, isa.splat(-LN_2_HIGH), x);
    let r = isa.fma(n, isa.splat(-LN_2_LOW), r);
    let mut p = isa.splat(1.0 / 5040.0);
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = isa.fma(p, r, isa.splat(coefficient));
    }
    let e = isa.mul(p, isa.pow2(n));
    let e = isa.select_lt(x, isa.splat(-87.3), isa.splat(0.0), e);
    isa.select_lt(isa.splat(88.3), x, isa.splat(f32::INFINITY), e)
}

/// `cap * tanh(x / cap)`, as `tanh(u) = 1 - 2 / (e^2u + 1)`: within a few roundings of `cap`.
#[inline(always)]
pub(crate) fn soft_cap<L: Lanes>(isa: L, cap: f32, x: L::V) -> L::V {
    let (cap, one, two) = (isa.splat(cap), isa.splat(1.0), isa.splat(2.0));
    let e = exp(isa, isa.div(isa.mul(two, x), cap));
    isa.mul(cap, isa.sub(one, isa.div(two, isa.add(e, one))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Isa, IsaChoice, Kernel};
    use crate::lanes::LANES;

    struct Exp<'a>(&'a mut [f32]);

    impl Kernel for Exp<'_> {
        #[inline(always)]
        fn run<L: Lanes>(self, isa: L) {
            for at in (0..self.0.len()).step_by(LANES) {
                isa.write(self.0, at, exp(isa, isa.read(self.0, at)));
            }
        }
    }

    fn exp_of(mut x: Vec<f32>) -> Vec<f32> {
        Isa::detect(IsaChoice::Auto).unwrap().run(Exp(&mut x));
        x
    }

    #[test]
    fn error_is_at_most_two_units_in_the_last_place() {
        let x: Vec<f32> = (0..2_000_000).map(|i| -87.3 + i as f32 * (175.6 / 2_000_000.0)).collect();
        let mut worst = 0.0f64;
        for (&x, &e) in x.iter().zip(&exp_of(x.clone())) {
            let exact = f64::from(x).exp();
            let unit = f64::from((exact as f32).next_up()) - f64::from(exact as f32);
            worst = worst.max((f64::from(e) - exact).abs() / unit);
        }
        assert!(worst <= 2.0, "{worst} units");
    }

    #[test]
    fn the_ends_are_zero_and_infinity() {
        let e = exp_of(vec![f32::NEG_INFINITY, -1e30, -88.0, 0.0, 89.0, f32::INFINITY, f32::NAN]);
        assert_eq!(e[..6], [0.0, 0.0, 0.0, 1.0, f32::INFINITY, f32::INFINITY]);
        assert!(e[6].is_nan());
    }
}
