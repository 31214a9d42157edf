//! Linears whose instructions take several input features as one word: the register tile and its blocking.
//!
//! All of `k` is summed in registers; sums of a group are converted and added at its end. A chunk of rows stays in the second cache while
//! the panels of a unit pass by. While its tiles meet one panel, each asks for a part of the next one, so that memory is read all the time and
//! not only while the first tile waits for it. Blocks of `k` as in the float kernels, with sums resting in the result meanwhile, were slower: int8 at
//! 256 rows by 7 to 23 % with 512 features, by 41 to 59 % with 128.
//!
//! What was tried on two cores of a Zen 5 EPYC (2.1 TOP/s in int8 dot products, 1.06 TFLOP/s in bf16), share of that peak, `[32000, 2048]` / `[2048, 5632]`:
//!
//! | version | 32 rows | 256 rows |
//! | --- | --- | --- |
//! | bf16, the first tile of a panel asks for 4 KiB ahead | 0.76 / 0.68 | 0.90 / 0.78 |
//! | bf16, all tiles ask for parts of the next panel | 0.88 / 0.68 | 0.92 / 0.78 |
//! | the same, rows rounded in vectors | 0.89 / 0.73 | 0.93 / 0.85 |
//! | int8, the first tile asks | 0.66 / 0.66 | 0.79 / 0.79 |
//! | int8, all tiles ask | 0.74 / 0.74 | 0.79 / 0.80 |
//! | int8, weights and rows asked into the first cache too | 0.74 / 0.74 | 0.79 / 0.80 |
//! | int8, the lines of the result asked for too, what ends a tile unrolled | 0.85 / 0.77 | 0.93 / 0.85 |
//! | int8 in groups of 64, tiles of 12 rows | 0.65 / 0.59 | 0.69 / 0.64 |
//! | the same, of 6, of 8 where there are no more | 0.70 / 0.59 | 0.76 / 0.65 |
//!
//! The rounding of rows was measured on numbers with a pattern, where branches cost nothing; with others a linear of 256 rows took 1.45 times as long.
//! Rows quantised strip by strip or group by group instead of row by row changed nothing, nor did chunks of 256 to 768 KiB.
//!
//! Results are far from the first cache when a tile writes them, and a queue full of such stores held up the next tile. It showed as loads of
//! the bias that took long. The fewer features, the more it cost: int8 for 312 rows of 1,024 was at 0.62 of the peak, is at 0.79 with the
//! lines of the result asked for when the tile begins (0.76 when asked into the first cache), and at 0.85 with the end of a tile unrolled too.

use super::pack::PANEL;
use super::{AHEAD, Linear, Place, Units, ZEROS, tile_rows};
use crate::lanes::{CACHE_LINE, LANES, Lanes};
use crate::pool::{Pool, SharedMut};

/// What a chunk of laid out rows may take of the second cache.
const CHUNK_BYTES: usize = 384 << 10;

/// Vectors in a panel.
const VECTORS: usize = PANEL / LANES;

/// An instruction that multiplies words, and what becomes of its sums.
///
/// Steps lie in groups, and each group has sums of its own, which [`WordKernel::finish`] adds to a float. `row` and `column` are places
/// in `[tile][group][tile row]` and `[panel][group][column]`: where there is one group, just the row and the column.
pub(super) trait WordKernel: Copy + Sync {
    type Lanes: Lanes;
    /// Input features of one row, as many as a step of the weights has.
    type Word: Copy + Send + Sync;
    /// Weights of a step and sixteen columns.
    type Weights: Copy;
    /// Sums of sixteen columns.
    type Sums: Copy;
    /// What belongs to sixteen columns of a group.
    type Columns: Copy;
    /// Rows of the largest register tile: 12, 8, 6 or 2.
    const ROWS: usize;

    fn lanes(self) -> Self::Lanes;

    /// Of the sixteen columns from `column` on, which are those of the matrix from `first` on.
    fn columns(self, first: usize, column: usize) -> Self::Columns;

