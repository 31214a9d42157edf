//! The linear with int8 weights: rows are quantised on the fly, products are summed as integers, scales come in at the end.
//!
//! ```text
//! out[r][c] = (sum over k of q_x[r][k] * q_w[c][k]) * (scale_x[r] * scale_w[c]) + bias[c]
//! ```
//!
//! [`quantise`] defines codes and scales of rows and weights alike. Sums are exact, so every instruction set gives the same bits,
//! whatever the number of rows. A row or column with a number that is not finite gives NaN.

mod dot;

use super::pack::Int8Panels;
use super::words::{WordKernel, Words};
use super::{Linear, Place, rows, tile_rows};
use crate::isa::{Int8Isa, Isa, Kernel, Proof, Task};
use crate::lanes::{LANES, Lanes};
use crate::pool::{Pool, SharedMut};
use crate::scratch::Scratches;

use dot::Dot;

/// Input features in a word.
pub(super) const STEP: usize = 4;

/// Most input features: products of magnitude `255 * 128` cannot overflow their sum.
pub(super) const MAX_IN_FEATURES: usize = 65_536;

/// Added to a float below 2^22, it leaves the nearest integer (ties to even) in the lowest bits.
pub(super) const ROUND: f32 = 12_582_912.0;

/// Numbers whose largest is below this become zeros: the reciprocal of their scale would overflow.
const SMALLEST: f32 = 1e-36;

/// Scale of numbers of which `largest` is the largest magnitude: `code = round(x * inverse)` to nearest even, in
/// `-127..=127`, and `x` is about `code * scale`.
pub(super) fn quantise(largest: f32) -> Scale {
    if largest < SMALLEST {
        return Scale { scale: 0.0, inverse: 0.0 };
    }
    Scale { scale: largest / 127.0, inverse: 127.0 / largest }
}

/// See [`quantise`].
pub(super) struct Scale {
    pub scale: f32,
    pub inverse: f32,
}

/// Computes `out`; sizes were checked by [`super::linear`].
pub(super) fn linear(
    isa: Isa,
    pool: &Pool,
    scratches: &Scratches,
    args: &Linear<'_>,
    weights: &Int8Panels,
    out: SharedMut<'_, f32>,
) {
    Call { isa, pool, scratches, args, weights, out }.run(isa.int8());
}

#[derive(Clone, Copy)]
struct Call<'a> {
    isa: Isa,
    pool: &'a Pool,
    scratches: &'a Scratches,
    args: &'a Linear<'a>,
    weights: &'a Int8Panels,
    out: SharedMut<'a, f32>,
}

impl Call<'_> {
    fn run(self, dot: Int8Isa) {
        match dot {
            Int8Isa::Scalar(dot) => self.compute(dot),
            Int8Isa::Avx2(dot) => self.compute(dot),
            Int8Isa::AvxVnni(dot) => self.compute(dot),
            Int8Isa::Avx512(dot) => self.compute(dot),
            Int8Isa::Avx512Vnni(dot) => self.compute(dot),
        }
    }

    fn compute<D: Dot + Proof>(self, dot: D) {
        let Self { isa, pool, args, weights, out, .. } = self;
        let (num_rows, k) = (args.num_rows, args.weights.in_features);
        let steps = k.div_ceil(STEP);
        let tile_rows = tile_rows(D::Lanes::TILES, num_rows);
        let tile_len = rows::packed_len(tile_rows, steps, tile_rows);
        let mut shared = self.scratches.shared();
        let (words, scales) = shared.words_and_floats(
            rows::packed_len(num_rows, steps, tile_rows) * D::WORDS,
            // Rows that fill up the last tile have scales too, leftovers.
            num_rows.next_multiple_of(tile_rows),
        );
        let tiles = D::words(words);
        let shared_scales = SharedMut::new(scales);
        pool.run_pieces(tiles, tile_len, |_, tile, words| {
            let first_row = tile * tile_rows;
            let rows = tile_rows.min(num_rows - first_row);
            // SAFETY: tiles have rows of their own.
            let scales = unsafe { shared_scales.slice(first_row, rows) };
            isa.run(QuantiseTile::<D> { x: &args.x[first_row * k..][..rows * k], k, tile_rows, words, scales });
        });
        let kernel = Int8 { dot, row_scales: scales, weights };
        let words = Words { args, tiles, steps, group_steps: steps, panels: weights.codes.bytes(), out, kernel };
        words.compute(pool, |place| dot.run(Unit { words: &words, place }));
    }
}

