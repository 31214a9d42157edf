//! Register tiles of attention: some queries against strips of positions, and some queries' mixtures of values.
//!
//! Loops instead of closures, also where an array is filled: what the compiler does not inline it compiles without the instruction set
//! (`array::map` and `array::from_fn` once made attention three times slower).

use std::ops::Range;

use crate::kv::STRIP_TOKENS;
use crate::lanes::{CACHE_LINE, LANES, Lanes};

use super::products::{Products, Which};
use super::{CHUNK_STRIPS, CHUNK_TOKENS};

/// Scores of one query against the positions of a chunk, then their exponentials, then those as [`Products::weights`] leaves them.
pub(super) type Scores = [f32; CHUNK_TOKENS];

/// `scores[i][first + 16 * s + lane] = sum over d of queries[d][i] * keys of strip s [d][lane]`, `d` two by two.
///
/// Asks for the keys of the strips `ahead` meanwhile, those of two dimensions with each two: asked for at once they would fill the queue of
/// outstanding lines and everything would wait for it.
///
/// # Safety
/// `queries` leads to `Q` pairs for each two of `head_dim` dimensions; `strips` to whole strips; `first` is whole strips before the end of
/// `scores`.
#[inline(always)]
pub(super) unsafe fn score_strips<P: Products<T>, T, const Q: usize, const S: usize>(
    products: P,
    queries: *const P::Two,
    head_dim: usize,
    strips: [*const T; S],
    ahead: Option<[*const T; S]>,
    first: usize,
    scores: &mut [Scores],
) {
    let lanes = products.lanes();
    let mut sums = [[lanes.splat(0.0); S]; Q];
    let mut keys = strips;
    let whole = head_dim & !1;
    for d in (0..whole).step_by(2) {
        for s in 0..S {
            keys[s] = strips[s].wrapping_add(d * STRIP_TOKENS);
        }
        if let Some(ahead) = ahead {
            for s in 0..S {
                for line in (0..2 * STRIP_TOKENS * size_of::<T>()).step_by(CACHE_LINE) {
                    lanes.prefetch(ahead[s].wrapping_add(d * STRIP_TOKENS).wrapping_byte_add(line).cast());
                }
            }
        }
        // SAFETY: `d + 1 < head_dim`.
        unsafe { products.add(&mut sums, queries.add(d / 2 * Q), 1, keys, STRIP_TOKENS, Which::Both) };
    }
    if whole < head_dim {
        for s in 0..S {
            keys[s] = strips[s].wrapping_add(whole * STRIP_TOKENS);
        }
        // SAFETY: it is the last dimension; a strip has keys for an even number of them.
        unsafe { products.add(&mut sums, queries.add(whole / 2 * Q), 1, keys, STRIP_TOKENS, Which::First) };
    }
    for i in 0..Q {
        for s in 0..S {
            lanes.write(&mut scores[i][first + s * STRIP_TOKENS..][..STRIP_TOKENS], 0, sums[i][s]);
        }
    }
}

/// What a chunk does to what some queries have mixed so far.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    /// By query, as [`Products::weights`] leaves them.
    pub weights: &'a [Scores],
    /// By query: what earlier chunks' are multiplied by.
    pub corrections: &'a [f32],
}

/// `mixed[i][..] = corrections[i] * mixed[i][..] + sum over positions of weights[i][position] * values[position][..]` for `Q` queries and `V`
/// vectors, `positions` of the chunk two by two.
///
/// `values` are those of each strip from the first of these dimensions on, and so are those `ahead`, which are asked for meanwhile; `strides` is
/// `head_dim` and the floats from one query's `mixed` to the next's.
///
/// # Safety
/// `positions` lie in a chunk; `values` covers them and, of each strip, a further `16 * V` elements after those of the last position are readable.
#[inline(always)]
pub(super) unsafe fn mix_strips<P: Products<T>, T, const Q: usize, const V: usize>(
    products: P,
    weights: Weights<'_>,
    values: &[*const T; CHUNK_STRIPS],
    ahead: Option<&[*const T; CHUNK_STRIPS]>,
    positions: Range<usize>,
    strides: (usize, usize),
    mixed: &mut [f32],
) {
    let lanes = products.lanes();
    let (head_dim, mixed_stride) = strides;
    let mut sums = [[lanes.splat(0.0); V]; Q];
    for i in 0..Q {
        for v in 0..V {
            let before = lanes.read(&mixed[i * mixed_stride + v * LANES..][..LANES], 0);
            sums[i][v] = lanes.mul(before, lanes.splat(weights.corrections[i]));
        }
    }
    let weights: *const P::Two = weights.weights[..Q].as_ptr().cast();
    let stride = size_of::<Scores>() / size_of::<P::Two>();
    let mut pair = [values[0]; V];
    let Range { start, end } = positions;
    let mut first = start & !1;
    // Of the pair that the positions begin or end within, the other one lies outside.
    if first < start && start < end {
        let (strip, at) = (first / STRIP_TOKENS, first % STRIP_TOKENS * head_dim);
        for v in 0..V {
            pair[v] = values[strip].wrapping_add(at + v * LANES * P::PAIRED);
        }
        // SAFETY: as below.
        unsafe { products.add(&mut sums, weights.add(first / 2), stride, pair, head_dim, Which::Second) };
        first += 2;
    }
    while first + 1 < end {
        let (strip, at) = (first / STRIP_TOKENS, first % STRIP_TOKENS * head_dim);
        for v in 0..V {
            pair[v] = values[strip].wrapping_add(at + v * LANES * P::PAIRED);
        }
        if let Some(ahead) = ahead {
            for v in 0..V {
                let line = ahead[strip].wrapping_add(at + v * LANES * P::PAIRED);
                lanes.prefetch(line.cast());
                if P::PAIRED == 1 {
                    lanes.prefetch(line.wrapping_add(head_dim).cast());
                }
            }
        }
        // SAFETY: the caller's promise for these positions, which are those of a chunk; `Products::weights` left a pair of weights for each
        // two of them.
        unsafe { products.add(&mut sums, weights.add(first / 2), stride, pair, head_dim, Which::Both) };
        first += 2;
    }
    if first < end && start < end {
        let (strip, at) = (first / STRIP_TOKENS, first % STRIP_TOKENS * head_dim);
        for v in 0..V {
            pair[v] = values[strip].wrapping_add(at + v * LANES * P::PAIRED);
        }
        // SAFETY: as above.
        unsafe { products.add(&mut sums, weights.add(first / 2), stride, pair, head_dim, Which::First) };
    }
    for i in 0..Q {
        for v in 0..V {
            lanes.write(&mut mixed[i * mixed_stride + v * LANES..][..LANES], 0, sums[i][v]);
        }
    }
}
