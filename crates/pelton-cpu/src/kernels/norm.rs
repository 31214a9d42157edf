//! RMS norm, with and without adding to the residual stream.

use crate::isa::{Isa, Kernel};
use crate::lanes::{LANES, Lanes};
use crate::pieces::rows_per_piece;
use crate::pool::{Pool, SharedMut};

/// `out = x * weight / sqrt(mean(x^2) + eps)` for each row of `weight.len()` columns.
pub(crate) fn rms_norm(isa: Isa, pool: &Pool, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let cols = weight.len();
    assert_eq!(x.len(), out.len(), "a norm keeps the shape");
    let piece = rows_per_piece(cols) * cols;
    pool.run_pieces(out, piece, |_, index, out| {
        let x = &x[index * piece..][..out.len()];
        isa.run(Norm { x, weight, eps, out });
    });
}

/// `residual += delta; out = norm(residual)`.
pub(crate) fn add_rms_norm(
    isa: Isa,
    pool: &Pool,
    residual: &mut [f32],
    delta: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    let cols = weight.len();
    assert!(residual.len() == out.len() && delta.len() == out.len(), "a norm keeps the shape");
    let piece = rows_per_piece(cols) * cols;
    let residual = SharedMut::new(residual);
    pool.run_pieces(out, piece, |_, index, out| {
        // SAFETY: the piece of `residual` beside this piece of `out`; each is handed out once.
        let residual = unsafe { residual.slice(index * piece, out.len()) };
        isa.run(Add { sum: residual, delta: &delta[index * piece..][..out.len()] });
        isa.run(Norm { x: residual, weight, eps, out });
    });
}

/// Several rows end to end.
struct Norm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for Norm<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, isa: L) {
        let cols = self.weight.len();
        for (x, out) in self.x.chunks_exact(cols).zip(self.out.chunks_exact_mut(cols)) {
            // Sixteen partial sums, whatever the instruction set, joined by halves.
            let mut squares = isa.splat(0.0);
            for at in (0..cols).step_by(LANES) {
                let x = isa.read(x, at);
                squares = isa.fma(x, x, squares);
            }
            let scale = isa.splat(1.0 / (isa.sum(squares) / cols as f32 + self.eps).sqrt());
            for at in (0..cols).step_by(LANES) {
                let normed = isa.mul(isa.read(x, at), scale);
                isa.write(out, at, isa.mul(normed, isa.read(self.weight, at)));
            }
        }
    }
}

struct Add<'a> {
    sum: &'a mut [f32],
    delta: &'a [f32],
}

impl Kernel for Add<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, isa: L) {
        for at in (0..self.sum.len()).step_by(LANES) {
            let sum = isa.add(isa.read(self.sum, at), isa.read(self.delta, at));
            isa.write(self.sum, at, sum);
        }
    }
}
