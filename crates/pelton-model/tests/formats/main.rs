//! Checkpoints in every format, against the same model in safetensors.

mod pickle;
