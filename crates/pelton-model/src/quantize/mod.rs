//! Quantised checkpoints: what the inputs of each linear look like, and integers that fit them.

mod factor;
mod gptq;
