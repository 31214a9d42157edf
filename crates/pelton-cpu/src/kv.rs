//! Keys and values of all layers, by block.
//!
//! Sixteen positions of one layer and one head, a strip, are the unit attention reads:
//!
//! ```text
//! [layer][block][head][strip] { keys [head_dim / P][16][P], values [16 / P][head_dim][P] }
//! ```
//!
//! Keys are turned, so that the scores of neighbouring positions come out in neighbouring lanes. `P` is 2 for bf16: two elements that are
//! summed one after the other share a word, which becomes two floats with an instruction each. Otherwise it is 1. In eight bits, sixteen
//! scales of the keys and sixteen of the values follow, in f32.

use half::{bf16, f16};
use pelton_backend::{BackendError, DType, KvFormat, KvSpec};

use crate::buffer::{Buffer, Plain, SLACK};
use crate::lanes::{LANES, Lanes};

/// Positions of a strip.
pub(crate) const STRIP_TOKENS: usize = LANES;

// Pairs of vectors are loaded from the last values of a strip on.
const _: () = assert!(SLACK >= 2 * LANES);

/// Keys and values, rounded to the precision of its [`KvSpec`].
pub struct KvCache {
    pub(crate) layout: Layout,
    pub(crate) blocks: Blocks,
}

pub(crate) enum Blocks {
    F32(Buffer<f32>),
    F16(Buffer<f16>),
    Bf16(Buffer<bf16>),
    Int8(Buffer<i8>),
}

/// An element type of the cache.
pub(crate) trait KvElement: Plain {
    /// Elements that lie beside each other and are summed one after the other: `P` of the layout.
    const PAIRED: usize;

    /// Elements that a strip's scales take; none where numbers stand for themselves.
    const SCALES_LEN: usize;

    /// Scale of a head's key or value.
    fn scale(x: &[f32]) -> f32;

    /// Rounds to nearest even.
    fn round(x: f32, scale: f32) -> Self;

    /// The first of two neighbours in the order of sums, for 16 lanes.
    ///
    /// # Safety
    /// 16 readable elements at `p`, or 32 if paired.
    unsafe fn load_first<L: Lanes>(isa: L, p: *const Self) -> L::V;

    /// The second; where they are not paired it lies `stride` elements after the first.
    ///
    /// # Safety
    /// 16 readable elements at `p + stride`, or 32 at `p` if paired.
    unsafe fn load_second<L: Lanes>(isa: L, p: *const Self, stride: usize) -> L::V;
}

/// Where things lie.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    pub num_layers: usize,
    pub num_blocks: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub block_tokens: usize,
    /// Elements of one head's strip.
    pub strip_len: usize,
}

impl Layout {
    /// Elements of one head's keys in a strip; an odd last dimension has a neighbour that is never used.
    pub(crate) fn keys_len(&self) -> usize {
        self.head_dim.next_multiple_of(2) * STRIP_TOKENS
    }

    /// Index in a strip of the scale of its first key; the others follow, then those of the values.
    pub(crate) fn scales(&self) -> usize {
        self.keys_len() + self.head_dim * STRIP_TOKENS
    }

    /// Index of the strip with position `offset` of `block`.
    pub(crate) fn strip(&self, layer: usize, block: usize, head: usize, offset: usize) -> usize {
        assert!(layer < self.num_layers && block < self.num_blocks && head < self.num_kv_heads);
        let head_block = (layer * self.num_blocks + block) * self.num_kv_heads + head;
        (head_block * self.block_tokens + offset) / STRIP_TOKENS * self.strip_len
    }

    /// Index in a strip of dimension `d` of its key number `token`.
    pub(crate) fn key<T: KvElement>(&self, token: usize, d: usize) -> usize {
        (d / T::PAIRED * STRIP_TOKENS + token) * T::PAIRED + d % T::PAIRED
    }

    /// Index in a strip of dimension `d` of its value number `token`.
    pub(crate) fn value<T: KvElement>(&self, token: usize, d: usize) -> usize {
        self.keys_len() + (token / T::PAIRED * self.head_dim + d) * T::PAIRED + token % T::PAIRED
    }

    fn len(&self) -> usize {
        [self.num_layers, self.num_blocks, self.num_kv_heads, self.block_tokens / STRIP_TOKENS, self.strip_len]
            .into_iter()
            .fold(1, usize::saturating_mul)
    }
}

