//! Sums of products of codes, by instruction set.

use std::arch::x86_64::*;

use super::STEP;
use crate::isa::{Avx2, Avx512, Avx512Vnni, AvxVnni, Scalar};
use crate::lanes::{LANES, Lanes, Two};

/// Products of four codes each, by instruction set.
pub(super) trait Dot: Copy + Sync {
    type Lanes: Lanes;
    /// Four codes of a row as the instruction wants them.
    type Word: Copy + Send + Sync + 'static;
    /// Four codes for each of sixteen columns.
    type Weights: Copy;
    /// Sums of sixteen columns.
    type Sums: Copy;
    /// `u32` in a word.
    const WORDS: usize;
    /// Rows of the largest register tile.
    const ROWS: usize;

    fn lanes(self) -> Self::Lanes;
    fn words(memory: &mut [u32]) -> &mut [Self::Word];
    fn word(codes: [i8; STEP]) -> Self::Word;

    /// What sums begin with, where those of the columns' weights are `code_sums`.
    fn begin(self, code_sums: &[i32; LANES]) -> Self::Sums;

    /// # Safety
    /// 64 readable bytes at `weights`.
    unsafe fn load(self, weights: *const u8) -> Self::Weights;

    fn add(self, sums: Self::Sums, x: Self::Word, weights: Self::Weights) -> Self::Sums;

    fn floats(self, sums: Self::Sums) -> <Self::Lanes as Lanes>::V;
}

impl Dot for Scalar {
    type Lanes = Scalar;
    type Word = u32;
    type Weights = [[u8; STEP]; LANES];
    type Sums = [i32; LANES];
    const WORDS: usize = 1;
    const ROWS: usize = 2;

    fn lanes(self) -> Scalar {
        self
    }

    fn words(memory: &mut [u32]) -> &mut [u32] {
        memory
    }

    fn word(codes: [i8; STEP]) -> u32 {
        u32::from_le_bytes(codes.map(|code| code as u8))
    }

    fn begin(self, _code_sums: &[i32; LANES]) -> [i32; LANES] {
        [0; LANES]
    }

    unsafe fn load(self, weights: *const u8) -> [[u8; STEP]; LANES] {
        // SAFETY: 64 bytes, the caller's promise.
        unsafe { *weights.cast() }
    }

    fn add(self, mut sums: [i32; LANES], x: u32, weights: [[u8; STEP]; LANES]) -> [i32; LANES] {
        for (sum, weights) in sums.iter_mut().zip(weights) {
            for (x, w) in x.to_le_bytes().into_iter().zip(weights) {
                *sum += i32::from(x as i8) * i32::from(w as i8);
            }
        }
        sums
    }

    fn floats(self, sums: [i32; LANES]) -> [f32; LANES] {
        sums.map(|sum| sum as f32)
    }
}

/// Codes widened to 16 bits; each instruction multiplies and adds them in pairs, so a column has two sums.
impl Dot for Avx2 {
    type Lanes = Avx2;
    type Word = [u32; 2];
    type Weights = [__m256i; 4];
    type Sums = [__m256i; 4];
    const WORDS: usize = 2;
    const ROWS: usize = 2;

    #[inline(always)]
    fn lanes(self) -> Avx2 {
        self
    }

    fn words(memory: &mut [u32]) -> &mut [[u32; 2]] {
        memory.as_chunks_mut().0
    }

    #[inline(always)]
    fn word(codes: [i8; STEP]) -> [u32; 2] {
        wide_word(codes)
    }

    #[inline(always)]
    fn begin(self, _code_sums: &[i32; LANES]) -> [__m256i; 4] {
        // SAFETY: `self` proves AVX2.
        [unsafe { _mm256_setzero_si256() }; 4]
    }

    #[inline(always)]
    unsafe fn load(self, weights: *const u8) -> [__m256i; 4] {
        // SAFETY: `self` proves AVX2; 64 bytes are there, by the caller's promise.
        unsafe {
            [
                _mm256_cvtepi8_epi16(_mm_loadu_si128(weights.cast())),
                _mm256_cvtepi8_epi16(_mm_loadu_si128(weights.add(16).cast())),
                _mm256_cvtepi8_epi16(_mm_loadu_si128(weights.add(32).cast())),
                _mm256_cvtepi8_epi16(_mm_loadu_si128(weights.add(48).cast())),
            ]
        }
    }

    #[inline(always)]
    fn add(self, mut sums: [__m256i; 4], x: [u32; 2], weights: [__m256i; 4]) -> [__m256i; 4] {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let x = _mm256_set1_epi64x(wide_bits(x));
            for (sums, weights) in sums.iter_mut().zip(weights) {
                *sums = _mm256_add_epi32(*sums, _mm256_madd_epi16(weights, x));
            }
        }
        sums
    }

    #[inline(always)]
    fn floats(self, sums: [__m256i; 4]) -> <Avx2 as Lanes>::V {
        // SAFETY: integers are plain bits.
        let sums = unsafe { std::mem::transmute::<[__m256i; 4], [[i32; 2]; LANES]>(sums) };
        self.read(&sums.map(|[a, b]| (a + b) as f32), 0)
    }
}

/// As for AVX2, in wider registers.
impl Dot for Avx512 {
    type Lanes = Avx512;
    type Word = [u32; 2];
    type Weights = [__m512i; 2];
    type Sums = [__m512i; 2];
    const WORDS: usize = 2;
    const ROWS: usize = 6;

    #[inline(always)]
    fn lanes(self) -> Avx512 {
        self
    }

    fn words(memory: &mut [u32]) -> &mut [[u32; 2]] {
        memory.as_chunks_mut().0
    }

    #[inline(always)]
    fn word(codes: [i8; STEP]) -> [u32; 2] {
        wide_word(codes)
    }