struct Unit<'w, 'a, D: Dot> {
    words: &'w Words<'a, Int8<'a, D>>,
    place: Place,
}

impl<D: Dot> Task<D> for Unit<'_, '_, D> {
    #[inline(always)]
    fn run(self, _isa: D) {
        self.words.unit(self.place);
    }
}

/// One tile of rows into words.
struct QuantiseTile<'a, D: Dot> {
    x: &'a [f32],
    k: usize,
    tile_rows: usize,
    words: &'a mut [D::Word],
    scales: &'a mut [f32],
}

impl<D: Dot> Kernel for QuantiseTile<'_, D> {
    #[inline(always)]
    fn run<L: Lanes>(self, isa: L) {
        for (row, (x, place)) in self.x.chunks_exact(self.k).zip(self.scales).enumerate() {
            let scale = row_scale(isa, x);
            *place = scale.scale;
            for (at, words) in (0..self.k).step_by(LANES).zip(self.words.chunks_mut(LANES / STEP * self.tile_rows)) {
                let codes = row_codes(isa, x, at, &scale);
                let (codes, _) = codes.as_chunks::<STEP>();
                let words = &mut words[row..];
                if words.len() > 3 * self.tile_rows {
                    // The last one first: one check for four.
                    for step in (0..LANES / STEP).rev() {
                        words[step * self.tile_rows] = D::word(codes[step]);
                    }
                } else {
                    for (place, &codes) in words.iter_mut().step_by(self.tile_rows).zip(codes) {
                        *place = D::word(codes);
                    }
                }
            }
        }
    }
}

/// [`quantise`] for a row. The scale is not a number where one of the row is not finite.
#[inline(always)]
pub(super) fn row_scale<L: Lanes>(isa: L, x: &[f32]) -> Scale {
    let zero = isa.splat(0.0);
    let (mut largest, mut finite) = (zero, zero);
    for at in (0..x.len()).step_by(LANES) {
        let v = isa.read(x, at);
        largest = isa.max(isa.max(isa.sub(zero, v), v), largest);
        // Zero, or not a number where `v` is not finite.
        finite = isa.fma(v, zero, finite);
    }
    let Scale { scale, inverse } = quantise(isa.largest(largest));
    Scale { scale: scale + isa.sum(finite), inverse }
}

/// [`Scale::code`] of sixteen numbers from `x[at]` on; zeros beyond the end.
#[inline(always)]
pub(super) fn row_codes<L: Lanes>(isa: L, x: &[f32], at: usize, scale: &Scale) -> [i8; LANES] {
    let scaled = isa.mul(isa.read(x, at), isa.splat(scale.inverse));
    isa.to_array(isa.add(scaled, isa.splat(ROUND))).map(|x| x.to_bits() as i8)
}

#[derive(Clone, Copy)]
struct Int8<'a, D> {
    dot: D,
    row_scales: &'a [f32],
    weights: &'a Int8Panels,
}

impl<D: Dot> WordKernel for Int8<'_, D> {
    type Lanes = D::Lanes;
    type Word = D::Word;
    type Weights = D::Weights;
    type Sums = D::Sums;
    /// Scales, and what sums begin with.
    type Columns = (<D::Lanes as Lanes>::V, D::Sums);
    const ROWS: usize = D::ROWS;

    #[inline(always)]
    fn lanes(self) -> D::Lanes {
        self.dot.lanes()
    }

    #[inline(always)]
    fn columns(self, first: usize, _column: usize) -> Self::Columns {
        let (code_sums, _) = self.weights.code_sums.as_slice()[first..].as_chunks();
        (self.dot.lanes().read(self.weights.scales.as_slice(), first), self.dot.begin(&code_sums[0]))
    }

    #[inline(always)]
    unsafe fn begin(self, _row: usize, (_, sums): Self::Columns) -> D::Sums {
        sums
    }

    #[inline(always)]
    unsafe fn load(self, weights: *const u8) -> D::Weights {
        // SAFETY: the caller's promise.
        unsafe { self.dot.load(weights) }
    }

    #[inline(always)]
    fn add(self, sums: D::Sums, x: &D::Word, weights: D::Weights) -> D::Sums {
        self.dot.add(sums, *x, weights)
    }

    #[inline(always)]
    unsafe fn finish(
        self,
        sums: D::Sums,
        row: usize,
        (scales, _): Self::Columns,
        before: <D::Lanes as Lanes>::V,
    ) -> <D::Lanes as Lanes>::V {
        let lanes = self.dot.lanes();
        // SAFETY: the row exists, the caller's promise. Left in, the check would keep the compiler from unrolling tiles.
        let scale = unsafe { *self.row_scales.get_unchecked(row) };
        lanes.fma(self.dot.floats(sums), lanes.mul(scales, lanes.splat(scale)), before)
    }
}