impl KvCache {
    pub(crate) fn new(spec: &KvSpec, num_blocks: u32) -> Result<Self, BackendError> {
        if spec.block_tokens == 0 || !spec.block_tokens.is_multiple_of(STRIP_TOKENS) || spec.head_dim == 0 {
            return Err(BackendError::Unsupported(format!(
                "a KV cache of {} positions by block (a multiple of {STRIP_TOKENS} is wanted) and heads of {} (at least 1)",
                spec.block_tokens, spec.head_dim
            )));
        }
        let mut layout = Layout {
            num_layers: spec.num_layers,
            num_blocks: num_blocks as usize,
            num_kv_heads: spec.num_kv_heads,
            head_dim: spec.head_dim,
            block_tokens: spec.block_tokens,
            strip_len: 0,
        };
        let blocks = match spec.format {
            KvFormat::Dense(DType::F32) => Blocks::F32(buffer(&mut layout)?),
            KvFormat::Dense(DType::F16) => Blocks::F16(buffer(&mut layout)?),
            KvFormat::Dense(DType::BF16) => Blocks::Bf16(buffer(&mut layout)?),
            KvFormat::Int8 => Blocks::Int8(buffer(&mut layout)?),
        };
        Ok(Self { layout, blocks })
    }
}

/// Memory for all blocks, and the layout of strips of such elements.
fn buffer<T: KvElement>(layout: &mut Layout) -> Result<Buffer<T>, BackendError> {
    layout.strip_len = layout.scales() + T::SCALES_LEN;
    Buffer::new("the KV cache", layout.len())
}

impl KvElement for f32 {
    const PAIRED: usize = 1;
    const SCALES_LEN: usize = 0;

    fn scale(_: &[f32]) -> f32 {
        1.0
    }

    #[inline(always)]
    fn round(x: f32, _: f32) -> f32 {
        x
    }

    #[inline(always)]
    unsafe fn load_first<L: Lanes>(isa: L, p: *const f32) -> L::V {
        // SAFETY: the caller's promise.
        unsafe { isa.load(p) }
    }

    #[inline(always)]
    unsafe fn load_second<L: Lanes>(isa: L, p: *const f32, stride: usize) -> L::V {
        // SAFETY: the caller's promise.
        unsafe { isa.load(p.add(stride)) }
    }
}

impl KvElement for f16 {
    const PAIRED: usize = 1;
    const SCALES_LEN: usize = 0;

    fn scale(_: &[f32]) -> f32 {
        1.0
    }

    #[inline(always)]
    fn round(x: f32, _: f32) -> f16 {
        f16::from_f32(x)
    }

    #[inline(always)]
    unsafe fn load_first<L: Lanes>(isa: L, p: *const f16) -> L::V {
        // SAFETY: the caller's promise.
        unsafe { isa.load_f16(p) }
    }

    #[inline(always)]
    unsafe fn load_second<L: Lanes>(isa: L, p: *const f16, stride: usize) -> L::V {
        // SAFETY: the caller's promise.
        unsafe { isa.load_f16(p.add(stride)) }
    }
}

impl KvElement for bf16 {
    const PAIRED: usize = 2;
    const SCALES_LEN: usize = 0;

    fn scale(_: &[f32]) -> f32 {
        1.0
    }

    #[inline(always)]
    fn round(x: f32, _: f32) -> bf16 {
        bf16::from_f32(x)
    }

    #[inline(always)]
    unsafe fn load_first<L: Lanes>(isa: L, p: *const bf16) -> L::V {
        // SAFETY: the caller's promise.
        unsafe { isa.load_bf16_first(p) }
    }

    #[inline(always)]
    unsafe fn load_second<L: Lanes>(isa: L, p: *const bf16, _: usize) -> L::V {
        // SAFETY: the caller's promise.
        unsafe { isa.load_bf16_second(p) }
    }
}

impl KvElement for i8 {
    const PAIRED: usize = 1;
    const SCALES_LEN: usize = 2 * STRIP_TOKENS * size_of::<f32>();

    /// Not a number where one of `x` is not: then nothing of this key or value is believed.
    fn scale(x: &[f32]) -> f32 {
        x.iter().fold(0.0f32, |largest, x| if x.abs() <= largest { largest } else { x.abs() + 0.0 * largest }) / 127.0
    }

    #[inline(always)]
    fn round(x: f32, scale: f32) -> i8 {
        // Nothing but zeros has the scale 0; `as` makes 0 of 0 / 0.
        (x / scale).round_ties_even() as i8
    }

    #[inline(always)]
    unsafe fn load_first<L: Lanes>(isa: L, p: *const i8) -> L::V {
        // SAFETY: the caller's promise.
        unsafe { isa.load_i8(p) }
    }

    #[inline(always)]
    unsafe fn load_second<L: Lanes>(isa: L, p: *const i8, stride: usize) -> L::V {
        // SAFETY: the caller's promise.
        unsafe { isa.load_i8(p.add(stride)) }
    }
}
