//! Every tensor of a declared decoder: its name, its shape, and how it lies in the file.

use std::iter::once;
use std::sync::Arc;

use pelton_backend::WeightFormat;

use super::{Attention, Block, DecoderSpec, Experts, HeadWeight, Mlp, NormKind, Positions, QkvOrder, RotaryPairs};

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

/// A norm's weight and bias.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormTensors {
    /// `[hidden]`.
    pub weight: TensorSpec,
    /// `[hidden]`.
    pub bias: Option<TensorSpec>,
}

/// Matrices that read the same input, joined by output rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearTensors {
    /// `[out_i, in]` each.
    pub parts: Vec<TensorSpec>,
    /// `[out_i]` each; empty without biases.
    pub bias: Vec<TensorSpec>,
}

/// Matrices of an MLP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MlpTensors {
    /// Gate, then up; or up alone.
    pub up: LinearTensors,
    /// Back to the residual stream.
    pub down: LinearTensors,
}

/// Matrices of a block's experts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpertsTensors {
    /// `[num_experts, hidden]`, kept in f32: it is small, and a wrong choice of experts is a large error.
    pub router: TensorSpec,
    /// One for each expert.
    pub experts: Vec<MlpTensors>,
    /// The shared one.
    pub shared: Option<SharedTensors>,
}

/// Matrices of an expert for every row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedTensors {
    /// The expert.
    pub mlp: MlpTensors,
    /// `[1, hidden]`, kept in f32.
    pub gate: TensorSpec,
}

/// Tensors of one block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerTensors {
    /// Before attention.
    pub attention_norm: NormTensors,
    /// Queries, keys, values.
    pub qkv: LinearTensors,
    /// `[head_dim]` for queries and for keys.
    pub head_norms: Option<[TensorSpec; 2]>,
    /// Back to the residual stream.
    pub out: LinearTensors,
    /// Of what attention gives.
    pub after_attention: Option<NormTensors>,
    /// Before the MLP; none where it shares that of attention.
    pub mlp_norm: Option<NormTensors>,
    /// The MLP, or experts in its place.
    pub mlp: BranchTensors,
    /// Of what the MLP gives.
    pub after_mlp: Option<NormTensors>,
}

/// What a block has behind its attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BranchTensors {
    /// One MLP.
    Dense(MlpTensors),
    /// Many.
    Experts(ExpertsTensors),
}

/// Tensors of a whole model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecoderTensors {
    /// `[vocab, hidden]`.
    pub embed: TensorSpec,
    /// `[max_positions, hidden]`, where positions are learned.
    pub positions: Option<TensorSpec>,
    /// One per block.
    pub layers: Vec<LayerTensors>,
    /// After the last block.
    pub norm: NormTensors,
    /// `[vocab, hidden]`; none when it is the embedding.
    pub head: Option<TensorSpec>,
    /// `[vocab]`.
    pub head_bias: Option<TensorSpec>,
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

impl DecoderSpec {
    /// Every tensor of the model, with its shape, in the order of the forward pass.
    pub fn tensors(&self) -> DecoderTensors {
        let Self { names, hidden_size, vocab_size, .. } = self;
        let named = |name: &str| format!("{}{name}", names.prefix);
        let matrix = |name: &str, rows: usize| TensorSpec::weight(name, vec![rows, *hidden_size]);
        let (embed, head) = match self.head.weight {
            HeadWeight::Own => (named(names.embed), Some(matrix(names.head, *vocab_size))),
            HeadWeight::Embedding => (named(names.embed), None),
            HeadWeight::EmbeddingNamedHead => (names.head.to_owned(), None),
        };
        DecoderTensors {
            embed: matrix(&embed, *vocab_size),
            positions: match self.positions {
                Positions::Learned => Some(matrix(&named(names.positions), self.max_positions)),
                Positions::Rotary(_) => None,
            },
            layers: (0..self.layers.len()).map(|index| self.layer(index)).collect(),
            norm: self.norm_tensors(&named(names.norm)),
            head,
            head_bias: self.head.bias.then(|| TensorSpec::bias(names.head, *vocab_size)),
        }
    }

