//! Checkpoints in every format, against the same model in safetensors.

mod gguf;
mod model;
mod pickle;
