//! Weights: which tensors there are, and their bytes; from checkpoint files, or made up.

mod ahead;
mod arrange;
mod checkpoint;
mod codebook;
pub(crate) mod pickle;
mod random;
pub(crate) mod safetensors;
mod scheme;
mod shard;

pub(crate) use ahead::{ReadAhead, reading_ahead};
pub use checkpoint::{Checkpoint, CheckpointError, Tensor};
pub(crate) use checkpoint::{FORMATS, FileFormat, Index, listed};
pub(crate) use codebook::Codebook;
pub use pickle::PickleError;
pub(crate) use random::RandomWeights;
pub use safetensors::{ElementType, SafetensorsError};
pub use scheme::QuantConfigError;
pub(crate) use scheme::{Quantised, Scheme, scheme_of};
pub(crate) use shard::{Bytes, span};

use pelton_backend::{DType, GroupedWeight, IntGroups};

use crate::spec::TensorSpec;

/// A matrix as it arrives, in one of the two forms that backends pack.
#[derive(Debug)]
pub(crate) enum Matrix {
    /// In numbers.
    Dense(Tensor),
    /// In integers.
    Grouped(GroupedWeight<'static>),
}

impl Matrix {
    /// Its numbers.
    pub(crate) fn decoded(self) -> Tensor {
        match self {
            Self::Dense(tensor) => tensor,
            Self::Grouped(weight) => {
                let shape = [weight.out_features(), weight.in_features()];
                let mut row = vec![0.0; shape[1]];
                let mut bytes = Vec::with_capacity(4 * shape[0] * shape[1]);
                for index in 0..shape[0] {
                    weight.read_row(index, &mut row);
                    bytes.extend(row.iter().flat_map(|value| value.to_le_bytes()));
                }
                Tensor::made(DType::F32, shape.to_vec(), bytes)
            }
        }
    }
}

/// Where the loader's tensors come from; that they are there was found out before.
pub(crate) trait TensorSource: Sync {
    /// One tensor of numbers.
    fn tensor(&self, wanted: &TensorSpec) -> Result<Tensor, CheckpointError>;

    /// One matrix.
    fn matrix(&self, wanted: &TensorSpec) -> Result<Matrix, CheckpointError> {
        self.tensor(wanted).map(Matrix::Dense)
    }

    /// The integers that [`TensorSource::matrix`] will give; `None` for numbers. Known without reading it.
    fn integers(&self, _wanted: &TensorSpec) -> Option<IntGroups> {
        None
    }

    /// Whether matrices of the same integers, which read the same input, sort it into groups alike.
    fn sorted_alike(&self, _parts: &[TensorSpec]) -> Result<bool, CheckpointError> {
        Ok(true)
    }
}
