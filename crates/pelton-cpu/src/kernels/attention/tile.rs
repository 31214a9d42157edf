//! Register tiles of attention: some queries against one vector of positions, and some queries' mixtures of values.

use std::ops::Range;

use crate::kv::KvElement;
use crate::lanes::{LANES, Lanes};

use super::MAX_QUERIES;

/// `scores[i * stride + lane] = scale * sum over d of q[i][d] * keys[d * block_tokens + lane]` for the first `Q` queries.
///
/// Even and odd `d` are summed apart and then added, for any `Q`: one chain alone would wait for itself. `shape` is
/// `(head_dim, block_tokens, stride)`.
///
/// # Safety
/// The first `Q` pointers of `q` lead to `head_dim` elements; 16 elements are readable at each `keys + d * block_tokens`.
#[inline(always)]
pub(super) unsafe fn score_block<L: Lanes, T: KvElement, const Q: usize>(
    isa: L,
    q: &[*const f32; MAX_QUERIES],
    keys: *const T,
    shape: (usize, usize, usize),
    scale: f32,
    scores: &mut [f32],
) {
    let (head_dim, block_tokens, stride) = shape;
    let mut even = [isa.splat(0.0); Q];
    let mut odd = [isa.splat(0.0); Q];
    for pair in 0..head_dim / 2 {
        let d = 2 * pair;
        // SAFETY: `d + 1 < head_dim`.
        let (first, second) =
            unsafe { (T::load(isa, keys.add(d * block_tokens)), T::load(isa, keys.add((d + 1) * block_tokens))) };
        for i in 0..Q {
            // SAFETY: query `i` has `head_dim` elements.
            let (a, b) = unsafe { (*q[i].add(d), *q[i].add(d + 1)) };
            even[i] = isa.fma(isa.splat(a), first, even[i]);
            odd[i] = isa.fma(isa.splat(b), second, odd[i]);
        }
    }
    if head_dim % 2 == 1 {
        let d = head_dim - 1;
        // SAFETY: `d < head_dim`.
        let last = unsafe { T::load(isa, keys.add(d * block_tokens)) };
        for i in 0..Q {
            // SAFETY: query `i` has `head_dim` elements.
            even[i] = isa.fma(isa.splat(unsafe { *q[i].add(d) }), last, even[i]);
        }
    }
    for i in 0..Q {
        let score = isa.mul(isa.add(even[i], odd[i]), isa.splat(scale));
        isa.write(&mut scores[i * stride..][..LANES], 0, score);
    }
}

/// `mixed[i][..] += weights[i][position] * values[position][..]` for `Q` queries, `V` vectors and `positions` one after the other.
///
/// `strides` are those of `weights` by query, `values` by position and `mixed` by query.
///
/// # Safety
/// `16 * V` elements are readable at each `values + position * stride`.
#[inline(always)]
pub(super) unsafe fn mix_chunk<L: Lanes, T: KvElement, const Q: usize, const V: usize>(
    isa: L,
    weights: &[f32],
    values: *const T,
    positions: Range<usize>,
    strides: (usize, usize, usize),
    mixed: &mut [f32],
) {
    let (weight_stride, value_stride, mixed_stride) = strides;
    let weights: [&[f32]; Q] = std::array::from_fn(|i| &weights[i * weight_stride..][..positions.end]);
    let mut sums = [[isa.splat(0.0); V]; Q];
    for i in 0..Q {
        for v in 0..V {
            sums[i][v] = isa.read(&mixed[i * mixed_stride + v * LANES..][..LANES], 0);
        }
    }
    for position in positions {
        let mut row = [isa.splat(0.0); V];
        for (v, row) in row.iter_mut().enumerate() {
            // SAFETY: the caller's promise for this position.
            *row = unsafe { T::load(isa, values.add(position * value_stride + v * LANES)) };
        }
        for i in 0..Q {
            let weight = isa.splat(weights[i][position]);
            for v in 0..V {
                sums[i][v] = isa.fma(weight, row[v], sums[i][v]);
            }
        }
    }
    for i in 0..Q {
        for v in 0..V {
            isa.write(&mut mixed[i * mixed_stride + v * LANES..][..LANES], 0, sums[i][v]);
        }
    }
}