    /// What the sums of a row begin with.
    ///
    /// # Safety
    /// There is such a row (also one that only fills up its tile), and `columns` come from this kernel.
    unsafe fn begin(self, row: usize, columns: Self::Columns) -> Self::Sums;

    /// # Safety
    /// 64 readable bytes at `weights`.
    unsafe fn load(self, weights: *const u8) -> Self::Weights;

    /// `sums[column] += x * weights[column]`.
    fn add(self, sums: Self::Sums, x: &Self::Word, weights: Self::Weights) -> Self::Sums;

    /// `before` (the bias, or the groups so far) and the sums of a group.
    ///
    /// # Safety
    /// As for [`WordKernel::begin`].
    unsafe fn finish(
        self,
        sums: Self::Sums,
        row: usize,
        columns: Self::Columns,
        before: <Self::Lanes as Lanes>::V,
    ) -> <Self::Lanes as Lanes>::V;
}

/// A linear in words.
pub(super) struct Words<'a, K: WordKernel> {
    pub args: &'a Linear<'a>,
    /// The rows as [`super::rows`] lays them out in tiles of [`tile_rows`].
    pub tiles: &'a [K::Word],
    pub steps: usize,
    /// Steps of a group; the last one may have fewer.
    pub group_steps: usize,
    /// `[panel][step][32]` words of four bytes; steps beyond `steps` are not read.
    pub panels: &'a [u8],
    pub out: SharedMut<'a, f32>,
    pub kernel: K,
}

impl<K: WordKernel> Words<'_, K> {
    /// Computes all of it; `run` calls [`Words::unit`] in code compiled for the instruction.
    pub fn compute(&self, pool: &Pool, run: impl Fn(Place) + Sync) {
        let row_bytes = self.steps * size_of::<K::Word>();
        let tile_rows = tile_rows(K::Lanes::TILES, self.args.num_rows);
        let chunk_rows = (CHUNK_BYTES / row_bytes / tile_rows).max(1) * tile_rows;
        let units =
            Units::new(pool.threads(), self.args.num_rows, tile_rows, chunk_rows, self.args.weights.out_features);
        pool.run(units.count(), |_, unit| run(units.place(unit)));
    }

    /// One unit.
    #[inline(always)]
    pub fn unit(&self, place: Place) {
        let n = self.args.weights.out_features;
        let tile_rows = tile_rows(K::Lanes::TILES, self.args.num_rows);
        let num_groups = self.steps.div_ceil(self.group_steps);
        let tiles_of = |rows: usize| rows.div_ceil(inner_rows::<K>(rows).max(1));
        let num_tiles = place.rows.len() / tile_rows * tiles_of(tile_rows) + tiles_of(place.rows.len() % tile_rows);
        for panel in place.panels.clone() {
            let mut tile_index = 0;
            let first_column = panel * PANEL;
            let columns = PANEL.min(n - first_column);
            let panel_bytes = self.panels.len() / n.div_ceil(PANEL);
            let weights = self.panels[panel * panel_bytes..][..panel_bytes].as_ptr();
            let bias = match self.args.bias {
                Some(bias) => bias[first_column..first_column + columns].as_ptr(),
                None => ZEROS.as_ptr(),
            };
            for first_row in place.rows.clone().step_by(tile_rows) {
                let rows = tile_rows.min(place.rows.end - first_row);
                let x = self.tiles[first_row * self.steps..][..tile_rows * self.steps].as_ptr();
                for inner in (0..rows).step_by(inner_rows::<K>(rows)) {
                    let tile = WordTile {
                        x: x.wrapping_add(inner),
                        x_stride: tile_rows,
                        steps: self.steps,
                        group_steps: self.group_steps,
                        weights,
                        bias,
                        // SAFETY: this unit alone writes these rows of these columns, through this pointer only.
                        out: unsafe { self.out.at((first_row + inner) * n + first_column) },
                        out_stride: n,
                        first_row: first_row * num_groups + inner,
                        first_column,
                        first_group_column: first_column * num_groups,
                        rows: inner_rows::<K>(rows).min(rows - inner),
                        columns,
                        ahead: Ahead::new(
                            tile_index,
                            num_tiles,
                            panel_bytes,
                            panel == place.panels.start,
                            panel + 1 == place.panels.end,
                        ),
                    };
                    tile_index += 1;
                    // SAFETY: the rows lie side by side from `x` on, for as many steps as the panel has.
                    unsafe { self.rows(tile) };
                }
            }
        }
    }

    /// # Safety
    /// As [`tile`]; the rows that lie side by side are even in number, or one.
    #[inline(always)]
    unsafe fn rows(&self, args: WordTile<K::Word>) {
        let kernel = self.kernel;
        // SAFETY: the caller's promise, passed on.
        unsafe {
            if K::ROWS == 12 || K::ROWS == 8 {
                match args.rows {
                    1 => tile::<K, 1, VECTORS>(kernel, args),
                    2 => tile::<K, 2, VECTORS>(kernel, args),
                    3 | 4 => tile::<K, 4, VECTORS>(kernel, args),
                    5 | 6 => tile::<K, 6, VECTORS>(kernel, args),
                    7 | 8 => tile::<K, 8, VECTORS>(kernel, args),
                    9 | 10 if K::ROWS > 8 => tile::<K, 10, VECTORS>(kernel, args),
                    _ if K::ROWS > 8 => tile::<K, 12, VECTORS>(kernel, args),
                    _ => unreachable!("a tile has no more rows than fit"),
                }
            } else if K::ROWS == 6 && !K::Lanes::TILES.wide {
                match args.rows {
                    1 => tile::<K, 1, VECTORS>(kernel, args),
                    2 => tile::<K, 2, VECTORS>(kernel, args),
                    3 | 4 => tile::<K, 4, 1>(kernel, args),
                    _ => tile::<K, 6, 1>(kernel, args),
                }
            } else if K::ROWS == 6 {
                match args.rows {
                    1 => tile::<K, 1, VECTORS>(kernel, args),
                    2 => tile::<K, 2, VECTORS>(kernel, args),
                    3 | 4 => tile::<K, 4, VECTORS>(kernel, args),
                    _ => tile::<K, 6, VECTORS>(kernel, args),
                }
            } else {
                match args.rows {
                    1 => tile::<K, 1, 1>(kernel, args),
                    _ => tile::<K, 2, 1>(kernel, args),
                }
            }
        }
    }
}

