//! The door to the engine.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use pelton_backend::{AdapterId, TokenId};
use pelton_model::ModelSpec;
use tokio::sync::mpsc;

use crate::sequence::{Group, Sequence, SequenceId};
use crate::thread::{Message, Submission};
use crate::{EngineConfig, EngineGauges, SamplingParams, TokenConstraint, TokenStream};

/// What one request wants of the engine: already tokens, already checked.
#[derive(Debug, Clone)]
pub struct SequenceRequest {
    /// At least one token.
    pub prompt: Vec<TokenId>,
    /// What to compute with beside the model.
    pub adapter: Option<AdapterId>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// When to end.
    pub stopping: StoppingParams,
    /// What to report beside the tokens.
    pub report: ReportParams,
    /// What may be said; each choice follows a fork of it.
    pub constraint: Option<Box<dyn TokenConstraint>>,
    /// Sequences from the same prompt, at least one. Choice `i` draws with its own stream of `sampling.seed`.
    pub num_choices: u16,
}

/// When a sequence ends. Stop *strings* are text and live outside: their owner drops the stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoppingParams {
    /// Most tokens to sample, at least one; cut to what the model's positions allow.
    pub max_tokens: u32,
    /// Stop tokens are masked until so many tokens were sampled.
    pub min_tokens: u32,
    /// Tokens that end the sequence (end-of-text among them, unless it shall be ignored).
    pub stop_tokens: Vec<TokenId>,
}

/// What to report beside the tokens; costs time for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReportParams {
    /// Log-probability of each sampled token.
    pub logprobs: bool,
    /// Likeliest tokens to list for each position.
    pub top_n: u8,
    /// Log-probabilities of the prompt's tokens, with so many alternatives at each place (switches prefix hits off for this request, since
    /// cached rows have no logits).
    pub prompt_logprobs: Option<u8>,
}

impl ReportParams {
    /// Whether sampled tokens are told with log-probabilities.
    pub(crate) fn wants_logprobs(&self) -> bool {
        self.logprobs || self.top_n > 0
    }
}

/// Why the engine did not take a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// As many sequences run and wait as may; try again later.
    #[error("the queue is full, limit is {limit} waiting sequences")]
    QueueFull {
        /// `max_queued` of the configuration.
        limit: u32,
    },
    /// No token could follow this prompt.
    #[error("prompt has {num_prompt_tokens} tokens, limit is {limit}")]
    TooLong {
        /// Tokens of the prompt.
        num_prompt_tokens: usize,
        /// Longest prompt that leaves room for one token.
        limit: usize,
    },
    /// There is nothing to continue.
    #[error("the prompt has no tokens")]
    EmptyPrompt,
    /// A token of the prompt or of the logit bias is not in the vocabulary.
    #[error("token {token} is out of range, the vocabulary has {vocab_size} tokens")]
    TokenOutOfRange {
        /// The token.
        token: u32,
        /// Tokens of the vocabulary.
        vocab_size: usize,
    },
    /// The model was loaded with fewer adapters.
    #[error("adapter {adapter} is out of range, the model has {num_adapters}")]
    NoSuchAdapter {
        /// Its id.
        adapter: u16,
        /// How many there are.
        num_adapters: usize,
    },
    /// Prompt and answer may not fit into the KV cache, even alone.
    #[error("prompt and answer may have {num_tokens} tokens, the KV cache has room for {limit}")]
    TooManyTokens {
        /// Prompt tokens and `max_tokens` (cut to the model's positions).
        num_tokens: usize,
        /// Positions of all blocks.
        limit: usize,
    },
    /// No sequence was asked for, or one without tokens.
    #[error("{field} must be at least 1")]
    Nothing {
        /// `num_choices` or `max_tokens`.
        field: &'static str,
    },
    /// The engine takes no new work any more.
    #[error("the engine is stopping")]
    Stopping,
    /// The engine failed; nothing can be computed any more.
    #[error("the engine has failed")]
    Failed,
}

/// How a shutdown ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownOutcome {
    /// Every sequence was finished (or dropped by its reader).
    Drained,
    /// The deadline came first, or the engine had failed.
    Cut {
        /// Streams that ended without [`crate::TokenEvent::Finished`].
        sequences: usize,
    },
}

