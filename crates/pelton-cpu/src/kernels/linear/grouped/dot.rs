//! Products of codes without sign and codes with one, by instruction set.
//!
//! A step of weights is 64 bytes for sixteen columns: four input features in bytes, or eight in nibbles. Where there is no dot
//! instruction, nibbles are multiplied in bytes (two products of 15 * 127 fit 16 bits), bytes in 16 bits, even and odd features apart, so
//! that each column has one sum.

use std::arch::x86_64::*;

use crate::isa::{Avx2, Avx512, Avx512Vnni, AvxVnni, Scalar};
use crate::lanes::{LANES, Lanes, Two};

/// How weights lie in a step.
pub(super) trait Codes: Copy + Send + Sync + 'static {
    /// Input features.
    const STEP: usize;
}

/// Four bytes for each column.
#[derive(Clone, Copy)]
pub(super) struct Bytes;

impl Codes for Bytes {
    const STEP: usize = 4;
}

/// Four bytes for each column: lower halves first, then upper halves.
#[derive(Clone, Copy)]
pub(super) struct Nibbles;

impl Codes for Nibbles {
    const STEP: usize = 8;
}

/// Sixteen 32-bit integers.
pub(super) trait Integers: Copy + Sync {
    type Lanes: Lanes;
    type Sums: Copy;
    /// See [`super::WordKernel::ROWS`].
    const ROWS: usize;

    fn lanes(self) -> Self::Lanes;
    fn splat(self, x: i32) -> Self::Sums;
    /// `numbers[lane] * x`.
    fn scaled(self, numbers: &[u8; LANES], x: i32) -> Self::Sums;
    /// To nearest.
    fn floats(self, sums: Self::Sums) -> <Self::Lanes as Lanes>::V;
}

/// Sums of products.
pub(super) trait Dot<C: Codes>: Integers {
    /// Codes of a row as the instructions want them; a whole number of `u32`.
    type Word: Copy + Send + Sync + 'static;
    /// A step of sixteen columns.
    type Weights: Copy;

    fn words(memory: &mut [u32]) -> &mut [Self::Word];
    /// Of as many codes as a step has input features.
    fn word(codes: &[i8]) -> Self::Word;

    /// # Safety
    /// 64 readable bytes at `weights`.
    unsafe fn load(self, weights: *const u8) -> Self::Weights;

    fn add(self, sums: Self::Sums, x: &Self::Word, weights: Self::Weights) -> Self::Sums;
}

/// Four codes, one in each byte.
#[inline(always)]
fn bytes(codes: &[i8]) -> u32 {
    u32::from_le_bytes([codes[0] as u8, codes[1] as u8, codes[2] as u8, codes[3] as u8])
}

/// Four codes in 16 bits each: the first and third, the second and fourth.
#[inline(always)]
fn even_and_odd(codes: &[i8]) -> [u32; 2] {
    let wide = |code: i8| u32::from(i16::from(code) as u16);
    [wide(codes[2]) << 16 | wide(codes[0]), wide(codes[3]) << 16 | wide(codes[1])]
}

impl Integers for Scalar {
    type Lanes = Scalar;
    type Sums = [i32; LANES];
    const ROWS: usize = 2;

    fn lanes(self) -> Scalar {
        self
    }

    fn splat(self, x: i32) -> [i32; LANES] {
        [x; LANES]
    }

    fn scaled(self, numbers: &[u8; LANES], x: i32) -> [i32; LANES] {
        numbers.map(|number| i32::from(number).wrapping_mul(x))
    }

    fn floats(self, sums: [i32; LANES]) -> [f32; LANES] {
        sums.map(|sum| sum as f32)
    }
}

/// Adds products of four codes to each sum. Sums of what comes before the last step may not fit, the whole does.
fn add_plain(sums: &mut [i32; LANES], x: u32, weights: [[u8; 4]; LANES]) {
    for (sum, weights) in sums.iter_mut().zip(weights) {
        for (x, w) in x.to_le_bytes().into_iter().zip(weights) {
            *sum = sum.wrapping_add(i32::from(x as i8) * i32::from(w));
        }
    }
}

impl Dot<Bytes> for Scalar {
    type Word = u32;
    type Weights = [[u8; 4]; LANES];

