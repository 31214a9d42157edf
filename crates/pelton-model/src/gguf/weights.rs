//! The tensors of a GGUF file as a model takes them.

use std::collections::BTreeSet;
use std::sync::Arc;

use half::{bf16, f16};
use pelton_backend::{DType, GroupedWeight, IntGroups};

use crate::gguf::kind::Kind;
use crate::gguf::{Gguf, GgufError};
use crate::spec::{DecoderTensors, Stored, TensorSpec};
use crate::weights::{Bytes, CheckpointError, Matrix, Tensor, TensorSource, span};

/// The tensors of a model.
#[derive(Debug)]
pub(crate) struct GgufWeights {
    gguf: Arc<Gguf>,
    /// What blocks that are no integers become.
    decoded: DType,
}

impl GgufWeights {
    /// Those that `wanted` names, each there in its shape, and no others but those `ignored`.
    ///
    /// `dtype`: what blocks that are no integers become; `None`: what most numbers of matrices are in, where shorter ones than halves count
    /// as bfloat16 and integers not at all.
    pub(crate) fn new(
        gguf: Arc<Gguf>,
        wanted: &DecoderTensors,
        ignored: impl Fn(&str) -> bool,
        dtype: Option<DType>,
    ) -> Result<Self, GgufError> {
        let mut problems = Vec::new();
        let mut unread: BTreeSet<&str> = gguf.header.tensors.keys().map(String::as_str).collect();
        let mut sizes = [(DType::F32, 0), (DType::F16, 0), (DType::BF16, 0)];
        let matrices: BTreeSet<&str> = wanted.matrices().map(|tensor| tensor.name.as_str()).collect();
        for tensor in wanted.all() {
            let name = tensor.name.as_str();
            unread.remove(name);
            match gguf.header.tensors.get(name) {
                None => problems.push(format!("{name} is missing, expected {:?}", tensor.shape)),
                Some(info) if info.shape != tensor.shape => {
                    problems.push(format!("{name} has shape {:?}, expected {:?}", info.shape, tensor.shape));
                }
                Some(info) if matrices.contains(name) => {
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
        unread.retain(|name| !ignored(name));
        problems.extend(unread.iter().map(|name| format!("{name} belongs to no part of the model")));
        if !problems.is_empty() {
            return Err(gguf.mismatch(&problems));
        }
        let prevailing = sizes.into_iter().max_by_key(|(_, sum)| *sum).map_or(DType::BF16, |(dtype, _)| dtype);
        Ok(Self { gguf, decoded: dtype.unwrap_or(prevailing) })
    }

    /// What blocks that are no integers become.
    pub(crate) fn dtype(&self) -> DType {
        self.decoded
    }
}

/// The file's row of each of the model's, where they differ. Matrices lie as the model has them, `[out, in]`, in every file.
fn rows(tensor: &TensorSpec) -> Option<&[u32]> {
    match &tensor.stored {
        Stored::Rows(rows) => Some(rows),
        Stored::AsIs | Stored::Transposed => None,
    }
}

impl TensorSource for GgufWeights {
    fn tensor(&self, wanted: &TensorSpec) -> Result<Tensor, CheckpointError> {
        let name = &wanted.name;
        let kind = self.gguf.kind(name)?;
        let bytes = self.gguf.bytes(name)?;
        let rows = rows(wanted);
        let direct = match kind {
            Kind::F32 => Some(DType::F32),
            Kind::F16 => Some(DType::F16),
            Kind::BF16 => Some(DType::BF16),
            _ => None,
        };
        let num_rows = if wanted.shape.is_empty() { 1 } else { wanted.shape[0] };
        let row_bytes = bytes.as_slice().len() / num_rows.max(1);
        let row = |index: usize| {
            let index = rows.map_or(index, |rows| rows[index] as usize);
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
        let name = &wanted.name;
        let kind = self.gguf.kind(name)?;
        let (Some(format), &[out_features, in_features]) = (kind.integers(), &wanted.shape[..]) else {
            return self.tensor(wanted).map(Matrix::Dense);
        };
        let bytes = self.gguf.bytes(name)?;
        let mut codes = vec![0; out_features * in_features];
        let blocks = bytes.as_slice().chunks_exact(kind.block_bytes());
        let scales: Vec<f32> = blocks
            .zip(codes.chunks_exact_mut(kind.block_elements()))
            .map(|(block, codes)| kind.codes(block, codes))
            .collect();
        let weight = GroupedWeight::new(format, [out_features, in_features], codes, scales, None)
            .and_then(|weight| match rows(wanted) {
                Some(rows) => weight.with_rows(rows),
                None => Ok(weight),
            })
            .map_err(|error| GgufError::Broken {
                file: self.gguf.file.clone(),
                cause: format!("tensor {name}: {error}"),
            })?;
        Ok(Matrix::Grouped(weight))
    }

    fn integers(&self, wanted: &TensorSpec) -> Option<IntGroups> {
        self.gguf.kind(&wanted.name).ok()?.integers()
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

fn append(bytes: &mut Vec<u8>, values: &[f32], dtype: DType) {
    match dtype {
        DType::F32 => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        DType::F16 => bytes.extend(values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes())),
        DType::BF16 => bytes.extend(values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes())),
    }
}
