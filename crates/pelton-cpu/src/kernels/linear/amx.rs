//! Linears on AMX: tiles of bf16 or int8 words, of any number of rows.
//!
//! Panels are read as they lie: a row of a tile takes the same word of sixteen columns. Rows are rounded or quantised once, and laid
//! out as tiles read them:
//!
//! ```text
//! [tile][step][tile rows][64 bytes]     step: 32 input features in bf16, 64 in int8, zeros beyond the last
//! ```
//!
//! They are dealt evenly to tiles of at most sixteen, so one shape serves a call, and one row is a tile of one row. A row of a result
//! sees no other row, and steps follow each other in one order: sums are the same bits for any number of rows, and in int8, where they
//! are exact, on every instruction set.
//!
//! Up to two tiles of rows pass over a panel once, at the speed of memory. Of more, all pairs of a chunk pass over [`BLOCK_STEPS`] of
//! a panel before the next come. A pair takes as many bytes from its rows as from its columns in each step, 4 KiB in at least 64 cycles:
//! both from the second cache would be its whole bandwidth. The columns of a block, the rows of a pair for as many steps and its
//! sums are 40 KiB, which the first cache holds (48 KiB where there is AMX). Counted, not measured: see decision 0010.

use std::arch::x86_64::*;
use std::ops::Range;

use half::bf16;

use super::pack::{Int8Panels, PANEL};
use super::{AHEAD, Linear, Place, Units, int8};
use crate::amx::{self, Product, ROW_BYTES, STEP_BYTES, SUMS_BYTES, TILE_ROWS, TileNumbers, Tiles};
use crate::buffer::{Buffer, Plain};
use crate::isa::{Amx, Avx512, Avx512Bf16, Isa, Kernel, Proof, Task};
use crate::lanes::{LANES, Lanes};
use crate::pieces::rows_per_piece;
use crate::pool::{Pool, SharedMut};
use crate::scratch::Scratches;

/// Steps of a panel that all rows of a chunk pass over before the next come: 16 KiB.
const BLOCK_STEPS: usize = 8;

/// What a chunk of laid out rows may take of the second cache, which has 2 MiB where there is AMX.
const CHUNK_BYTES: usize = 1 << 20;

/// A row of a tile.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; ROW_BYTES]);

/// Rows of the sums of one tile.
const SUM_LINES: usize = SUMS_BYTES / ROW_BYTES;

/// A linear with bf16 weights: rows are rounded to bf16.
pub(super) fn bf16(
    isa: Amx,
    pool: &Pool,
    scratches: &Scratches,
    args: &Linear<'_>,
    panels: &Buffer<bf16>,
    out: SharedMut<'_, f32>,
) {
    let shape = Shape::new(args, size_of::<bf16>());
    let mut shared = scratches.shared();
    let lines = lines(shared.words(words(shape.num_lines())));
    let rows = RowLines { args, shape, lines: SharedMut::new(lines) };
    rows.run(pool, |own| isa.avx512bf16().run(RoundRows { rows: &rows, own }));
    let call = Call { args, shape, lines, panels: panels.bytes(), out, dot: Bf16(isa) };
    call.compute(pool, scratches, |unit| isa.avx512bf16().run(unit));
}

/// A linear with int8 weights: rows are quantised as [`int8`] says.
pub(super) fn int8(
    isa: Amx,
    pool: &Pool,
    scratches: &Scratches,
    args: &Linear<'_>,
    weights: &Int8Panels,
    out: SharedMut<'_, f32>,
) {
    let shape = Shape::new(args, size_of::<i8>());
    let mut shared = scratches.shared();
    let (words, row_scales) = shared.words_and_floats(words(shape.num_lines()), args.num_rows);
    let lines = lines(words);
    quantise_rows(Isa::Amx(isa), pool, args, shape, lines, row_scales);
    let call = Call { args, shape, lines, panels: weights.codes.bytes(), out, dot: Int8 { isa, row_scales, weights } };
    call.compute(pool, scratches, |unit| isa.avx512bf16().run(unit));
}

/// How rows are cut.
#[derive(Clone, Copy)]
struct Shape {
    num_rows: usize,
    /// Rows of each tile; the last may have fewer, and leftovers in their place.
    tile_rows: usize,
    steps: usize,
}