    fn words(memory: &mut [u32]) -> &mut [u32] {
        memory
    }

    fn word(codes: &[i8]) -> u32 {
        bytes(codes)
    }

    unsafe fn load(self, weights: *const u8) -> [[u8; 4]; LANES] {
        // SAFETY: 64 bytes, the caller's promise.
        unsafe { *weights.cast() }
    }

    fn add(self, mut sums: [i32; LANES], x: &u32, weights: [[u8; 4]; LANES]) -> [i32; LANES] {
        add_plain(&mut sums, *x, weights);
        sums
    }
}

impl Dot<Nibbles> for Scalar {
    type Word = [u32; 2];
    type Weights = [[[u8; 4]; LANES]; 2];

    fn words(memory: &mut [u32]) -> &mut [[u32; 2]] {
        memory.as_chunks_mut().0
    }

    fn word(codes: &[i8]) -> [u32; 2] {
        [bytes(codes), bytes(&codes[4..])]
    }

    unsafe fn load(self, weights: *const u8) -> [[[u8; 4]; LANES]; 2] {
        // SAFETY: 64 bytes, the caller's promise.
        let weights: [[u8; 4]; LANES] = unsafe { *weights.cast() };
        [weights.map(|column| column.map(|byte| byte & 15)), weights.map(|column| column.map(|byte| byte >> 4))]
    }

    fn add(self, mut sums: [i32; LANES], x: &[u32; 2], weights: [[[u8; 4]; LANES]; 2]) -> [i32; LANES] {
        for (x, weights) in x.iter().zip(weights) {
            add_plain(&mut sums, *x, weights);
        }
        sums
    }
}

impl Integers for Avx2 {
    type Lanes = Avx2;
    type Sums = [__m256i; 2];
    const ROWS: usize = 2;

    #[inline(always)]
    fn lanes(self) -> Avx2 {
        self
    }

    #[inline(always)]
    fn splat(self, x: i32) -> [__m256i; 2] {
        // SAFETY: `self` proves AVX2.
        [unsafe { _mm256_set1_epi32(x) }; 2]
    }

    #[inline(always)]
    fn scaled(self, numbers: &[u8; LANES], x: i32) -> [__m256i; 2] {
        // SAFETY: `self` proves AVX2; sixteen bytes are there.
        unsafe {
            let numbers = _mm_loadu_si128(numbers.as_ptr().cast());
            let (low, high) = (_mm256_cvtepu8_epi32(numbers), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(numbers)));
            [_mm256_mullo_epi32(low, _mm256_set1_epi32(x)), _mm256_mullo_epi32(high, _mm256_set1_epi32(x))]
        }
    }

    #[inline(always)]
    fn floats(self, [low, high]: [__m256i; 2]) -> Two {
        // SAFETY: `self` proves AVX2.
        unsafe { Two(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)) }
    }
}

impl Dot<Bytes> for Avx2 {
    type Word = [u32; 2];
    /// Even and odd features of eight columns, then of the other eight.
    type Weights = [[__m256i; 2]; 2];

    fn words(memory: &mut [u32]) -> &mut [[u32; 2]] {
        memory.as_chunks_mut().0
    }

    #[inline(always)]
    fn word(codes: &[i8]) -> [u32; 2] {
        even_and_odd(codes)
    }

    #[inline(always)]
    unsafe fn load(self, weights: *const u8) -> [[__m256i; 2]; 2] {
        // SAFETY: `self` proves AVX2; 64 bytes are there, by the caller's promise.
        unsafe {
            let low = _mm256_loadu_si256(weights.cast());
            let high = _mm256_loadu_si256(weights.add(32).cast());
            let even = _mm256_set1_epi16(0xff);
            [
                [_mm256_and_si256(low, even), _mm256_srli_epi16::<8>(low)],
                [_mm256_and_si256(high, even), _mm256_srli_epi16::<8>(high)],
            ]
        }
    }

