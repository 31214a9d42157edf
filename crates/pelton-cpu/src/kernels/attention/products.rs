//! How attention multiplies and sums: two neighbours at a time, in floats or as pairs of bf16.
//!
//! Neighbours are two dimensions of a key and the query, or two positions of values and their weights.

use std::arch::x86_64::*;

use half::bf16;

use super::tile::Scores;
use crate::isa::{Avx512, Avx512Bf16};
use crate::kv::KvElement;
use crate::lanes::{LANES, Lanes};

/// Which of two neighbours count.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    Both,
    First,
    Second,
}

/// Products with keys and values kept as `T`. The value is the proof that the CPU has the instructions.
pub(super) trait Products<T>: Copy {
    type Lanes: Lanes;
    /// Two numbers of a query, or two weights; at most two floats.
    type Two: Copy;
    /// As [`KvElement::PAIRED`].
    const PAIRED: usize;

    fn lanes(self) -> Self::Lanes;

    /// Thirty-two numbers of `x` from `at` on, zeros beyond its end, times `scale`.
    fn twos(self, x: &[f32], at: usize, scale: f32) -> [Self::Two; LANES];

    /// Makes each two numbers a [`Products::Two`], from the begin of the same memory on.
    fn weights(self, scores: &mut Scores);

    /// `sums[i][v][lane] += twos[i * stride][0] * pairs[v][lane][0] + twos[i * stride][1] * pairs[v][lane][1]`, or one of the products alone.
    ///
    /// The order of a pair's sum is always the same, and another where one is left out: who leaves one out must do so for the same pairs whatever
    /// runs beside.
    ///
    /// # Safety
    /// `twos` leads to `Q` pairs; each of `pairs` as in [`KvElement::load_first`] and [`KvElement::load_second`], with `pair_stride`.
    unsafe fn add<const Q: usize, const V: usize>(
        self,
        sums: &mut [[<Self::Lanes as Lanes>::V; V]; Q],
        twos: *const Self::Two,
        stride: usize,
        pairs: [*const T; V],
        pair_stride: usize,
        which: Which,
    );
}

/// Fused multiply-adds in the order of dimensions and positions: the same bits on every instruction set.
#[derive(Clone, Copy)]
pub(super) struct Floats<L>(pub L);

impl<T: KvElement, L: Lanes> Products<T> for Floats<L> {
    type Lanes = L;
    type Two = [f32; 2];
    const PAIRED: usize = T::PAIRED;

    #[inline(always)]
    fn lanes(self) -> L {
        self.0
    }

    #[inline(always)]
    fn twos(self, x: &[f32], at: usize, scale: f32) -> [[f32; 2]; LANES] {
        let mut twos = [[0.0; 2]; LANES];
        for (number, &x) in twos.as_flattened_mut().iter_mut().zip(&x[at..]) {
            *number = x * scale;
        }
        twos
    }

    #[inline(always)]
    fn weights(self, _scores: &mut Scores) {}

    #[inline(always)]
    unsafe fn add<const Q: usize, const V: usize>(
        self,
        sums: &mut [[L::V; V]; Q],
        twos: *const [f32; 2],
        stride: usize,
        pairs: [*const T; V],
        pair_stride: usize,
        which: Which,
    ) {
        let lanes = self.0;
        let mut half = [lanes.splat(0.0); V];
        // One half after the other: both at once would not fit the registers of narrow sets.
        if which != Which::Second {
            for v in 0..V {
                // SAFETY: the caller's promise.
                half[v] = unsafe { T::load_first(lanes, pairs[v]) };
            }
            for i in 0..Q {
                // SAFETY: `twos` leads to `Q` pairs.
                let x = lanes.splat(unsafe { (*twos.add(i * stride))[0] });
                for v in 0..V {
                    sums[i][v] = lanes.fma(x, half[v], sums[i][v]);
                }
            }
        }
        if which != Which::First {
            for v in 0..V {
                // SAFETY: the caller's promise.
                half[v] = unsafe { T::load_second(lanes, pairs[v], pair_stride) };
            }
            for i in 0..Q {
                // SAFETY: as above.
                let x = lanes.splat(unsafe { (*twos.add(i * stride))[1] });
                for v in 0..V {
                    sums[i][v] = lanes.fma(x, half[v], sums[i][v]);
                }
            }
        }
    }
}

