//! `out = x * w^T + bias`: blocking over rows, output features and `k`.
//!
//! Output features lie in lanes; each output element is one chain of fused multiply-adds in the order of `k`, begun with the bias.
//! Cutting rows, columns or `k` (sums then rest in `out` as the same f32) changes no bit, so a row's result depends on nothing but
//! the row; and it is the same on every instruction set but AVX-512 BF16, which rounds rows to bf16 and adds products in pairs
//! (the same pairs for any number of rows).
//!
//! A unit of work is one panel of 64 output features times some rows:
//!
//! - up to [`MAX_DIRECT_ROWS`] rows, weights are widened to f32 in registers on their way: the kernel runs at the speed of memory;
//! - with more rows, [`BLOCK_K`] input features of the panel at a time are widened into a buffer that stays in the nearest cache,
//!   and all rows pass over it, six at a time.

mod bf16;
mod pack;
mod tile;

use crate::isa::{Isa, Kernel};
use crate::lanes::{LANES, Lanes};
use crate::pool::{Pool, SharedMut};
use crate::scratch::Scratches;

pub use pack::PackedLinear;
pub(crate) use pack::{Element, PANEL, Panels, panel_len};
use tile::{PanelElement, TileArgs, tile, widen};

/// Rows for which weights are widened in registers, without a buffer.
const MAX_DIRECT_ROWS: usize = 4;

/// Input features whose widened weights are kept at a time; even. 128 of them are 32 KiB.
const BLOCK_K: usize = 128;

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
            Panels::F32(panels) => self.run_on(isa, panels.as_slice(), false),
            Panels::F16(panels) => self.run_on(isa, panels.as_slice(), true),
            Panels::Bf16(panels) => self.run_on(isa, panels.as_slice(), true),
        }
    }
}

impl Unit<'_> {
    #[inline(always)]
    fn run_on<L: Lanes, T: PanelElement>(self, isa: L, panels: &[T], narrow: bool) {
        let Place { panel, columns, rows } = self.place;
        let (k, n) = (self.args.weights.in_features, self.args.weights.out_features);
        let panel_len = panel_len(k);
        let weights = panels[panel * panel_len..][..panel_len].as_ptr();
        let first_column = panel * PANEL;
        let bias = match self.args.bias {
            Some(bias) => bias[first_column..first_column + columns].as_ptr(),
            None => ZEROS.as_ptr(),
        };
        let base = TileArgs {
            x: std::ptr::null(),
            x_stride: k,
            weights,
            k,
            start: bias,
            start_stride: 0,
            out: std::ptr::null_mut(),
            out_stride: n,
            columns,
        };
        let x = |row: usize, first_k: usize| self.args.x[row * k + first_k..].as_ptr();
        // SAFETY: this unit alone writes these rows of these columns; the parts that overlap (whole rows, of which only the
        // unit's columns are touched through the pointer) are never used as slices.
        let out = |row: usize| unsafe { self.out.at(row * n + first_column) };

        let num_rows = rows.len();
        if num_rows <= MAX_DIRECT_ROWS {
            let args = TileArgs { x: x(rows.start, 0), out: out(rows.start), ..base };
            // SAFETY: the unit's rows have `k` inputs and the panel's columns; the panel is whole.
            unsafe { direct_rows(isa, num_rows, args) };
            return;
        }
        for first_k in (0..k).step_by(BLOCK_K) {
            let block_k = BLOCK_K.min(k - first_k);
            // `BLOCK_K` is even, so in every layout this is where the block begins.
            let part = weights.wrapping_add(first_k * PANEL);
            if narrow {
                // SAFETY: the panel holds `block_k` features from here on.
                unsafe { widen(isa, part, block_k, self.block) };
            }
            for first_row in rows.clone().step_by(6) {
                let out = out(first_row);
                let (start, start_stride) = if first_k == 0 { (bias, 0) } else { (out.cast_const(), n) };
                let TileArgs { x_stride, out_stride, columns, .. } = base;
                let x = x(first_row, first_k);
                let tile_rows = 6.min(rows.end - first_row);
                if narrow {
                    let weights = self.block.as_ptr();
                    let args =
                        TileArgs { x, x_stride, weights, k: block_k, start, start_stride, out, out_stride, columns };
                    // SAFETY: `tile_rows` rows from `first_row` on, `block_k` features of each, and the widened block.
                    unsafe { six_rows(isa, tile_rows, args) };
                } else {
                    let args = TileArgs {
                        x,
                        x_stride,
                        weights: part,
                        k: block_k,
                        start,
                        start_stride,
                        out,
                        out_stride,
                        columns,
                    };
                    // SAFETY: as above, with the panel itself.
                    unsafe { six_rows(isa, tile_rows, args) };
                }
            }
        }
    }
}

/// One to [`MAX_DIRECT_ROWS`] rows over all of `k`, whole panel.
///
/// # Safety
/// As [`tile`], for `num_rows` rows and a whole panel.
#[inline(always)]
unsafe fn direct_rows<L: Lanes, T: PanelElement>(isa: L, num_rows: usize, args: TileArgs<T>) {
    // SAFETY: the caller's promise, passed on; a panel is four vectors wide.
    unsafe {
        match (L::REGISTERS >= 32, num_rows) {
            (_, 1) => panel_tiles::<L, T, 1, 4>(isa, args),
            (true, 2) => panel_tiles::<L, T, 2, 4>(isa, args),
            (true, 3) => panel_tiles::<L, T, 3, 4>(isa, args),
            (true, _) => panel_tiles::<L, T, 4, 4>(isa, args),
            (false, 2) => panel_tiles::<L, T, 2, 2>(isa, args),
            (false, 3) => panel_tiles::<L, T, 3, 1>(isa, args),
            (false, _) => panel_tiles::<L, T, 4, 1>(isa, args),
        }
    }
}

/// One to six rows over a block.
///
/// # Safety
/// As [`tile`], for `num_rows` rows and a whole panel.
#[inline(always)]
unsafe fn six_rows<L: Lanes, T: PanelElement>(isa: L, num_rows: usize, args: TileArgs<T>) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        match (L::REGISTERS >= 32, num_rows) {
            (true, 1) => panel_tiles::<L, T, 1, 4>(isa, args),
            (true, 2) => panel_tiles::<L, T, 2, 4>(isa, args),
            (true, 3) => panel_tiles::<L, T, 3, 4>(isa, args),
            (true, 4) => panel_tiles::<L, T, 4, 4>(isa, args),
            (true, 5) => panel_tiles::<L, T, 5, 4>(isa, args),
            (true, _) => panel_tiles::<L, T, 6, 4>(isa, args),
            (false, 1) => panel_tiles::<L, T, 1, 4>(isa, args),
            (false, 2) => panel_tiles::<L, T, 2, 2>(isa, args),
            (false, 3) => panel_tiles::<L, T, 3, 1>(isa, args),
            (false, 4) => panel_tiles::<L, T, 4, 1>(isa, args),
            (false, 5) => panel_tiles::<L, T, 5, 1>(isa, args),
            (false, _) => panel_tiles::<L, T, 6, 1>(isa, args),
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
