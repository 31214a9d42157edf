//! Factors and caps: each number of a row changed by itself, in place.

use crate::isa::{Isa, Kernel};
use crate::lanes::{LANES, Lanes, exp, soft_cap};
use crate::pieces::rows_per_piece;
use crate::pool::Pool;

/// `x *= factor`.
pub(crate) fn scale(isa: Isa, pool: &Pool, factor: f32, x: &mut [f32]) {
    pool.run_pieces(x, rows_per_piece(1), |_, _, x| isa.run(Scale { factor, x }));
}

/// `x = cap * tanh(x / cap)`.
pub(crate) fn softcap(isa: Isa, pool: &Pool, cap: f32, x: &mut [f32]) {
    pool.run_pieces(x, rows_per_piece(8), |_, _, x| isa.run(SoftCap { cap, x }));
}

/// `x[r] *= sigmoid(gate[r])`: `x` is `[gate.len(), cols]`.
pub(crate) fn scale_by_sigmoid(isa: Isa, pool: &Pool, gate: &[f32], cols: usize, x: &mut [f32]) {
    assert_eq!(x.len(), gate.len() * cols, "a gate for each row");
    let rows = rows_per_piece(cols);
    pool.run_pieces(x, rows * cols, |_, index, x| {
        for (x, &gate) in x.chunks_exact_mut(cols).zip(&gate[index * rows..]) {
            isa.run(ScaleBySigmoid { gate, x });
        }
    });
}

struct Scale<'a> {
    factor: f32,
    x: &'a mut [f32],
}

impl Kernel for Scale<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, isa: L) {
        let factor = isa.splat(self.factor);
        for at in (0..self.x.len()).step_by(LANES) {
            let scaled = isa.mul(isa.read(self.x, at), factor);
            isa.write(self.x, at, scaled);
        }
    }
}

struct SoftCap<'a> {
    cap: f32,
    x: &'a mut [f32],
}

impl Kernel for SoftCap<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, isa: L) {
        for at in (0..self.x.len()).step_by(LANES) {
            let capped = soft_cap(isa, self.cap, isa.read(self.x, at));
            isa.write(self.x, at, capped);
        }
    }
}

struct ScaleBySigmoid<'a> {
    gate: f32,
    x: &'a mut [f32],
}

impl Kernel for ScaleBySigmoid<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, isa: L) {
        let (one, zero) = (isa.splat(1.0), isa.splat(0.0));
        let e = exp(isa, isa.sub(zero, isa.splat(self.gate)));
        let factor = isa.div(one, isa.add(one, e));
        for at in (0..self.x.len()).step_by(LANES) {
            let scaled = isa.mul(isa.read(self.x, at), factor);
            isa.write(self.x, at, scaled);
        }
    }
}
