//! Weights: which tensors there are, and their bytes; from checkpoint files, or made up.

mod arrange;
mod checkpoint;
mod pickle;
mod random;
mod safetensors;
mod shard;

pub use checkpoint::{Checkpoint, CheckpointError, Tensor};
pub(crate) use checkpoint::{FORMATS, FileFormat, Index};
pub use pickle::PickleError;
pub(crate) use random::RandomWeights;
pub use safetensors::{ElementType, SafetensorsError};

use crate::spec::TensorSpec;

/// Where the loader's tensors come from.
pub(crate) trait TensorSource {
    /// One tensor; that it is there was found out before.
    fn tensor(&self, wanted: &TensorSpec) -> Result<Tensor, CheckpointError>;
}
