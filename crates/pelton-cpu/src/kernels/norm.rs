//! Norms of rows, with and without adding to the residual stream, and of heads inside rows.

use pelton_backend::HeadNorms;

use crate::isa::{Isa, Kernel};
use crate::lanes::{LANES, Lanes};
use crate::pieces::rows_per_piece;
use crate::pool::{Pool, SharedMut};

/// A norm's numbers; `weight` and `bias` are as wide as a row.
#[derive(Clone, Copy)]
pub(crate) enum Norm<'a> {
    Rms { weight: &'a [f32], eps: f32 },
    Layer { weight: &'a [f32], bias: Option<&'a [f32]>, eps: f32 },
}

impl Norm<'_> {
    /// Columns of a row.
    pub(crate) fn cols(&self) -> usize {
        match self {
            Norm::Rms { weight, .. } | Norm::Layer { weight, .. } => weight.len(),
        }
    }

    /// Of several rows end to end.
    fn apply(self, isa: Isa, x: &[f32], out: &mut [f32]) {
        match self {
            Norm::Rms { weight, eps } => isa.run(RmsNorm { x, weight, eps, out }),
            Norm::Layer { weight, bias, eps } => isa.run(LayerNorm { x, weight, bias, eps, out }),
        }
    }
}

/// `out = norm(x)` for each row.
pub(crate) fn norm(isa: Isa, pool: &Pool, x: &[f32], norm: Norm<'_>, out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "a norm keeps the shape");
    let piece = rows_per_piece(norm.cols()) * norm.cols();
    pool.run_pieces(out, piece, |_, index, out| norm.apply(isa, &x[index * piece..][..out.len()], out));
}

/// `residual += delta; out = norm(residual)`.
pub(crate) fn add_norm(isa: Isa, pool: &Pool, residual: &mut [f32], delta: &[f32], norm: Norm<'_>, out: &mut [f32]) {
    assert!(residual.len() == out.len() && delta.len() == out.len(), "a norm keeps the shape");
    let piece = rows_per_piece(norm.cols()) * norm.cols();
    let residual = SharedMut::new(residual);
    pool.run_pieces(out, piece, |_, index, out| {
        // SAFETY: the piece of `residual` beside this piece of `out`; each is handed out once.
        let residual = unsafe { residual.slice(index * piece, out.len()) };
        isa.run(Add { sum: residual, delta: &delta[index * piece..][..out.len()] });
        norm.apply(isa, residual, out);
    });
}

/// `residual += delta`.
pub(crate) fn add(isa: Isa, pool: &Pool, residual: &mut [f32], delta: &[f32]) {
    assert_eq!(residual.len(), delta.len(), "a sum keeps the shape");
    let piece = rows_per_piece(1);
    pool.run_pieces(residual, piece, |_, index, sum| {
        let delta = &delta[index * piece..][..sum.len()];
        isa.run(Add { sum, delta });
    });
}

/// Norms the query and key heads of each row of `qkv` in place.
pub(crate) fn norm_heads(isa: Isa, pool: &Pool, qkv: &mut [f32], norms: &HeadNorms<&[f32]>) {
    let head_dim = norms.query.len();
    let cols = (norms.num_heads + 2 * norms.num_kv_heads) * head_dim;
    assert_eq!(norms.key.len(), head_dim, "queries and keys are equally wide");
    assert!(qkv.len().is_multiple_of(cols), "rows of queries, keys and values have {cols} columns");
    pool.run_pieces(qkv, rows_per_piece(cols) * cols, |_, _, qkv| {
        for row in qkv.chunks_exact_mut(cols) {
            let (queries, rest) = row.split_at_mut(norms.num_heads * head_dim);
            let keys = &mut rest[..norms.num_kv_heads * head_dim];
            isa.run(Heads { heads: queries, weight: norms.query, eps: norms.eps });
            isa.run(Heads { heads: keys, weight: norms.key, eps: norms.eps });
        }
    });
}

/// One over the root of the mean square of `x`.
#[inline(always)]
fn rms_scale<L: Lanes>(isa: L, x: &[f32], eps: f32) -> f32 {
    // Sixteen partial sums, whatever the instruction set, joined by halves.
    let mut squares = isa.splat(0.0);
    for at in (0..x.len()).step_by(LANES) {
        let x = isa.read(x, at);
        squares = isa.fma(x, x, squares);
    }
    1.0 / (isa.sum(squares) / x.len() as f32 + eps).sqrt()
}

/// Several rows end to end.
struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, isa: L) {
        let cols = self.weight.len();
        for (x, out) in self.x.chunks_exact(cols).zip(self.out.chunks_exact_mut(cols)) {
            let scale = isa.splat(rms_scale(isa, x, self.eps));
            for at in (0..cols).step_by(LANES) {
                let normed = isa.mul(isa.read(x, at), scale);
                isa.write(out, at, isa.mul(normed, isa.read(self.weight, at)));
            }
        }
    }
}

/// Several heads end to end, in place.
struct Heads<'a> {
    heads: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for Heads<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, isa: L) {
        for head in self.heads.chunks_exact_mut(self.weight.len()) {
            let scale = isa.splat(rms_scale(isa, head, self.eps));
            for at in (0..head.len()).step_by(LANES) {
                let normed = isa.mul(isa.read(head, at), scale);
                isa.write(head, at, isa.mul(normed, isa.read(self.weight, at)));
            }
        }
    }
}

/// Several rows end to end.
struct LayerNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for LayerNorm<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, isa: L) {
        let (cols, zero) = (self.weight.len(), isa.splat(0.0));
        for (x, out) in self.x.chunks_exact(cols).zip(self.out.chunks_exact_mut(cols)) {
            let mut sum = zero;
            for at in (0..cols).step_by(LANES) {
                sum = isa.add(sum, isa.read(x, at));
            }
            let mean = isa.splat(isa.sum(sum) / cols as f32);
            // From distances, not as a difference of two large squares.
            let mut squares = zero;
            for at in (0..cols).step_by(LANES) {
                let distance = isa.sub(isa.read(x, at), mean);
                let distance = isa.keep_first(LANES.min(cols - at), distance, zero);
                squares = isa.fma(distance, distance, squares);
            }
            let scale = isa.splat(1.0 / (isa.sum(squares) / cols as f32 + self.eps).sqrt());
            for at in (0..cols).step_by(LANES) {
                let normed = isa.mul(isa.sub(isa.read(x, at), mean), scale);
                let bias = self.bias.map_or(zero, |bias| isa.read(bias, at));
                isa.write(out, at, isa.fma(normed, isa.read(self.weight, at), bias));
            }
        }
    }
}

/// `sum += delta`.
pub(super) struct Add<'a> {
    pub(super) sum: &'a mut [f32],
    pub(super) delta: &'a [f32],
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
