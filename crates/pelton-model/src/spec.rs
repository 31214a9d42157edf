//! What a decoder is, as declared by its family: sizes, blocks, and the names and shapes of its tensors.

use std::iter::once;
use std::sync::Arc;

use pelton_backend::{Act, WeightFormat};

use crate::config::{ConfigError, HfConfig};
use crate::rope::Rope;

/// Bounds of what a configuration may ask for: far beyond every released model, far below what overflows.
const MAX_VOCAB: usize = 1 << 24;
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 4096;
const MAX_HEADS: usize = 1 << 14;
const MAX_HEAD_DIM: usize = 1 << 12;
const MAX_POSITIONS: usize = 1 << 28;

/// A decoder of pre-norm blocks, attention before MLP, both added to the residual stream; RMS norms.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderSpec {
    /// Rows of the embedding, columns of the logits.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Positions the model can tell apart.
    pub max_positions: usize,
    /// Added to the mean square in every norm.
    pub norm_eps: f32,
    /// The attention of every block.
    pub attention: Attention,
    /// The MLP of every block.
    pub mlp: Mlp,
    /// Whether logits come from the embedding matrix.
    pub tied_head: bool,
    /// Where the tensors are.
    pub names: Names,
}

/// Causal attention with grouped queries and rotary positions.
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
    /// Whether query, key and value projections add a bias.
    pub qkv_bias: bool,
    /// Whether the projection back adds a bias.
    pub out_bias: bool,
    /// Positions.
    pub rope: Rope,
}

/// A gated MLP: `down(act(gate(x)) * up(x))`.
#[derive(Debug, Clone, PartialEq)]
pub struct Mlp {
    /// Width between.
    pub intermediate_size: usize,
    /// On the gate.
    pub act: Act,
    /// Whether all three projections add a bias.
    pub bias: bool,
}

/// Names of modules in the checkpoint; tensors are `<module>.weight` and `<module>.bias`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names {
    /// The embedding.
    pub embed: &'static str,
    /// What stands before a block's index.
    pub layers: &'static str,
    /// Within a block: norm before attention.
    pub attention_norm: &'static str,
    /// Within a block: query projection.
    pub q: &'static str,
    /// Within a block: key projection.
    pub k: &'static str,
    /// Within a block: value projection.
    pub v: &'static str,
    /// Within a block: projection back to the residual stream.
    pub out: &'static str,
    /// Within a block: norm before the MLP.
    pub mlp_norm: &'static str,
    /// Within a block: gate projection.
    pub gate: &'static str,
    /// Within a block: up projection.
    pub up: &'static str,
    /// Within a block: down projection.
    pub down: &'static str,
    /// The norm after the last block.
    pub norm: &'static str,
    /// The head, when it is not tied.
    pub head: &'static str,
    /// Endings of buffers that old files carry and nobody reads.
    pub ignored: &'static [&'static str],
}

impl DecoderSpec {
    /// Reads the keys that every family spells alike: `vocab_size`, `hidden_size`, `num_hidden_layers`, `max_position_embeddings`.
    pub fn sized(
        config: &HfConfig,
        attention: Attention,
        mlp: Mlp,
        norm_eps: f32,
        names: Names,
    ) -> Result<Self, ConfigError> {
        let stated = config.size("max_position_embeddings", 1..=MAX_POSITIONS)?;
        Ok(Self {
            vocab_size: config.size("vocab_size", 1..=MAX_VOCAB)?,
            hidden_size: hidden_size(config)?,
            num_layers: config.size("num_hidden_layers", 1..=MAX_LAYERS)?,
            max_positions: attention.rope.max_positions(stated).min(MAX_POSITIONS),
            norm_eps,
            attention,
            mlp,
            tied_head: config.bool_or("tie_word_embeddings", false)?,
            names,
        })
    }

    /// Every tensor of the model, with its shape, in the order of the forward pass.
    pub fn tensors(&self) -> DecoderTensors {
        let names = &self.names;
        let hidden = self.hidden_size;
        let top = |name: &str| TensorSpec::weight(name, vec![self.vocab_size, hidden]);
        DecoderTensors {
            embed: top(names.embed),
            layers: (0..self.num_layers).map(|index| self.layer(index)).collect(),
            norm: TensorSpec::weight(names.norm, vec![hidden]),
            head: (!self.tied_head).then(|| top(names.head)),
        }
    }