/// Whether new work is taken. Written by handles (`Stopping`) and by the engine thread (`Failed`); it only grows.
pub(crate) mod admission {
    pub(crate) const OPEN: u8 = 0;
    pub(crate) const STOPPING: u8 = 1;
    pub(crate) const FAILED: u8 = 2;
}

/// What handles and the engine thread share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) spec: ModelSpec,
    pub(crate) config: EngineConfig,
    pub(crate) gauges: EngineGauges,
    /// One of [`admission`].
    pub(crate) admission: AtomicU8,
    /// Sequences submitted and not yet freed. Handles add, the engine thread subtracts.
    pub(crate) num_open: AtomicU32,
    /// Id of the next sequence: the order of arrival. Written by handles.
    pub(crate) next_id: AtomicU64,
    /// Why the engine failed. Written once, by the engine thread.
    pub(crate) failure: OnceLock<String>,
}

#[derive(Debug)]
pub(crate) enum EngineThread {
    Running(JoinHandle<ShutdownOutcome>),
    Ended(ShutdownOutcome),
}

/// The way to an engine; clones lead to the same one.
///
/// The engine ends with [`EngineHandle::shutdown`], or when all handles and all streams are gone.
#[derive(Clone)]
pub struct EngineHandle {
    pub(crate) shared: Arc<Shared>,
    pub(crate) inbox: Sender<Message>,
    pub(crate) thread: Arc<Mutex<EngineThread>>,
}

impl EngineHandle {
    /// Hands a request to the engine and returns one stream per choice, in order. Never blocks.
    ///
    /// `max_tokens` is cut to what the model's positions allow. All choices are taken or none.
    pub fn submit(&self, request: SequenceRequest) -> Result<Vec<TokenStream>, SubmitError> {
        self.submit_together(vec![request])
    }

    /// Hands requests to the engine in one piece, so that they are planned from the same step on, and returns their streams in order. Never
    /// blocks. All requests are taken or none.
    pub(crate) fn submit_together(&self, requests: Vec<SequenceRequest>) -> Result<Vec<TokenStream>, SubmitError> {
        self.check_open()?;
        let max_tokens = requests.iter().map(|request| self.check(request)).collect::<Result<Vec<_>, _>>()?;
        let num_sequences = requests.iter().map(|request| u32::from(request.num_choices)).sum();
        self.reserve(num_sequences)?;

        let mut first = self.shared.next_id.fetch_add(u64::from(num_sequences), Ordering::Relaxed);
        let queued_at = Instant::now();
        let mut streams = Vec::with_capacity(num_sequences as usize);
        let mut submissions = Vec::with_capacity(num_sequences as usize);
        for (request, max_tokens) in requests.into_iter().zip(max_tokens) {
            let SequenceRequest { prompt, adapter, sampling, mut stopping, report, constraint, num_choices } = request;
            stopping.max_tokens = max_tokens;
            let group =
                Arc::new(Group::new(SequenceId(first), prompt.len() as u32, adapter, sampling, stopping, report));
            // The last choice takes prompt and constraint themselves.
            let inputs = std::iter::repeat_n((prompt, constraint), num_choices.into());
            for (choice, (prompt, constraint)) in (0..).zip(inputs) {
                let id = SequenceId(first + u64::from(choice));
                // Room for Started, every token, and Finished; the channel grows in small pieces as it is used.
                let (events, stream) = mpsc::channel(max_tokens as usize + 2);
                let sequence = Sequence::new(id, choice, Arc::clone(&group), prompt, constraint);
                submissions.push(Submission { sequence, events, queued_at });
                streams.push(TokenStream::new(id, stream, self.inbox.clone()));
            }
            first += u64::from(num_choices);
        }
        if self.inbox.send(Message::Submit(submissions)).is_err() {
            self.shared.num_open.fetch_sub(num_sequences, Ordering::Relaxed);
            self.check_open()?;
            return Err(SubmitError::Stopping);
        }
        Ok(streams)
    }

    /// State of the engine, as of the last step.
    pub fn gauges(&self) -> &EngineGauges {
        &self.shared.gauges
    }

    /// Sizes and limits of the model.
    pub fn spec(&self) -> &ModelSpec {
        &self.shared.spec
    }

    /// The configuration the engine was started with.
    pub fn config(&self) -> &EngineConfig {
        &self.shared.config
    }

