//! Register tiles of attention: some queries against strips of positions, and some queries' mixtures of values.
//!
//! Loops instead of closures, also where an array is filled: what the compiler does not inline it compiles without the instruction set
//! (`array::map` and `array::from_fn` once made attention three times slower).

use std::ops::Range;

use crate::kv::{KvElement, STRIP_TOKENS};
use crate::lanes::{LANES, Lanes};

use super::CHUNK_TOKENS;

/// Scores of one query against the positions of a chunk, then their exponentials.
pub(super) type Scores = [f32; CHUNK_TOKENS];

/// `scores[i][first + 16 * s + lane] = sum over d of queries[d][i] * keys of strip s [d][lane]`, `d` one after the other.
///
/// Asks for the strips `ahead` meanwhile, a line of keys and one of values with each pair of dimensions: asked for at once they would
/// fill the queue of outstanding lines and everything would wait for it.
///
/// # Safety
/// `queries` leads to `head_dim * Q` floats; `strips` to whole strips; `first` is whole strips before the end of `scores`.
#[inline(always)]
pub(super) unsafe fn score_strips<L: Lanes, T: KvElement, const Q: usize, const S: usize>(
    isa: L,
    queries: *const f32,
    head_dim: usize,
    strips: [*const T; S],
    ahead: [*const T; S],
    first: usize,
    scores: &mut [Scores],
) {
    let mut sums = [[isa.splat(0.0); S]; Q];
    let values = head_dim.next_multiple_of(2) * STRIP_TOKENS;
    for d in (0..head_dim).step_by(2) {
        let at = d * STRIP_TOKENS;
        for s in 0..S {
            isa.prefetch(ahead[s].wrapping_add(at).cast());
            isa.prefetch(ahead[s].wrapping_add(values + at).cast());
        }
        let mut keys = [(isa.splat(0.0), isa.splat(0.0)); S];
        for s in 0..S {
            // SAFETY: a strip has keys for an even number of dimensions.
            keys[s] = unsafe { T::load_pair(isa, strips[s].add(at), STRIP_TOKENS) };
        }
        for i in 0..Q {
            // SAFETY: `d < head_dim`.
            let q = isa.splat(unsafe { *queries.add(d * Q + i) });
            for s in 0..S {
                sums[i][s] = isa.fma(q, keys[s].0, sums[i][s]);
            }
        }
        if d + 1 < head_dim {
            for i in 0..Q {
                // SAFETY: `d + 1 < head_dim`.
                let q = isa.splat(unsafe { *queries.add((d + 1) * Q + i) });
                for s in 0..S {
                    sums[i][s] = isa.fma(q, keys[s].1, sums[i][s]);
                }
            }
        }
    }
    for i in 0..Q {
        for s in 0..S {
            isa.write(&mut scores[i][first + s * STRIP_TOKENS..][..STRIP_TOKENS], 0, sums[i][s]);
        }
    }
}

/// `mixed[i][..] = corrections[i] * mixed[i][..] + sum over positions of weights[i][position] * values[position][..]` for `Q` queries and `V`
/// vectors, `positions` of the chunk one after the other.
///
/// `values` are those of each strip from the first of these dimensions on; `strides` is `head_dim` and the floats from one query's `mixed`
/// to the next's.
///
/// # Safety
/// `positions` lie in a chunk; `values` covers them and, of each strip, a further `16 * V` elements after those of the last position are readable.
#[inline(always)]
pub(super) unsafe fn mix_strips<L: Lanes, T: KvElement, const Q: usize, const V: usize>(
    isa: L,
    weights: &[Scores],
    corrections: &[f32],
    values: &[*const T],
    positions: Range<usize>,
    strides: (usize, usize),
    mixed: &mut [f32],
) {
    let (head_dim, mixed_stride) = strides;
    let mut sums = [[isa.splat(0.0); V]; Q];
    for i in 0..Q {
        for v in 0..V {
            let before = isa.read(&mixed[i * mixed_stride + v * LANES..][..LANES], 0);
            sums[i][v] = isa.mul(before, isa.splat(corrections[i]));
        }
    }
    let weights = &weights[..Q];
    let mut position = positions.start;
    while position < positions.end {
        // The pair of positions that it belongs to, of which the first or the second may lie outside.
        let first = position & !1;
        let (has_first, has_second) = (position == first, first + 1 < positions.end);
        let mut pair = [(isa.splat(0.0), isa.splat(0.0)); V];
        for v in 0..V {
            let at = first % STRIP_TOKENS * head_dim + v * LANES * T::PAIRED;
            // SAFETY: the caller's promise for these positions.
            pair[v] = unsafe { T::load_pair(isa, values[first / STRIP_TOKENS].add(at), head_dim) };
        }
        if has_first {
            for i in 0..Q {
                // SAFETY: positions are those of a chunk.
                let weight = isa.splat(unsafe { *weights.get_unchecked(i).get_unchecked(first) });
                for v in 0..V {
                    sums[i][v] = isa.fma(weight, pair[v].0, sums[i][v]);
                }
            }
        }
        if has_second {
            for i in 0..Q {
                // SAFETY: as above.
                let weight = isa.splat(unsafe { *weights.get_unchecked(i).get_unchecked(first + 1) });
                for v in 0..V {
                    sums[i][v] = isa.fma(weight, pair[v].1, sums[i][v]);
                }
            }
        }
        position = first + 2;
    }
    for i in 0..Q {
        for v in 0..V {
            isa.write(&mut mixed[i * mixed_stride + v * LANES..][..LANES], 0, sums[i][v]);
        }
    }
}