    fn layer(&self, index: usize) -> LayerTensors {
        let Self { names, attention, mlp, hidden_size: hidden, .. } = self;
        let (hidden, inner) = (*hidden, mlp.intermediate_size);
        let heads = attention.num_heads * attention.head_dim;
        let kv_heads = attention.num_kv_heads * attention.head_dim;
        let name = |module: &str| format!("{}.{index}.{module}", names.layers);
        let norm = |module: &str| TensorSpec::weight(&name(module), vec![hidden]);
        let linear = |bias: bool, inputs: usize, parts: &[(&str, usize)]| LinearTensors {
            parts: parts.iter().map(|(module, rows)| TensorSpec::weight(&name(module), vec![*rows, inputs])).collect(),
            bias: parts.iter().filter(|_| bias).map(|(module, rows)| TensorSpec::bias(&name(module), *rows)).collect(),
        };
        LayerTensors {
            attention_norm: norm(names.attention_norm),
            qkv: linear(attention.qkv_bias, hidden, &[(names.q, heads), (names.k, kv_heads), (names.v, kv_heads)]),
            out: linear(attention.out_bias, heads, &[(names.out, hidden)]),
            mlp_norm: norm(names.mlp_norm),
            gate_up: linear(mlp.bias, hidden, &[(names.gate, inner), (names.up, inner)]),
            down: linear(mlp.bias, inner, &[(names.down, hidden)]),
        }
    }
}

impl Attention {
    /// Reads `num_attention_heads`, `num_key_value_heads` (absent: one for each query head), `head_dim` (absent:
    /// `hidden_size / num_attention_heads`) and the rotary keys. The whole head is rotated; no biases.
    pub fn grouped(config: &HfConfig) -> Result<Self, ConfigError> {
        let hidden_size = hidden_size(config)?;
        let num_heads = config.size("num_attention_heads", 1..=MAX_HEADS)?;
        let num_kv_heads = config.size_or("num_key_value_heads", num_heads, 1..=MAX_HEADS)?;
        if num_heads % num_kv_heads != 0 {
            return Err(
                config.refuse("num_key_value_heads", &format!("a divisor of num_attention_heads ({num_heads})"))
            );
        }
        let head_dim = match config.optional_size("head_dim", 1..=MAX_HEAD_DIM)? {
            Some(head_dim) => head_dim,
            None if hidden_size % num_heads == 0 => hidden_size / num_heads,
            None => {
                return Err(config.refuse("num_attention_heads", &format!("a divisor of hidden_size ({hidden_size})")));
            }
        };
        let stated = config.size("max_position_embeddings", 1..=MAX_POSITIONS)?;
        Ok(Self {
            num_heads,
            num_kv_heads,
            head_dim,
            scale: (1.0 / (head_dim as f64).sqrt()) as f32,
            qkv_bias: false,
            out_bias: false,
            rope: Rope::from_config(config, head_dim, stated)?,
        })
    }

    /// The same with biases on the projections in, and on the projection back.
    pub fn with_bias(self, qkv_bias: bool, out_bias: bool) -> Self {
        Self { qkv_bias, out_bias, ..self }
    }

    /// Columns of a row of queries, keys and values.
    pub fn qkv_width(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }
}

impl Mlp {
    /// Reads `intermediate_size` and `hidden_act`.
    pub fn gated(config: &HfConfig) -> Result<Self, ConfigError> {
        let act = match config.text("hidden_act")? {
            "silu" | "swish" => Act::Silu,
            "gelu" => Act::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Act::GeluTanh,
            _ => {
                let known = "silu, swish, gelu, gelu_new, gelu_pytorch_tanh";
                return Err(config.unsupported("hidden_act", &format!("not known; known are {known}")));
            }
        };
        Ok(Self { intermediate_size: config.size("intermediate_size", 1..=MAX_WIDTH)?, act, bias: false })
    }

    /// The same with biases.
    pub fn with_bias(self, bias: bool) -> Self {
        Self { bias, ..self }
    }
}

