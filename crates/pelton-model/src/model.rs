//! The face of a loaded model, with the backend erased.

use std::fmt;
use std::ops::Deref;

use pelton_backend::{BackendError, CallerAlone, StepBatch, Workers};

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
    /// Adapters that sequences may ask for.
    pub num_adapters: usize,
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

/// What a step computed: `[logit_rows, vocab_size]`, row-major, and the model's threads, which have nothing to do until the next step.
pub struct Logits<'a> {
    rows: &'a [f32],
    workers: &'a dyn Workers,
}

impl<'a> Logits<'a> {
    /// `rows` of a model whose backend has `workers`.
    pub fn new(rows: &'a [f32], workers: &'a dyn Workers) -> Self {
        Self { rows, workers }
    }

    /// The model's threads.
    pub fn workers(&self) -> &'a dyn Workers {
        self.workers
    }
}

impl<'a> From<&'a [f32]> for Logits<'a> {
    /// Of a model without threads of its own.
    fn from(rows: &'a [f32]) -> Self {
        Self { rows, workers: &CallerAlone }
    }
}

impl Deref for Logits<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.rows
    }
}

impl fmt::Debug for Logits<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logits").field("rows", &self.rows).finish_non_exhaustive()
    }
}

/// A model with its KV cache, ready to compute steps. Object-safe, so that the engine is compiled once and can be given a fake.
pub trait Model: Send {
    /// Sizes and limits.
    fn spec(&self) -> &ModelSpec;
    /// Computes one step and returns its logits, valid until the next call.
    ///
    /// Panics when `batch` exceeds the limits in [`ModelSpec`].
    fn forward(&mut self, batch: &StepBatch) -> Result<Logits<'_>, ModelError>;
}
