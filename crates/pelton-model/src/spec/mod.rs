//! What a decoder is, as declared by its family: sizes, how a block is arranged, attention, MLP and experts, positions.
//!
//! Reading order: here is what a family says, `names` where its tensors are, `tensors` what follows for each of them.

mod names;
mod tensors;

use pelton_backend::Act;

pub use names::{ExpertNames, Names};
pub(crate) use names::{GPT, LLAMA};
pub use tensors::{
    BranchTensors, DecoderTensors, ExpertsTensors, LayerTensors, LinearTensors, MlpTensors, NormTensors, SharedTensors,
    Stored, TensorSpec,
};

use crate::config::{ConfigError, HfConfig};
use crate::rope::{Rope, RopeStretch, RopeStretchError};

/// Bounds of what a configuration may ask for: far beyond every released model, far below what overflows.
const MAX_VOCAB: usize = 1 << 24;
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 4096;
const MAX_HEADS: usize = 1 << 14;
const MAX_HEAD_DIM: usize = 1 << 12;
const MAX_POSITIONS: usize = 1 << 28;
const MAX_EXPERTS: usize = 4096;

/// A decoder: token embedding, blocks of attention and MLP around a residual stream, a norm, a head.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderSpec {
    /// Rows of the embedding, columns of the logits.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Positions the model can tell apart.
    pub max_positions: usize,
    /// On embedded tokens, rounded to the model's precision first.
    pub embed_factor: Option<f64>,
    /// How positions enter.
    pub positions: Positions,
    /// Every norm of rows, and of heads where there are such.
    pub norm: Norm,
    /// How norms, attention and MLP of a block are arranged.
    pub block: Block,
    /// What the attention of all blocks has in common.
    pub attention: Attention,
    /// The MLP of blocks without experts.
    pub mlp: Mlp,
    /// What other blocks have in its place.
    pub experts: Option<Experts>,
    /// Each block.
    pub layers: Vec<LayerSpec>,
    /// From the residual stream to logits.
    pub head: Head,
    /// Where the tensors are.
    pub names: Names,
}

/// How a model knows where a token stands.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// A table of vectors, one added to each embedded token.
    Learned,
    /// Queries and keys are rotated, in each block by one of these; all of one width.
    Rotary(Vec<Rope>),
}

impl Positions {
    /// The rotary tables.
    pub fn ropes(&self) -> &[Rope] {
        match self {
            Self::Learned => &[],
            Self::Rotary(ropes) => ropes,
        }
    }

    /// Rotated dimensions of a head.
    pub fn rotary_dim(&self) -> usize {
        self.ropes().first().map_or(0, |rope| rope.rotary_dim)
    }
}

/// Norm of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// Which.
    pub kind: NormKind,
    /// Added to the mean square, or variance.
    pub eps: f32,
}

/// Kinds of norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// RMS norm.
    Rms,
    /// RMS norm whose weights are stored less one.
    RmsLessOne,
    /// Layer norm with a bias.
    Layer,
}

/// A block's effect on the residual stream `x`; each `norm` has weights of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// `x += attention(norm(x)); x += mlp(norm(x))`.
    Sequential,
    /// `x += norm(attention(norm(x))); x += norm(mlp(norm(x)))`.
    Sandwiched,
    /// `x += attention(h) + mlp(h)` with `h = norm(x)`.
    ParallelOneNorm,
    /// `x += attention(norm(x)) + mlp(norm(x))`.
    ParallelTwoNorms,
}

/// Causal attention with grouped queries.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// Scores become `cap * tanh(score / cap)`, after the scale.
    pub softcap: Option<f32>,
    /// Whether each head of queries and keys is RMS-normed before it is rotated.
    pub head_norms: bool,
    /// Whether query, key and value projections add a bias.
    pub qkv_bias: bool,
    /// Whether the projection back adds a bias.
    pub out_bias: bool,
    /// Which rows of a joined projection are whose.
    pub qkv_order: QkvOrder,
    /// Which dimensions of a head are rotated together.
    pub rotary_pairs: RotaryPairs,
}

/// The order of rows where one matrix projects to queries, keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkvOrder {
    /// All queries, all keys, all values.
    ByKind,
    /// For each head its query, its key, its value; as many key/value heads as query heads.
    ByHead,
    /// Four blocks, each of a fourth of all queries, as many *values*, then as many keys: how CodeGen was cut over four machines.
    FourBlocks,
}