/// Rows of each register tile of `rows` that are laid out together: an even number, about the same for all.
#[inline(always)]
fn inner_rows<K: WordKernel>(rows: usize) -> usize {
    match rows {
        0 | 1 => rows,
        _ => rows.div_ceil(rows.div_ceil(K::ROWS)).next_multiple_of(2),
    }
}

/// Where a tile reads and writes; as [`super::tile::TileArgs`], in words.
#[derive(Clone, Copy)]
struct WordTile<W> {
    x: *const W,
    x_stride: usize,
    steps: usize,
    group_steps: usize,
    weights: *const u8,
    bias: *const f32,
    out: *mut f32,
    out_stride: usize,
    /// Place of the first row in the first group, as [`WordKernel`] counts.
    first_row: usize,
    first_column: usize,
    /// Likewise of the panel.
    first_group_column: usize,
    rows: usize,
    columns: usize,
    ahead: Ahead,
}

/// What a tile asks for with each of its steps: the lines at `offset` bytes behind the panel's begin and `stride` bytes further each time.
#[derive(Clone, Copy)]
struct Ahead {
    offset: usize,
    /// At most [`STEP_BYTES`]; 0: nothing.
    stride: usize,
}

/// Bytes of a panel's step.
const STEP_BYTES: usize = PANEL * 4;

impl Ahead {
    /// Of tile number `tile` of `num_tiles` that meet a panel, which may be the first and the last of its unit.
    fn new(tile: usize, num_tiles: usize, panel_bytes: usize, is_first: bool, is_last: bool) -> Self {
        // One tile alone reads panel after panel, and nobody has asked for the first one of a unit.
        if num_tiles == 1 || is_first && tile == 0 {
            return Self { offset: AHEAD, stride: STEP_BYTES };
        }
        if is_last {
            return Self { offset: 0, stride: 0 };
        }
        let (part, parts) = (tile - usize::from(is_first), num_tiles - usize::from(is_first));
        Self { offset: panel_bytes + part * panel_bytes / parts, stride: STEP_BYTES.div_ceil(parts) }
    }
}

