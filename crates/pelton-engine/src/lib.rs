//! Sequences, scheduling, KV accounting, sampling: tokens in, tokens out. This crate has never seen a string.
#![forbid(unsafe_code)]
mod event;
mod handle;
mod sampling;
mod stats;

pub use event::{FinishReason, SampledToken, Timeline, TokenEvent};
pub use handle::{ReportParams, SequenceRequest, StoppingParams};
pub use sampling::SamplingParams;
pub use stats::EngineGauges;
