//! The linear with integers in groups: rows are quantised in the groups of the weights, products are summed as integers in each group, and
//! groups as floats.
//!
//! ```text
//! out[r][c] = bias[c] + sum over groups g, in order, of
//!             (sum over k in g of q_x[r][k] * q_w[c][k]  -  zero[c][g] * sum over k in g of q_x[r][k])
//!             * (scale_w[c][g] * scale_x[r][g])
//! ```
//!
//! Codes of weights have no sign, those of rows have: what the dot instruction takes, so nothing need be moved. The sum over a row's codes is
//! known since they were quantised, and the integers begin with its product. Integers are exact and floats are added by one fused
//! multiply-add in the order of groups: every instruction set gives the same bits, whatever the number of rows. A row or column with
//! a number that is not finite gives NaN.

mod dot;
mod pack;

use std::marker::PhantomData;

use pelton_backend::Bits;

use super::int8::{ROUND, quantise};
use super::words::{WordKernel, Words};
use super::{Linear, Place, rows, tile_rows};
use crate::isa::{Int8Isa, Isa, Kernel, Proof, Task};
use crate::lanes::{LANES, Lanes};
use crate::pool::{Pool, SharedMut};
use crate::scratch::Scratches;

use dot::{Bytes, Codes, Dot, Nibbles};
pub(crate) use pack::GroupedPanels;

/// Computes `out`; sizes were checked by [`super::linear`].
pub(super) fn linear(
    isa: Isa,
    pool: &Pool,
    scratches: &Scratches,
    args: &Linear<'_>,
    weights: &GroupedPanels,
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
    weights: &'a GroupedPanels,
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

    fn compute<D: Dot<Nibbles> + Dot<Bytes> + Proof>(self, dot: D) {
        match self.weights.format.bits {
            Bits::Four => self.compute_as::<D, Nibbles>(dot),
            Bits::Eight => self.compute_as::<D, Bytes>(dot),
        }
    }

    fn compute_as<D: Dot<C> + Proof, C: Codes>(self, dot: D) {
        let Self { isa, pool, args, weights, out, .. } = self;
        let (num_rows, k) = (args.num_rows, args.weights.in_features);
        let &GroupedPanels { steps, group_steps, .. } = weights;
        let num_groups = steps.div_ceil(group_steps);
        let tile_rows = tile_rows(D::Lanes::TILES, num_rows);
        let tile_len = steps * tile_rows;
        // Rows that fill up the last tile have groups too, leftovers.
        let num_row_groups = num_rows.next_multiple_of(tile_rows) * num_groups;
        let mut shared = self.scratches.shared();
        let (words, scales) = shared.words_and_floats(
            num_row_groups + rows::packed_len(num_rows, steps, tile_rows) * size_of::<D::Word>() / 4,
            num_row_groups,
        );
        let (offsets, words) = words.split_at_mut(num_row_groups);
        let (tiles, shared_scales, shared_offsets) = (D::words(words), SharedMut::new(scales), SharedMut::new(offsets));
        pool.run_pieces(tiles, tile_len, |_, tile, words| {
            let first_row = tile * tile_rows;
            let rows = tile_rows.min(num_rows - first_row);
            let groups = num_groups * tile_rows;
            // SAFETY: tiles have groups of their own.
            let scales = unsafe { shared_scales.slice(tile * groups, groups) };
            // SAFETY: as above.
            let offsets = unsafe { shared_offsets.slice(tile * groups, groups) };
            let x = &args.x[first_row * k..][..rows * k];
            isa.run(QuantiseTile::<D, C> { x, k, weights, tile_rows, words, scales, offsets, codes: PhantomData });
        });
        let kernel = Grouped { dot, scales, offsets, weights, codes: PhantomData };
        let words = Words { args, tiles, steps, group_steps, panels: weights.codes.bytes(), out, kernel };
        words.compute(pool, |place| dot.run(Unit { words: &words, place }));
    }
}

struct Unit<'w, 'a, D: Dot<C>, C: Codes> {
    words: &'w Words<'a, Grouped<'a, D, C>>,
    place: Place,
}

impl<D: Dot<C>, C: Codes> Task<D> for Unit<'_, '_, D, C> {
    #[inline(always)]
    fn run(self, _isa: D) {
        self.words.unit(self.place);
    }
}