fn hidden_size(config: &HfConfig) -> Result<usize, ConfigError> {
    config.size("hidden_size", 1..=MAX_WIDTH)
}

/// A tensor that must be in the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its full name.
    pub name: String,
    /// Its shape as the model uses it, outermost first.
    pub shape: Vec<usize>,
    /// How the file's tensor differs from that.
    pub stored: Stored,
}

/// How a tensor lies in its file, compared with what the model uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// No difference.
    AsIs,
    /// A matrix with rows and columns exchanged, `[in, out]`.
    Transposed,
    /// The same rows (numbers, of a bias) in another order: the model's row `i` is the file's row `rows[i]`. A permutation.
    Rows(Arc<[u32]>),
}

impl TensorSpec {
    fn weight(module: &str, shape: Vec<usize>) -> Self {
        Self { name: format!("{module}.weight"), shape, stored: Stored::AsIs }
    }

    fn bias(module: &str, rows: usize) -> Self {
        Self { name: format!("{module}.bias"), shape: vec![rows], stored: Stored::AsIs }
    }

    /// Its shape in the file.
    pub fn stored_shape(&self) -> Vec<usize> {
        match self.stored {
            Stored::AsIs | Stored::Rows(_) => self.shape.clone(),
            Stored::Transposed => self.shape.iter().rev().copied().collect(),
        }
    }

    /// Bytes of it kept in `format`; it is a matrix.
    pub fn matrix_bytes(&self, format: WeightFormat) -> u64 {
        let out_features = self.shape.first().map_or(0, |&rows| rows as u64);
        format.matrix_bytes(out_features, self.num_elements() / out_features.max(1))
    }

    /// Numbers in it.
    pub fn num_elements(&self) -> u64 {
        self.shape.iter().map(|&dim| dim as u64).product()
    }
}

/// Matrices that read the same input, joined by output rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearTensors {
    /// `[out_i, in]` each.
    pub parts: Vec<TensorSpec>,
    /// `[out_i]` each; empty without biases.
    pub bias: Vec<TensorSpec>,
}

/// Tensors of one block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerTensors {
    /// `[hidden]`.
    pub attention_norm: TensorSpec,
    /// Queries, keys, values.
    pub qkv: LinearTensors,
    /// Back to the residual stream.
    pub out: LinearTensors,
    /// `[hidden]`.
    pub mlp_norm: TensorSpec,
    /// Gate, then up.
    pub gate_up: LinearTensors,
    /// Back to the residual stream.
    pub down: LinearTensors,
}

impl LayerTensors {
    /// The four linears of the block.
    pub fn linears(&self) -> [&LinearTensors; 4] {
        [&self.qkv, &self.out, &self.gate_up, &self.down]
    }
}

/// Tensors of a whole model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecoderTensors {
    /// `[vocab, hidden]`.
    pub embed: TensorSpec,
    /// One per block.
    pub layers: Vec<LayerTensors>,
    /// `[hidden]`.
    pub norm: TensorSpec,
    /// `[vocab, hidden]`; none when tied.
    pub head: Option<TensorSpec>,
}

impl DecoderTensors {
    /// The embedding, and the head where there is one.
    pub fn vocab(&self) -> impl Iterator<Item = &TensorSpec> {
        once(&self.embed).chain(&self.head)
    }

    /// Matrices joined where they read the same input; of layers.
    pub fn linears(&self) -> impl Iterator<Item = &LinearTensors> {
        self.layers.iter().flat_map(|layer| layer.linears())
    }

    /// Tensors kept in the model's precision.
    pub fn matrices(&self) -> impl Iterator<Item = &TensorSpec> {
        let layers = self.linears().flat_map(|linear| &linear.parts);
        once(&self.embed).chain(layers).chain(&self.head)
    }

    /// Norms and biases, kept in f32.
    pub fn vectors(&self) -> impl Iterator<Item = &TensorSpec> {
        let norms = self.layers.iter().flat_map(|layer| [&layer.attention_norm, &layer.mlp_norm]);
        let biases = self.linears().flat_map(|linear| &linear.bias);
        norms.chain(biases).chain(once(&self.norm))
    }
}