impl Shape {
    fn new(args: &Linear<'_>, element_bytes: usize) -> Self {
        let num_rows = args.num_rows;
        Self {
            num_rows,
            tile_rows: num_rows.div_ceil(num_rows.div_ceil(TILE_ROWS)),
            steps: (args.weights.in_features * element_bytes).div_ceil(ROW_BYTES),
        }
    }

    fn num_lines(self) -> usize {
        self.num_rows.next_multiple_of(self.tile_rows) * self.steps
    }
}

/// Words of memory in which so many lines fit, wherever it begins.
fn words(num_lines: usize) -> usize {
    (num_lines + 1) * ROW_BYTES / 4
}

/// Memory as lines.
fn lines<T: Plain>(memory: &mut [T]) -> &mut [Line] {
    // SAFETY: any bytes are plain numbers, and any bytes are lines.
    unsafe { memory.align_to_mut().1 }
}

/// Rows on their way into tiles.
struct RowLines<'a> {
    args: &'a Linear<'a>,
    shape: Shape,
    lines: SharedMut<'a, Line>,
}

impl RowLines<'_> {
    /// Calls `work` for all rows in pieces.
    fn run(&self, pool: &Pool, work: impl Fn(Range<usize>) + Sync) {
        let rows = rows_per_piece(self.args.weights.in_features);
        pool.run(self.shape.num_rows.div_ceil(rows), |_, piece| {
            work(piece * rows..self.shape.num_rows.min((piece + 1) * rows));
        });
    }

    fn row(&self, row: usize) -> &[f32] {
        let k = self.args.weights.in_features;
        &self.args.x[row * k..][..k]
    }

    /// Writes `line` as `step` of `row`.
    ///
    /// # Safety
    /// Nobody else writes to this row.
    #[inline(always)]
    unsafe fn set(&self, row: usize, step: usize, line: Line) {
        let Shape { tile_rows, steps, .. } = self.shape;
        // SAFETY: the caller's promise.
        unsafe { *self.lines.at((row / tile_rows * steps + step) * tile_rows + row % tile_rows) = line };
    }
}

/// Some rows rounded to bf16, to nearest even; numbers near zero become zeros, which is what tiles take them for.
struct RoundRows<'w, 'a> {
    rows: &'w RowLines<'a>,
    own: Range<usize>,
}

impl Task<Avx512Bf16> for RoundRows<'_, '_> {
    #[inline(always)]
    fn run(self, isa: Avx512Bf16) {
        for row in self.own {
            let x = self.rows.row(row);
            for step in 0..self.rows.shape.steps {
                let at = step * 2 * LANES;
                let (low, high) = (isa.avx512().read(x, at), isa.avx512().read(x, at + LANES));
                // SAFETY: `isa` proves AVX-512 BF16.
                let rounded = unsafe { _mm512_cvtne2ps_pbh(high, low) };
                // SAFETY: 32 bf16 are 64 bytes, and this piece alone writes its rows.
                unsafe { self.rows.set(row, step, std::mem::transmute::<__m512bh, Line>(rounded)) };
            }
        }
    }
}

fn quantise_rows(isa: Isa, pool: &Pool, args: &Linear<'_>, shape: Shape, lines: &mut [Line], row_scales: &mut [f32]) {
    let rows = RowLines { args, shape, lines: SharedMut::new(lines) };
    let row_scales = SharedMut::new(row_scales);
    rows.run(pool, |own| isa.run(QuantiseRows { rows: &rows, row_scales, own }));
}

/// Some rows as codes, and their scales.
struct QuantiseRows<'w, 'a> {
    rows: &'w RowLines<'a>,
    row_scales: SharedMut<'w, f32>,
    own: Range<usize>,
}

impl Kernel for QuantiseRows<'_, '_> {
    #[inline(always)]
    fn run<L: Lanes>(self, isa: L) {
        for row in self.own {
            let x = self.rows.row(row);
            let scale = int8::row_scale(isa, x);
            // SAFETY: this piece alone writes its rows.
            unsafe { *self.row_scales.at(row) = scale.scale };
            for step in 0..self.rows.shape.steps {
                let mut line = Line([0; ROW_BYTES]);
                for (quarter, bytes) in line.0.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                    let codes = int8::row_codes(isa, x, step * ROW_BYTES + quarter * LANES, &scale);
                    *bytes = codes.map(|code| code as u8);
                }
                // SAFETY: this piece alone writes its rows.
                unsafe { self.rows.set(row, step, line) };
            }
        }
    }
}

