//! Checkpoint files: which tensors there are, and their bytes.

mod checkpoint;
mod safetensors;

pub use checkpoint::{Checkpoint, CheckpointError, Tensor};
pub(crate) use checkpoint::{INDEX, Index, SINGLE};
pub use safetensors::{ElementType, SafetensorsError};