/// Which dimensions are rotated together.
///
/// Backends rotate halves. Neighbours are brought there by the order in which rows of query and key projections are loaded: scores do
/// not depend on the order of dimensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotaryPairs {
    /// `i` and `i + rotary_dim / 2`.
    Halves,
    /// `2 i` and `2 i + 1`.
    Neighbours,
}

/// An MLP: `down(act(gate(x)) * up(x))`, or `down(act(up(x)))` without a gate.
#[derive(Debug, Clone, PartialEq)]
pub struct Mlp {
    /// Width between.
    pub intermediate_size: usize,
    /// On the gate, or on what has none.
    pub act: Act,
    /// Whether there is a gate.
    pub gated: bool,
    /// Whether all projections add a bias.
    pub bias: bool,
}

/// Many MLPs, of which each row goes through a few.
#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    /// Experts of a block.
    pub num_experts: usize,
    /// Experts of a row.
    pub top_k: usize,
    /// Whether the weights of a row's experts are made to sum to one.
    pub renormalise: bool,
    /// Each of them.
    pub mlp: Mlp,
    /// One that every row goes through besides, with the sigmoid of a linear as its weight.
    pub shared: Option<Mlp>,
    /// Where their tensors are.
    pub names: ExpertNames,
}

/// What is a block's own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerSpec {
    /// Positions a query sees at most; `None`: all.
    pub window: Option<u32>,
    /// Which of the rotary tables.
    pub rope: usize,
    /// On the scores, beside [`Attention::scale`].
    pub score_factor: f32,
    /// Whether it has experts instead of the MLP.
    pub has_experts: bool,
}

/// From the residual stream to logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Head {
    /// Its matrix.
    pub weight: HeadWeight,
    /// Whether it adds a bias.
    pub bias: bool,
    /// Logits become `cap * tanh(logit / cap)`.
    pub softcap: Option<f32>,
}

/// Which matrix makes the logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadWeight {
    /// One of its own.
    Own,
    /// The embedding.
    Embedding,
    /// The embedding, which the file holds under the head's name only.
    EmbeddingNamedHead,
}

impl DecoderSpec {
    /// Sequential blocks, all alike; a head that is the embedding when `tie_word_embeddings` (absent: false) says so. Reads `vocab_size`,
    /// `hidden_size`, `num_hidden_layers` and `max_position_embeddings` besides.
    pub fn new(
        config: &HfConfig,
        norm: Norm,
        positions: Positions,
        attention: Attention,
        mlp: Mlp,
        names: Names,
    ) -> Result<Self, ConfigError> {
        let stated = stated_positions(config)?;
        let reached = positions.ropes().iter().map(|rope| rope.max_positions(stated)).max();
        let layer = LayerSpec { window: None, rope: 0, score_factor: 1.0, has_experts: false };
        let tied = config.bool_or("tie_word_embeddings", false)?;
        let weight = if tied { HeadWeight::Embedding } else { HeadWeight::Own };
        Ok(Self {
            vocab_size: config.size("vocab_size", 1..=MAX_VOCAB)?,
            hidden_size: hidden_size(config)?,
            max_positions: reached.unwrap_or(stated).min(MAX_POSITIONS),
            embed_factor: None,
            positions,
            norm,
            block: Block::Sequential,
            attention,
            mlp,
            experts: None,
            layers: vec![layer; config.size("num_hidden_layers", 1..=MAX_LAYERS)?],
            head: Head { weight, bias: false, softcap: None },
            names,
        })
    }

    /// The same with its rotary positions stretched by `stretch`, instead of by the checkpoint's own rule.
    pub fn stretched(mut self, stretch: RopeStretch) -> Result<Self, RopeStretchError> {
        let rope = match &self.positions {
            Positions::Rotary(ropes) if ropes.len() == 1 => &ropes[0],
            Positions::Rotary(_) => {
                return Err(RopeStretchError::Positions { found: "rotary positions of several kinds" });
            }
            Positions::Learned => return Err(RopeStretchError::Positions { found: "learned positions" }),
        };
        let (rope, max_positions) = rope.stretched(stretch, self.max_positions)?;
        self.positions = Positions::Rotary(vec![rope]);
        self.max_positions = max_positions.min(MAX_POSITIONS);
        Ok(self)
    }