/// One tile of rows into words, and `[group][tile row]` of what goes with them.
struct QuantiseTile<'a, D: Dot<C>, C: Codes> {
    x: &'a [f32],
    k: usize,
    weights: &'a GroupedPanels,
    tile_rows: usize,
    words: &'a mut [D::Word],
    scales: &'a mut [f32],
    /// Sums of codes, negative; where the zero point is known, times it. As bits of `i32`.
    offsets: &'a mut [u32],
    codes: PhantomData<C>,
}

impl<D: Dot<C>, C: Codes> Kernel for QuantiseTile<'_, D, C> {
    #[inline(always)]
    fn run<L: Lanes>(self, isa: L) {
        let zero = isa.splat(0.0);
        let features = self.weights.group_steps * C::STEP;
        let times = if self.weights.zeros.is_some() { -1 } else { -i32::from(self.weights.format.bits.middle()) };
        for (row, x) in self.x.chunks_exact(self.k).enumerate() {
            let mut finite = zero;
            for (group, first) in (0..self.k).step_by(features).enumerate() {
                let end = self.k.min(first + features);
                let mut largest = zero;
                for at in (first..end).step_by(LANES) {
                    let v = self.read(isa, x, at);
                    largest = isa.max(isa.max(isa.sub(zero, v), v), largest);
                    // Zero, or not a number where `v` is not finite.
                    finite = isa.fma(v, zero, finite);
                }
                let scale = quantise(isa.largest(largest));
                let mut sum = zero;
                for at in (first..end).step_by(LANES) {
                    let scaled = isa.mul(self.read(isa, x, at), isa.splat(scale.inverse));
                    let moved = isa.add(scaled, isa.splat(ROUND));
                    // Whole numbers, exact in any order.
                    sum = isa.add(sum, isa.sub(moved, isa.splat(ROUND)));
                    let codes = isa.to_array(moved).map(|x| x.to_bits() as i8);
                    let first_step = at / C::STEP;
                    let steps = (LANES / C::STEP).min(self.weights.steps - first_step);
                    for (step, codes) in codes.chunks_exact(C::STEP).take(steps).enumerate() {
                        self.words[(first_step + step) * self.tile_rows + row] = D::word(codes);
                    }
                }
                self.scales[group * self.tile_rows + row] = scale.scale;
                self.offsets[group * self.tile_rows + row] = (isa.sum(sum) as i32).wrapping_mul(times) as u32;
            }
            self.scales[row] += isa.sum(finite);
        }
    }
}

impl<D: Dot<C>, C: Codes> QuantiseTile<'_, D, C> {
    /// Numbers of a row from place `at` on, then zeros.
    #[inline(always)]
    fn read<L: Lanes>(&self, isa: L, x: &[f32], at: usize) -> L::V {
        match &self.weights.order {
            None => isa.read(x, at),
            Some(order) => {
                let mut ordered = [0.0; LANES];
                for (place, &k) in ordered.iter_mut().zip(&order[at..]) {
                    *place = x[k as usize];
                }
                isa.read(&ordered, 0)
            }
        }
    }
}

struct Grouped<'a, D, C> {
    dot: D,
    /// Of rows, `[tile][group][tile row]`, as are `offsets`: see [`QuantiseTile`].
    scales: &'a [f32],
    offsets: &'a [u32],
    weights: &'a GroupedPanels,
    codes: PhantomData<C>,
}

impl<D: Copy, C> Clone for Grouped<'_, D, C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Copy, C> Copy for Grouped<'_, D, C> {}