    #[inline(always)]
    fn add(self, mut sums: [__m256i; 2], x: &[u32; 2], weights: [[__m256i; 2]; 2]) -> [__m256i; 2] {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let (even, odd) = (_mm256_set1_epi32(x[0] as i32), _mm256_set1_epi32(x[1] as i32));
            for (sums, weights) in sums.iter_mut().zip(weights) {
                let products =
                    _mm256_add_epi32(_mm256_madd_epi16(weights[0], even), _mm256_madd_epi16(weights[1], odd));
                *sums = _mm256_add_epi32(*sums, products);
            }
        }
        sums
    }
}

/// Lower and upper halves of 32 bytes, then of the next 32.
///
/// # Safety
/// 64 readable bytes at `weights`.
#[inline(always)]
unsafe fn narrow_nibbles(_proof: Avx2, weights: *const u8) -> [[__m256i; 2]; 2] {
    // SAFETY: AVX2 is proved; 64 bytes are there, by the caller's promise.
    unsafe {
        let low = _mm256_loadu_si256(weights.cast());
        let high = _mm256_loadu_si256(weights.add(32).cast());
        let half = _mm256_set1_epi8(15);
        [
            [_mm256_and_si256(low, half), _mm256_and_si256(_mm256_srli_epi16::<4>(low), half)],
            [_mm256_and_si256(high, half), _mm256_and_si256(_mm256_srli_epi16::<4>(high), half)],
        ]
    }
}

impl Dot<Nibbles> for Avx2 {
    type Word = [u32; 2];
    /// Lower and upper halves of eight columns, then of the other eight.
    type Weights = [[__m256i; 2]; 2];

    fn words(memory: &mut [u32]) -> &mut [[u32; 2]] {
        memory.as_chunks_mut().0
    }

    #[inline(always)]
    fn word(codes: &[i8]) -> [u32; 2] {
        [bytes(codes), bytes(&codes[4..])]
    }

    #[inline(always)]
    unsafe fn load(self, weights: *const u8) -> [[__m256i; 2]; 2] {
        // SAFETY: the caller's promise.
        unsafe { narrow_nibbles(self, weights) }
    }

    #[inline(always)]
    fn add(self, mut sums: [__m256i; 2], x: &[u32; 2], weights: [[__m256i; 2]; 2]) -> [__m256i; 2] {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let (first, last) = (_mm256_set1_epi32(x[0] as i32), _mm256_set1_epi32(x[1] as i32));
            for (sums, weights) in sums.iter_mut().zip(weights) {
                // At most 4 * 15 * 127 in 16 bits.
                let pairs =
                    _mm256_add_epi16(_mm256_maddubs_epi16(weights[0], first), _mm256_maddubs_epi16(weights[1], last));
                *sums = _mm256_add_epi32(*sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
            }
        }
        sums
    }
}

impl Integers for AvxVnni {
    type Lanes = Avx2;
    type Sums = [__m256i; 2];
    const ROWS: usize = 6;

    #[inline(always)]
    fn lanes(self) -> Avx2 {
        self.avx2()
    }

    #[inline(always)]
    fn splat(self, x: i32) -> [__m256i; 2] {
        Integers::splat(self.avx2(), x)
    }

    #[inline(always)]
    fn scaled(self, numbers: &[u8; LANES], x: i32) -> [__m256i; 2] {
        self.avx2().scaled(numbers, x)
    }

    #[inline(always)]
    fn floats(self, sums: [__m256i; 2]) -> Two {
        self.avx2().floats(sums)
    }
}

impl Dot<Bytes> for AvxVnni {
    type Word = u32;
    type Weights = [__m256i; 2];

    fn words(memory: &mut [u32]) -> &mut [u32] {
        memory
    }

    #[inline(always)]
    fn word(codes: &[i8]) -> u32 {
        bytes(codes)
    }

    #[inline(always)]
    unsafe fn load(self, weights: *const u8) -> [__m256i; 2] {
        // SAFETY: `self` proves AVX2; 64 bytes are there, by the caller's promise.
        unsafe { [_mm256_loadu_si256(weights.cast()), _mm256_loadu_si256(weights.add(32).cast())] }
    }

    #[inline(always)]
    fn add(self, [low, high]: [__m256i; 2], x: &u32, weights: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: `self` proves AVX-VNNI.
        unsafe {
            let x = _mm256_set1_epi32(*x as i32);
            [_mm256_dpbusd_avx_epi32(low, weights[0], x), _mm256_dpbusd_avx_epi32(high, weights[1], x)]
        }
    }
}