/// What multiplies tiles, and what becomes of sums.
trait Dot: Copy + Sync {
    type Lanes: Lanes;
    /// Exists while tiles have their shape.
    type Tiles;

    fn lanes(self) -> Self::Lanes;

    fn tiles(self, tile_rows: usize) -> Self::Tiles;

    /// # Safety
    /// As [`TileNumbers::multiply`].
    unsafe fn multiply(self, tiles: &Self::Tiles, product: Product);

    /// The results of `row` and the sixteen columns from `column` on.
    fn finish(
        self,
        sums: &Line,
        row: usize,
        column: usize,
        bias: <Self::Lanes as Lanes>::V,
    ) -> <Self::Lanes as Lanes>::V;
}

#[derive(Clone, Copy)]
struct Bf16(Amx);

impl Dot for Bf16 {
    type Lanes = Avx512;
    type Tiles = Tiles;

    #[inline(always)]
    fn lanes(self) -> Avx512 {
        self.0.avx512bf16().avx512()
    }

    fn tiles(self, tile_rows: usize) -> Tiles {
        Tiles::new(self.0, tile_rows)
    }

    #[inline(always)]
    unsafe fn multiply(self, tiles: &Tiles, product: Product) {
        // SAFETY: the caller's promise.
        unsafe { amx::Bf16::multiply(tiles, product) }
    }

    #[inline(always)]
    fn finish(self, sums: &Line, _row: usize, _column: usize, bias: __m512) -> __m512 {
        // SAFETY: a line is sixteen numbers.
        let sums = unsafe { self.lanes().load(sums.0.as_ptr().cast()) };
        self.lanes().add(sums, bias)
    }
}

#[derive(Clone, Copy)]
struct Int8<'a> {
    isa: Amx,
    row_scales: &'a [f32],
    weights: &'a Int8Panels,
}

impl Dot for Int8<'_> {
    type Lanes = Avx512;
    type Tiles = Tiles;

    #[inline(always)]
    fn lanes(self) -> Avx512 {
        self.isa.avx512bf16().avx512()
    }

    fn tiles(self, tile_rows: usize) -> Tiles {
        Tiles::new(self.isa, tile_rows)
    }

    #[inline(always)]
    unsafe fn multiply(self, tiles: &Tiles, product: Product) {
        // SAFETY: the caller's promise.
        unsafe { amx::Int8::multiply(tiles, product) }
    }

    #[inline(always)]
    fn finish(self, sums: &Line, row: usize, column: usize, bias: __m512) -> __m512 {
        let lanes = self.lanes();
        // SAFETY: `isa` proves AVX-512 F; a line is sixteen integers.
        let products = unsafe { _mm512_cvtepi32_ps(_mm512_load_si512(sums.0.as_ptr().cast())) };
        let scales = lanes.read(self.weights.scales.as_slice(), column);
        lanes.fma(products, lanes.mul(scales, lanes.splat(self.row_scales[row])), bias)
    }
}

/// A linear in tiles.
struct Call<'a, D> {
    args: &'a Linear<'a>,
    shape: Shape,
    /// The rows as they are laid out.
    lines: &'a [Line],
    /// `[panel][step][16][32]` words of four bytes.
    panels: &'a [u8],
    out: SharedMut<'a, f32>,
    dot: D,
}

struct Unit<'w, 'a, D> {
    call: &'w Call<'a, D>,
    place: Place,
    /// For the sums of all tiles of the unit.
    sums: &'w mut [Line],
}

impl<D: Dot> Call<'_, D> {
    /// Computes all of it; `run` calls [`Unit::run`] in code compiled for the instruction set.
    fn compute(&self, pool: &Pool, scratches: &Scratches, run: impl Fn(Unit<'_, '_, D>) + Sync) {
        let Shape { num_rows, tile_rows, steps } = self.shape;
        let pair_rows = num_rows.min(2 * tile_rows);
        let chunk_rows = (CHUNK_BYTES / (steps * ROW_BYTES) / pair_rows).max(1) * pair_rows;
        let units = Units::new(pool.threads(), num_rows, pair_rows, chunk_rows, self.args.weights.out_features);
        let sum_words = words(chunk_rows.min(num_rows).div_ceil(tile_rows) * SUM_LINES);
        scratches.reserve_floats(sum_words);
        pool.run(units.count(), |worker, unit| {
            let mut scratch = scratches.of(worker);
            run(Unit { call: self, place: units.place(unit), sums: lines(scratch.floats(sum_words)) });
        });
    }
}