/// Queries and weights are rounded to bf16; the instruction sums both products of a pair.
impl Products<bf16> for Avx512Bf16 {
    type Lanes = Avx512;
    /// Two bf16, the first in the lower half.
    type Two = u32;
    const PAIRED: usize = bf16::PAIRED;

    #[inline(always)]
    fn lanes(self) -> Self::Lanes {
        self.avx512()
    }

    #[inline(always)]
    fn twos(self, x: &[f32], at: usize, scale: f32) -> [u32; LANES] {
        let lanes = self.lanes();
        let scale = lanes.splat(scale);
        let low = lanes.mul(lanes.read(x, at), scale);
        let high = lanes.mul(lanes.read(x, at + LANES), scale);
        // SAFETY: integers are plain bits.
        unsafe { std::mem::transmute::<__m512i, [u32; LANES]>(self.round_pairs(low, high)) }
    }

    #[inline(always)]
    fn weights(self, scores: &mut Scores) {
        let lanes = self.lanes();
        for at in (0..scores.len()).step_by(2 * LANES) {
            let (low, high) = (lanes.read(scores, at), lanes.read(scores, at + LANES));
            // SAFETY: sixteen words are 64 bytes, half of what was read.
            unsafe { _mm512_storeu_si512(scores[at / 2..][..LANES].as_mut_ptr().cast(), self.round_pairs(low, high)) }
        }
    }

