//! `out = x * w^T + bias`: blocking over rows, output features and `k`.
//!
//! Output features lie in lanes; each output element is one chain of fused multiply-adds in the order of `k`, begun with the bias.
//! Cutting rows, columns or `k` (sums then rest in `out` as the same f32) changes no bit, so a row's result depends on nothing but
//! the row; and it is the same on every instruction set but AVX-512 BF16, which rounds rows to bf16 and adds products in pairs
//! (the same pairs for any number of rows).
//!
//! A unit of work is one panel of 64 output features times some rows:
//!
//! - up to [`MAX_DIRECT_ROWS`] rows, weights are widened to f32 in registers on their way: with few rows the kernel runs at the speed of
//!   memory;
//! - with more rows, [`BLOCK_K`] input features of the panel at a time are widened into a buffer that stays in a near cache,
//!   and all rows pass over it, six at a time.
//!
//! Versions, on one core of a Cascade Lake Xeon at 2.5 GHz while other work kept both cores busy (bf16, 2048 x 2048, 8 and 128 rows;
//! a core alone does 154 GFLOP/s in registers):
//!
//! | version | 8 rows | 128 rows |
//! | --- | --- | --- |
//! | widened blocks from 5 rows on, `k` by 128 | 42 GFLOP/s | 103 GFLOP/s |
//! | `k` by 64 or 256 instead | within the noise | within the noise |
//! | up to 12 rows straight from the panel, four at a time | 64 GFLOP/s | as before |
//!
//! With one row all of them read at the speed of memory (`examples/linear_speed.rs`).

mod bf16;
mod pack;
mod tile;

use crate::isa::{Isa, Kernel};
use crate::lanes::{LANES, Lanes};
use crate::pool::{Pool, SharedMut};
use crate::scratch::Scratches;

pub use pack::PackedLinear;
pub(crate) use pack::{Element, PANEL, Panels, panel_len};
use tile::{PanelElement, TileArgs, tile};

/// Rows for which weights are widened in registers, without a buffer.
const MAX_DIRECT_ROWS: usize = 12;

/// Rows of the largest register tile that widens weights itself.
const DIRECT_TILE_ROWS: usize = 4;

/// Input features that all rows of a unit pass over before the next come; even. 256 of them are 32 KiB of a 16-bit panel, 64 KiB
/// widened.
const BLOCK_K: usize = 256;

/// Rows of the largest register tile on widened weights.
const BLOCK_TILE_ROWS: usize = 6;

/// Fewest rows that are worth widening a block again for.
const MIN_UNIT_ROWS: usize = 96;

/// A linear's operands. `x` is `[rows, in]`, `out` `[rows, out]`, `bias` `[out]`.
pub(crate) struct Linear<'a> {
    pub x: &'a [f32],
    pub weights: &'a PackedLinear,
    pub bias: Option<&'a [f32]>,
    pub num_rows: usize,
}

/// Computes `out`. Panics when sizes do not fit together.
pub(crate) fn linear(isa: Isa, pool: &Pool, scratches: &Scratches, args: &Linear<'_>, out: &mut [f32]) {
    let (k, n) = (args.weights.in_features, args.weights.out_features);
    assert_eq!(args.x.len(), args.num_rows * k, "rows of a linear have {k} columns");
    assert_eq!(out.len(), args.num_rows * n, "results of a linear have {n} columns");
    assert!(args.bias.is_none_or(|bias| bias.len() == n), "the bias of a linear has {n} elements");

    let out = SharedMut::new(out);
    if let (Isa::Avx512Bf16(isa), Panels::Bf16(panels)) = (isa, &args.weights.panels) {
        return bf16::linear(isa, pool, scratches, args, panels, out);
    }
    let units = Units::new(pool.threads(), args.num_rows, n);
    scratches.reserve_floats(BLOCK_K * PANEL);
    pool.run(units.count(), |worker, unit| {
        let mut scratch = scratches.of(worker);
        let block = scratch.floats(BLOCK_K * PANEL);
        isa.run(Unit { args, place: units.place(unit), block, out });
    });
}

