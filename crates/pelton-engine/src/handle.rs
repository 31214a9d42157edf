//! The door to the engine.

use pelton_backend::TokenId;

use crate::SamplingParams;

/// What one request wants of the engine: already tokens, already checked.
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceRequest {
    /// At least one token.
    pub prompt: Vec<TokenId>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// When to end.
    pub stopping: StoppingParams,
    /// What to report beside the tokens.
    pub report: ReportParams,
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
    /// Log-probabilities of the prompt's tokens (switches prefix hits off for this request, since cached rows have no logits).
    pub prompt_logprobs: bool,
}
