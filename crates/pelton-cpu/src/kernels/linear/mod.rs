//! `out = x * w^T + bias`: blocking over rows, output features and `k`.
//!
//! Output features lie in lanes; each output element is one chain of fused multiply-adds in the order of `k`, begun with the bias.
//! Cutting rows, columns or `k` (sums then rest in `out` as the same f32) changes no bit, so a row's result depends on nothing but
//! the row; and it is the same on every instruction set but AVX-512 BF16 and AMX ([`mod@amx`]), which round rows to bf16 and add products in an
//! order of their own (the same for any number of rows). Weights in integers have arithmetic of their own ([`int8`], [`grouped`]).
//!
//! A unit of work is some panels of 32 output features times a chunk of rows:
//!
//! - rows that fit one register tile pass over each panel once, from end to end of `k`, with their sums in registers: the kernel runs
//!   at the speed of memory;
//! - of more rows, all tiles of a chunk pass over [`BLOCK_K`] input features of a panel, which stay in a near cache, before the next
//!   come.
//!
//! What was tried on two cores of a Cascade Lake Xeon (2.5 GHz, 307 GFLOP/s in registers while neighbours are quiet), bf16,
//! `[5632, 2048]`, versions taking turns in one run, median and best tenth in GFLOP/s:
//!
//! | version | 48 rows | 128 rows | 512 rows |
//! | --- | --- | --- | --- |
//! | panels of 32, tiles of 12 rows, widened, chunks of 192 rows | 125 / 161 | 136 / 173 | 168 / 173 |
//! | the same, chunks of 96 rows | 125 / 162 | 138 / 171 | 146 / 180 |
//! | not widened but converted in registers, chunks of 192 rows | 136 / 169 | 138 / 186 | 152 / 186 |
//! | the same, chunks of 96 rows | 137 / 171 | 148 / 180 | 156 / 196 |
//! | the same, blocks of 512 features | 133 / 163 | 146 / 180 | 153 / 187 |
//!
//! Converting costs 4 of 52 vector instructions of a step, in most cases less than the widened block costs the caches. How `k` is cut
//! matters little: blocks of 256, 512, 1024 and all of `k`, chunks of 24 to 192 rows lie within 11 % of each other at 128 and 256 rows; at 32
//! rows 512 and 96 are ahead, of all of `k` by 5 to 17 %.

mod adapters;
mod amx;
mod bf16;
mod grouped;
mod int8;
mod pack;
mod rows;
mod tile;
mod words;

use crate::isa::{Isa, Kernel};
use crate::lanes::{LANES, Lanes, Tiles};
use crate::pool::{Pool, SharedMut};
use crate::scratch::Scratches;

pub use adapters::PackedAdapters;
pub(crate) use adapters::{Adapt, adapt};
pub(crate) use grouped::GroupedPanels;
pub use pack::PackedLinear;
pub(crate) use pack::{Element, Int8Panels, PANEL, Panels, panel_len};
use tile::{PanelElement, TileArgs, tile};

/// Input features of a panel that all tiles of a chunk pass over before the next come; even. 32 KiB of a 16-bit panel.
const BLOCK_K: usize = 512;

/// Rows of a chunk: with [`BLOCK_K`] features they are 192 KiB, which stay in the second cache.
const CHUNK_ROWS: usize = 96;

/// Rows that are laid out at once; it bounds working memory. More are computed in several passes over the weights.
const PASS_ROWS: usize = 8 * CHUNK_ROWS;

/// Bytes that are asked for ahead of where a panel is read. Less is too late, more gains nothing: with 4 to 12 rows the kernel takes
/// 1.2 to 1.3 times as long without (int8: 1.1 to 1.25 times), 1.03 to 1.09 times with 1 KiB, as long with 8 KiB.
const AHEAD: usize = 4096;