    #[inline(always)]
    fn begin(self, _code_sums: &[i32; LANES]) -> [__m512i; 2] {
        // SAFETY: `self` proves AVX-512 F.
        [unsafe { _mm512_setzero_si512() }; 2]
    }

    #[inline(always)]
    unsafe fn load(self, weights: *const u8) -> [__m512i; 2] {
        // SAFETY: `self` proves AVX-512 F and BW; 64 bytes are there, by the caller's promise.
        unsafe {
            [
                _mm512_cvtepi8_epi16(_mm256_loadu_si256(weights.cast())),
                _mm512_cvtepi8_epi16(_mm256_loadu_si256(weights.add(32).cast())),
            ]
        }
    }

    #[inline(always)]
    fn add(self, mut sums: [__m512i; 2], x: [u32; 2], weights: [__m512i; 2]) -> [__m512i; 2] {
        // SAFETY: `self` proves AVX-512 F and BW.
        unsafe {
            let x = _mm512_set1_epi64(wide_bits(x));
            for (sums, weights) in sums.iter_mut().zip(weights) {
                *sums = _mm512_add_epi32(*sums, _mm512_madd_epi16(weights, x));
            }
        }
        sums
    }

    #[inline(always)]
    fn floats(self, sums: [__m512i; 2]) -> __m512 {
        // SAFETY: integers are plain bits.
        let sums = unsafe { std::mem::transmute::<[__m512i; 2], [[i32; 2]; LANES]>(sums) };
        self.read(&sums.map(|[a, b]| (a + b) as f32), 0)
    }
}

/// As for AVX-512 VNNI, in narrower registers.
impl Dot for AvxVnni {
    type Lanes = Avx2;
    type Word = u32;
    type Weights = [__m256i; 2];
    type Sums = [__m256i; 2];
    const WORDS: usize = 1;
    const ROWS: usize = 6;

    #[inline(always)]
    fn lanes(self) -> Avx2 {
        self.avx2()
    }

    fn words(memory: &mut [u32]) -> &mut [u32] {
        memory
    }

    #[inline(always)]
    fn word(codes: [i8; STEP]) -> u32 {
        moved_word(codes)
    }

    #[inline(always)]
    fn begin(self, code_sums: &[i32; LANES]) -> [__m256i; 2] {
        // SAFETY: integers are plain bits.
        unsafe { std::mem::transmute(moved_back(code_sums)) }
    }

    #[inline(always)]
    unsafe fn load(self, weights: *const u8) -> [__m256i; 2] {
        // SAFETY: `self` proves AVX2; 64 bytes are there, by the caller's promise.
        unsafe { [_mm256_loadu_si256(weights.cast()), _mm256_loadu_si256(weights.add(32).cast())] }
    }

    #[inline(always)]
    fn add(self, mut sums: [__m256i; 2], x: u32, weights: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: `self` proves AVX-VNNI.
        unsafe {
            let x = _mm256_set1_epi32(x as i32);
            for (sums, weights) in sums.iter_mut().zip(weights) {
                *sums = _mm256_dpbusd_avx_epi32(*sums, x, weights);
            }
        }
        sums
    }

    #[inline(always)]
    fn floats(self, [low, high]: [__m256i; 2]) -> Two {
        // SAFETY: `self` proves AVX2.
        unsafe { Two(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)) }
    }
}

/// The instruction takes rows without sign: codes are moved up by 128, and sums begin with what takes that off again.
impl Dot for Avx512Vnni {
    type Lanes = Avx512;
    type Word = u32;
    type Weights = __m512i;
    type Sums = __m512i;
    const WORDS: usize = 1;
    const ROWS: usize = 12;

    #[inline(always)]
    fn lanes(self) -> Avx512 {
        self.avx512()
    }

    fn words(memory: &mut [u32]) -> &mut [u32] {
        memory
    }

    #[inline(always)]
    fn word(codes: [i8; STEP]) -> u32 {
        moved_word(codes)
    }

    #[inline(always)]
    fn begin(self, code_sums: &[i32; LANES]) -> __m512i {
        // SAFETY: integers are plain bits.
        unsafe { std::mem::transmute(moved_back(code_sums)) }
    }

    #[inline(always)]
    unsafe fn load(self, weights: *const u8) -> __m512i {
        // SAFETY: `self` proves AVX-512 F; 64 bytes are there, by the caller's promise.
        unsafe { _mm512_loadu_si512(weights.cast()) }
    }

    #[inline(always)]
    fn add(self, sums: __m512i, x: u32, weights: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 VNNI.
        unsafe { _mm512_dpbusd_epi32(sums, _mm512_set1_epi32(x as i32), weights) }
    }

    #[inline(always)]
    fn floats(self, sums: __m512i) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_cvtepi32_ps(sums) }
    }
}

/// Four codes, moved up by 128.
#[inline(always)]
fn moved_word(codes: [i8; STEP]) -> u32 {
    u32::from_le_bytes(codes.map(|code| code as u8)) ^ 0x8080_8080
}

/// What takes the 128 of [`moved_word`] off again: so many times the sums of the weights' codes.
#[inline(always)]
fn moved_back(code_sums: &[i32; LANES]) -> [i32; LANES] {
    code_sums.map(|sum| -128 * sum)
}

/// Four codes as 16-bit numbers.
#[inline(always)]
fn wide_word(codes: [i8; STEP]) -> [u32; 2] {
    let [a, b, c, d] = codes.map(|code| u32::from(i16::from(code) as u16));
    [b << 16 | a, d << 16 | c]
}

#[inline(always)]
fn wide_bits([low, high]: [u32; 2]) -> i64 {
    (u64::from(high) << 32 | u64::from(low)) as i64
}