impl<D: Dot> Unit<'_, '_, D> {
    #[inline(always)]
    fn run(self) {
        let Call { args, shape: Shape { tile_rows, steps, .. }, lines, panels, out, dot } = *self.call;
        let Place { panels: own, rows } = self.place;
        let n = args.weights.out_features;
        let lanes = dot.lanes();
        let num_tiles = rows.len().div_ceil(tile_rows);
        let sums = &mut self.sums[..num_tiles * SUM_LINES];
        let stretch = if num_tiles <= 2 { steps } else { BLOCK_STEPS };
        let tiles = dot.tiles(tile_rows);
        for panel in own {
            let panel_bytes = panels.len() / n.div_ceil(PANEL);
            let panel_columns = &panels[panel * panel_bytes..][..steps * STEP_BYTES];
            sums.fill(Line([0; ROW_BYTES]));
            for first_step in (0..steps).step_by(stretch) {
                let block_steps = stretch.min(steps - first_step);
                for tile in (0..num_tiles).step_by(2) {
                    let pair = tile + 1 < num_tiles;
                    let rows_of = |tile: usize| {
                        let first = (rows.start / tile_rows + tile) * steps + first_step;
                        lines[first * tile_rows..][..block_steps * tile_rows].as_ptr().cast()
                    };
                    let sums = &mut sums[tile * SUM_LINES..][..if pair { 2 } else { 1 } * SUM_LINES];
                    let product = Product {
                        rows: [rows_of(tile), rows_of(tile + usize::from(pair))],
                        pair,
                        columns: panel_columns[first_step * STEP_BYTES..][..block_steps * STEP_BYTES].as_ptr(),
                        steps: block_steps,
                        sums: sums.as_mut_ptr().cast(),
                        ahead: match tile {
                            0 if stretch == steps => AHEAD,
                            0 => BLOCK_STEPS * STEP_BYTES,
                            _ => 0,
                        },
                    };
                    // SAFETY: so many steps of the tiles and of the panel are there, and the sums of the tiles, which are this
                    // unit's.
                    unsafe { dot.multiply(&tiles, product) };
                }
            }
            for (index, row) in rows.clone().enumerate() {
                for column in (panel * PANEL..n.min((panel + 1) * PANEL)).step_by(LANES) {
                    let half = column % PANEL / LANES;
                    let sums = &sums[(index / tile_rows * 2 + half) * TILE_ROWS + index % tile_rows];
                    let bias = match args.bias {
                        Some(bias) => lanes.read(bias, column),
                        None => lanes.splat(0.0),
                    };
                    // SAFETY: this unit alone writes these rows of these columns.
                    let out = unsafe { out.slice(row * n + column, LANES.min(n - column)) };
                    lanes.write(out, 0, dot.finish(sums, row, column, bias));
                }
            }
        }
    }
}

impl<D: Dot> Task<Avx512Bf16> for Unit<'_, '_, D> {
    #[inline(always)]
    fn run(self, _isa: Avx512Bf16) {
        Unit::run(self);
    }
}

#[cfg(test)]
mod tests {
    use pelton_backend::{DType, DenseWeight, HostTensor, WeightFormat};

    use super::super::linear;
    use super::super::pack::{PackedLinear, Panels};
    use super::*;
    use crate::isa::{IsaChoice, Scalar};

    /// Rows, output features, input features: around tiles, pairs of tiles, panels, steps, blocks and chunks.
    const SHAPES: [[usize; 3]; 13] = [
        [1, 1, 1],
        [1, 40, 700],
        [2, 15, 31],
        [15, 16, 32],
        [16, 17, 33],
        [17, 31, 63],
        [32, 32, 64],
        [33, 33, 65],
        [48, 64, 127],
        [49, 65, 129],
        [65, 70, 513],
        [100, 33, 1100],
        [40, 1, 30_000],
    ];

