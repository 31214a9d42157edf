//! The face of a loaded model, with the backend erased.

use pelton_backend::{BackendError, StepBatch};

/// What the engine must know of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSpec {
    /// Columns of a row of logits.
    pub vocab_size: usize,
    /// Positions the model can tell apart; a sequence never grows beyond.
    pub max_positions: usize,
    /// KV blocks the model was given memory for.
    pub num_blocks: u32,
    /// Positions in a block.
    pub block_tokens: u32,
    /// Rows one step may hold: the workspace was allocated for so many.
    pub max_step_rows: usize,
    /// Rows of one step whose logits can be asked for.
    pub max_logit_rows: usize,
}

/// A step that could not be computed; the engine stops, since its state is not to be believed any more.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The device failed.
    #[error("the backend failed: {0}")]
    Backend(#[from] BackendError),
    /// Anything else (a scripted failure of a fake model, for instance).
    #[error("the model failed: {0}")]
    Failed(String),
}

/// A model with its KV cache, ready to compute steps. Object-safe, so that the engine is compiled once and can be given a fake.
pub trait Model: Send {
    /// Sizes and limits.
    fn spec(&self) -> &ModelSpec;
    /// Computes one step and returns the logits `[logit_rows, vocab_size]`, row-major, valid until the next call.
    ///
    /// Panics when `batch` exceeds the limits in [`ModelSpec`].
    fn forward(&mut self, batch: &StepBatch) -> Result<&[f32], ModelError>;
}
