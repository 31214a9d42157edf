//! What is known of one request when it has ended.

use std::time::{Duration, Instant};

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every choice ended by itself or by a stop condition.
    Stop,
    /// At least one choice ended at its token limit, the others by themselves.
    Length,
    /// The client went away.
    Cancelled,
    /// The engine failed or was stopped, or could not go on with a sequence of it.
    Failed,
}

/// One request, all its prompts and choices together. Times that were not reached are `None`.
#[derive(Debug, Clone)]
pub struct RequestRecord {
    /// Which dialect asked, for the log.
    pub dialect: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// The request was read.
    pub arrived_at: Instant,
    /// Checked, tokenized and handed to the engine.
    pub queued_at: Instant,
    /// First planned into a step.
    pub scheduled_at: Option<Instant>,
    /// First token of any choice.
    pub first_token_at: Option<Instant>,
    /// Last token of any choice, or the moment of failure.
    pub finished_at: Instant,
    /// Tokens of all prompts.
    pub num_prompt_tokens: u32,
    /// Those of them found in the prefix cache.
    pub num_cached_tokens: u32,
    /// Tokens generated, over all choices.
    pub num_generated_tokens: u32,
    /// Those of them that were guessed and verified, over the choices that the engine ended (not those cut at a stop string).
    pub num_accepted_tokens: u32,
    /// Tokens that each choice was allowed.
    pub max_tokens: u32,
    /// Sequences: prompts times choices.
    pub num_sequences: u32,
}

impl RequestRecord {
    /// Whether the client got all it asked for.
    pub fn is_success(&self) -> bool {
        matches!(self.outcome, Outcome::Stop | Outcome::Length)
    }

    /// Reading to the end.
    pub fn total(&self) -> Duration {
        self.finished_at - self.arrived_at
    }

    /// Checking and tokenizing.
    pub fn validation(&self) -> Duration {
        self.queued_at - self.arrived_at
    }

    /// Waiting for the first step.
    pub fn queue(&self) -> Duration {
        self.scheduled_at.unwrap_or(self.finished_at).saturating_duration_since(self.queued_at)
    }

    /// First step to the end.
    pub fn inference(&self) -> Duration {
        self.finished_at.saturating_duration_since(self.scheduled_at.unwrap_or(self.finished_at))
    }

    /// Inference time per token of one choice: with several choices, tokens come side by side.
    pub fn time_per_token(&self) -> Duration {
        let per_choice = f64::from(self.num_generated_tokens) / f64::from(self.num_sequences.max(1));
        self.inference().div_f64(per_choice.max(1.0))
    }

    /// Reading to the first token.
    pub fn time_to_first_token(&self) -> Option<Duration> {
        Some(self.first_token_at?.saturating_duration_since(self.arrived_at))
    }

    /// First step to first token.
    pub fn prefill(&self) -> Option<Duration> {
        Some(self.first_token_at?.saturating_duration_since(self.scheduled_at?))
    }

    /// First token to last token.
    pub fn decode(&self) -> Option<Duration> {
        Some(self.finished_at.saturating_duration_since(self.first_token_at?))
    }

    /// Mean gap between the tokens of a choice; `None` when no choice has two.
    pub fn time_per_output_token(&self) -> Option<Duration> {
        let gaps = self.num_generated_tokens.checked_sub(self.num_sequences).filter(|&gaps| gaps > 0)?;
        Some(self.decode()?.div_f64(f64::from(gaps) / f64::from(self.num_sequences.max(1))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_follow_the_path_of_the_request() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let record = RequestRecord {
            dialect: "test",
            outcome: Outcome::Length,
            arrived_at: start,
            queued_at: at(2),
            scheduled_at: Some(at(5)),
            first_token_at: Some(at(15)),
            finished_at: at(45),
            num_prompt_tokens: 3,
            num_cached_tokens: 0,
            num_generated_tokens: 8,
            num_accepted_tokens: 0,
            max_tokens: 4,
            num_sequences: 2,
        };
        assert_eq!(record.total(), Duration::from_millis(45));
        assert_eq!(record.validation(), Duration::from_millis(2));
        assert_eq!(record.queue(), Duration::from_millis(3));
        assert_eq!(record.inference(), Duration::from_millis(40));
        assert_eq!(record.time_per_token(), Duration::from_millis(10));
        assert_eq!(record.time_to_first_token(), Some(Duration::from_millis(15)));
        assert_eq!(record.prefill(), Some(Duration::from_millis(10)));
        assert_eq!(record.time_per_output_token(), Some(Duration::from_millis(10)));
    }
}
