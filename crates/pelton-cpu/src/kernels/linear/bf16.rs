//! The linear on AVX-512 BF16: rows are rounded to bf16 once, then pairs of products are summed by the instruction.

use std::arch::x86_64::*;

use half::bf16;

use super::words::{WordKernel, Words};
use super::{Linear, Place, rows, tile_rows};
use crate::buffer::Buffer;
use crate::isa::{Avx512, Avx512Bf16, Proof, Task};
use crate::lanes::{LANES, Lanes};
use crate::pool::{Pool, SharedMut};
use crate::scratch::Scratches;

/// Computes `out`; sizes were checked by [`super::linear`].
pub(super) fn linear(
    isa: Avx512Bf16,
    pool: &Pool,
    scratches: &Scratches,
    args: &Linear<'_>,
    panels: &Buffer<bf16>,
    out: SharedMut<'_, f32>,
) {
    let call = Call { pool, scratches, args, panels, out };
    call.compute(isa, |x, words| isa.run(Round { x, words }), |unit| isa.run(unit));
}

/// Numbers as pairs of bf16, to nearest even, zeros beyond the end of `x`.
struct Round<'a> {
    x: &'a [f32],
    words: &'a mut [u32],
}

impl Task<Avx512Bf16> for Round<'_> {
    #[inline(always)]
    fn run(self, isa: Avx512Bf16) {
        let lanes = isa.lanes();
        for (at, words) in self.words.chunks_mut(LANES).enumerate() {
            let low = lanes.read(self.x, 2 * at * LANES);
            let high = lanes.read(self.x, (2 * at + 1) * LANES);
            // SAFETY: integers are plain bits.
            let pairs = unsafe { std::mem::transmute::<__m512i, [u32; LANES]>(isa.round_pairs(low, high)) };
            words.copy_from_slice(&pairs[..words.len()]);
        }
    }
}

#[derive(Clone, Copy)]
struct Call<'a> {
    pool: &'a Pool,
    scratches: &'a Scratches,
    args: &'a Linear<'a>,
    panels: &'a Buffer<bf16>,
    out: SharedMut<'a, f32>,
}

impl Call<'_> {
    /// `round` makes numbers into words.
    fn compute<K: WordKernel<Word = u32>>(
        self,
        kernel: K,
        round: impl Fn(&[f32], &mut [u32]) + Sync,
        run: impl Fn(Unit<'_, '_, K>) + Sync,
    ) {
        let Self { pool, args, panels, out, .. } = self;
        let k = args.weights.in_features;
        let pairs = k.div_ceil(2);
        let tile_rows = tile_rows(K::Lanes::TILES, args.num_rows);
        let mut shared = self.scratches.shared();
        let tiles = shared.words(rows::packed_len(args.num_rows, pairs, tile_rows));
        rows::pack_rows(pool, args.num_rows, pairs, tile_rows, tiles, |row, first_pair, words| {
            let x = &args.x[row * k..][..k];
            round(&x[2 * first_pair..], words);
        });
        let words = Words { args, tiles, steps: pairs, group_steps: pairs, panels: panels.bytes(), out, kernel };
        words.compute(pool, |place| run(Unit { words: &words, place }));
    }
}

struct Unit<'w, 'a, K: WordKernel> {
    words: &'w Words<'a, K>,
    place: Place,
}

impl Task<Avx512Bf16> for Unit<'_, '_, Avx512Bf16> {
    #[inline(always)]
    fn run(self, _isa: Avx512Bf16) {
        self.words.unit(self.place);
    }
}

/// `sums[lane] + x[1] * weights[lane][1] + x[0] * weights[lane][0]`, rounded after each product; numbers near zero may be flushed.
impl WordKernel for Avx512Bf16 {
    type Lanes = Avx512;
    type Word = u32;
    type Weights = __m512bh;
    type Sums = __m512;
    type Columns = ();
    const ROWS: usize = 12;

    #[inline(always)]
    fn lanes(self) -> Avx512 {
        self.avx512()
    }

    #[inline(always)]
    fn columns(self, _first: usize, _column: usize) {}

    #[inline(always)]
    unsafe fn begin(self, _row: usize, _columns: ()) -> __m512 {
        self.avx512().splat(0.0)
    }

    #[inline(always)]
    unsafe fn load(self, weights: *const u8) -> __m512bh {
        // SAFETY: `self` proves AVX-512 BF16; the caller promises 64 bytes. A register of pairs is the same bits whether it
        // counts as 16 integers or as 32 bf16.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(weights.cast())) }
    }

    #[inline(always)]
    fn add(self, sums: __m512, x: &u32, weights: __m512bh) -> __m512 {
        // SAFETY: `self` proves AVX-512 BF16; bits as above.
        unsafe {
            _mm512_dpbf16_ps(sums, std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(*x as i32)), weights)
        }
    }

    #[inline(always)]
    unsafe fn finish(self, sums: __m512, _row: usize, _columns: (), before: __m512) -> __m512 {
        self.avx512().add(sums, before)
    }
}

#[cfg(test)]
mod tests {
    use pelton_backend::{DType, DenseWeight, HostTensor};