    /// The same with blocks in another arrangement.
    pub fn with_block(self, block: Block) -> Self {
        Self { block, ..self }
    }

    /// The same with a bias on the logits.
    pub fn with_head_bias(self) -> Self {
        Self { head: Head { bias: true, ..self.head }, ..self }
    }

    /// The same with `window` in the blocks that `slides` names.
    pub fn with_window(mut self, window: Option<u32>, slides: impl Fn(usize) -> bool) -> Self {
        for (index, layer) in self.layers.iter_mut().enumerate() {
            layer.window = window.filter(|_| slides(index));
        }
        self
    }

    /// The same with `experts` in the blocks that `routed` names.
    pub fn with_experts(mut self, experts: Experts, routed: impl Fn(usize) -> bool) -> Self {
        for (index, layer) in self.layers.iter_mut().enumerate() {
            layer.has_experts = routed(index);
        }
        self.experts = self.layers.iter().any(|layer| layer.has_experts).then_some(experts);
        self
    }

    /// The MLP, where some block has no experts.
    pub fn dense_mlp(&self) -> Option<&Mlp> {
        self.layers.iter().any(|layer| !layer.has_experts).then_some(&self.mlp)
    }
}

impl Norm {
    /// Of `kind`, with the number under `key`.
    pub fn from_config(config: &HfConfig, kind: NormKind, key: &str) -> Result<Self, ConfigError> {
        Ok(Self { kind, eps: config.float(key, 0.0..=1.0)? as f32 })
    }
}

impl Attention {
    /// A key and a value for each query head. Reads `num_attention_heads` and `head_dim` (absent: `hidden_size / num_attention_heads`). No
    /// biases.
    pub fn multi_head(config: &HfConfig) -> Result<Self, ConfigError> {
        let hidden_size = hidden_size(config)?;
        let num_heads = config.size("num_attention_heads", 1..=MAX_HEADS)?;
        let head_dim = match config.optional_size("head_dim", 1..=MAX_HEAD_DIM)? {
            Some(head_dim) => head_dim,
            None if hidden_size % num_heads == 0 => hidden_size / num_heads,
            None => {
                return Err(config.refuse("num_attention_heads", &format!("a divisor of hidden_size ({hidden_size})")));
            }
        };
        Ok(Self {
            num_heads,
            num_kv_heads: num_heads,
            head_dim,
            scale: (1.0 / (head_dim as f64).sqrt()) as f32,
            softcap: None,
            head_norms: false,
            qkv_bias: false,
            out_bias: false,
            qkv_order: QkvOrder::ByKind,
            rotary_pairs: RotaryPairs::Halves,
        })
    }

    /// The same, where `num_key_value_heads` may ask for fewer keys and values.
    pub fn grouped(config: &HfConfig) -> Result<Self, ConfigError> {
        let all = Self::multi_head(config)?;
        let num_heads = all.num_heads;
        let num_kv_heads = config.size_or("num_key_value_heads", num_heads, 1..=MAX_HEADS)?;
        if num_heads % num_kv_heads != 0 {
            return Err(
                config.refuse("num_key_value_heads", &format!("a divisor of num_attention_heads ({num_heads})"))
            );
        }
        Ok(Self { num_kv_heads, ..all })
    }

    /// The same with biases on the projections in, and on the projection back.
    pub fn with_bias(self, qkv_bias: bool, out_bias: bool) -> Self {
        Self { qkv_bias, out_bias, ..self }
    }

    /// Columns of a row of queries, keys and values.
    pub fn qkv_width(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// Rotated dimensions of a head, where `key` holds their share (absent: all); rounded down, as Transformers does.
    pub fn rotary_dim(&self, config: &HfConfig, key: &str) -> Result<usize, ConfigError> {
        Ok((self.head_dim as f64 * config.float_or(key, 1.0, 0.0..=1.0)?) as usize)
    }
}

impl Mlp {
    /// With a gate. Reads `intermediate_size` and `hidden_act`.
    pub fn gated(config: &HfConfig) -> Result<Self, ConfigError> {
        Ok(Self { gated: true, ..Self::plain(config)? })
    }

    /// Without a gate. Reads `intermediate_size` and `hidden_act`.
    pub fn plain(config: &HfConfig) -> Result<Self, ConfigError> {
        Self::of_width(config, config.size("intermediate_size", 1..=MAX_WIDTH)?)
    }

