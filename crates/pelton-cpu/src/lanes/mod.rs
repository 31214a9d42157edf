//! Sixteen floats at a time: the operations kernels are written in, one implementation per instruction set.
//!
//! A vector is always sixteen floats, whatever the registers hold (one of AVX-512, two of AVX2, an array), and every operation
//! rounds as IEEE says. So a kernel written over [`Lanes`] gives the same bits on every instruction set.

mod avx2;
mod avx512;
mod exp;
mod scalar;

use half::{bf16, f16};

pub(crate) use avx2::Two;
pub(crate) use exp::{exp, soft_cap};

/// Floats in a vector.
pub(crate) const LANES: usize = 16;

/// Bytes that are brought near at once.
pub(crate) const CACHE_LINE: usize = 64;

/// How large register tiles may be. Two questions rather than an enum, so that tiles of other sizes are never compiled.
#[derive(Clone, Copy)]
pub(crate) struct Tiles {
    /// 32 vectors fit the register file.
    pub wide: bool,
    /// There are vector registers at all; else a tile is one row and one vector, to be read rather than fast.
    pub vectors: bool,
    /// Rows of a linear's largest tile; so many are laid out together.
    pub rows: usize,
}

/// An instruction set's vector operations; the value is the proof that the CPU has them.
pub(crate) trait Lanes: Copy + Send + Sync + 'static {
    /// Sixteen floats.
    type V: Copy;
    /// How large register tiles may be.
    const TILES: Tiles;

    fn splat(self, x: f32) -> Self::V;

    /// # Safety
    /// 16 readable elements at `p`.
    unsafe fn load(self, p: *const f32) -> Self::V;

    /// The first `n <= 16` elements at `p`, then zeros.
    ///
    /// # Safety
    /// `n` readable elements at `p`.
    unsafe fn load_first(self, p: *const f32, n: usize) -> Self::V;

    /// # Safety
    /// 16 readable elements at `p`.
    unsafe fn load_f16(self, p: *const f16) -> Self::V;

    /// # Safety
    /// 16 readable elements at `p`.
    unsafe fn load_i8(self, p: *const i8) -> Self::V;

    /// Of 16 pairs the first of each.
    ///
    /// # Safety
    /// 32 readable elements at `p`.
    unsafe fn load_bf16_first(self, p: *const bf16) -> Self::V;

    /// Of 16 pairs the second of each.
    ///
    /// # Safety
    /// 32 readable elements at `p`.
    unsafe fn load_bf16_second(self, p: *const bf16) -> Self::V;

    /// # Safety
    /// 16 writable elements at `p`.
    unsafe fn store(self, p: *mut f32, v: Self::V);

    /// Writes the first `n <= 16` lanes.
    ///
    /// # Safety
    /// `n` writable elements at `p`.
    unsafe fn store_first(self, p: *mut f32, n: usize, v: Self::V);

    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` where either is not a number.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `yes` where `a < b`, else `no`.
    fn select_lt(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V;
    /// The first `n` lanes of `v`, then `fill`.
    fn keep_first(self, n: usize, v: Self::V, fill: Self::V) -> Self::V;
    /// `2^n` for whole `n` in `-126..=127`; anything else gives anything.
    fn pow2(self, n: Self::V) -> Self::V;

    /// Asks for the cache line at `p` to be brought near; any address will do.
    fn prefetch(self, p: *const f32);

    /// Up to 16 elements from `data[at]` on, then zeros.
    #[inline(always)]
    fn read(self, data: &[f32], at: usize) -> Self::V {
        let left = data.len().saturating_sub(at);
        if left >= LANES {
            // SAFETY: `at + 16 <= data.len()`.
            unsafe { self.load(data.as_ptr().add(at)) }
        } else {
            // SAFETY: `left` elements are there; the offset is not used for more.
            unsafe { self.load_first(data.as_ptr().wrapping_add(at), left) }
        }
    }

    /// Writes up to 16 lanes to `data[at]` and on, as many as there is room for.
    #[inline(always)]
    fn write(self, data: &mut [f32], at: usize, v: Self::V) {
        let left = data.len().saturating_sub(at);
        if left >= LANES {
            // SAFETY: `at + 16 <= data.len()`.
            unsafe { self.store(data.as_mut_ptr().add(at), v) }
        } else {
            // SAFETY: `left` elements are there; the offset is not used for more.
            unsafe { self.store_first(data.as_mut_ptr().wrapping_add(at), left, v) }
        }
    }

    /// The sum of all lanes, by halves: lane `i` with `i + 8`, then `i + 4`, `i + 2`, `i + 1`.
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let mut lanes = self.to_array(v);
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
        }
        lanes[0]
    }

    /// The largest lane.
    #[inline(always)]
    fn largest(self, v: Self::V) -> f32 {
        let mut lanes = self.to_array(v);
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] = if lanes[i] > lanes[i + half] { lanes[i] } else { lanes[i + half] };
            }
        }
        lanes[0]
    }

    #[inline(always)]
    fn to_array(self, v: Self::V) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: sixteen elements.
        unsafe { self.store(lanes.as_mut_ptr(), v) };
        lanes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Isa, IsaChoice, Kernel};

    /// Every operation on one input, as bits.
    struct Everything<'a> {
        a: &'a [f32],
        b: &'a [f32],
        c: &'a [f32],
        bits: &'a mut Vec<u32>,
    }

    impl Kernel for Everything<'_> {
        #[inline(always)]
        fn run<L: Lanes>(self, isa: L) {
            let (a, b, c) = (isa.read(self.a, 0), isa.read(self.b, 0), isa.read(self.c, 0));
            let mut out = Vec::new();
            for v in [
                isa.add(a, b),
                isa.sub(a, b),
                isa.mul(a, b),
                isa.div(a, b),
                isa.fma(a, b, c),
                isa.max(a, b),
                isa.select_lt(a, b, c, a),
                isa.keep_first(5, a, b),
                isa.keep_first(16, a, b),
                isa.keep_first(0, a, b),
                isa.read(&self.a[..7], 2),
                exp(isa, a),
                exp(isa, isa.mul(b, isa.splat(30.0))),
            ] {
                out.extend(isa.to_array(v));
            }
            let halves: Vec<f16> = self.a.iter().map(|&x| f16::from_f32(x)).collect();
            let brains: Vec<bf16> = self.a.iter().chain(self.b).map(|&x| bf16::from_f32(x)).collect();
            let codes: Vec<i8> = self.b.iter().map(|&x| (x * 40.0) as i8).collect();
            // SAFETY: 16, 16 and 32 elements are there.
            let loaded = unsafe {
                [
                    isa.load_f16(halves.as_ptr()),
                    isa.load_i8(codes.as_ptr()),
                    isa.load_bf16_first(brains.as_ptr()),
                    isa.load_bf16_second(brains.as_ptr()),
                ]
            };
            for v in loaded {
                out.extend(isa.to_array(v));
            }
            for n in -126..=127 {
                out.push(isa.to_array(isa.pow2(isa.splat(n as f32)))[15]);
            }
            let mut tail = [7.0; 11];
            isa.write(&mut tail, 3, a);
            out.extend(tail);
            out.extend([isa.sum(a), isa.largest(b)]);
            self.bits.extend(out.iter().map(|x| x.to_bits()));
        }
    }

    #[test]
    fn all_instruction_sets_give_the_bits_of_plain_code() {
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..500 {
            let mut numbers = || [(); LANES].map(|()| (rng.f32() - 0.5) * 10f32.powi(rng.i32(-3..3)));
            let (a, b, c) = (numbers(), numbers(), numbers());
            let mut wanted = Vec::new();
            Isa::detect(IsaChoice::Scalar).unwrap().run(Everything { a: &a, b: &b, c: &c, bits: &mut wanted });
            for choice in IsaChoice::NAMED {
                let Ok(isa) = Isa::detect(choice) else { continue };
                let mut bits = Vec::new();
                isa.run(Everything { a: &a, b: &b, c: &c, bits: &mut bits });
                assert_eq!(bits, wanted, "{choice}");
            }
        }
    }
}
