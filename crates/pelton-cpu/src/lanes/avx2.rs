//! Lanes in two AVX2 registers.
//!
//! Every method here rests on one argument: `self` is the proof that the CPU has the features of the intrinsics used.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Lanes, Tiles};
use crate::isa::Avx2;

/// Lanes 0 to 7 and 8 to 15.
#[derive(Clone, Copy)]
pub(crate) struct Two(pub __m256, pub __m256);

impl Lanes for Avx2 {
    type V = Two;
    const TILES: Tiles = Tiles { wide: false, vectors: true, rows: 6 };

    #[inline(always)]
    fn splat(self, x: f32) -> Two {
        // SAFETY: `self` proves AVX2.
        let v = unsafe { _mm256_set1_ps(x) };
        Two(v, v)
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Two {
        // SAFETY: `self` proves AVX2; the caller promises 16 elements.
        unsafe { Two(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }

    #[inline(always)]
    unsafe fn load_first(self, p: *const f32, n: usize) -> Two {
        let (low, high) = first(self, n);
        // SAFETY: `self` proves AVX2; masked lanes are not read, the caller promises the others.
        unsafe { Two(_mm256_maskload_ps(p, low), _mm256_maskload_ps(p.wrapping_add(8), high)) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> Two {
        // SAFETY: `self` proves AVX2 and F16C; the caller promises 16 elements.
        unsafe { Two(_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))) }
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> Two {
        // SAFETY: `self` proves AVX2; the caller promises 16 elements.
        unsafe {
            Two(
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8).cast()))),
            )
        }
    }

    #[inline(always)]
    unsafe fn load_bf16_first(self, p: *const bf16) -> Two {
        // SAFETY: `self` proves AVX2; the caller promises 32 elements.
        unsafe {
            let (low, high) = (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(16).cast()));
            Two(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16_second(self, p: *const bf16) -> Two {
        // SAFETY: as above.
        unsafe { Two(upper_halves(p), upper_halves(p.add(16))) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Two) {
        // SAFETY: `self` proves AVX2; the caller promises 16 elements.
        unsafe {
            _mm256_storeu_ps(p, v.0);
            _mm256_storeu_ps(p.add(8), v.1);
        }
    }

    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize, v: Two) {
        let (low, high) = first(self, n);
        // SAFETY: `self` proves AVX2; masked lanes are not written, the caller promises the others.
        unsafe {
            _mm256_maskstore_ps(p, low, v.0);
            _mm256_maskstore_ps(p.wrapping_add(8), high, v.1);
        }
    }

    #[inline(always)]
    fn add(self, a: Two, b: Two) -> Two {
        // SAFETY: `self` proves AVX2.
        unsafe { Two(_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn sub(self, a: Two, b: Two) -> Two {
        // SAFETY: `self` proves AVX2.
        unsafe { Two(_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn mul(self, a: Two, b: Two) -> Two {
        // SAFETY: `self` proves AVX2.
        unsafe { Two(_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn div(self, a: Two, b: Two) -> Two {
        // SAFETY: `self` proves AVX2.
        unsafe { Two(_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn fma(self, a: Two, b: Two, c: Two) -> Two {
        // SAFETY: `self` proves FMA.
        unsafe { Two(_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
    }

    #[inline(always)]
    fn max(self, a: Two, b: Two) -> Two {
        // SAFETY: `self` proves AVX2.
        unsafe { Two(_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)) }
    }

    #[inline(always)]
    fn select_lt(self, a: Two, b: Two, yes: Two, no: Two) -> Two {
        // SAFETY: `self` proves AVX2.
        unsafe {
            Two(
                _mm256_blendv_ps(no.0, yes.0, _mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0)),
                _mm256_blendv_ps(no.1, yes.1, _mm256_cmp_ps::<_CMP_LT_OQ>(a.1, b.1)),
            )
        }
    }

    #[inline(always)]
    fn keep_first(self, n: usize, v: Two, fill: Two) -> Two {
        let (low, high) = first(self, n);
        // SAFETY: `self` proves AVX2.
        unsafe {
            Two(
                _mm256_blendv_ps(fill.0, v.0, _mm256_castsi256_ps(low)),
                _mm256_blendv_ps(fill.1, v.1, _mm256_castsi256_ps(high)),
            )
        }
    }

    #[inline(always)]
    fn pow2(self, n: Two) -> Two {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_add_epi32(_mm256_cvttps_epi32(n.0), bias);
            let high = _mm256_add_epi32(_mm256_cvttps_epi32(n.1), bias);
            Two(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<23>(high)))
        }
    }

    #[inline(always)]
    fn sum(self, v: Two) -> f32 {
        // SAFETY: `self` proves AVX2.
        unsafe { eight_sum(_mm256_add_ps(v.0, v.1)) }
    }

    #[inline(always)]
    fn largest(self, v: Two) -> f32 {
        // SAFETY: `self` proves AVX2.
        unsafe { eight_largest(_mm256_max_ps(v.0, v.1)) }
    }

    #[inline(always)]
    fn prefetch(self, p: *const f32) {
        // SAFETY: every x86-64 CPU has it, and it never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
}

/// The second of eight pairs each.
///
/// In assembly, so that it reads memory again: the compiler would keep what it has loaded for the first of each pair, and sums of a tile of six
/// rows would leave their registers (a linear of 256 rows took 1.8 times as long).
///
/// # Safety
/// The CPU has AVX2; 16 readable elements at `p`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn upper_halves(p: *const bf16) -> __m256 {
    let halves: __m256;
    // SAFETY: 32 bytes are read, which the caller promises.
    unsafe {
        std::arch::asm!(
            "vpand {halves}, {upper}, ymmword ptr [{p}]",
            halves = lateout(ymm_reg) halves,
            upper = in(ymm_reg) _mm256_set1_epi32(0xffff_0000u32 as i32),
            p = in(reg) p,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    halves
}

/// Masks of the first `n` lanes: all bits set where the lane counts.
#[inline(always)]
fn first(_proof: Avx2, n: usize) -> (__m256i, __m256i) {
    let n = n.min(16) as i32;
    // SAFETY: the proof stands for AVX2.
    unsafe {
        let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        (_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane), _mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8), lane))
    }
}

/// The sum of eight lanes, by halves.
///
/// # Safety
/// The CPU has AVX.
#[inline(always)]
pub(super) unsafe fn eight_sum(v: __m256) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}

/// The largest of eight lanes.
///
/// # Safety
/// The CPU has AVX.
#[inline(always)]
pub(super) unsafe fn eight_largest(v: __m256) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
    }
}
