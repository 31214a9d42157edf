//! The tensors of a GGUF file, under the names and in the order of the family they belong to.

use std::collections::BTreeSet;
use std::sync::Arc;

use half::{bf16, f16};
use pelton_backend::{DType, GroupedWeight, IntGroups};

use crate::gguf::config::ROPE_FACTORS;
use crate::gguf::kind::Kind;
use crate::gguf::{Gguf, GgufError};
use crate::spec::{DecoderTensors, TensorSpec};
use crate::weights::{Bytes, CheckpointError, Matrix, Tensor, TensorSource, listed, span};

/// Modules outside of blocks: in `config.json`'s terms, and in GGUF's.
const MODULES: [(&str, &str); 3] =
    [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];
/// What stands in front of a block's number.
const BLOCKS: (&str, &str) = ("model.layers.", "blk.");
/// Modules of a block.
const BLOCK_MODULES: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// The tensors of a model. How a family's own checkpoints store them does not matter: GGUF has one way, matrices `[out, in]`.
#[derive(Debug)]
pub(crate) struct GgufWeights {
    gguf: Arc<Gguf>,
    /// What blocks that are no integers become.
    decoded: DType,
    /// Rows of a query or key head, where they stand in pairs.
    paired: Option<usize>,
}

impl GgufWeights {
    /// Those that `wanted` names, each there in its shape, and no others. `dtype`: what blocks that are no integers become; `None`: what most
    /// numbers of matrices are in, where shorter ones than halves count as bfloat16 and integers not at all.
    pub(crate) fn new(
        gguf: Arc<Gguf>,
        wanted: &DecoderTensors,
        head_dim: usize,
        dtype: Option<DType>,
    ) -> Result<Self, GgufError> {
        let mut problems = Vec::new();
        let mut unread: BTreeSet<&str> = gguf.header.tensors.keys().map(String::as_str).collect();
        let mut sizes = [(DType::F32, 0), (DType::F16, 0), (DType::BF16, 0)];
        let matrices = wanted.matrices().map(|tensor| (tensor, true));
        for (tensor, is_matrix) in matrices.chain(wanted.vectors().map(|tensor| (tensor, false))) {
            let name = gguf_name(&tensor.name);
            unread.remove(name.as_str());
            match gguf.header.tensors.get(&name) {
                None => problems.push(format!("{name} is missing, expected {:?}", tensor.shape)),
                Some(info) if info.shape != tensor.shape => {
                    problems.push(format!("{name} has shape {:?}, expected {:?}", info.shape, tensor.shape));
                }
                Some(info) if is_matrix => {
                    let stored = match Kind::numbered(info.kind) {
                        Ok(Kind::F32) => DType::F32,
                        Ok(Kind::F16) => DType::F16,
                        Ok(kind) if kind.integers().is_some() => continue,
                        _ => DType::BF16,
                    };
                    if let Some((_, sum)) = sizes.iter_mut().find(|(dtype, _)| *dtype == stored) {
                        *sum += tensor.num_elements();
                    }
                }
                Some(_) => {}
            }
        }
        unread.remove(ROPE_FACTORS);
        problems.extend(unread.iter().map(|name| format!("{name} belongs to no part of the model")));
        if !problems.is_empty() {
            return Err(GgufError::Mismatch {
                file: gguf.file.clone(),
                count: problems.len(),
                problems: listed(&problems, "; "),
            });
        }
        let prevailing = sizes.into_iter().max_by_key(|(_, sum)| *sum).map_or(DType::BF16, |(dtype, _)| dtype);
        let paired = gguf.architecture()?.paired_rows.then_some(head_dim);
        Ok(Self { gguf, decoded: dtype.unwrap_or(prevailing), paired })
    }

    /// What blocks that are no integers become.
    pub(crate) fn dtype(&self) -> DType {
        self.decoded
    }

    /// The file's row of each of the model's, where they differ.
    fn rows(&self, tensor: &TensorSpec) -> Option<Vec<u32>> {
        let head_dim = self.paired?;
        let module = tensor.name.rsplit_once('.').map_or("", |(module, _)| module);
        if !module.ends_with("q_proj") && !module.ends_with("k_proj") {
            return None;
        }
        Some(halves_of_pairs(tensor.shape[0], head_dim))
    }
}

