//! The register tile: a few rows times a few vectors of output features, summed over `k` one after the other.

use half::{bf16, f16};

use super::pack::{Element, PANEL};
use crate::lanes::{CACHE_LINE, LANES, Lanes};

/// Where a tile reads and writes.
pub(super) struct TileArgs<T> {
    /// A tile of rows as [`super::rows`] lays them out, at the first input feature of this stretch of `k`.
    pub x: *const f32,
    /// Rows laid out side by side.
    pub x_stride: usize,
    /// The panel at this stretch of `k`, at the tile's first column.
    pub weights: *const T,
    /// Input features of this stretch.
    pub k: usize,
    /// What the sums begin with: bias (stride 0), zeros (stride 0) or the sums so far.
    pub start: *const f32,
    pub start_stride: usize,
    pub out: *mut f32,
    pub out_stride: usize,
    /// Rows that exist, at most those of the tile; the others are computed on leftovers and not written.
    pub rows: usize,
    /// Columns that exist, likewise.
    pub columns: usize,
    /// Bytes ahead of the weights that are asked for meanwhile, or 0.
    pub ahead: usize,
}

impl<T> Clone for TileArgs<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for TileArgs<T> {}

impl<T> TileArgs<T> {
    /// The same for one row, number `row`.
    #[inline(always)]
    pub fn row(self, row: usize) -> Self {
        Self {
            x: self.x.wrapping_add(row),
            start: self.start.wrapping_add(row * self.start_stride),
            out: self.out.wrapping_add(row * self.out_stride),
            rows: 1,
            ..self
        }
    }
}

/// How an element type's panel is read two input features at a time, one after the other: both at once would not fit the registers of narrow
/// instruction sets.
pub(super) trait PanelElement: Element {
    /// Weights of 16 columns for input feature `2 * pair`.
    ///
    /// # Safety
    /// `p` points to a panel (at a column that is a multiple of 16 and at an even input feature) with at least `pair + 1` pairs.
    unsafe fn load_even<L: Lanes>(isa: L, p: *const Self, pair: usize) -> L::V;

    /// For input feature `2 * pair + 1`.
    ///
    /// # Safety
    /// As for [`PanelElement::load_even`].
    unsafe fn load_odd<L: Lanes>(isa: L, p: *const Self, pair: usize) -> L::V;
}

impl PanelElement for f32 {
    #[inline(always)]
    unsafe fn load_even<L: Lanes>(isa: L, p: *const f32, pair: usize) -> L::V {
        // SAFETY: the feature is in the panel, by the caller's promise.
        unsafe { isa.load(p.add(2 * pair * PANEL)) }
    }

    #[inline(always)]
    unsafe fn load_odd<L: Lanes>(isa: L, p: *const f32, pair: usize) -> L::V {
        // SAFETY: as above.
        unsafe { isa.load(p.add((2 * pair + 1) * PANEL)) }
    }
}

impl PanelElement for f16 {
    #[inline(always)]
    unsafe fn load_even<L: Lanes>(isa: L, p: *const f16, pair: usize) -> L::V {
        // SAFETY: the feature is in the panel, by the caller's promise.
        unsafe { isa.load_f16(p.add(2 * pair * PANEL)) }
    }

    #[inline(always)]
    unsafe fn load_odd<L: Lanes>(isa: L, p: *const f16, pair: usize) -> L::V {
        // SAFETY: as above.
        unsafe { isa.load_f16(p.add((2 * pair + 1) * PANEL)) }
    }
}

impl PanelElement for bf16 {
    #[inline(always)]
    unsafe fn load_even<L: Lanes>(isa: L, p: *const bf16, pair: usize) -> L::V {
        // SAFETY: the pair is in the panel, by the caller's promise.
        unsafe { isa.load_bf16_first(p.add(2 * pair * PANEL)) }
    }

    #[inline(always)]
    unsafe fn load_odd<L: Lanes>(isa: L, p: *const bf16, pair: usize) -> L::V {
        // SAFETY: as above.
        unsafe { isa.load_bf16_second(p.add(2 * pair * PANEL)) }
    }
}

/// `out[r][c] = start[r][c] + sum over k of x[r][k] * weights[k][c]` for `R` rows and `16 * C` columns, each sum in the order of `k`,
/// each product fused with its addition.
///
/// # Safety
/// `args` describes `R` readable rows of `k` elements in `x`; `k` (rounded up to even) input features of the panel; `rows` rows of
/// `columns` elements in `start` (readable) and `out` (writable, written by nobody else). Zero rows of `start_stride` may coincide.
#[inline(always)]
pub(super) unsafe fn tile<L: Lanes, T: PanelElement, const R: usize, const C: usize>(isa: L, args: TileArgs<T>) {
    let TileArgs { x, x_stride, weights, k, start, start_stride, out, out_stride, rows, columns, ahead } = args;
    let mut sums = [[isa.splat(0.0); C]; R];
    let whole = columns == C * LANES;
    for r in 0..R {
        for c in 0..C {
            let left = if r < rows { columns.saturating_sub(c * LANES).min(LANES) } else { 0 };
            // SAFETY: `left` elements exist at this place, 16 when the tile is whole.
            sums[r][c] = unsafe {
                let p = start.wrapping_add(r * start_stride + c * LANES);
                if whole && r < rows { isa.load(p) } else { isa.load_first(p, left) }
            };
        }
    }
    // SAFETY: where it is called, row `r < R` is in the tile and `k` within this stretch.
    let x_at = |r: usize, k: usize| unsafe { *x.add(k * x_stride + r) };
    for pair in 0..k / 2 {
        if ahead > 0 {
            let wanted = weights.wrapping_add(2 * pair * PANEL).wrapping_byte_add(ahead);
            for line in (0..2 * PANEL * size_of::<T>()).step_by(CACHE_LINE) {
                isa.prefetch(wanted.wrapping_byte_add(line).cast());
            }
        }
        let mut columns = [isa.splat(0.0); C];
        for c in 0..C {
            // SAFETY: `pair` is within this stretch of the panel.
            columns[c] = unsafe { T::load_even(isa, weights.add(T::offset(0, c * LANES)), pair) };
        }
        for r in 0..R {
            let value = isa.splat(x_at(r, 2 * pair));
            for c in 0..C {
                sums[r][c] = isa.fma(value, columns[c], sums[r][c]);
            }
        }
        for c in 0..C {
            // SAFETY: as above.
            columns[c] = unsafe { T::load_odd(isa, weights.add(T::offset(0, c * LANES)), pair) };
        }
        for r in 0..R {
            let value = isa.splat(x_at(r, 2 * pair + 1));
            for c in 0..C {
                sums[r][c] = isa.fma(value, columns[c], sums[r][c]);
            }
        }
    }
    if k % 2 == 1 {
        for c in 0..C {
            // SAFETY: the panel has this last feature.
            let even = unsafe { T::load_even(isa, weights.add(T::offset(0, c * LANES)), k / 2) };
            for r in 0..R {
                sums[r][c] = isa.fma(isa.splat(x_at(r, k - 1)), even, sums[r][c]);
            }
        }
    }
    for r in 0..R {
        if r == rows {
            break;
        }
        for c in 0..C {
            let left = columns.saturating_sub(c * LANES).min(LANES);
            let p = out.wrapping_add(r * out_stride + c * LANES);
            // SAFETY: `left` elements exist at this place, 16 when the tile is whole.
            unsafe { if whole { isa.store(p, sums[r][c]) } else { isa.store_first(p, left, sums[r][c]) } }
        }
    }
}