/// Most panels of a unit.
const MAX_UNIT_PANELS: usize = 8;

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

    for (x, out) in args.x.chunks(PASS_ROWS * k).zip(out.chunks_mut(PASS_ROWS * n)) {
        let args = Linear { x, num_rows: x.len() / k, ..*args };
        let out = SharedMut::new(out);
        match (isa, &args.weights.panels) {
            (Isa::Amx(isa), Panels::Int8(weights)) => amx::int8(isa, pool, scratches, &args, weights, out),
            (Isa::Amx(isa), Panels::Bf16(panels)) => amx::bf16(isa, pool, scratches, &args, panels, out),
            (_, Panels::Int8(weights)) => int8::linear(isa, pool, scratches, &args, weights, out),
            (_, Panels::Grouped(weights)) => grouped::linear(isa, pool, scratches, &args, weights, out),
            (Isa::Avx512Bf16(isa), Panels::Bf16(panels)) => bf16::linear(isa, pool, scratches, &args, panels, out),
            _ => pass(isa, pool, scratches, &args, out),
        }
    }
}

/// One pass over the weights in f32 arithmetic.
fn pass(isa: Isa, pool: &Pool, scratches: &Scratches, args: &Linear<'_>, out: SharedMut<'_, f32>) {
    let (k, num_rows) = (args.weights.in_features, args.num_rows);
    let tile_rows = tile_rows(isa.tiles(), num_rows);
    let mut shared = scratches.shared();
    let tiles = match tile_rows {
        // One row lies in order as it is.
        1 => args.x,
        _ => {
            let tiles = shared.floats(rows::packed_len(num_rows, k, tile_rows));
            rows::pack_rows(pool, num_rows, k, tile_rows, tiles, |row, feature, features| {
                features.copy_from_slice(&args.x[row * k + feature..][..features.len()]);
            });
            tiles
        }
    };
    let units = Units::new(pool.threads(), num_rows, tile_rows, CHUNK_ROWS, args.weights.out_features);
    pool.run(units.count(), |_, unit| isa.run(Unit { args, tiles, tile_rows, place: units.place(unit), out }));
}

/// Rows laid out side by side: those of the largest tile, or of the smallest that holds them all.
fn tile_rows(tiles: Tiles, num_rows: usize) -> usize {
    match num_rows {
        1 => 1,
        _ => num_rows.next_multiple_of(2).min(tiles.rows),
    }
}

/// How a product is cut: groups of panels, each by chunks of rows.
struct Units {
    num_rows: usize,
    out_features: usize,
    rows_by_chunk: usize,
    num_chunks: usize,
    panels_by_group: usize,
    num_groups: usize,
}

/// Output that one unit computes.
struct Place {
    panels: std::ops::Range<usize>,
    /// Begins with a tile.
    rows: std::ops::Range<usize>,
}

impl Units {
    /// Chunks have at most `chunk_rows` rows, a multiple of `tile_rows`.
    fn new(threads: usize, num_rows: usize, tile_rows: usize, chunk_rows: usize, out_features: usize) -> Self {
        let num_panels = out_features.div_ceil(PANEL);
        let rows_by_chunk = num_rows.div_ceil(num_rows.div_ceil(chunk_rows).max(1)).next_multiple_of(tile_rows);
        let num_chunks = num_rows.div_ceil(rows_by_chunk.max(1));
        // Several units for each thread: the last ones end at about the same time.
        let panels_by_group = (num_panels * num_chunks / (8 * threads)).clamp(1, MAX_UNIT_PANELS);
        let num_groups = num_panels.div_ceil(panels_by_group);
        Self { num_rows, out_features, rows_by_chunk, num_chunks, panels_by_group, num_groups }
    }

    fn count(&self) -> usize {
        self.num_groups * self.num_chunks
    }

    /// Chunks of one group follow each other: what one thread has read of its panels, the next finds in a shared cache.
    fn place(&self, unit: usize) -> Place {
        let first_panel = unit / self.num_chunks * self.panels_by_group;
        let first_row = unit % self.num_chunks * self.rows_by_chunk;
        let num_panels = self.out_features.div_ceil(PANEL);
        Place {
            panels: first_panel..num_panels.min(first_panel + self.panels_by_group),
            rows: first_row..self.num_rows.min(first_row + self.rows_by_chunk),
        }
    }
}

/// What sums begin with where there is no bias.
static ZEROS: [f32; PANEL] = [0.0; PANEL];

struct Unit<'a> {
    args: &'a Linear<'a>,
    /// The rows as [`rows`] lays them out.
    tiles: &'a [f32],
    tile_rows: usize,
    place: Place,
    out: SharedMut<'a, f32>,
}

