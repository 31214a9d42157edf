//! Checkpoints, model families, and the decoder.
//!
//! Reading order: [`files`](ModelFiles) says where a model lies, [`hub`] brings it there; [`config`](HfConfig) reads what it is,
//! `families` translate that into a [`DecoderSpec`], `weights` hand out its tensors, `adapters` what is added to them, [`load`] joins
//! them with a backend into a [`Decoder`], and [`Model`] is the decoder's face with the backend erased. [`Shape`] and [`load_random`]
//! make models without files, [`rates`] measures how fast a model computes, [`perplexity`] how well it predicts. This crate knows no
//! instruction set and no request.
#![deny(unsafe_code)]

mod files;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod hub;

mod adapters;
mod config;
mod families;
mod rope;
mod shape;
mod spec;
mod weights;

mod decoder;
mod formats;
mod gguf;
mod layer;
mod load;
mod loader;
mod memory;
mod mlp;
mod model;
pub mod perplexity;
pub mod quantize;
pub mod rates;
mod treatment;
mod workspace;

pub use adapters::{AdapterError, AdapterProblem, AdapterSource};
pub use config::{ConfigError, HfConfig};
pub use decoder::{Decoder, DecoderInfo};
pub use families::{architectures, spec_of};
pub use files::{FilesError, GGUF_TOKENIZER, ModelFiles};
pub use formats::WeightFormats;
pub use gguf::GgufError;
pub use load::{DTypeChoice, KvFormatChoice, LoadError, LoadOptions, load, load_random};
pub use memory::{KvBudget, MemoryError, MemoryPlan, Size};
pub use model::{Logits, Model, ModelError, ModelSpec};
pub use rope::{Rope, RopeRule, RopeScaling, RopeStretch, RopeStretchError};
pub use shape::{SHAPES, Shape, UnknownShape};
pub use spec::{
    Attention, Block, BranchTensors, DecoderSpec, DecoderTensors, ExpertNames, Experts, ExpertsTensors, Head,
    HeadWeight, LayerSpec, LayerTensors, LinearTensors, Mlp, MlpTensors, Names, Norm, NormKind, NormTensors, Positions,
    QkvOrder, RotaryPairs, SharedTensors, Stored, TensorSpec,
};
pub use treatment::{Quantize, QuantizeError};
pub use weights::{Checkpoint, CheckpointError, ElementType, PickleError, QuantConfigError, SafetensorsError, Tensor};
