//! The linear on AVX-512 BF16: rows are rounded to bf16 once, then pairs of products are summed by the instruction.

use std::arch::x86_64::*;

use half::bf16;

use super::pack::{PANEL, panel_len};
use super::{Linear, Place, Units, ZEROS};
use crate::buffer::Buffer;
use crate::isa::{Avx512Bf16, Bf16Kernel};
use crate::lanes::{LANES, Lanes};
use crate::pool::{Pool, SharedMut};
use crate::scratch::Scratches;

/// Pairs of input features that all rows of a unit pass over before the next come: 128 KiB of the panel.
const BLOCK_PAIRS: usize = 512;

/// Vectors in a panel.
const VECTORS: usize = PANEL / LANES;

/// Computes `out`; sizes were checked by [`super::linear`].
pub(super) fn linear(
    isa: Avx512Bf16,
    pool: &Pool,
    scratches: &Scratches,
    args: &Linear<'_>,
    panels: &Buffer<bf16>,
    out: SharedMut<'_, f32>,
) {
    let k = args.weights.in_features;
    let pairs = k.div_ceil(2);
    let mut shared = scratches.shared();
    let rounded = shared.pairs(args.num_rows * pairs);
    let round_row = |row: usize, rounded: &mut [u32]| {
        for (pair, x) in rounded.iter_mut().zip(args.x[row * k..][..k].chunks(2)) {
            let even = u32::from(bf16::from_f32(x[0]).to_bits());
            let odd = x.get(1).map_or(0, |&x| u32::from(bf16::from_f32(x).to_bits()));
            *pair = odd << 16 | even;
        }
    };
    if args.num_rows <= 4 {
        rounded.chunks_mut(pairs).enumerate().for_each(|(row, rounded)| round_row(row, rounded));
    } else {
        pool.run_pieces(rounded, pairs, |_, row, rounded| round_row(row, rounded));
    }

    let rounded: &[u32] = rounded;
    let units = Units::new(pool.threads(), args.num_rows, args.weights.out_features);
    pool.run(units.count(), |_, unit| {
        isa.run(Unit { args, pairs, rounded, panels: panels.as_slice(), place: units.place(unit), out });
    });
}

struct Unit<'a> {
    args: &'a Linear<'a>,
    pairs: usize,
    /// `[rows][pairs]`, the feature with the even index in the lower half.
    rounded: &'a [u32],
    panels: &'a [bf16],
    place: Place,
    out: SharedMut<'a, f32>,
}

/// As [`super::tile::TileArgs`], in pairs.
#[derive(Clone, Copy)]
struct PairTile {
    x: *const u32,
    x_stride: usize,
    weights: *const bf16,
    pairs: usize,
    start: *const f32,
    start_stride: usize,
    out: *mut f32,
    out_stride: usize,
    columns: usize,
}

impl Bf16Kernel for Unit<'_> {
    #[inline(always)]
    fn run(self, isa: Avx512Bf16) {
        let Place { panel, columns, rows } = self.place;
        let (n, panel_len) = (self.args.weights.out_features, panel_len(self.args.weights.in_features));
        let weights = self.panels[panel * panel_len..][..panel_len].as_ptr();
        let first_column = panel * PANEL;
        let bias = match self.args.bias {
            Some(bias) => bias[first_column..first_column + columns].as_ptr(),
            None => ZEROS.as_ptr(),
        };
        for first_pair in (0..self.pairs).step_by(BLOCK_PAIRS) {
            let pairs = BLOCK_PAIRS.min(self.pairs - first_pair);
            for first_row in rows.clone().step_by(6) {
                // SAFETY: this unit alone writes these rows of these columns, through this pointer only.
                let out = unsafe { self.out.at(first_row * n + first_column) };
                let (start, start_stride) = if first_pair == 0 { (bias, 0) } else { (out.cast_const(), n) };
                let tile = PairTile {
                    x: self.rounded[first_row * self.pairs + first_pair..].as_ptr(),
                    x_stride: self.pairs,
                    weights: weights.wrapping_add(first_pair * 2 * PANEL),
                    pairs,
                    start,
                    start_stride,
                    out,
                    out_stride: n,
                    columns,
                };
                // SAFETY: as many rows as remain, at most six; `pairs` pairs of each row and of the panel; the panel's columns.
                unsafe {
                    match rows.end - first_row {
                        1 => pair_tile::<1>(isa, tile),
                        2 => pair_tile::<2>(isa, tile),
                        3 => pair_tile::<3>(isa, tile),
                        4 => pair_tile::<4>(isa, tile),
                        5 => pair_tile::<5>(isa, tile),
                        _ => pair_tile::<6>(isa, tile),
                    }
                }
            }
        }
    }
}

/// `R` rows times one panel.
///
/// # Safety
/// As [`super::tile::tile`], with `pairs` pairs in place of `k` features.
#[inline(always)]
unsafe fn pair_tile<const R: usize>(isa: Avx512Bf16, tile: PairTile) {
    let lanes = isa.avx512();
    let left = |c: usize| tile.columns.saturating_sub(c * LANES).min(LANES);
    let mut sums = [[lanes.splat(0.0); VECTORS]; R];
    for r in 0..R {
        for c in 0..VECTORS {
            // SAFETY: `left(c)` elements exist at this place, by the caller's promise.
            sums[r][c] =
                unsafe { lanes.load_first(tile.start.wrapping_add(r * tile.start_stride + c * LANES), left(c)) };
        }
    }
    for pair in 0..tile.pairs {
        for r in 0..R {
            // SAFETY: row `r` has `pairs` pairs.
            let x = unsafe { *tile.x.add(r * tile.x_stride + pair) };
            for c in 0..VECTORS {
                // SAFETY: `isa` proves AVX-512 BF16; the panel has this pair, 16 columns of it are one register.
                // A register of pairs is the same bits whether it counts as 16 integers or as 32 bf16.
                sums[r][c] = unsafe {
                    let weights = _mm512_loadu_si512(tile.weights.add((pair * PANEL + c * LANES) * 2).cast());
                    let x = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(x as i32));
                    _mm512_dpbf16_ps(sums[r][c], x, std::mem::transmute::<__m512i, __m512bh>(weights))
                };
            }
        }
    }
    for r in 0..R {
        for c in 0..VECTORS {
            // SAFETY: `left(c)` elements exist at this place and nobody else writes them, by the caller's promise.
            unsafe {
                lanes.store_first(tile.out.wrapping_add(r * tile.out_stride + c * LANES), left(c), sums[r][c]);
            }
        }
    }
}