    fn layer(&self, index: usize) -> LayerTensors {
        let Self { names, attention, hidden_size, .. } = self;
        let name = |module: &str| format!("{}{}.{index}.{module}", names.prefix, names.layers);
        let norm = |module: &str| self.norm_tensors(&name(module));
        let head_norm = |module: &str| TensorSpec::weight(&name(module), vec![attention.head_dim]);
        let sandwiched = self.block == Block::Sandwiched;
        let heads = attention.num_heads * attention.head_dim;
        LayerTensors {
            attention_norm: norm(names.attention_norm),
            qkv: self.qkv(&name),
            head_norms: attention.head_norms.then(|| names.head_norms.map(head_norm)),
            out: self.linear(attention.out_bias, heads, &[(name(names.out), *hidden_size)]),
            after_attention: sandwiched.then(|| norm(names.after_attention)),
            mlp_norm: (self.block != Block::ParallelOneNorm).then(|| norm(names.mlp_norm)),
            mlp: match &self.experts {
                Some(experts) if self.layers[index].has_experts => {
                    BranchTensors::Experts(self.experts_tensors(experts, &name))
                }
                _ => BranchTensors::Dense(self.mlp_tensors(&self.mlp, names.up, names.down, &name)),
            },
            after_mlp: sandwiched.then(|| norm(names.after_mlp)),
        }
    }

    /// Queries, keys and values, in the order of attention whatever the file's.
    fn qkv(&self, name: &dyn Fn(&str) -> String) -> LinearTensors {
        let (attention, modules) = (&self.attention, self.names.qkv);
        let mut rows = attention.stored_rows(self.positions.rotary_dim());
        let orders = if modules.len() == 1 {
            vec![rows]
        } else {
            let queries = attention.num_heads * attention.head_dim;
            let queries_and_keys = queries + attention.num_kv_heads * attention.head_dim;
            let from_zero = |rows: Vec<u32>, first: usize| rows.into_iter().map(|row| row - first as u32).collect();
            let values = from_zero(rows.split_off(queries_and_keys), queries_and_keys);
            let keys = from_zero(rows.split_off(queries), queries);
            vec![rows, keys, values]
        };
        let parts: Vec<_> = modules.iter().zip(&orders).map(|(module, rows)| (name(module), rows.len())).collect();
        let mut linear = self.linear(attention.qkv_bias, self.hidden_size, &parts);
        for (index, rows) in orders.into_iter().enumerate() {
            if rows.iter().enumerate().any(|(row, &stored)| row != stored as usize) {
                let stored = Stored::Rows(rows.into());
                linear.parts[index].stored = stored.clone();
                if let Some(bias) = linear.bias.get_mut(index) {
                    bias.stored = stored;
                }
            }
        }
        linear
    }

    fn mlp_tensors(&self, mlp: &Mlp, up: &[&str], down: &str, name: &dyn Fn(&str) -> String) -> MlpTensors {
        let width = mlp.up_width() / up.len();
        let up: Vec<_> = up.iter().map(|module| (name(module), width)).collect();
        MlpTensors {
            up: self.linear(mlp.bias, self.hidden_size, &up),
            down: self.linear(mlp.bias, mlp.intermediate_size, &[(name(down), self.hidden_size)]),
        }
    }

    fn experts_tensors(&self, experts: &Experts, name: &dyn Fn(&str) -> String) -> ExpertsTensors {
        let Experts { names, num_experts, mlp, shared, .. } = experts;
        let row = |module: &str, rows: usize| TensorSpec::weight(&name(module), vec![rows, self.hidden_size]);
        let one = |mlp: &Mlp, expert: &str| {
            self.mlp_tensors(mlp, names.up, names.down, &|module| name(&format!("{expert}.{module}")))
        };
        ExpertsTensors {
            router: row(names.router, *num_experts),
            experts: (0..*num_experts).map(|expert| one(mlp, &format!("{}.{expert}", names.experts))).collect(),
            shared: shared
                .as_ref()
                .map(|shared| SharedTensors { mlp: one(shared, names.shared), gate: row(names.shared_gate, 1) }),
        }
    }