/// `R` rows (as many of them as exist are written) times a panel, `C` vectors at a time.
///
/// # Safety
/// `steps` steps of `R` rows at `x`, `steps` of the panel at `weights`; `columns` elements at `bias` and, for each row that exists,
/// at `out`, written by nobody else.
#[inline(always)]
unsafe fn tile<K: WordKernel, const R: usize, const C: usize>(kernel: K, args: WordTile<K::Word>) {
    let lanes = kernel.lanes();
    for first in (0..args.columns).step_by(C * LANES) {
        // The lines of the result are on their way while the tile is summed: stores that wait for them would hold up the next tile.
        for r in 0..R {
            if r == args.rows {
                break;
            }
            for c in 0..C {
                lanes.prefetch(args.out.wrapping_add(r * args.out_stride + first + c * LANES));
            }
        }
        let bias = |c: usize| {
            let column = first + c * LANES;
            let left = args.columns.saturating_sub(column).min(LANES);
            // SAFETY: `left` elements exist there, by the caller's promise.
            unsafe { lanes.load_first(args.bias.wrapping_add(column), left) }
        };
        let mut biases = [bias(0); C];
        for c in 1..C {
            biases[c] = bias(c);
        }
        let mut results = [biases; R];
        for (group, first_step) in (0..args.steps).step_by(args.group_steps).enumerate() {
            let row = |r: usize| args.first_row + group * args.x_stride + r;
            let first_column = args.first_group_column + group * PANEL + first;
            let mut columns = [kernel.columns(args.first_column + first, first_column); C];
            for c in 1..C {
                columns[c] = kernel.columns(args.first_column + first + c * LANES, first_column + c * LANES);
            }
            // SAFETY: row 0 is in the tile.
            let mut sums = [[unsafe { kernel.begin(row(0), columns[0]) }; C]; R];
            for r in 0..R {
                for c in 0..C {
                    // SAFETY: row `r` is in the tile.
                    sums[r][c] = unsafe { kernel.begin(row(r), columns[c]) };
                }
            }
            for step in first_step..args.steps.min(first_step + args.group_steps) {
                if args.ahead.stride > 0 {
                    let wanted = args.weights.wrapping_add(args.ahead.offset + step * args.ahead.stride);
                    lanes.prefetch(wanted.cast());
                    if args.ahead.stride > CACHE_LINE {
                        lanes.prefetch(wanted.wrapping_add(CACHE_LINE).cast());
                    }
                }
                let panel = args.weights.wrapping_add((step * PANEL + first) * 4);
                // SAFETY: the panel has this step, and 16 columns of it are 64 bytes.
                let mut weights = [unsafe { kernel.load(panel) }; C];
                for c in 1..C {
                    // SAFETY: as above.
                    weights[c] = unsafe { kernel.load(panel.wrapping_add(c * LANES * 4)) };
                }
                for r in 0..R {
                    // SAFETY: row `r` is in the tile, which has `steps` steps.
                    let x = unsafe { &*args.x.add(step * args.x_stride + r) };
                    for c in 0..C {
                        sums[r][c] = kernel.add(sums[r][c], x, weights[c]);
                    }
                }
            }
            for r in 0..R {
                for c in 0..C {
                    // SAFETY: row `r` is in the tile.
                    results[r][c] = unsafe { kernel.finish(sums[r][c], row(r), columns[c], results[r][c]) };
                }
            }
        }
        for r in 0..R {
            if r == args.rows {
                break;
            }
            for c in 0..C {
                let column = first + c * LANES;
                let left = args.columns.saturating_sub(column).min(LANES);
                // SAFETY: `left` elements exist there and nobody else writes them, by the caller's promise.
                unsafe { lanes.store_first(args.out.wrapping_add(r * args.out_stride + column), left, results[r][c]) }
            }
        }
    }
}
