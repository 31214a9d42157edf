//! Starting an engine: its settings, and what is wrong with them.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock, mpsc};

use pelton_model::Model;

use crate::handle::{EngineThread, Shared, admission};
use crate::{EngineGauges, EngineHandle, thread};

/// Most of [`EngineConfig::speculate`]. A guess for the seventeenth token hardly ever holds.
pub const MAX_SPECULATE: u32 = 16;

/// Limits of an engine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EngineConfig {
    /// Token budget: tokens one step may compute. More makes prompts faster and the gaps between tokens longer. The model's
    /// `max_step_rows` bounds it.
    pub max_step_tokens: u32,
    /// Sequences that run at once, each with a row in every step; bounded by the token budget and the model's `max_logit_rows`.
    pub max_sequences: u32,
    /// Sequences that may wait beyond those that may run; one more is [`crate::SubmitError::QueueFull`].
    pub max_queued: u32,
    /// Whether computed blocks are kept and found again by later prompts. Without it, the choices of one request compute the
    /// prompt each on their own.
    pub prefix_cache: bool,
    /// When those who wait may join those who run.
    pub newcomers: Newcomers,
    /// Tokens that may be guessed for a sequence and verified in one step, at most [`MAX_SPECULATE`]; zero guesses none. What sequences
    /// say does not depend on it. Guesses take rows and logits that a step has left, as long as they seem worth their time.
    pub speculate: u32,
}

/// When sequences that never ran may join those that run: once they are many enough or have waited long enough.
///
/// A step with a newcomer's prompt in it is longer, for everyone. Letting newcomers gather makes such steps fewer, and the newcomers' first
/// tokens later. Sequences that lost their blocks come back whatever is said here.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Newcomers {
    /// They join when they are at least this many for each sequence that runs, rounded down over all of them. 0: at once.
    pub waiting_served_ratio: f32,
    /// They join after so many steps without a newcomer, however few they are.
    pub max_waiting_steps: u32,
}

impl Newcomers {
    /// Everyone joins as soon as there is room.
    pub const AT_ONCE: Self = Self { waiting_served_ratio: 0.0, max_waiting_steps: 0 };
}

impl Default for EngineConfig {
    /// Steps of 256 tokens, 128 sequences at once and as many waiting, prompts found again, newcomers let in at once, no guesses.
    fn default() -> Self {
        Self {
            max_step_tokens: 256,
            max_sequences: 128,
            max_queued: 128,
            prefix_cache: true,
            newcomers: Newcomers::AT_ONCE,
            speculate: 0,
        }
    }
}

/// Why an engine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A limit of the configuration or of the model is zero.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// More guesses than a sequence may have in a step.
    #[error("speculate is {0}, limit is {MAX_SPECULATE}")]
    Speculate(u32),
    /// The operating system gave no thread.
    #[error("cannot start the engine thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Spawns the engine thread, which owns `model` from now on. The engine is alive when this returns.
pub fn start(model: Box<dyn Model>, config: EngineConfig) -> Result<EngineHandle, StartError> {
    let spec = model.spec().clone();
    for (limit, what) in [
        (config.max_step_tokens as usize, "max_step_tokens"),
        (config.max_sequences as usize, "max_sequences"),
        (spec.vocab_size, "the model's vocab_size"),
        (spec.max_positions, "the model's max_positions"),
        (spec.num_blocks as usize, "the model's num_blocks"),
        (spec.block_tokens as usize, "the model's block_tokens"),
        (spec.max_step_rows, "the model's max_step_rows"),
        (spec.max_logit_rows, "the model's max_logit_rows"),
    ] {
        if limit == 0 {
            return Err(StartError::Zero(what));
        }
    }
    if config.speculate > MAX_SPECULATE {
        return Err(StartError::Speculate(config.speculate));
    }
    let shared = Arc::new(Shared {
        spec,
        config,
        gauges: EngineGauges { alive: AtomicBool::new(true), ..EngineGauges::default() },
        admission: AtomicU8::new(admission::OPEN),
        num_open: AtomicU32::new(0),
        next_id: AtomicU64::new(0),
        failure: OnceLock::new(),
    });
    // Bounded by what may be in it: `num_open` limits submissions, each stream cancels at most once.
    let (inbox, messages) = mpsc::channel();
    let engine_shared = Arc::clone(&shared);
    let running = std::thread::Builder::new()
        .name("engine".into())
        .spawn(move || thread::run(model, &engine_shared, &messages))?;
    Ok(EngineHandle { shared, inbox, thread: Arc::new(Mutex::new(EngineThread::Running(running))) })
}