impl<D: Dot<C>, C: Codes> WordKernel for Grouped<'_, D, C> {
    type Lanes = D::Lanes;
    type Word = D::Word;
    type Weights = D::Weights;
    type Sums = D::Sums;
    /// Scales, and the first column.
    type Columns = (<D::Lanes as Lanes>::V, usize);
    const ROWS: usize = D::ROWS;

    #[inline(always)]
    fn lanes(self) -> D::Lanes {
        self.dot.lanes()
    }

    #[inline(always)]
    fn columns(self, first: usize, column: usize) -> Self::Columns {
        let lanes = self.dot.lanes();
        let scales = &self.weights.scales.as_slice()[column..][..LANES];
        // SAFETY: sixteen halves.
        let scales = unsafe { lanes.load_f16(scales.as_ptr()) };
        (lanes.mul(scales, lanes.read(self.weights.factors.as_slice(), first)), column)
    }

    #[inline(always)]
    unsafe fn begin(self, row: usize, (_, column): Self::Columns) -> D::Sums {
        // SAFETY: the row exists, the caller's promise. Left in, checks would keep the compiler from unrolling tiles.
        let offset = unsafe { *self.offsets.get_unchecked(row) } as i32;
        match &self.weights.zeros {
            None => self.dot.splat(offset),
            // SAFETY: there are as many zeros as scales, of which sixteen were read from `column` on.
            Some(zeros) => self.dot.scaled(unsafe { &*zeros.as_ptr().add(column).cast() }, offset),
        }
    }

    #[inline(always)]
    unsafe fn load(self, weights: *const u8) -> D::Weights {
        // SAFETY: the caller's promise.
        unsafe { self.dot.load(weights) }
    }

    #[inline(always)]
    fn add(self, sums: D::Sums, x: &D::Word, weights: D::Weights) -> D::Sums {
        self.dot.add(sums, x, weights)
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
        // SAFETY: the row exists, the caller's promise.
        let scale = unsafe { *self.scales.get_unchecked(row) };
        lanes.fma(self.dot.floats(sums), lanes.mul(scales, lanes.splat(scale)), before)
    }
}

#[cfg(test)]
mod tests {
    use pelton_backend::{DenseWeight, Group, GroupedWeight, HostTensor, IntGroups};

    use super::super::{PackedLinear, Panels};
    use super::*;
    use crate::isa::IsaChoice;

    const N: usize = 40;

    const FORMATS: [IntGroups; 4] = [
        IntGroups::INT4,
        IntGroups { bits: Bits::Four, group: Group::Row, zeros: true },
        IntGroups { bits: Bits::Eight, group: Group::Of64, zeros: false },
        IntGroups { bits: Bits::Eight, group: Group::Of128, zeros: true },
    ];

    /// Rows times a weight, with every dot product this CPU has: also those that better ones stand in for. Plain code comes first.
    fn each_result(weights: &PackedLinear, x: &[f32], mut check: impl FnMut(&[f32])) {
        let (pool, scratches) = (Pool::new(2, &[]).unwrap(), Scratches::new(2));
        let num_rows = x.len() / weights.in_features;
        let Panels::Grouped(panels) = &weights.panels else { panic!("kept in groups") };
        for isa in IsaChoice::NAMED.into_iter().filter_map(|choice| Isa::detect(choice).ok()) {
            let without_dots = match isa {
                Isa::Avx2(isa) => Some(Int8Isa::Avx2(isa)),
                Isa::Avx512(isa) => Some(Int8Isa::Avx512(isa)),
                _ => None,
            };
            for dot in [isa.int8()].into_iter().chain(without_dots) {
                let mut out = vec![f32::NAN; num_rows * weights.out_features];
                let args = &Linear { x, weights, bias: None, num_rows };
                let out_shared = SharedMut::new(&mut out);
                let call = Call { isa, pool: &pool, scratches: &scratches, args, weights: panels, out: out_shared };
                call.run(dot);
                check(&out);
            }
        }
    }

    fn packed(w: &[f32], n: usize, format: IntGroups) -> PackedLinear {
        let weight = DenseWeight::new(HostTensor::from_f32(vec![n, w.len() / n], w), format).unwrap();
        PackedLinear::new(&Pool::new(1, &[]).unwrap(), &[weight]).unwrap()
    }

