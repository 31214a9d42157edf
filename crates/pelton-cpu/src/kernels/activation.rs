//! Activations, plain and gated: `act(x)`, `act(gate) * up`.

use pelton_backend::Act;

use crate::isa::{Isa, Kernel};
use crate::lanes::{LANES, Lanes, exp};
use crate::pieces::rows_per_piece;
use crate::pool::Pool;

/// `out = act(gate) * up`: `gate_up` is `[rows, 2 * cols]`, gates first, `out` `[rows, cols]`.
pub(crate) fn gate(isa: Isa, pool: &Pool, gate_up: &[f32], act: Act, cols: usize, out: &mut [f32]) {
    assert_eq!(gate_up.len(), 2 * out.len(), "gates and ups are twice as wide as their product");
    let rows = rows_per_piece(8 * cols);
    pool.run_pieces(out, rows * cols, |_, index, out| {
        let gate_up = &gate_up[2 * index * rows * cols..];
        match act {
            Act::Silu => isa.run(Gate { gate_up, cols, out, act: Silu }),
            Act::Gelu => isa.run(Gate { gate_up, cols, out, act: Gelu }),
            Act::GeluTanh => isa.run(Gate { gate_up, cols, out, act: GeluTanh }),
            Act::Relu => isa.run(Gate { gate_up, cols, out, act: Relu }),
        }
    });
}

/// `x = act(x)`.
pub(crate) fn activate(isa: Isa, pool: &Pool, act: Act, x: &mut [f32]) {
    pool.run_pieces(x, rows_per_piece(8), |_, _, x| match act {
        Act::Silu => isa.run(Apply { x, act: Silu }),
        Act::Gelu => isa.run(Apply { x, act: Gelu }),
        Act::GeluTanh => isa.run(Apply { x, act: GeluTanh }),
        Act::Relu => isa.run(Apply { x, act: Relu }),
    });
}

struct Gate<'a, A> {
    gate_up: &'a [f32],
    cols: usize,
    out: &'a mut [f32],
    act: A,
}

impl<A: Activation> Kernel for Gate<'_, A> {
    #[inline(always)]
    fn run<L: Lanes>(self, isa: L) {
        let rows = self.gate_up.chunks_exact(2 * self.cols);
        for (gate_up, out) in rows.zip(self.out.chunks_exact_mut(self.cols)) {
            let (gates, ups) = gate_up.split_at(self.cols);
            for at in (0..self.cols).step_by(LANES) {
                let activated = self.act.apply(isa, isa.read(gates, at));
                isa.write(out, at, isa.mul(activated, isa.read(ups, at)));
            }
        }
    }
}

struct Apply<'a, A> {
    x: &'a mut [f32],
    act: A,
}

impl<A: Activation> Kernel for Apply<'_, A> {
    #[inline(always)]
    fn run<L: Lanes>(self, isa: L) {
        for at in (0..self.x.len()).step_by(LANES) {
            let activated = self.act.apply(isa, isa.read(self.x, at));
            isa.write(self.x, at, activated);
        }
    }
}

trait Activation: Copy {
    fn apply<L: Lanes>(self, isa: L, x: L::V) -> L::V;
}

#[derive(Clone, Copy)]
struct Silu;
#[derive(Clone, Copy)]
struct Gelu;
#[derive(Clone, Copy)]
struct GeluTanh;
#[derive(Clone, Copy)]
struct Relu;

impl Activation for Silu {
    #[inline(always)]
    fn apply<L: Lanes>(self, isa: L, x: L::V) -> L::V {
        times_sigmoid(isa, x, x)
    }
}

impl Activation for GeluTanh {
    /// `(1 + tanh(u)) / 2` is `sigmoid(2 u)`.
    #[inline(always)]
    fn apply<L: Lanes>(self, isa: L, x: L::V) -> L::V {
        const TWO_SQRT_2_OVER_PI: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::SQRT_2;
        let square = isa.mul(x, x);
        let inner = isa.mul(x, isa.fma(square, isa.splat(0.044_715), isa.splat(1.0)));
        times_sigmoid(isa, x, isa.mul(inner, isa.splat(TWO_SQRT_2_OVER_PI)))
    }
}

impl Activation for Gelu {
    /// `x * Phi(x)` where `Phi(x)` is `erfc(|x| / sqrt(2)) / 2` left of zero and 1 minus that right of it: no cancellation on the left.
    #[inline(always)]
    fn apply<L: Lanes>(self, isa: L, x: L::V) -> L::V {
        let zero = isa.splat(0.0);
        let magnitude = isa.max(isa.sub(zero, x), x);
        let tail = isa.mul(isa.splat(0.5), erfc(isa, isa.mul(magnitude, isa.splat(std::f32::consts::FRAC_1_SQRT_2))));
        let share = isa.select_lt(x, zero, tail, isa.sub(isa.splat(1.0), tail));
        isa.mul(x, share)
    }
}

impl Activation for Relu {
    #[inline(always)]
    fn apply<L: Lanes>(self, isa: L, x: L::V) -> L::V {
        // In this order, since what is not a number stays so.
        isa.max(isa.splat(0.0), x)
    }
}

/// `x / (1 + e^-u)`.
#[inline(always)]
fn times_sigmoid<L: Lanes>(isa: L, x: L::V, u: L::V) -> L::V {
    let e = exp(isa, isa.sub(isa.splat(0.0), u));
    isa.div(x, isa.add(isa.splat(1.0), e))
}

/// The complementary error function for `z >= 0`, within 5e-7 of its value relatively up to `z = 2`, and 5e-7 absolutely everywhere.
///
/// With `t = 1 / (1 + z / 2)`, `ln(erfc(z) e^(z^2) / t)` is smooth in `t` on `(0, 1]`; the polynomial is its Chebyshev fit of degree 9
/// (error below 1.1e-7), computed for this place from `math.erfc` in double precision.
#[inline(always)]
fn erfc<L: Lanes>(isa: L, z: L::V) -> L::V {
    const FIT: [f32; 10] = [
        0.170_872_78,
        -0.822_152_2,
        1.488_515_9,
        -1.135_203_8,
        0.278_867_96,
        -0.186_288,
        0.096_784_17,
        0.374_091_95,
        1.000_023_7,
        -1.265_512_2,
    ];
    let one = isa.splat(1.0);
    let t = isa.div(one, isa.fma(z, isa.splat(0.5), one));
    let mut p = isa.splat(FIT[0]);
    for &coefficient in &FIT[1..] {
        p = isa.fma(p, t, isa.splat(coefficient));
    }
    let minus_z = isa.sub(isa.splat(0.0), z);
    isa.mul(t, exp(isa, isa.fma(minus_z, z, p)))
}