impl Kernel for Unit<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, isa: L) {
        match &self.args.weights.panels {
            Panels::F32(panels) => self.run_on(isa, panels.as_slice()),
            Panels::F16(panels) => self.run_on(isa, panels.as_slice()),
            Panels::Bf16(panels) => self.run_on(isa, panels.as_slice()),
            Panels::Int8(_) | Panels::Grouped(_) => unreachable!("integers have passes of their own"),
        }
    }
}

impl Unit<'_> {
    #[inline(always)]
    fn run_on<L: Lanes, T: PanelElement>(self, isa: L, panels: &[T]) {
        let Place { panels: own, rows } = self.place;
        let tile_rows = self.tile_rows;
        let (k, n) = (self.args.weights.in_features, self.args.weights.out_features);
        let panel_len = panel_len(k);
        let stretch = if rows.len() <= tile_rows { k } else { BLOCK_K };
        for first_k in (0..k).step_by(stretch) {
            let block_k = stretch.min(k - first_k);
            for panel in own.clone() {
                let first_column = panel * PANEL;
                let columns = PANEL.min(n - first_column);
                let bias = match self.args.bias {
                    Some(bias) => bias[first_column..first_column + columns].as_ptr(),
                    None => ZEROS.as_ptr(),
                };
                // A stretch is even, so in every layout this is where it begins.
                let weights = panels[panel * panel_len..][..panel_len].as_ptr().wrapping_add(first_k * PANEL);
                for first_row in rows.clone().step_by(tile_rows) {
                    // SAFETY: this unit alone reads and writes these rows of these columns, through this pointer only.
                    let out = unsafe { self.out.at(first_row * n + first_column) };
                    let (start, start_stride) = if first_k == 0 { (bias, 0) } else { (out.cast_const(), n) };
                    let args = TileArgs {
                        x: self.tiles[first_row * k + first_k * tile_rows..].as_ptr(),
                        x_stride: tile_rows,
                        weights,
                        k: block_k,
                        start,
                        start_stride,
                        out,
                        out_stride: n,
                        rows: tile_rows.min(rows.end - first_row),
                        columns,
                        ahead: match first_row == rows.start {
                            true if stretch == BLOCK_K => panel_len * size_of::<T>(),
                            true => AHEAD,
                            false => 0,
                        },
                    };
                    // SAFETY: so many rows from `first_row` on, `block_k` features of each and of the panel.
                    unsafe { panel_tile(isa, args) };
                }
            }
        }
    }
}

/// One tile of rows over a stretch of a panel.
///
/// # Safety
/// As [`tile`], for a whole panel; the tile has an even number of rows, or one.
#[inline(always)]
unsafe fn panel_tile<L: Lanes, T: PanelElement>(isa: L, args: TileArgs<T>) {
    // SAFETY: the caller's promise, passed on; a panel is two vectors wide, and no more rows are read than lie side by side.
    unsafe {
        if L::TILES.wide {
            match args.rows {
                1 => columns::<L, T, 1, 2>(isa, args),
                2 => columns::<L, T, 2, 2>(isa, args),
                3 | 4 => columns::<L, T, 4, 2>(isa, args),
                5 | 6 => columns::<L, T, 6, 2>(isa, args),
                7 | 8 => columns::<L, T, 8, 2>(isa, args),
                9 | 10 => columns::<L, T, 10, 2>(isa, args),
                _ => columns::<L, T, 12, 2>(isa, args),
            }
        } else if L::TILES.vectors {
            match args.rows {
                1 => columns::<L, T, 1, 2>(isa, args),
                2 => columns::<L, T, 2, 2>(isa, args),
                3 | 4 => columns::<L, T, 4, 1>(isa, args),
                _ => columns::<L, T, 6, 1>(isa, args),
            }
        } else {
            for row in 0..args.rows {
                columns::<L, T, 1, 1>(isa, args.row(row));
            }
        }
    }
}

/// The tiles beside each other that make a panel.
///
/// # Safety
/// As [`tile`], for `R` rows and a whole panel.
#[inline(always)]
unsafe fn columns<L: Lanes, T: PanelElement, const R: usize, const C: usize>(isa: L, args: TileArgs<T>) {
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
