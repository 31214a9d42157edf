//! Parameters of operations: small plain values that a model states once, at load.

use crate::DType;

/// Activation functions, computed as the reference defines them (no approximations of our own).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * 0.5 * (1 + erf(x / sqrt(2)))`.
    Gelu,
    /// GELU by tanh, as `gelu_new` and `gelu_pytorch_tanh` mean it.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// How a row is brought to size.
#[derive(Debug)]
pub enum Norm<Param> {
    /// `x * weight / sqrt(mean(x^2) + eps)` (Zhang and Sennrich 2019).
    Rms {
        /// `[hidden]`.
        weight: Param,
        /// Added to the mean square.
        eps: f32,
    },
    /// `(x - mean(x)) * weight / sqrt(variance(x) + eps) + bias`, where the variance is the mean square distance from the mean (Ba et al. 2016).
    Layer {
        /// `[hidden]`.
        weight: Param,
        /// `[hidden]`; nothing is added without.
        bias: Option<Param>,
        /// Added to the variance.
        eps: f32,
    },
}

/// RMS norms of each query and each key head inside a `[rows, (num_heads + 2 * num_kv_heads) * head_dim]` qkv row.
#[derive(Debug)]
pub struct HeadNorms<Param> {
    /// `[head_dim]`, for every query head.
    pub query: Param,
    /// `[head_dim]`, for every key head.
    pub key: Param,
    /// Added to the mean square.
    pub eps: f32,
    /// Query heads.
    pub num_heads: usize,
    /// Key heads; the value heads behind them are left alone.
    pub num_kv_heads: usize,
}

/// How experts are chosen for a row, and what each counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteSpec {
    /// Experts to choose from.
    pub num_experts: usize,
    /// Experts of a row, 1 to `num_experts`.
    pub top_k: usize,
    /// Whether the weights of the chosen ones are made to sum to one.
    pub renormalise: bool,
}

/// Rotary embedding of the query and key heads inside a `[rows, (num_heads + 2 * num_kv_heads) * head_dim]` qkv row.
///
/// Pairs are `(i, i + rotary_dim / 2)` within a head ("neox" order); dimensions from `rotary_dim` on stay.
/// The table that goes with it is `[positions, rotary_dim]`: for each position `rotary_dim / 2` cosines, then as many sines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RopeSpec {
    /// Query heads.
    pub num_heads: usize,
    /// Key heads; the value heads behind them are left alone.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Rotated width, even, at most `head_dim`.
    pub rotary_dim: usize,
}

/// Causal attention of one layer, grouped queries: query head `h` reads key/value head `h / (num_heads / num_kv_heads)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttendSpec {
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Positions that a query sees at most, its own and those right before; at least 1. `None`: all.
    pub window: Option<u32>,
    /// Scores become `cap * tanh(score / cap)`, after the scale (Gemma 2).
    pub softcap: Option<f32>,
    /// Distance counts against a position: `-slope * distance` is added to its score ([`alibi_slope`]). Holds the largest exponent of a
    /// slope, 8 unless a model says otherwise.
    pub alibi: Option<f32>,
}

impl AttendSpec {
    /// Plain causal attention over all positions.
    pub const fn causal(num_heads: usize, num_kv_heads: usize, head_dim: usize, scale: f32) -> Self {
        Self { num_heads, num_kv_heads, head_dim, scale, window: None, softcap: None, alibi: None }
    }
}

/// ALiBi's slope of query head `head` of `num_heads` (Press et al. 2022): powers of `2^(-max_exponent / n)` for `n` heads, a power of two.
///
/// For other numbers of heads, as BLOOM and MPT do: those of the largest power of two below, then every other one of twice as many.
pub fn alibi_slope(head: usize, num_heads: usize, max_exponent: f32) -> f32 {
    let below = if num_heads.is_power_of_two() { num_heads } else { num_heads.next_power_of_two() / 2 };
    let (power, heads) = if head < below { (head + 1, below) } else { (2 * (head - below) + 1, 2 * below) };
    (-max_exponent * power as f32 / heads as f32).exp2()
}

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// In floats, rounded to nearest even when they are written.
    Dense(DType),
    /// In eight bits with a scale for each key and each value of a head: `scale = max |x| / 127`, `code = round(x / scale)` to nearest even.
    Int8,
}

impl From<DType> for KvFormat {
    fn from(dtype: DType) -> Self {
        Self::Dense(dtype)
    }
}

impl std::fmt::Display for KvFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dense(dtype) => dtype.fmt(f),
            Self::Int8 => f.write_str("int8"),
        }
    }
}

/// Storage of keys and values, by block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvSpec {
    /// Layers that attend.
    pub num_layers: usize,
    /// Key/value heads of each layer.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Positions in one block; a backend may want a multiple of 16.
    pub block_tokens: usize,
    /// How they are kept.
    pub format: KvFormat,
}

impl KvSpec {
    /// Bytes of one block over all layers, keys and values.
    pub fn block_bytes(&self) -> usize {
        let head_bytes = match self.format {
            KvFormat::Dense(dtype) => self.head_dim * dtype.size_bytes(),
            KvFormat::Int8 => self.head_dim + size_of::<f32>(),
        };
        2 * self.num_layers * self.num_kv_heads * self.block_tokens * head_bytes
    }
}

/// Memory of the device a backend runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryReport {
    /// All of it.
    pub total_bytes: u64,
    /// What could still be allocated now (for hosts: also what caches would give back).
    pub available_bytes: u64,
}