/// How a product is cut: panels, each by pieces of rows.
struct Units {
    num_rows: usize,
    out_features: usize,
    num_panels: usize,
    rows_per_unit: usize,
}

/// Output that one unit computes.
struct Place {
    panel: usize,
    /// Columns of the panel that exist.
    columns: usize,
    rows: std::ops::Range<usize>,
}

impl Units {
    /// Rows are cut only where panels alone would not keep all threads busy to the end.
    fn new(threads: usize, num_rows: usize, out_features: usize) -> Self {
        let num_panels = out_features.div_ceil(PANEL);
        let wanted_cuts = (4 * threads).div_ceil(num_panels).min(num_rows.div_ceil(MIN_UNIT_ROWS)).max(1);
        let rows_per_unit = if threads == 1 { num_rows } else { num_rows.div_ceil(wanted_cuts) };
        Self { num_rows, out_features, num_panels, rows_per_unit: rows_per_unit.max(1) }
    }

    fn count(&self) -> usize {
        self.num_panels * self.num_rows.div_ceil(self.rows_per_unit)
    }

    fn place(&self, unit: usize) -> Place {
        let (panel, first_row) = (unit % self.num_panels, unit / self.num_panels * self.rows_per_unit);
        Place {
            panel,
            columns: PANEL.min(self.out_features - panel * PANEL),
            rows: first_row..self.num_rows.min(first_row + self.rows_per_unit),
        }
    }
}

/// What sums begin with where there is no bias.
static ZEROS: [f32; PANEL] = [0.0; PANEL];

struct Unit<'a> {
    args: &'a Linear<'a>,
    place: Place,
    /// Room for a widened block.
    block: &'a mut [f32],
    out: SharedMut<'a, f32>,
}

impl Kernel for Unit<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, isa: L) {
        match &self.args.weights.panels {
            Panels::F32(panels) => self.run_on(isa, panels.as_slice()),
            Panels::F16(panels) => self.run_on(isa, panels.as_slice()),
            Panels::Bf16(panels) => self.run_on(isa, panels.as_slice()),
        }
    }
}

impl Unit<'_> {
    #[inline(always)]
    fn run_on<L: Lanes, T: PanelElement>(self, isa: L, panels: &[T]) {
        let Place { panel, columns, rows } = self.place;
        let (k, n) = (self.args.weights.in_features, self.args.weights.out_features);
        let panel_len = panel_len(k);
        let weights = panels[panel * panel_len..][..panel_len].as_ptr();
        let first_column = panel * PANEL;
        let bias = match self.args.bias {
            Some(bias) => bias[first_column..first_column + columns].as_ptr(),
            None => ZEROS.as_ptr(),
        };
        let x = |row: usize, first_k: usize| self.args.x[row * k + first_k..].as_ptr();
        // SAFETY: this unit alone reads and writes these rows of these columns, through these pointers only.
        let out = |row: usize| unsafe { self.out.at(row * n + first_column) };

        let direct = rows.len() <= MAX_DIRECT_ROWS;
        let tile_rows = if direct { DIRECT_TILE_ROWS } else { BLOCK_TILE_ROWS };
        // With one tile of rows, sums stay in their registers from end to end.
        let stretch = if rows.len() <= DIRECT_TILE_ROWS { k.next_multiple_of(2) } else { BLOCK_K };
        for first_k in (0..k).step_by(stretch) {
            let block_k = stretch.min(k - first_k);
            // A stretch is even, so in every layout this is where it begins.
            let narrow = weights.wrapping_add(first_k * PANEL);
            let wide = match direct {
                true => std::ptr::null(),
                // SAFETY: the panel holds `block_k` features from here on.
                false => unsafe { T::block(isa, narrow, block_k, self.block) },
            };
            for first_row in rows.clone().step_by(tile_rows) {
                let out = out(first_row);
                let (start, start_stride) = if first_k == 0 { (bias, 0) } else { (out.cast_const(), n) };
                let args = TileArgs {
                    x: x(first_row, first_k),
                    x_stride: k,
                    weights: narrow,
                    k: block_k,
                    start,
                    start_stride,
                    out,
                    out_stride: n,
                    columns,
                    ahead: std::ptr::null(),
                };
                let num_rows = tile_rows.min(rows.end - first_row);
                if direct {
                    // SAFETY: so many rows from `first_row` on, `block_k` features of each and of the panel.
                    unsafe { direct_rows(isa, num_rows, args) };
                } else {
                    let ahead = narrow.wrapping_add(block_k * PANEL).cast();
                    // SAFETY: as above, with the block in f32.
                    unsafe { block_rows(isa, num_rows, args.on(wide, ahead)) };
                }
            }
        }
    }
}