    /// Products of tiles in plain code, as Intel describes them.
    #[derive(Clone, Copy)]
    struct Described<'a> {
        /// Scales of rows and of columns, for int8.
        int8: Option<(&'a [f32], &'a Int8Panels)>,
    }

    impl Described<'_> {
        /// `TDPBSSD`: one row times one column.
        fn int8(sum: [u8; 4], row: &[[u8; 4]; 16], column: [[u8; 4]; 16]) -> [u8; 4] {
            let products = row
                .as_flattened()
                .iter()
                .zip(column.as_flattened())
                .map(|(&x, &w)| i32::from(x as i8) * i32::from(w as i8));
            (i32::from_le_bytes(sum) + products.sum::<i32>()).to_le_bytes()
        }

        /// `TDPBF16PS`: one row times one column; even and odd elements are summed apart.
        fn bf16(sum: [u8; 4], row: &[[u8; 4]; 16], column: [[u8; 4]; 16]) -> [u8; 4] {
            let half = |word: [u8; 4], odd: usize| bf16::from_le_bytes([word[2 * odd], word[2 * odd + 1]]).to_f32();
            let [even, odd] = [0, 1]
                .map(|odd| row.iter().zip(column).fold(0.0f32, |sum, (&x, w)| half(x, odd).mul_add(half(w, odd), sum)));
            (f32::from_le_bytes(sum) + (even + odd)).to_le_bytes()
        }
    }

    impl Dot for Described<'_> {
        type Lanes = Scalar;
        type Tiles = usize;

        fn lanes(self) -> Scalar {
            Scalar
        }

        fn tiles(self, tile_rows: usize) -> usize {
            tile_rows
        }

        unsafe fn multiply(self, &tile_rows: &usize, product: Product) {
            let Product { rows, pair, columns, steps, sums, .. } = product;
            for step in 0..steps {
                // SAFETY: the caller's promise.
                let columns = unsafe { &*columns.cast::<[[[u8; 4]; PANEL]; 16]>().add(step) };
                for (tile, rows) in rows.into_iter().take(1 + usize::from(pair)).enumerate() {
                    for (row, column) in (0..tile_rows).flat_map(|row| (0..PANEL).map(move |column| (row, column))) {
                        // SAFETY: the caller's promise.
                        let (row_words, sum) = unsafe {
                            let sums = sums
                                .add(tile * SUMS_BYTES + column / LANES * SUMS_BYTES / 2)
                                .cast::<[[u8; 4]; LANES]>();
                            let row_words = &*rows.cast::<[[u8; 4]; 16]>().add(step * tile_rows + row);
                            (row_words, &mut (*sums.add(row))[column % LANES])
                        };
                        let dot = if self.int8.is_some() { Self::int8 } else { Self::bf16 };
                        *sum = dot(*sum, row_words, columns.map(|words| words[column]));
                    }
                }
            }
        }

        fn finish(self, sums: &Line, row: usize, column: usize, bias: [f32; LANES]) -> [f32; LANES] {
            let words = sums.0.as_chunks::<4>().0;
            std::array::from_fn(|lane| match self.int8 {
                None => f32::from_le_bytes(words[lane]) + bias[lane],
                Some((row_scales, weights)) => {
                    let scale = weights.scales.as_slice()[column + lane] * row_scales[row];
                    (i32::from_le_bytes(words[lane]) as f32).mul_add(scale, bias[lane])
                }
            })
        }
    }

    fn numbers(count: usize) -> Vec<f32> {
        let mut rng = fastrand::Rng::with_seed(count as u64);
        (0..count).map(|_| rng.f32() - 0.5).collect()
    }

    fn packed(pool: &Pool, n: usize, w: &[f32], format: WeightFormat) -> PackedLinear {
        let weight = DenseWeight::new(HostTensor::from_f32(vec![n, w.len() / n], w), format).unwrap();
        PackedLinear::new(pool, &[weight]).unwrap()
    }

    /// The linear with plain tiles.
    fn described(pool: &Pool, args: &Linear<'_>) -> Vec<f32> {
        let scratches = Scratches::new(pool.threads());
        let mut out = vec![f32::NAN; args.num_rows * args.weights.out_features];
        let shared = SharedMut::new(&mut out);
        let element_bytes = if let Panels::Int8(_) = args.weights.panels { 1 } else { 2 };
        let shape = Shape::new(args, element_bytes);
        // What lies in the places of missing rows must not matter.
        let mut memory = vec![0x7fc1_7fc1u32; words(shape.num_lines())];
        let lines = lines(&mut memory);
        let mut row_scales = vec![0.0; args.num_rows];
        let (panels, int8) = match &args.weights.panels {
            Panels::Int8(weights) => {
                quantise_rows(Isa::Scalar(Scalar), pool, args, shape, lines, &mut row_scales);
                (weights.codes.bytes(), Some((&row_scales[..], weights)))
            }
            Panels::Bf16(panels) => {
                let rows = RowLines { args, shape, lines: SharedMut::new(lines) };
                rows.run(pool, |own| {
                    for (row, step) in own.flat_map(|row| (0..shape.steps).map(move |step| (row, step))) {
                        let mut line = Line([0; ROW_BYTES]);
                        for (bytes, x) in line.0.as_chunks_mut::<2>().0.iter_mut().zip(&rows.row(row)[32 * step..]) {
                            *bytes = bf16::from_f32(*x).to_le_bytes();
                        }
                        // SAFETY: this piece alone writes its rows.
                        unsafe { rows.set(row, step, line) };
                    }
                });
                (panels.bytes(), None)
            }
            _ => panic!("tiles multiply bf16 and int8"),
        };
        let call = Call { args, shape, lines, panels, out: shared, dot: Described { int8 } };
        call.compute(pool, &scratches, |unit| unit.run());
        out
    }

    #[test]
    fn int8_has_the_bits_of_plain_code() {
        let pool = Pool::new(2, &[]).unwrap();
        let scratches = Scratches::new(2);
        for [m, n, k] in SHAPES {
            let (x, w, bias) = (numbers(m * k), numbers(n * k + 1), numbers(n + 2));
            let weights = packed(&pool, n, &w[1..], WeightFormat::INT8);
            let args = Linear { x: &x, weights: &weights, bias: Some(&bias[2..]), num_rows: m };
            let bits = |out: &[f32]| -> Vec<u32> { out.iter().map(|x| x.to_bits()).collect() };
            let tiles = bits(&described(&pool, &args));
            for isa in IsaChoice::NAMED.into_iter().filter_map(|choice| Isa::detect(choice).ok()) {
                let mut out = vec![f32::NAN; m * n];
                linear(isa, &pool, &scratches, &args, &mut out);
                assert!(bits(&out) == tiles, "{m} x {n} x {k} on {}", isa.name());
            }
        }
    }

    #[test]
    fn bf16_is_right_and_batch_invariant() {
        let pool = Pool::new(2, &[]).unwrap();
        let scratches = Scratches::new(2);
        for [m, n, k] in SHAPES {
            let (x, w, bias) = (numbers(m * k), numbers(n * k + 1), numbers(n + 2));
            let (w, bias) = (&w[1..], &bias[2..]);
            let weights = packed(&pool, n, w, DType::BF16.into());
            let linear_of = |x: &[f32], isa: Option<Isa>| {
                let args = Linear { x, weights: &weights, bias: Some(bias), num_rows: x.len() / k };
                let Some(isa) = isa else { return described(&pool, &args) };
                let mut out = vec![f32::NAN; x.len() / k * n];
                linear(isa, &pool, &scratches, &args, &mut out);
                out
            };
            for isa in [None, Isa::detect(IsaChoice::Amx).ok()] {
                let all = linear_of(&x, isa);
                for (row, x) in x.chunks(k).enumerate().step_by(1 + m / 8) {
                    for (column, w) in w.chunks(k).enumerate() {
                        let rounded = |x: f32| f64::from(bf16::from_f32(x).to_f32());
                        let products = x.iter().zip(w).map(|(&x, &w)| rounded(x) * rounded(w));
                        let expected = products.sum::<f64>() + f64::from(bias[column]);
                        let error = (f64::from(all[row * n + column]) - expected).abs();
                        assert!(error <= k as f64 * 3e-8, "{m} x {n} x {k}, row {row}, column {column}: {error:e}");
                    }
                    assert!(linear_of(x, isa) == all[row * n..][..n], "{m} x {n} x {k}: row {row} alone");
                }
            }
        }
    }
}
