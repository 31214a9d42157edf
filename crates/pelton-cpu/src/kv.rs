//! Keys and values of all layers, by block.
//!
//! A block of one layer and one head is the unit attention reads:
//!
//! ```text
//! [layer][block][head] { keys [head_dim][block_tokens], values [block_tokens][head_dim] }
//! ```
//!
//! Keys are turned, so that the scores of neighbouring positions come out in neighbouring lanes.

use half::{bf16, f16};
use pelton_backend::{BackendError, DType, KvSpec};

use crate::buffer::{Buffer, Plain, SLACK};
use crate::lanes::{LANES, Lanes};

// Vectors are loaded from the last element of a block on.
const _: () = assert!(SLACK >= LANES);

/// Keys and values, rounded to the precision of its [`KvSpec`].
pub struct KvCache {
    pub(crate) layout: Layout,
    pub(crate) blocks: Blocks,
}

pub(crate) enum Blocks {
    F32(Buffer<f32>),
    F16(Buffer<f16>),
    Bf16(Buffer<bf16>),
}

/// An element type of the cache.
pub(crate) trait KvElement: Plain {
    /// Rounds to nearest even.
    fn round(x: f32) -> Self;

    /// # Safety
    /// 16 readable elements at `p`.
    unsafe fn load<L: Lanes>(isa: L, p: *const Self) -> L::V;
}

/// Where things lie.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    pub num_layers: usize,
    pub num_blocks: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub block_tokens: usize,
}

impl Layout {
    /// Elements of one head's keys (or values) in one block.
    pub(crate) fn half_len(&self) -> usize {
        self.head_dim * self.block_tokens
    }

    /// Index of the first key of `head` in `block`; the values follow [`Layout::half_len`] later.
    pub(crate) fn head_block(&self, layer: usize, block: usize, head: usize) -> usize {
        assert!(layer < self.num_layers && block < self.num_blocks && head < self.num_kv_heads);
        ((layer * self.num_blocks + block) * self.num_kv_heads + head) * 2 * self.half_len()
    }

    fn len(&self) -> usize {
        [self.num_layers, self.num_blocks, self.num_kv_heads, 2, self.head_dim, self.block_tokens]
            .into_iter()
            .fold(1, usize::saturating_mul)
    }
}

impl KvCache {
    pub(crate) fn new(spec: &KvSpec, num_blocks: u32) -> Result<Self, BackendError> {
        if spec.block_tokens == 0 || spec.head_dim == 0 {
            return Err(BackendError::Unsupported(format!(
                "a KV cache of {} positions by block and heads of {}",
                spec.block_tokens, spec.head_dim
            )));
        }
        let layout = Layout {
            num_layers: spec.num_layers,
            num_blocks: num_blocks as usize,
            num_kv_heads: spec.num_kv_heads,
            head_dim: spec.head_dim,
            block_tokens: spec.block_tokens,
        };
        const WHAT: &str = "the KV cache";
        let blocks = match spec.dtype {
            DType::F32 => Blocks::F32(Buffer::new(WHAT, layout.len())?),
            DType::F16 => Blocks::F16(Buffer::new(WHAT, layout.len())?),
            DType::BF16 => Blocks::Bf16(Buffer::new(WHAT, layout.len())?),
        };
        Ok(Self { layout, blocks })
    }
}

impl KvElement for f32 {
    #[inline(always)]
    fn round(x: f32) -> f32 {
        x
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(isa: L, p: *const f32) -> L::V {
        // SAFETY: the caller's promise.
        unsafe { isa.load(p) }
    }
}

impl KvElement for f16 {
    #[inline(always)]
    fn round(x: f32) -> f16 {
        f16::from_f32(x)
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(isa: L, p: *const f16) -> L::V {
        // SAFETY: the caller's promise.
        unsafe { isa.load_f16(p) }
    }
}

impl KvElement for bf16 {
    #[inline(always)]
    fn round(x: f32) -> bf16 {
        bf16::from_f32(x)
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(isa: L, p: *const bf16) -> L::V {
        // SAFETY: the caller's promise.
        unsafe { isa.load_bf16(p) }
    }
}
