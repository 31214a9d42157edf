//! Batches without a server: sequences that begin in one step and end together, timed by the engine itself.

use std::time::{Duration, Instant};

use pelton_backend::TokenId;
use pelton_model::Model;

use crate::{
    EngineConfig, EngineHandle, ReportParams, SamplingParams, SequenceError, SequenceRequest, StartError,
    StoppingParams, SubmitError, TokenEvent, start,
};

/// Equal sequences that are computed together.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Sequences.
    pub size: usize,
    /// Tokens of each prompt.
    pub num_prompt_tokens: usize,
    /// Tokens that each sequence gets; no token ends it earlier.
    pub num_new_tokens: u32,
    /// How they are chosen.
    pub sampling: SamplingParams,
    /// What is computed beside them.
    pub report: ReportParams,
}

/// How long a batch took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchTimes {
    /// From handing the batch over until its last sequence has its first token.
    pub prefill: Duration,
    /// From there until its last sequence has its last token; zero if the first was the last.
    pub decode: Duration,
}

/// Why a batch was not computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The engine has no room for it.
    #[error("a batch of {size} was refused: {source}")]
    Submit {
        /// Its sequences.
        size: usize,
        /// Why.
        source: SubmitError,
    },
    /// The model failed.
    #[error("the engine has failed: {0}")]
    Failed(String),
    /// A sequence could not go on.
    #[error("a sequence failed: {0}")]
    Sequence(#[from] SequenceError),
}

/// An engine for batches alone: each computes its prompts anew, and all that the model has room for run together.
#[derive(Debug)]
pub struct BatchEngine(EngineHandle);

impl BatchEngine {
    /// Spawns the engine thread, which owns `model` until this is dropped.
    ///
    /// # Errors
    /// If the model has room for nothing, or there is no thread.
    pub fn start(model: Box<dyn Model>) -> Result<Self, StartError> {
        let spec = model.spec();
        let config = EngineConfig {
            max_step_tokens: u32::try_from(spec.max_step_rows).unwrap_or(u32::MAX),
            max_sequences: u32::try_from(spec.max_logit_rows).unwrap_or(u32::MAX),
            max_queued: 0,
            prefix_cache: false,
            // Each step is to compute one token of each sequence.
            speculate: 0,
            ..EngineConfig::default()
        };
        start(model, config).map(Self)
    }

    /// Computes a batch and waits for its end, or until `is_stopped`, which is asked after each token; then there are no times.
    ///
    /// # Errors
    /// If the batch is larger than the model has room for, or the model failed.
    pub fn run(&self, batch: &Batch, is_stopped: &dyn Fn() -> bool) -> Result<Option<BatchTimes>, BatchError> {
        // Other tokens in each sequence, so that a mixture of experts has work for all of them.
        let vocab_size = self.0.spec().vocab_size;
        let token = |sequence: usize, position: usize| TokenId(((sequence * 131 + position) % vocab_size) as u32);
        let request = |sequence| SequenceRequest {
            prompt: (0..batch.num_prompt_tokens).map(|position| token(sequence, position)).collect(),
            adapter: None,
            sampling: batch.sampling.clone(),
            stopping: StoppingParams { max_tokens: batch.num_new_tokens, ..StoppingParams::default() },
            report: batch.report,
            constraint: None,
            num_choices: 1,
        };
        let requests = (0..batch.size).map(request).collect();
        let begin = Instant::now();
        let streams =
            self.0.submit_together(requests).map_err(|source| BatchError::Submit { size: batch.size, source })?;
        let (mut first, mut last) = (begin, begin);
        for mut stream in streams {
            loop {
                match stream.blocking_next() {
                    Some(TokenEvent::Finished { timeline, .. }) => {
                        first = first.max(timeline.first_token_at);
                        last = last.max(timeline.finished_at);
                        break;
                    }
                    Some(TokenEvent::Failed(error)) => return Err(error.into()),
                    // The streams are dropped, and with them their sequences.
                    Some(_) if is_stopped() => return Ok(None),
                    Some(_) => {}
                    None => return Err(BatchError::Failed(self.0.failure().unwrap_or("it was stopped").to_owned())),
                }
            }
        }
        Ok(Some(BatchTimes { prefill: first - begin, decode: last.saturating_duration_since(first) }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::{FakeConfig, FakeModel};

    const STEP: Duration = Duration::from_millis(5);

    fn engine(change: impl FnOnce(&mut FakeConfig)) -> BatchEngine {
        let mut config = FakeConfig { step_cost: STEP, max_step_rows: 64, max_logit_rows: 8, ..FakeConfig::default() };
        change(&mut config);
        BatchEngine::start(Box::new(FakeModel::new(config))).expect("the engine starts")
    }

    fn batch(size: usize, num_new_tokens: u32) -> Batch {
        let (sampling, report) = (SamplingParams::default(), ReportParams::default());
        Batch { size, num_prompt_tokens: 8, num_new_tokens, sampling, report }
    }

    #[test]
    fn a_batch_is_one_prefill_and_a_step_for_each_further_token() {
        let engine = engine(|_| ());
        let before = engine.0.gauges().steps.load(Ordering::Relaxed);
        let times = engine.run(&batch(8, 5), &|| false).expect("a batch").expect("not stopped");
        let steps = engine.0.gauges().steps.load(Ordering::Relaxed) - before;
        assert_eq!(steps, 5, "all sequences share each step");
        assert!(times.prefill >= STEP && times.decode >= 4 * STEP, "{times:?}");
    }

    #[test]
    fn nothing_is_kept_from_batch_to_batch() {
        let engine = engine(|config| config.row_cost = Duration::from_micros(100));
        let mut long = batch(2, 1);
        long.num_prompt_tokens = 32;
        for _ in 0..2 {
            let times = engine.run(&long, &|| false).expect("a batch").expect("not stopped");
            assert!(times.prefill >= Duration::from_micros(6400), "every row of the prompts: {times:?}");
            assert_eq!(times.decode, Duration::ZERO, "the first token was the last");
        }
    }

    #[test]
    fn a_stop_ends_a_batch_early_and_frees_it() {
        let engine = engine(|config| config.max_positions = 100_000);
        let mut endless = batch(1, 50_000);
        endless.sampling.temperature = 1.0;
        assert_eq!(engine.run(&endless, &|| true), Ok(None));
        let gauges = engine.0.gauges();
        while gauges.running.load(Ordering::Relaxed) > 0 || gauges.blocks_used.load(Ordering::Relaxed) > 0 {
            std::thread::yield_now();
        }
        assert!(engine.run(&batch(8, 2), &|| false).expect("a batch").is_some(), "its place is free again");
    }

    #[test]
    fn what_cannot_be_computed_is_told() {
        let refused = engine(|_| ()).run(&batch(9, 2), &|| false).expect_err("too many");
        assert_eq!(refused.to_string(), "a batch of 9 was refused: the queue is full, limit is 0 waiting sequences");
        let failed =
            engine(|config| config.fail_at_step = Some(1)).run(&batch(1, 3), &|| false).expect_err("a failure");
        assert!(failed.to_string().contains("scripted failure at step 1"), "{failed}");
    }
}