/// One to [`DIRECT_TILE_ROWS`] rows over a stretch of a panel as it is.
///
/// # Safety
/// As [`tile`], for `num_rows` rows and a whole panel.
#[inline(always)]
unsafe fn direct_rows<L: Lanes, T: PanelElement>(isa: L, num_rows: usize, args: TileArgs<T>) {
    // SAFETY: the caller's promise, passed on; a panel is four vectors wide.
    unsafe {
        if L::TILES.wide {
            match num_rows {
                1 => panel_tiles::<L, T, 1, 4>(isa, args),
                2 => panel_tiles::<L, T, 2, 4>(isa, args),
                3 => panel_tiles::<L, T, 3, 4>(isa, args),
                _ => panel_tiles::<L, T, 4, 4>(isa, args),
            }
        } else if L::TILES.vectors {
            match num_rows {
                1 => panel_tiles::<L, T, 1, 4>(isa, args),
                2 => panel_tiles::<L, T, 2, 2>(isa, args),
                3 => panel_tiles::<L, T, 3, 1>(isa, args),
                _ => panel_tiles::<L, T, 4, 1>(isa, args),
            }
        } else {
            for row in 0..num_rows {
                panel_tiles::<L, T, 1, 1>(isa, args.at_row(row));
            }
        }
    }
}

/// One to [`BLOCK_TILE_ROWS`] rows over a block in f32.
///
/// # Safety
/// As [`tile`], for `num_rows` rows and a whole panel.
#[inline(always)]
unsafe fn block_rows<L: Lanes>(isa: L, num_rows: usize, args: TileArgs<f32>) {
    // SAFETY: the caller's promise, passed on; an odd number of rows is an even one and one.
    unsafe {
        if L::TILES.wide {
            match num_rows {
                6 => panel_tiles::<L, f32, 6, 4>(isa, args),
                4 | 5 => panel_tiles::<L, f32, 4, 4>(isa, args),
                2 | 3 => panel_tiles::<L, f32, 2, 4>(isa, args),
                _ => {}
            }
            if num_rows % 2 == 1 {
                panel_tiles::<L, f32, 1, 4>(isa, args.at_row(num_rows - 1));
            }
        } else if L::TILES.vectors {
            match num_rows {
                6 => panel_tiles::<L, f32, 6, 1>(isa, args),
                4 | 5 => panel_tiles::<L, f32, 4, 1>(isa, args),
                2 | 3 => panel_tiles::<L, f32, 2, 2>(isa, args),
                _ => {}
            }
            if num_rows % 2 == 1 {
                panel_tiles::<L, f32, 1, 4>(isa, args.at_row(num_rows - 1));
            }
        } else {
            for row in 0..num_rows {
                panel_tiles::<L, f32, 1, 1>(isa, args.at_row(row));
            }
        }
    }
}

/// The tiles beside each other that make a panel.
///
/// # Safety
/// As [`tile`], for `R` rows and a whole panel.
#[inline(always)]
unsafe fn panel_tiles<L: Lanes, T: PanelElement, const R: usize, const C: usize>(isa: L, args: TileArgs<T>) {
    for first in (0..args.columns).step_by(C * LANES) {
        let args = TileArgs {
            weights: args.weights.wrapping_add(T::offset(0, first)),
            start: args.start.wrapping_add(first),
            out: args.out.wrapping_add(first),
            columns: (args.columns - first).min(C * LANES),
            ..args
        };
        // SAFETY: the caller's promise for the panel holds for its part.
        unsafe { tile::<L, T, R, C>(isa, args) };
    }
}