impl Dot<Nibbles> for AvxVnni {
    type Word = [u32; 2];
    /// Lower and upper halves of eight columns, then of the other eight.
    type Weights = [[__m256i; 2]; 2];

    fn words(memory: &mut [u32]) -> &mut [[u32; 2]] {
        memory.as_chunks_mut().0
    }

    #[inline(always)]
    fn word(codes: &[i8]) -> [u32; 2] {
        [bytes(codes), bytes(&codes[4..])]
    }

    #[inline(always)]
    unsafe fn load(self, weights: *const u8) -> [[__m256i; 2]; 2] {
        // SAFETY: the caller's promise.
        unsafe { narrow_nibbles(self.avx2(), weights) }
    }

    #[inline(always)]
    fn add(self, [low, high]: [__m256i; 2], x: &[u32; 2], weights: [[__m256i; 2]; 2]) -> [__m256i; 2] {
        // SAFETY: `self` proves AVX-VNNI.
        unsafe {
            let first = _mm256_set1_epi32(x[0] as i32);
            let low = _mm256_dpbusd_avx_epi32(low, weights[0][0], first);
            let high = _mm256_dpbusd_avx_epi32(high, weights[1][0], first);
            let last = _mm256_set1_epi32(x[1] as i32);
            [_mm256_dpbusd_avx_epi32(low, weights[0][1], last), _mm256_dpbusd_avx_epi32(high, weights[1][1], last)]
        }
    }
}

impl Integers for Avx512 {
    type Lanes = Avx512;
    type Sums = __m512i;
    const ROWS: usize = 6;

    #[inline(always)]
    fn lanes(self) -> Avx512 {
        self
    }

    #[inline(always)]
    fn splat(self, x: i32) -> __m512i {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_set1_epi32(x) }
    }

    #[inline(always)]
    fn scaled(self, numbers: &[u8; LANES], x: i32) -> __m512i {
        // SAFETY: `self` proves AVX-512 F; sixteen bytes are there.
        unsafe {
            let numbers = _mm512_cvtepu8_epi32(_mm_loadu_si128(numbers.as_ptr().cast()));
            _mm512_mullo_epi32(numbers, _mm512_set1_epi32(x))
        }
    }

    #[inline(always)]
    fn floats(self, sums: __m512i) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_cvtepi32_ps(sums) }
    }
}

impl Dot<Bytes> for Avx512 {
    type Word = [u32; 2];
    /// Even and odd features.
    type Weights = [__m512i; 2];

    fn words(memory: &mut [u32]) -> &mut [[u32; 2]] {
        memory.as_chunks_mut().0
    }

    #[inline(always)]
    fn word(codes: &[i8]) -> [u32; 2] {
        even_and_odd(codes)
    }

    #[inline(always)]
    unsafe fn load(self, weights: *const u8) -> [__m512i; 2] {
        // SAFETY: `self` proves AVX-512 F and BW; 64 bytes are there, by the caller's promise.
        unsafe {
            let weights = _mm512_loadu_si512(weights.cast());
            [_mm512_and_si512(weights, _mm512_set1_epi16(0xff)), _mm512_srli_epi16::<8>(weights)]
        }
    }

    #[inline(always)]
    fn add(self, sums: __m512i, x: &[u32; 2], weights: [__m512i; 2]) -> __m512i {
        // SAFETY: `self` proves AVX-512 F and BW.
        unsafe {
            let even = _mm512_madd_epi16(weights[0], _mm512_set1_epi32(x[0] as i32));
            let odd = _mm512_madd_epi16(weights[1], _mm512_set1_epi32(x[1] as i32));
            _mm512_add_epi32(sums, _mm512_add_epi32(even, odd))
        }
    }
}

/// Lower and upper halves of 64 bytes.
///
/// # Safety
/// 64 readable bytes at `weights`.
#[inline(always)]
unsafe fn nibbles(_proof: Avx512, weights: *const u8) -> [__m512i; 2] {
    // SAFETY: AVX-512 F and BW are proved; 64 bytes are there, by the caller's promise.
    unsafe {
        let (weights, half) = (_mm512_loadu_si512(weights.cast()), _mm512_set1_epi8(15));
        [_mm512_and_si512(weights, half), _mm512_and_si512(_mm512_srli_epi16::<4>(weights), half)]
    }
}