    /// Most tokens, prompt and answer together, that a sequence can have: bounded by the model's positions and by the KV cache.
    pub fn max_sequence_tokens(&self) -> usize {
        let spec = &self.shared.spec;
        spec.max_positions.min(spec.num_blocks as usize * spec.block_tokens as usize)
    }

    /// False after a failure and after shutdown.
    pub fn is_alive(&self) -> bool {
        self.shared.gauges.alive.load(Ordering::Acquire)
    }

    /// Why the engine failed, if it did.
    pub fn failure(&self) -> Option<&str> {
        self.shared.failure.get().map(String::as_str)
    }

    /// From now on [`EngineHandle::submit`] answers [`SubmitError::Stopping`]; what was taken goes on.
    pub fn stop_admission(&self) {
        self.shared.admission.fetch_max(admission::STOPPING, Ordering::AcqRel);
    }

    /// Refuses new work, lets running and waiting sequences finish until `deadline`, ends the remaining streams (without
    /// `Finished`) and joins the engine thread. Blocks; a step that is being computed at the deadline is waited for.
    ///
    /// May be called again and from several threads: the earliest deadline counts, all callers get the same outcome.
    pub fn shutdown(&self, deadline: Instant) -> ShutdownOutcome {
        self.stop_admission();
        // An engine that is gone already has no use for the message.
        let _ = self.inbox.send(Message::Shutdown { deadline });
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let EngineThread::Ended(outcome) = *thread {
            return outcome;
        }
        // The thread catches panics of the model; one that got past it left streams nobody could count.
        let lost = ShutdownOutcome::Cut { sequences: 0 };
        let before = std::mem::replace(&mut *thread, EngineThread::Ended(lost));
        if let EngineThread::Running(running) = before
            && let Ok(outcome) = running.join()
        {
            *thread = EngineThread::Ended(outcome);
            return outcome;
        }
        lost
    }

    fn check_open(&self) -> Result<(), SubmitError> {
        match self.shared.admission.load(Ordering::Acquire) {
            admission::OPEN => Ok(()),
            admission::FAILED => Err(SubmitError::Failed),
            _ => Err(SubmitError::Stopping),
        }
    }

    /// Checks `request` against the model's limits; returns `max_tokens`, cut to the model's positions.
    fn check(&self, request: &SequenceRequest) -> Result<u32, SubmitError> {
        let spec = &self.shared.spec;
        let num_prompt_tokens = request.prompt.len();
        if num_prompt_tokens == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        if request.num_choices == 0 {
            return Err(SubmitError::Nothing { field: "num_choices" });
        }
        if request.stopping.max_tokens == 0 {
            return Err(SubmitError::Nothing { field: "max_tokens" });
        }
        let limit = self.max_sequence_tokens();
        if num_prompt_tokens >= limit {
            return Err(SubmitError::TooLong { num_prompt_tokens, limit: limit - 1 });
        }
        let biased = request.sampling.logit_bias.iter().map(|(token, _)| token);
        if let Some(token) = request.prompt.iter().chain(biased).find(|token| token.0 as usize >= spec.vocab_size) {
            return Err(SubmitError::TokenOutOfRange { token: token.0, vocab_size: spec.vocab_size });
        }
        if let Some(AdapterId(adapter)) = request.adapter
            && usize::from(adapter) >= spec.num_adapters
        {
            return Err(SubmitError::NoSuchAdapter { adapter, num_adapters: spec.num_adapters });
        }
        let max_tokens = (request.stopping.max_tokens as usize).min(spec.max_positions - num_prompt_tokens);
        if num_prompt_tokens + max_tokens > limit {
            return Err(SubmitError::TooManyTokens { num_tokens: num_prompt_tokens + max_tokens, limit });
        }
        Ok(max_tokens as u32)
    }

    /// Takes `count` places among the sequences that may run or wait.
    fn reserve(&self, count: u32) -> Result<(), SubmitError> {
        let config = &self.shared.config;
        let limit = config.max_sequences.saturating_add(config.max_queued);
        let reserved = self.shared.num_open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| {
            open.checked_add(count).filter(|&after| after <= limit)
        });
        reserved.map(drop).map_err(|_| SubmitError::QueueFull { limit: config.max_queued })
    }
}

impl fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineHandle").field("shared", &self.shared).finish_non_exhaustive()
    }
}
