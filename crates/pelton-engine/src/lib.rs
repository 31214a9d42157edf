//! Sequences, scheduling, KV accounting, sampling: tokens in, tokens out. This crate has never seen a string.
//!
//! [`start`] spawns the engine thread; an [`EngineHandle`] takes requests and gives [`TokenStream`]s. Reading order: `handle` and
//! `stream` are the door, `thread` is the loop, `scheduler` decides what a step computes, `drafting` guesses tokens that it can verify,
//! `kv` counts blocks, `sampling` picks tokens.
#![forbid(unsafe_code)]
mod batch;
mod drafting;
mod event;
mod fake;
mod handle;
mod kv;
mod sampling;
mod scheduler;
mod sequence;
mod start;
mod stats;
mod stream;
mod thread;

// Readers of events and writers of requests need their names and nothing else of that crate.
pub use pelton_backend::{AdapterId, TokenId};

pub use batch::{Batch, BatchEngine, BatchError, BatchTimes};
pub use event::{FinishReason, Foretold, SampledToken, SequenceError, Timeline, TokenEvent};
pub use fake::{FakeConfig, FakeModel};
pub use handle::{EngineHandle, ReportParams, SequenceRequest, ShutdownOutcome, StoppingParams, SubmitError};
pub use sampling::{ConstraintError, Ending, SamplingParams, TokenConstraint, TokenMask, Watermark};
pub use start::{EngineConfig, MAX_SPECULATE, Newcomers, StartError, start};
pub use stats::EngineGauges;
pub use stream::TokenStream;
