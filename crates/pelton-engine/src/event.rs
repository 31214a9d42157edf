//! What a consumer is told about a sequence.

use std::time::Instant;

use pelton_backend::TokenId;

/// One item of a sequence's stream. The order is `Started`, then `Token`s, then `Finished`, or `Failed` at any time; a stream that ends
/// without either means that the engine failed or was stopped.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenEvent {
    /// The prompt is computed; comes right before the first token.
    Started {
        /// First planned into a step. Readers that end a sequence themselves never see its [`Timeline`].
        scheduled_at: Instant,
        /// Prompt tokens found in the prefix cache.
        num_cached_tokens: u32,
        /// How each prompt token was foretold, `None` for the first; only if asked for.
        prompt_logprobs: Option<Vec<Option<Foretold>>>,
    },
    /// A token was sampled. Stop tokens are sent too, as the last token, so that consumers can count and show them.
    Token(SampledToken),
    /// Nothing comes after this.
    Finished {
        /// Why.
        reason: FinishReason,
        /// When and how much.
        timeline: Timeline,
    },
    /// The sequence cannot go on, others can. Nothing comes after this.
    Failed(SequenceError),
}

/// Why a sequence failed alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SequenceError {
    /// Every token is impossible: the model's numbers are no numbers.
    #[error("the logits name no token")]
    NoToken,
    /// Its constraint could not go on.
    #[error("the grammar cannot go on: {0}")]
    Constraint(String),
}

/// A sampled token with what was asked about it.
#[derive(Debug, Clone, PartialEq)]
pub struct SampledToken {
    /// The token.
    pub id: TokenId,
    /// Its log-probability under the model's raw logits (before penalties and temperature); if asked for.
    pub logprob: Option<f32>,
    /// The likeliest tokens with their log-probabilities, best first; as many as asked for.
    pub top: Vec<(TokenId, f32)>,
}

/// What the model thought of a token of the prompt before it came to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Foretold {
    /// The token's log-probability under the model's raw logits.
    pub logprob: f32,
    /// Its place among all tokens, the likeliest being 1; equal ones share the better place.
    pub rank: u32,
    /// The likeliest tokens with their log-probabilities, best first; as many as asked for.
    pub top: Vec<(TokenId, f32)>,
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// `max_tokens` were generated, or the model's positions are used up.
    Length,
    /// A stop token was sampled; it was the last `Token` event.
    StopToken(TokenId),
}

/// When things happened to a sequence, and how much it was. Set by the engine thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeline {
    /// Handed to the engine.
    pub queued_at: Instant,
    /// First planned into a step.
    pub scheduled_at: Instant,
    /// First token sampled.
    pub first_token_at: Instant,
    /// Last token sampled.
    pub finished_at: Instant,
    /// Tokens given.
    pub num_prompt_tokens: u32,
    /// Tokens sampled, a final stop token included.
    pub num_generated_tokens: u32,
    /// Prompt tokens found in the prefix cache.
    pub num_cached_tokens: u32,
    /// How often the sequence lost its blocks and was computed again.
    pub num_preemptions: u32,
    /// Tokens that were guessed and computed before they were sampled.
    pub num_drafted_tokens: u32,
    /// Those of them that were sampled then: each saved a step.
    pub num_accepted_tokens: u32,
}
