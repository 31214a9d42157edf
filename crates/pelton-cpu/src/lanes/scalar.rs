//! Lanes as an array: the definition.

use half::{bf16, f16};

use super::{LANES, Lanes, Tiles};
use crate::isa::Scalar;

impl Lanes for Scalar {
    type V = [f32; LANES];
    const TILES: Tiles = Tiles { wide: false, vectors: false, rows: 4 };

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<Self::V>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_first(self, p: *const f32, n: usize) -> Self::V {
        let mut v = [0.0; LANES];
        for (i, lane) in v.iter_mut().enumerate().take(n) {
            // SAFETY: `i < n`, the caller's promise.
            *lane = unsafe { p.add(i).read() };
        }
        v
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[f16; LANES]>().read_unaligned() }.map(f16::to_f32)
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[i8; LANES]>().read_unaligned() }.map(f32::from)
    }

    #[inline(always)]
    unsafe fn load_bf16_first(self, p: *const bf16) -> Self::V {
        // SAFETY: the caller's promise.
        let pairs = unsafe { p.cast::<[[bf16; 2]; LANES]>().read_unaligned() };
        pairs.map(|pair| pair[0].to_f32())
    }

    #[inline(always)]
    unsafe fn load_bf16_second(self, p: *const bf16) -> Self::V {
        // SAFETY: the caller's promise.
        let pairs = unsafe { p.cast::<[[bf16; 2]; LANES]>().read_unaligned() };
        pairs.map(|pair| pair[1].to_f32())
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::V) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<Self::V>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize, v: Self::V) {
        for (i, lane) in v.into_iter().enumerate().take(n) {
            // SAFETY: `i < n`, the caller's promise.
            unsafe { p.add(i).write(lane) };
        }
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        let mut v = c;
        for (lane, (a, b)) in v.iter_mut().zip(a.into_iter().zip(b)) {
            *lane = a.mul_add(b, *lane);
        }
        v
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn select_lt(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V {
        let mut v = no;
        for i in 0..LANES {
            if a[i] < b[i] {
                v[i] = yes[i];
            }
        }
        v
    }

    #[inline(always)]
    fn keep_first(self, n: usize, v: Self::V, fill: Self::V) -> Self::V {
        let mut kept = fill;
        kept[..n.min(LANES)].copy_from_slice(&v[..n.min(LANES)]);
        kept
    }

    #[inline(always)]
    fn pow2(self, n: Self::V) -> Self::V {
        n.map(|n| f32::from_bits(((n as i32).wrapping_add(127) as u32) << 23))
    }

    #[inline(always)]
    fn prefetch(self, _p: *const f32) {}
}

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], op: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    let mut v = a;
    for (lane, b) in v.iter_mut().zip(b) {
        *lane = op(*lane, b);
    }
    v
}