#[cfg(test)]
mod tests {
    use pelton_backend::{DenseWeight, HostTensor, WeightFormat};

    use super::super::{Linear, PackedLinear, Panels};
    use super::*;
    use crate::isa::IsaChoice;

    /// `[rows, k]` times a weight of 40 output features, with every dot product this CPU has: also those that better ones stand in for. Plain code
    /// comes first.
    fn each_result(x: &[f32], w: &[f32], mut check: impl FnMut(&[f32])) {
        let (pool, scratches) = (Pool::new(2, &[]).unwrap(), Scratches::new(2));
        let k = w.len() / 40;
        let weight = DenseWeight::new(HostTensor::from_f32(vec![40, k], w), WeightFormat::INT8).unwrap();
        let weights = PackedLinear::new(&pool, &[weight]).unwrap();
        let Panels::Int8(panels) = &weights.panels else { panic!("kept in eight bits") };
        for isa in IsaChoice::NAMED.into_iter().filter_map(|choice| Isa::detect(choice).ok()) {
            let without_dots = match isa {
                Isa::Avx2(isa) => Some(Int8Isa::Avx2(isa)),
                Isa::Avx512(isa) => Some(Int8Isa::Avx512(isa)),
                _ => None,
            };
            for dot in [isa.int8()].into_iter().chain(without_dots) {
                let mut out = vec![f32::NAN; x.len() / k * 40];
                let args = &Linear { x, weights: &weights, bias: None, num_rows: x.len() / k };
                let shared = SharedMut::new(&mut out);
                Call { isa, pool: &pool, scratches: &scratches, args, weights: panels, out: shared }.run(dot);
                check(&out);
            }
        }
    }

    #[test]
    fn every_dot_product_gives_the_bits_of_plain_code() {
        let mut rng = fastrand::Rng::with_seed(5);
        for [m, k] in [[1, 1], [2, 3], [5, 16], [6, 33], [7, 64], [12, 129], [13, 300], [40, 1030]] {
            let mut numbers = |count: usize| -> Vec<f32> { (0..count).map(|_| rng.f32() - 0.5).collect() };
            let (x, w) = (numbers(m * k), numbers(40 * k));
            let mut expected: Option<Vec<f32>> = None;
            each_result(&x, &w, |out| {
                assert_eq!(out, expected.get_or_insert_with(|| out.to_vec()), "{m} rows of {k}");
            });
        }
    }

    #[test]
    fn what_is_not_finite_makes_its_row_or_column_no_number() {
        let x = [1.0, f32::INFINITY, 0.0, 1.0, 2.0, 3.0, f32::NAN, 0.0, 0.0];
        let mut w = [0.5; 120];
        (w[10], w[62]) = (f32::NAN, f32::NEG_INFINITY);
        each_result(&x, &w, |out| {
            for (i, y) in out.iter().enumerate() {
                let (row, column) = (i / 40, i % 40);
                assert_eq!(y.is_nan(), row != 1 || column == 3 || column == 20, "row {row}, column {column}: {y}");
            }
        });
    }

    #[test]
    fn scales_may_be_extreme() {
        let mut w = [1e30f32; 120];
        w[..60].fill(1e-30);
        each_result(&[3e8, -1e8, 0.0, 1e-40, 1e-40, 1e-40, 0.0, -0.0, 0.0], &w, |out| {
            for column in 0..20 {
                assert!((out[column] / 2e-22 - 1.0).abs() < 0.02, "{}", out[column]);
                assert!(out[column + 20].is_infinite() || out[column + 20] > 1e38);
            }
            assert!(out[40..].iter().all(|&y| y == 0.0), "denormal and zero rows are zeros");
        });
    }
}
