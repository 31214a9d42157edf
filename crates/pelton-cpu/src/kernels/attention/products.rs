//! How attention multiplies and sums: two neighbours at a time, in floats or as pairs of bf16.
//!
//! Neighbours are two dimensions of a key and the query, or two positions of values and their weights.

use std::arch::x86_64::*;

use half::bf16;

use super::tile::Scores;
use crate::isa::Avx512Bf16;
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
    type Lanes = crate::isa::Avx512;
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
        unsafe { std::mem::transmute::<__m512i, [u32; LANES]>(round(self, low, high)) }
    }

    #[inline(always)]
    fn weights(self, scores: &mut Scores) {
        let lanes = self.lanes();
        for at in (0..scores.len()).step_by(2 * LANES) {
            let (low, high) = (lanes.read(scores, at), lanes.read(scores, at + LANES));
            // SAFETY: sixteen words are 64 bytes, half of what was read.
            unsafe { _mm512_storeu_si512(scores[at / 2..][..LANES].as_mut_ptr().cast(), round(self, low, high)) }
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

/// Thirty-two bf16, to nearest even.
#[inline(always)]
fn round(_proof: Avx512Bf16, low: __m512, high: __m512) -> __m512i {
    // SAFETY: AVX-512 BF16 is proved; bits as above.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
}