    use super::super::pack::{PackedLinear, Panels};
    use super::*;
    use crate::isa::{Isa, IsaChoice, Scalar};

    /// `VDPBF16PS` in plain code, as Intel describes it: the upper product of each pair, then the lower.
    #[derive(Clone, Copy)]
    struct Described;

    impl WordKernel for Described {
        type Lanes = Scalar;
        type Word = u32;
        type Weights = [u32; LANES];
        type Sums = [f32; LANES];
        type Columns = ();
        const ROWS: usize = 12;

        fn lanes(self) -> Scalar {
            Scalar
        }

        fn columns(self, _first: usize, _column: usize) {}

        unsafe fn begin(self, _row: usize, _columns: ()) -> [f32; LANES] {
            [0.0; LANES]
        }

        unsafe fn load(self, weights: *const u8) -> [u32; LANES] {
            // SAFETY: 64 bytes, the caller's promise.
            unsafe { weights.cast::<[u32; LANES]>().read_unaligned() }
        }

        fn add(self, mut sums: [f32; LANES], x: &u32, weights: [u32; LANES]) -> [f32; LANES] {
            let half = |bits: u32| f32::from_bits(bits << 16);
            let (even, odd) = (half(x & 0xffff), half(x >> 16));
            for (sum, pair) in sums.iter_mut().zip(weights) {
                *sum = odd.mul_add(half(pair >> 16), *sum);
                *sum = even.mul_add(half(pair & 0xffff), *sum);
            }
            sums
        }

        unsafe fn finish(self, sums: [f32; LANES], _row: usize, _columns: (), before: [f32; LANES]) -> [f32; LANES] {
            Scalar.add(sums, before)
        }
    }

    /// [`Round`] in plain code.
    fn round(x: &[f32], words: &mut [u32]) {
        for (pair, word) in words.iter_mut().enumerate() {
            let half = |at: usize| x.get(at).map_or(0, |&x| u32::from(bf16::from_f32(x).to_bits()));
            *word = half(2 * pair + 1) << 16 | half(2 * pair);
        }
    }

    fn numbers(count: usize) -> Vec<f32> {
        let mut rng = fastrand::Rng::with_seed(count as u64);
        (0..count).map(|_| rng.f32() - 0.5).collect()
    }

    fn rounded(x: f32) -> f64 {
        f64::from(bf16::from_f32(x).to_f32())
    }

    /// One word times sixteen columns, added to what `sums` hold.
    struct Add<'a> {
        x: u32,
        weights: &'a [u32; LANES],
        sums: &'a mut [f32; LANES],
    }

    impl Task<Avx512Bf16> for Add<'_> {
        #[inline(always)]
        fn run(self, isa: Avx512Bf16) {
            let sums = isa.lanes().read(self.sums, 0);
            // SAFETY: sixteen words are 64 bytes.
            let weights = unsafe { isa.load(self.weights.as_ptr().cast()) };
            let sums = isa.add(sums, &self.x, weights);
            isa.lanes().write(self.sums, 0, sums);
        }
    }

    #[test]
    fn the_instruction_does_what_is_described() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut half = || u32::from(bf16::from_f32(rng.f32() - 0.5).to_bits());
        let mut word = || half() << 16 | half();
        for _ in 0..100 {
            let (x, weights) = (word(), [(); LANES].map(|()| word()));
            let begun: [f32; LANES] = std::array::from_fn(|lane| lane as f32 / 8.0 - 1.0);
            let wanted = Described.add(begun, &x, weights);
            let mut found = begun;
            match Isa::detect(IsaChoice::Avx512Bf16) {
                Ok(Isa::Avx512Bf16(isa)) => isa.run(Add { x, weights: &weights, sums: &mut found }),
                _ => return,
            }
            assert_eq!(found, wanted);
        }
    }

    #[test]
    fn the_instruction_rounds_as_plain_code() {
        let Ok(Isa::Avx512Bf16(isa)) = Isa::detect(IsaChoice::Avx512Bf16) else { return };
        for count in [1, 2, 15, 16, 31, 32, 33, 63, 64, 65, 999] {
            let mut x = numbers(count);
            x[count / 2] = [f32::INFINITY, -0.0, f32::MAX, 1.003_906_3][count % 4];
            let mut found = vec![0; count.div_ceil(2)];
            let mut wanted = found.clone();
            isa.run(Round { x: &x, words: &mut found });
            round(&x, &mut wanted);
            assert_eq!(found, wanted, "{count} numbers");
        }
    }

    #[test]
    fn all_but_the_instruction_is_right_and_batch_invariant() {
        let pool = Pool::new(2, &[]).unwrap();
        let scratches = Scratches::new(2);
        for [m, n, k] in
            [[1, 1, 1], [2, 15, 2], [5, 16, 3], [4, 65, 33], [7, 63, 64], [13, 130, 31], [97, 70, 5], [8, 17, 1025]]
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
                let call =
                    Call { pool: &pool, scratches: &scratches, args: &args, panels, out: SharedMut::new(&mut out) };
                call.compute(Described, round, |unit| unit.words.unit(unit.place));
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
