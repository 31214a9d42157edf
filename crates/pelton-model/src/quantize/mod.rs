//! Quantised checkpoints: what the inputs of each linear look like, and integers that fit them.

mod awq;
mod factor;
mod gptq;
mod pack;