    fn linear(&self, bias: bool, inputs: usize, parts: &[(String, usize)]) -> LinearTensors {
        let stored = if self.names.transposed { Stored::Transposed } else { Stored::AsIs };
        let weight = |(module, rows): &(String, usize)| TensorSpec {
            stored: stored.clone(),
            ..TensorSpec::weight(module, vec![*rows, inputs])
        };
        LinearTensors {
            parts: parts.iter().map(weight).collect(),
            bias: parts.iter().filter(|_| bias).map(|(module, rows)| TensorSpec::bias(module, *rows)).collect(),
        }
    }

    fn norm_tensors(&self, module: &str) -> NormTensors {
        NormTensors {
            weight: TensorSpec::weight(module, vec![self.hidden_size]),
            bias: (self.norm.kind == NormKind::Layer).then(|| TensorSpec::bias(module, self.hidden_size)),
        }
    }
}

impl Attention {
    /// The file's row for each row of queries, keys and values, as if all three were one matrix; `rotary_dim` dimensions of a head are
    /// rotated.
    fn stored_rows(&self, rotary_dim: usize) -> Vec<u32> {
        let Self { num_heads, num_kv_heads, head_dim, .. } = *self;
        let dim = |kind: usize, d: usize| match self.rotary_pairs {
            RotaryPairs::Neighbours if kind < 2 && d < rotary_dim => d % (rotary_dim / 2) * 2 + d / (rotary_dim / 2),
            _ => d,
        };
        let row = |kind: usize, head: usize, d: usize| {
            let head = match self.qkv_order {
                QkvOrder::ByKind => [0, num_heads, num_heads + num_kv_heads][kind] + head,
                QkvOrder::ByHead => 3 * head + kind,
                QkvOrder::FourBlocks => {
                    let heads = num_heads / 4;
                    (head / heads * 3 + [0, 2, 1][kind]) * heads + head % heads
                }
            };
            (head * head_dim + dim(kind, d)) as u32
        };
        let heads = [num_heads, num_kv_heads, num_kv_heads].into_iter().enumerate();
        heads
            .flat_map(|(kind, heads)| (0..heads).map(move |head| (kind, head)))
            .flat_map(|(kind, head)| (0..head_dim).map(move |d| (kind, head, d)))
            .map(|(kind, head, d)| row(kind, head, d))
            .collect()
    }
}

impl NormTensors {
    fn tensors(&self) -> impl Iterator<Item = &TensorSpec> {
        once(&self.weight).chain(&self.bias)
    }
}

impl BranchTensors {
    /// Every MLP there is.
    fn mlps(&self) -> impl Iterator<Item = &MlpTensors> {
        let (one, experts) = match self {
            Self::Dense(mlp) => (Some(mlp), None),
            Self::Experts(experts) => (experts.shared.as_ref().map(|shared| &shared.mlp), Some(&experts.experts)),
        };
        experts.into_iter().flatten().chain(one)
    }

    /// The MLP, where there are no experts.
    pub(crate) fn dense(&self) -> Option<&MlpTensors> {
        match self {
            Self::Dense(mlp) => Some(mlp),
            Self::Experts(_) => None,
        }
    }

    /// What is kept in f32.
    pub(crate) fn routers(&self) -> impl Iterator<Item = &TensorSpec> {
        let experts = match self {
            Self::Dense(_) => None,
            Self::Experts(experts) => Some(experts),
        };
        experts.into_iter().flat_map(|experts| once(&experts.router).chain(experts.shared.as_ref().map(|it| &it.gate)))
    }
}

impl LayerTensors {
    /// The linears of the block, without those kept in f32.
    pub fn linears(&self) -> impl Iterator<Item = &LinearTensors> {
        [&self.qkv, &self.out].into_iter().chain(self.mlp.mlps().flat_map(|mlp| [&mlp.up, &mlp.down]))
    }

