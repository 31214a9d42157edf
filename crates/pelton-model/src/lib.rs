//! Checkpoints, model families, and the decoder.
mod model;

pub use model::{Model, ModelError, ModelSpec};