impl TensorSource for GgufWeights {
    fn tensor(&self, wanted: &TensorSpec) -> Result<Tensor, CheckpointError> {
        let name = gguf_name(&wanted.name);
        let kind = self.gguf.kind(&name)?;
        let bytes = self.gguf.bytes(&name)?;
        let rows = self.rows(wanted);
        let direct = match kind {
            Kind::F32 => Some(DType::F32),
            Kind::F16 => Some(DType::F16),
            Kind::BF16 => Some(DType::BF16),
            _ => None,
        };
        let num_rows = if wanted.shape.is_empty() { 1 } else { wanted.shape[0] };
        let row_bytes = bytes.as_slice().len() / num_rows.max(1);
        let row = |index: usize| {
            let index = rows.as_ref().map_or(index, |rows| rows[index] as usize);
            &bytes.as_slice()[index * row_bytes..(index + 1) * row_bytes]
        };
        let (dtype, made) = match direct {
            Some(dtype) if rows.is_none() => return Ok(Tensor::of(dtype, wanted.shape.clone(), bytes)),
            Some(dtype) => (dtype, (0..num_rows).flat_map(row).copied().collect()),
            None => {
                let num_elements: usize = wanted.shape.iter().product();
                let mut made = Vec::with_capacity(num_elements * self.decoded.size_bytes());
                let mut block_values = vec![0.0; kind.block_elements()];
                for block in (0..num_rows).flat_map(|index| row(index).chunks_exact(kind.block_bytes())) {
                    kind.decode(block, &mut block_values);
                    append(&mut made, &block_values, self.decoded);
                }
                (self.decoded, made)
            }
        };
        Ok(Tensor::of(dtype, wanted.shape.clone(), Bytes::Owned(made)))
    }

    fn matrix(&self, wanted: &TensorSpec) -> Result<Matrix, CheckpointError> {
        let name = gguf_name(&wanted.name);
        let kind = self.gguf.kind(&name)?;
        let (Some(format), &[out_features, in_features]) = (kind.integers(), &wanted.shape[..]) else {
            return self.tensor(wanted).map(Matrix::Dense);
        };
        let bytes = self.gguf.bytes(&name)?;
        let mut codes = vec![0; out_features * in_features];
        let blocks = bytes.as_slice().chunks_exact(kind.block_bytes());
        let scales: Vec<f32> = blocks
            .zip(codes.chunks_exact_mut(kind.block_elements()))
            .map(|(block, codes)| kind.codes(block, codes))
            .collect();
        let weight = GroupedWeight::new(format, [out_features, in_features], codes, scales, None)
            .and_then(|weight| match self.rows(wanted) {
                Some(rows) => weight.with_rows(&rows),
                None => Ok(weight),
            })
            .map_err(|error| GgufError::Broken {
                file: self.gguf.file.clone(),
                cause: format!("tensor {name}: {error}"),
            })?;
        Ok(Matrix::Grouped(weight))
    }

    fn integers(&self, wanted: &TensorSpec) -> Option<IntGroups> {
        self.gguf.kind(&gguf_name(&wanted.name)).ok()?.integers()
    }
}

impl Gguf {
    fn kind(&self, name: &str) -> Result<Kind, GgufError> {
        let missing = || "which is not there".to_owned();
        let kind = self.header.tensors.get(name).ok_or_else(missing).and_then(|info| Kind::numbered(info.kind));
        kind.map_err(|kind| GgufError::Broken { file: self.file.clone(), cause: format!("tensor {name} is {kind}") })
    }

    fn bytes(&self, name: &str) -> Result<Bytes, GgufError> {
        let range = self.ranges.get(name).cloned().unwrap_or_default();
        span(&self.blob, range).map_err(|source| GgufError::Io { file: self.file.clone(), source })
    }

    /// All numbers of a small tensor.
    pub(super) fn numbers(&self, name: &str) -> Result<Vec<f32>, GgufError> {
        let kind = self.kind(name)?;
        let bytes = self.bytes(name)?;
        let mut numbers = Vec::new();
        let mut block_values = vec![0.0; kind.block_elements()];
        for block in bytes.as_slice().chunks_exact(kind.block_bytes()) {
            kind.decode(block, &mut block_values);
            numbers.extend_from_slice(&block_values);
        }
        Ok(numbers)
    }
}

/// What GGUF calls the tensor `name`; a name not known stays, and will be missing.
fn gguf_name(name: &str) -> String {
    let Some((module, part)) = name.rsplit_once('.') else { return name.to_owned() };
    if let Some((_, theirs)) = MODULES.iter().find(|(ours, _)| *ours == module) {
        return format!("{theirs}.{part}");
    }
    if let Some((index, module)) = module.strip_prefix(BLOCKS.0).and_then(|rest| rest.split_once('.'))
        && let Some((_, theirs)) = BLOCK_MODULES.iter().find(|(ours, _)| *ours == module)
    {
        return format!("{}{index}.{theirs}.{part}", BLOCKS.1);
    }
    name.to_owned()
}

/// Row `i` of a head is half `i / (head_dim / 2)` of pair `i % (head_dim / 2)`, whose halves lie side by side in the file.
fn halves_of_pairs(num_rows: usize, head_dim: usize) -> Vec<u32> {
    let pairs = head_dim / 2;
    let place = |row: usize| {
        let (head, row) = (row / head_dim, row % head_dim);
        (head * head_dim + row % pairs * 2 + row / pairs) as u32
    };
    (0..num_rows).map(place).collect()
}

fn append(bytes: &mut Vec<u8>, values: &[f32], dtype: DType) {
    match dtype {
        DType::F32 => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        DType::F16 => bytes.extend(values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes())),
        DType::BF16 => bytes.extend(values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes())),
    }
}