impl Dot<Nibbles> for Avx512 {
    type Word = [u32; 2];
    /// Lower and upper halves.
    type Weights = [__m512i; 2];

    fn words(memory: &mut [u32]) -> &mut [[u32; 2]] {
        memory.as_chunks_mut().0
    }

    #[inline(always)]
    fn word(codes: &[i8]) -> [u32; 2] {
        [bytes(codes), bytes(&codes[4..])]
    }

    #[inline(always)]
    unsafe fn load(self, weights: *const u8) -> [__m512i; 2] {
        // SAFETY: the caller's promise.
        unsafe { nibbles(self, weights) }
    }

    #[inline(always)]
    fn add(self, sums: __m512i, x: &[u32; 2], weights: [__m512i; 2]) -> __m512i {
        // SAFETY: `self` proves AVX-512 F and BW.
        unsafe {
            let first = _mm512_maddubs_epi16(weights[0], _mm512_set1_epi32(x[0] as i32));
            let last = _mm512_maddubs_epi16(weights[1], _mm512_set1_epi32(x[1] as i32));
            // At most 4 * 15 * 127 in 16 bits.
            let pairs = _mm512_add_epi16(first, last);
            _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
        }
    }
}

impl Integers for Avx512Vnni {
    type Lanes = Avx512;
    type Sums = __m512i;
    /// Sums and the groups so far of six rows fit the registers together, and twelve are dealt to two tiles. Eight stay one: four and four were
    /// slower.
    const ROWS: usize = 8;

    #[inline(always)]
    fn lanes(self) -> Avx512 {
        self.avx512()
    }

    #[inline(always)]
    fn splat(self, x: i32) -> __m512i {
        Integers::splat(self.avx512(), x)
    }

    #[inline(always)]
    fn scaled(self, numbers: &[u8; LANES], x: i32) -> __m512i {
        self.avx512().scaled(numbers, x)
    }

    #[inline(always)]
    fn floats(self, sums: __m512i) -> __m512 {
        self.avx512().floats(sums)
    }
}

impl Dot<Bytes> for Avx512Vnni {
    type Word = u32;
    type Weights = __m512i;

    fn words(memory: &mut [u32]) -> &mut [u32] {
        memory
    }

    #[inline(always)]
    fn word(codes: &[i8]) -> u32 {
        bytes(codes)
    }

    #[inline(always)]
    unsafe fn load(self, weights: *const u8) -> __m512i {
        // SAFETY: `self` proves AVX-512 F; 64 bytes are there, by the caller's promise.
        unsafe { _mm512_loadu_si512(weights.cast()) }
    }

    #[inline(always)]
    fn add(self, sums: __m512i, x: &u32, weights: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 VNNI.
        unsafe { _mm512_dpbusd_epi32(sums, weights, _mm512_set1_epi32(*x as i32)) }
    }
}

impl Dot<Nibbles> for Avx512Vnni {
    type Word = [u32; 2];
    /// Lower and upper halves.
    type Weights = [__m512i; 2];

    fn words(memory: &mut [u32]) -> &mut [[u32; 2]] {
        memory.as_chunks_mut().0
    }

    #[inline(always)]
    fn word(codes: &[i8]) -> [u32; 2] {
        [bytes(codes), bytes(&codes[4..])]
    }

    #[inline(always)]
    unsafe fn load(self, weights: *const u8) -> [__m512i; 2] {
        // SAFETY: the caller's promise.
        unsafe { nibbles(self.avx512(), weights) }
    }

    #[inline(always)]
    fn add(self, sums: __m512i, x: &[u32; 2], weights: [__m512i; 2]) -> __m512i {
        // SAFETY: `self` proves AVX-512 VNNI.
        unsafe {
            let sums = _mm512_dpbusd_epi32(sums, weights[0], _mm512_set1_epi32(x[0] as i32));
            _mm512_dpbusd_epi32(sums, weights[1], _mm512_set1_epi32(x[1] as i32))
        }
    }
}
