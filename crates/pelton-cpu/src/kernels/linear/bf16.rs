//! The linear on AVX-512 BF16: rows are rounded to bf16 once, then pairs of products are summed by the instruction.

use std::arch::x86_64::*;

use half::bf16;

use super::pack::{PANEL, panel_len};
use super::{Linear, Place, Units, ZEROS};
use crate::buffer::Buffer;
use crate::isa::{Avx512, Avx512Bf16, Bf16Kernel};
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
    compute(pool, scratches, args, panels, out, |unit| isa.run(unit));
}

fn compute(
    pool: &Pool,
    scratches: &Scratches,
    args: &Linear<'_>,
    panels: &Buffer<bf16>,
    out: SharedMut<'_, f32>,
    run: impl Fn(Unit<'_>) + Sync,
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
        run(Unit { args, pairs, rounded, panels: panels.as_slice(), place: units.place(unit), out });
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

/// What the kernel needs beside [`Lanes`]. A trait, so that CPUs without the instruction test all of the kernel but that.
trait PairLanes: Copy {
    type Lanes: Lanes;

    fn lanes(self) -> Self::Lanes;

    /// `sums[lane] + x[1] * weights[lane][1] + x[0] * weights[lane][0]`, rounded after each product; numbers near zero may be flushed.
    ///
    /// # Safety
    /// 32 readable elements at `weights`.
    unsafe fn add_pairs(
        self,
        sums: <Self::Lanes as Lanes>::V,
        x: u32,
        weights: *const bf16,
    ) -> <Self::Lanes as Lanes>::V;
}

impl PairLanes for Avx512Bf16 {
    type Lanes = Avx512;

    #[inline(always)]
    fn lanes(self) -> Avx512 {
        self.avx512()
    }

    #[inline(always)]
    unsafe fn add_pairs(self, sums: __m512, x: u32, weights: *const bf16) -> __m512 {
        // SAFETY: `self` proves AVX-512 BF16; the caller promises 32 elements. A register of pairs is the same bits whether it
        // counts as 16 integers or as 32 bf16.
        unsafe {
            let weights = std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(weights.cast()));
            let x = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(x as i32));
            _mm512_dpbf16_ps(sums, x, weights)
        }
    }
}

impl Bf16Kernel for Unit<'_> {
    #[inline(always)]
    fn run(self, isa: Avx512Bf16) {
        self.run_on(isa);
    }
}

impl Unit<'_> {
    #[inline(always)]
    fn run_on<P: PairLanes>(self, isa: P) {
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
                        1 => pair_tile::<P, 1>(isa, tile),
                        2 => pair_tile::<P, 2>(isa, tile),
                        3 => pair_tile::<P, 3>(isa, tile),
                        4 => pair_tile::<P, 4>(isa, tile),
                        5 => pair_tile::<P, 5>(isa, tile),
                        _ => pair_tile::<P, 6>(isa, tile),
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
unsafe fn pair_tile<P: PairLanes, const R: usize>(isa: P, tile: PairTile) {
    let lanes = isa.lanes();
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
                // SAFETY: the panel has this pair, and 16 columns of it are 32 elements.
                sums[r][c] = unsafe { isa.add_pairs(sums[r][c], x, tile.weights.add((pair * PANEL + c * LANES) * 2)) };
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

#[cfg(test)]
mod tests {
    use pelton_backend::{DType, DenseWeight, HostTensor};

    use super::super::pack::{PackedLinear, Panels};
    use super::*;
    use crate::isa::Scalar;

    /// `VDPBF16PS` in plain code, as Intel describes it: the upper product of each pair, then the lower.
    #[derive(Clone, Copy)]
    struct Described;

    impl PairLanes for Described {
        type Lanes = Scalar;

        fn lanes(self) -> Scalar {
            Scalar
        }

        unsafe fn add_pairs(self, mut sums: [f32; LANES], x: u32, weights: *const bf16) -> [f32; LANES] {
            let half = |bits: u32| f32::from_bits(bits << 16);
            let (even, odd) = (half(x & 0xffff), half(x >> 16));
            for (lane, sum) in sums.iter_mut().enumerate() {
                // SAFETY: `2 * lane + 1 < 32`, the caller's promise.
                let pair = unsafe { weights.cast::<u32>().add(lane).read() };
                *sum = odd.mul_add(half(pair >> 16), *sum);
                *sum = even.mul_add(half(pair & 0xffff), *sum);
            }
            sums
        }
    }

    fn numbers(count: usize) -> Vec<f32> {
        let mut rng = fastrand::Rng::with_seed(count as u64);
        (0..count).map(|_| rng.f32() - 0.5).collect()
    }

    fn rounded(x: f32) -> f64 {
        f64::from(bf16::from_f32(x).to_f32())
    }

    #[test]
    fn all_but_the_instruction_is_right_and_batch_invariant() {
        let pool = Pool::new(2, &[]).unwrap();
        let scratches = Scratches::new(2);
        let one_more = 2 * BLOCK_PAIRS + 1;
        for [m, n, k] in [[1, 1, 1], [2, 15, 2], [5, 16, 3], [4, 65, 33], [7, 63, 64], [13, 130, 31], [97, 70, 5]]
            .into_iter()
            .chain([one_more - 1, one_more, one_more + 1].map(|k| [8, 17, k]))
        {
            let (x, w, bias) = (numbers(m * k), numbers(n * k + 1), numbers(n + 2));
            let (w, bias) = (&w[1..], &bias[2..]);
            let weight = DenseWeight::new(HostTensor::from_f32(vec![n, k], w), DType::BF16).unwrap();
            let weights = PackedLinear::new(&pool, &[weight]).unwrap();
            let Panels::Bf16(panels) = &weights.panels else { panic!("stored as bfloat16") };
            let linear = |x: &[f32]| {
                let num_rows = x.len() / k;
                let args = Linear { x, weights: &weights, bias: Some(bias), num_rows };
                let mut out = vec![f32::NAN; num_rows * n];
                let shared = SharedMut::new(&mut out);
                compute(&pool, &scratches, &args, panels, shared, |unit| unit.run_on(Described));
                out
            };
            let all = linear(&x);
            for (row, x) in x.chunks(k).enumerate() {
                for (column, w) in w.chunks(k).enumerate() {
                    let products = x.iter().zip(w).map(|(&x, &w)| rounded(x) * rounded(w));
                    let expected = products.sum::<f64>() + f64::from(bias[column]);
                    let error = (f64::from(all[row * n + column]) - expected).abs();
                    assert!(error <= k as f64 * 3e-8, "{m} x {n} x {k}, row {row}, column {column}: off by {error:e}");
                }
                assert_eq!(linear(x), all[row * n..][..n], "{m} x {n} x {k}: row {row} alone");
            }
        }
    }
}