    /// Without a gate, with biases, four times as wide as `hidden_size` where `intermediate_size` is absent. Reads `hidden_act` besides.
    pub fn gpt(config: &HfConfig) -> Result<Self, ConfigError> {
        let width = config.size_or("intermediate_size", 4 * hidden_size(config)?, 1..=4 * MAX_WIDTH)?;
        Ok(Self::of_width(config, width)?.with_bias(true))
    }

    fn of_width(config: &HfConfig, intermediate_size: usize) -> Result<Self, ConfigError> {
        let act = activation(config, "hidden_act")?;
        Ok(Self { intermediate_size, act, gated: false, bias: false })
    }

    /// The same with the activation under `key`.
    pub fn with_act(self, config: &HfConfig, key: &str) -> Result<Self, ConfigError> {
        Ok(Self { act: activation(config, key)?, ..self })
    }

    /// The same with biases.
    pub fn with_bias(self, bias: bool) -> Self {
        Self { bias, ..self }
    }

    /// Columns before the activation.
    pub fn up_width(&self) -> usize {
        if self.gated { 2 * self.intermediate_size } else { self.intermediate_size }
    }
}

impl Experts {
    /// As many as `count_key` says, like `mlp` but as wide as `width_key` says. Reads `num_experts_per_tok`. Weights are shares of the
    /// softmax.
    pub fn from_config(
        config: &HfConfig,
        mlp: &Mlp,
        count_key: &str,
        width_key: &str,
        names: ExpertNames,
    ) -> Result<Self, ConfigError> {
        let num_experts = config.size(count_key, 1..=MAX_EXPERTS)?;
        let top_k = config.size("num_experts_per_tok", 1..=num_experts)?;
        let mlp = Mlp { intermediate_size: config.size(width_key, 1..=MAX_WIDTH)?, ..mlp.clone() };
        Ok(Self { num_experts, top_k, renormalise: false, mlp, shared: None, names })
    }

    /// The same with a shared one, as wide as `width_key` says.
    pub fn with_shared(self, config: &HfConfig, width_key: &str) -> Result<Self, ConfigError> {
        let shared = Mlp { intermediate_size: config.size(width_key, 1..=MAX_WIDTH)?, ..self.mlp.clone() };
        Ok(Self { shared: Some(shared), ..self })
    }
}

/// The function that Transformers means by the word under `key`.
fn activation(config: &HfConfig, key: &str) -> Result<Act, ConfigError> {
    match config.text(key)? {
        "silu" | "swish" => Ok(Act::Silu),
        "gelu" => Ok(Act::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Act::GeluTanh),
        "relu" => Ok(Act::Relu),
        _ => {
            let known = "silu, swish, gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, relu";
            Err(config.unsupported(key, &format!("not known; known are {known}")))
        }
    }
}

/// Positions that a query sees, itself included: `sliding_window`.
pub(crate) fn sliding_window(config: &HfConfig) -> Result<Option<u32>, ConfigError> {
    Ok(config.optional_size("sliding_window", 1..=MAX_POSITIONS)?.map(|window| window as u32))
}

/// Which blocks slide: as `layer_types` lists them, or where that is absent as `otherwise` says.
pub(crate) fn sliding_layers(config: &HfConfig, otherwise: impl Fn(usize) -> bool) -> Result<Vec<bool>, ConfigError> {
    let num_layers = config.size("num_hidden_layers", 1..=MAX_LAYERS)?;
    if !config.has("layer_types") {
        return Ok((0..num_layers).map(otherwise).collect());
    }
    let kinds = config.texts("layer_types")?;
    if kinds.len() != num_layers {
        return Err(config.refuse("layer_types", &format!("one for each of {num_layers} layers")));
    }
    let slides = |kind: &str| match kind {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        _ => Err(config.unsupported("layer_types", "known are full_attention and sliding_attention")),
    };
    kinds.into_iter().map(slides).collect()
}

/// `max_position_embeddings`, as stated.
pub(crate) fn stated_positions(config: &HfConfig) -> Result<usize, ConfigError> {
    config.size("max_position_embeddings", 1..=MAX_POSITIONS)
}

fn hidden_size(config: &HfConfig) -> Result<usize, ConfigError> {
    config.size("hidden_size", 1..=MAX_WIDTH)
}