    #[inline(always)]
    unsafe fn add<const Q: usize, const V: usize>(
        self,
        sums: &mut [[__m512; V]; Q],
        twos: *const u32,
        stride: usize,
        pairs: [*const bf16; V],
        _pair_stride: usize,
        which: Which,
    ) {
        // SAFETY: `self` proves AVX-512 BF16; 32 elements are there and `Q` pairs, by the caller's promise. A register of pairs is the same
        // bits whether it counts as integers or as bf16.
        unsafe {
            let mut loaded = [_mm512_setzero_si512(); V];
            for v in 0..V {
                loaded[v] = _mm512_loadu_si512(pairs[v].cast());
            }
            let kept = match which {
                Which::Both => !0,
                Which::First => 0xffff,
                Which::Second => !0xffff,
            };
            if which != Which::Both {
                for v in 0..V {
                    loaded[v] = _mm512_and_si512(loaded[v], _mm512_set1_epi32(kept));
                }
            }
            for i in 0..Q {
                let two = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(*twos.add(i * stride) as i32));
                for v in 0..V {
                    let pair = std::mem::transmute::<__m512i, __m512bh>(loaded[v]);
                    sums[i][v] = _mm512_dpbf16_ps(sums[i][v], two, pair);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pelton_backend::{AttendSpec, BlockId, DType, KvSpec, StepBatch, TokenId};

    use super::super::{Attend, Blocks, Unit, attend_all, qkv_cols, write};
    use super::*;
    use crate::isa::{Isa, IsaChoice, Kernel};
    use crate::kv::KvCache;
    use crate::pool::Pool;
    use crate::scratch::Scratches;
    use crate::step::Step;

    /// The instruction in plain code, on sets of as many queries as other lanes have: the upper product of each pair, then the lower, zero or not.
    #[derive(Clone, Copy)]
    struct Described<L>(L);

    fn half(bits: u32) -> f32 {
        f32::from_bits(bits << 16)
    }

    fn pair(low: f32, high: f32) -> u32 {
        u32::from(bf16::from_f32(high).to_bits()) << 16 | u32::from(bf16::from_f32(low).to_bits())
    }

    impl<L: Lanes> Products<bf16> for Described<L> {
        type Lanes = L;
        type Two = u32;
        const PAIRED: usize = bf16::PAIRED;

        fn lanes(self) -> L {
            self.0
        }

        fn twos(self, x: &[f32], at: usize, scale: f32) -> [u32; LANES] {
            let number = |i: usize| x.get(at + i).map_or(0.0, |x| x * scale);
            std::array::from_fn(|i| pair(number(2 * i), number(2 * i + 1)))
        }

        fn weights(self, scores: &mut Scores) {
            for i in 0..scores.len() / 2 {
                scores[i] = f32::from_bits(pair(scores[2 * i], scores[2 * i + 1]));
            }
        }

        unsafe fn add<const Q: usize, const V: usize>(
            self,
            sums: &mut [[L::V; V]; Q],
            twos: *const u32,
            stride: usize,
            pairs: [*const bf16; V],
            _pair_stride: usize,
            which: Which,
        ) {
            for (i, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `twos` leads to `Q` pairs.
                let two = unsafe { *twos.add(i * stride) };
                for (sums, pair) in sums.iter_mut().zip(pairs) {
                    // SAFETY: 32 elements are there, the caller's promise.
                    let numbers = unsafe { pair.cast::<[[bf16; 2]; LANES]>().read_unaligned() };
                    let mut added = self.0.to_array(*sums);
                    for (sum, [first, second]) in added.iter_mut().zip(numbers) {
                        let first = if which == Which::Second { 0.0 } else { first.to_f32() };
                        let second = if which == Which::First { 0.0 } else { second.to_f32() };
                        *sum = half(two >> 16).mul_add(second, *sum);
                        *sum = half(two & 0xffff).mul_add(first, *sum);
                    }
                    *sums = self.0.read(&added, 0);
                }
            }
        }
    }

    struct DescribedUnit<'a>(Unit<'a, bf16>);

    impl Kernel for DescribedUnit<'_> {
        fn run<L: Lanes>(self, isa: L) {
            self.0.walk(Described(isa));
        }
    }

    const POSITIONS: usize = 150;

    /// Results of all positions, computed in pieces of these sizes, over and over, in a cache of leftovers that are no numbers.
    fn in_pieces(isa: Isa, spec: &AttendSpec, qkv: &[f32], sizes: &[usize]) -> Vec<f32> {
        let (pool, scratches) = (Pool::new(2, &[]).unwrap(), Scratches::new(2));
        let kv_spec = KvSpec {
            num_layers: 1,
            num_kv_heads: spec.num_kv_heads,
            head_dim: spec.head_dim,
            block_tokens: 16,
            format: DType::BF16.into(),
        };
        let mut kv = KvCache::new(&kv_spec, POSITIONS.div_ceil(16) as u32).unwrap();
        let layout = kv.layout;
        let Blocks::Bf16(blocks) = &mut kv.blocks else { panic!("kept in bf16") };
        blocks.as_mut_slice().fill(bf16::NAN);
        let table: Vec<BlockId> = (0..POSITIONS.div_ceil(16) as u32).map(BlockId).collect();
        let (cols, out_cols) = (qkv_cols(spec), spec.num_heads * spec.head_dim);
        let mut results = Vec::new();
        let mut sizes = sizes.iter().cycle();
        while results.len() < POSITIONS * out_cols {
            let first = results.len() / out_cols;
            let rows = (POSITIONS - first).min(*sizes.next().unwrap());
            let mut batch = StepBatch::default();
            batch.push_span(&vec![TokenId(0); rows], first as u32, &table[..(first + rows).div_ceil(16)], 16);
            let mut step = Step::new(rows);
            step.begin(&batch);
            let args = Attend { step: &step, qkv: &qkv[first * cols..][..rows * cols], layer: 0, spec };
            write(&pool, &args, layout, blocks.as_mut_slice());
            let mut out = vec![f32::NAN; rows * out_cols];
            attend_all(&pool, &scratches, &args, layout, blocks.as_ptr(), &mut out, |unit| {
                isa.run(DescribedUnit(unit))
            });
            results.extend(out);
        }
        results
    }

    /// As the conformance list asks of the instruction, on any CPU: which positions are summed as pairs follows from a query's own position alone.
    #[test]
    fn pairs_are_batch_invariant() {
        let mut rng = fastrand::Rng::with_seed(11);
        for (num_heads, num_kv_heads, head_dim, window) in
            [(4, 2, 16, None), (3, 1, 33, None), (8, 1, 20, Some(5)), (2, 2, 7, Some(64)), (2, 1, 48, Some(1))]
        {
            let spec = AttendSpec { window, ..AttendSpec::causal(num_heads, num_kv_heads, head_dim, 0.25) };
            let qkv: Vec<f32> = (0..POSITIONS * qkv_cols(&spec)).map(|_| rng.f32() * 4.0 - 2.0).collect();
            for isa in IsaChoice::NAMED.into_iter().filter_map(|choice| Isa::detect(choice).ok()) {
                let whole = in_pieces(isa, &spec, &qkv, &[POSITIONS]);
                assert!(whole.iter().all(|x| x.is_finite()), "{spec:?}");
                for sizes in [&[1][..], &[16, 1, 33, 5], &[2, 3]] {
                    assert_eq!(in_pieces(isa, &spec, &qkv, sizes), whole, "{spec:?} in pieces of {sizes:?}");
                }
            }
        }
    }
}