    #[test]
    fn every_dot_product_gives_the_bits_of_plain_code_in_any_company() {
        let mut rng = fastrand::Rng::with_seed(3);
        for case in 0..150 {
            let format = IntGroups {
                bits: *rng.choice(&[Bits::Four, Bits::Eight]).unwrap(),
                group: *rng.choice(&[Group::Of32, Group::Of64, Group::Of128, Group::Row]).unwrap(),
                zeros: rng.bool(),
            };
            if format == IntGroups::INT8 {
                continue;
            }
            // Sizes beside those of groups, tiles and panels, and any others.
            let near = |rng: &mut fastrand::Rng, step: usize| (step * rng.usize(1..4) + rng.usize(0..3)).max(2) - 1;
            let (m, n, k) = (near(&mut rng, 12), near(&mut rng, 16), near(&mut rng, 64) + rng.usize(0..100));
            let mut numbers = |count: usize| -> Vec<f32> { (0..count).map(|_| rng.f32() - 0.5).collect() };
            let (x, weights) = (numbers(m * k), packed(&numbers(n * k), n, format));
            let mut expected: Option<Vec<f32>> = None;
            each_result(&weights, &x, |out| {
                let expected = expected.get_or_insert_with(|| out.to_vec());
                assert_eq!(out, expected, "case {case}: [{m}, {n}, {k}] in {format}");
            });
            let row = rng.usize(0..m);
            each_result(&weights, &x[row * k..][..k], |out| {
                let expected = expected.as_ref().unwrap();
                assert_eq!(out, &expected[row * n..][..n], "case {case}: [{m}, {n}, {k}] in {format}, row {row} alone");
            });
        }
    }

    #[test]
    fn what_is_not_finite_makes_its_row_or_column_no_number() {
        let k = 150;
        let mut x = vec![1.0; 3 * k];
        (x[k / 2], x[3 * k - 1]) = (f32::INFINITY, f32::NAN);
        let mut w = vec![0.5; N * k];
        (w[3 * k + 40], w[20 * k + 149]) = (f32::NAN, f32::NEG_INFINITY);
        for format in FORMATS {
            each_result(&packed(&w, N, format), &x, |out| {
                for (i, y) in out.iter().enumerate() {
                    let (row, column) = (i / N, i % N);
                    assert_eq!(y.is_nan(), row != 1 || column == 3 || column == 20, "{format}, {row}, {column}: {y}");
                }
            });
        }
    }

    #[test]
    fn scales_may_be_extreme() {
        let k = 96;
        // Of one sign in each column, so that sums cannot cancel.
        let mut w = vec![1e30f32; N * k];
        w[..20 * k].fill(-1e-30);
        let mut x = vec![1e-40; 2 * k];
        x[..k].fill(3e8);
        for format in FORMATS {
            each_result(&packed(&w, N, format), &x, |out| {
                for column in 0..20 {
                    let error = out[column] / (-1e-30 * 3e8 * k as f32) - 1.0;
                    assert!(error.abs() < 0.01, "{format}: {}", out[column]);
                    assert!(out[column + 20] > 1e38, "{format}: {}", out[column + 20]);
                }
                assert!(out[N..].iter().all(|&y| y == 0.0), "{format}: denormal rows are zeros");
            });
        }
    }

    #[test]
    fn the_largest_sums_of_the_longest_row_fit() {
        let k = super::super::int8::MAX_IN_FEATURES;
        let format = IntGroups { bits: Bits::Eight, group: Group::Row, zeros: true };
        let zeros: Vec<u8> = (0..N).map(|column| if column % 2 == 0 { 0 } else { 255 }).collect();
        // Codes as far from their zero as can be, and rows of the largest code.
        let codes: Vec<u8> = (0..N * k).map(|i| 255 - zeros[i / k]).collect();
        let weight = GroupedWeight::new(format, [N, k], codes, vec![1.0; N], Some(zeros.into())).unwrap();
        let weights = PackedLinear::from_grouped(&Pool::new(2, &[]).unwrap(), &[weight]).unwrap();
        each_result(&weights, &vec![-127.0; k], |out| {
            for (column, &y) in out.iter().enumerate() {
                let expected = -127.0 * 255.0 * k as f32 * if column % 2 == 0 { 1.0 } else { -1.0 };
                assert_eq!(y, expected, "column {column}");
            }
        });
        let longer = GroupedWeight::new(format, [1, k + 1], vec![0; k + 1], vec![1.0], Some(vec![0].into())).unwrap();
        let Err(error) = PackedLinear::from_grouped(&Pool::new(1, &[]).unwrap(), &[longer]) else { panic!() };
        assert!(error.to_string().contains("65537 input features"), "{error}");
    }
}