    /// The same without those of experts that a row may pass by.
    pub fn linears_of_every_row(&self) -> impl Iterator<Item = &LinearTensors> {
        let mlp = match &self.mlp {
            BranchTensors::Dense(mlp) => Some(mlp),
            BranchTensors::Experts(experts) => experts.shared.as_ref().map(|shared| &shared.mlp),
        };
        [&self.qkv, &self.out].into_iter().chain(mlp.into_iter().flat_map(|mlp| [&mlp.up, &mlp.down]))
    }

    fn norms(&self) -> impl Iterator<Item = &TensorSpec> {
        once(&self.attention_norm)
            .chain(&self.after_attention)
            .chain(&self.mlp_norm)
            .chain(&self.after_mlp)
            .flat_map(NormTensors::tensors)
            .chain(self.head_norms.iter().flatten())
    }
}

impl DecoderTensors {
    /// The embedding, and the head where there is one.
    pub fn vocab(&self) -> impl Iterator<Item = &TensorSpec> {
        once(&self.embed).chain(&self.head)
    }

    /// Matrices joined where they read the same input; of layers.
    pub fn linears(&self) -> impl Iterator<Item = &LinearTensors> {
        self.layers.iter().flat_map(LayerTensors::linears)
    }

    /// Tensors kept in the model's precision.
    pub fn matrices(&self) -> impl Iterator<Item = &TensorSpec> {
        let layers = self.linears().flat_map(|linear| &linear.parts);
        once(&self.embed).chain(layers).chain(&self.head)
    }

    /// Tensors kept in f32, whole: norms, biases, and what chooses experts.
    pub fn vectors(&self) -> impl Iterator<Item = &TensorSpec> {
        let layers = self.layers.iter().flat_map(|layer| layer.norms().chain(layer.mlp.routers()));
        let biases = self.linears().flat_map(|linear| &linear.bias);
        layers.chain(biases).chain(self.norm.tensors()).chain(&self.head_bias)
    }

    /// Every tensor but [`DecoderTensors::matrices`].
    pub fn others(&self) -> impl Iterator<Item = &TensorSpec> {
        self.vectors().chain(&self.positions)
    }

    /// Every tensor.
    pub fn all(&self) -> impl Iterator<Item = &TensorSpec> {
        self.matrices().chain(self.others())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HfConfig;

    fn attention(num_heads: usize, head_dim: usize, qkv_order: QkvOrder, rotary_pairs: RotaryPairs) -> Attention {
        let text = format!(r#"{{"hidden_size": 8, "num_attention_heads": {num_heads}, "head_dim": {head_dim}}}"#);
        let config = HfConfig::parse("config.json", text.as_bytes()).unwrap();
        Attention { qkv_order, rotary_pairs, ..Attention::multi_head(&config).unwrap() }
    }

    #[test]
    fn rows_of_joined_projections_are_found_in_every_order() {
        let plain = attention(2, 2, QkvOrder::ByKind, RotaryPairs::Halves);
        assert_eq!(plain.stored_rows(2), (0..12).collect::<Vec<u32>>());
        let by_head = attention(2, 2, QkvOrder::ByHead, RotaryPairs::Halves);
        assert_eq!(by_head.stored_rows(2), [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]);
        // A block: two queries, two values, two keys.
        let blocks = attention(8, 1, QkvOrder::FourBlocks, RotaryPairs::Halves);
        let rows = blocks.stored_rows(0);
        assert_eq!(rows[..8], [0, 1, 6, 7, 12, 13, 18, 19]);
        assert_eq!(rows[8..16], [4, 5, 10, 11, 16, 17, 22, 23]);
        assert_eq!(rows[16..], [2, 3, 8, 9, 14, 15, 20, 21]);
    }

    #[test]
    fn neighbours_that_rotate_together_are_brought_to_halves() {
        let neighbours = attention(1, 6, QkvOrder::ByKind, RotaryPairs::Neighbours);
        let rows = neighbours.stored_rows(4);
        // The first four dimensions of query and key in pairs, the rest and the value as they are.
        assert_eq!(rows, [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17]);
    }
}
