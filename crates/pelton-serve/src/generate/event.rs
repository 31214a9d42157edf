//! What every dialect is told, one event at a time, and the whole that the events add up to.

use std::sync::Arc;

use pelton_engine::Foretold;

use crate::generate::{GenerateStream, ServeError};
use crate::metrics::RequestRecord;

/// One item of the internal stream. For each prompt `Prompt` comes once, before the tokens of its choices; for each choice come `Token`s,
/// the last of which says so, and then, with nothing awaited in between, `Finished`.
#[derive(Debug, Clone, PartialEq)]
pub enum GenerateEvent {
    /// A prompt is computed.
    Prompt {
        /// Number of the prompt.
        prompt: u32,
        /// How each of its tokens was foretold, `None` for the first; if asked for.
        logprobs: Option<Vec<Option<Foretold>>>,
    },
    /// A token was generated.
    Token {
        /// Number of the choice, over all prompts.
        choice: u32,
        /// The token.
        token: GeneratedToken,
        /// Whether `Finished` of this choice follows.
        is_last: bool,
    },
    /// A choice has ended.
    Finished {
        /// Number of the choice, over all prompts.
        choice: u32,
        /// Why.
        reason: FinishReason,
    },
}

/// A token and what is known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct GeneratedToken {
    /// Its id.
    pub id: u32,
    /// What it adds to the choice's text. Empty while a character or a stop string may be incomplete; then a later token brings it.
    pub text: String,
    /// Log-probability, if asked for.
    pub logprob: Option<f32>,
    /// The likeliest tokens, best first; as many as asked for.
    pub top: Vec<(u32, f32)>,
}

/// Why a choice ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// The token limit was reached.
    Length,
    /// The model ended its text.
    EndOfText,
    /// A stop token was generated.
    StopToken(u32),
    /// A stop string was generated.
    StopString(Arc<str>),
}

/// A finished request: what its events add up to.
#[derive(Debug)]
pub struct Generation {
    /// Log-probabilities by prompt, if asked for.
    pub prompt_logprobs: Vec<Option<Vec<Option<Foretold>>>>,
    /// All choices, prompt by prompt.
    pub choices: Vec<Choice>,
    /// Times and counts.
    pub record: RequestRecord,
}

/// One finished choice.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Its text.
    pub text: String,
    /// Its tokens; each `text` as it was when the token came.
    pub tokens: Vec<GeneratedToken>,
    /// Why it ended.
    pub reason: FinishReason,
}

impl Choice {
    /// Sum of the tokens' log-probabilities.
    pub fn logprob(&self) -> f32 {
        self.tokens.iter().filter_map(|token| token.logprob).sum()
    }

    /// Mean of the tokens' log-probabilities.
    pub fn mean_logprob(&self) -> f32 {
        self.logprob() / self.tokens.len().max(1) as f32
    }
}

impl Generation {
    /// Waits for all events of `stream`. Dropping the future cancels the request.
    pub async fn fold(mut stream: GenerateStream) -> Result<Self, ServeError> {
        let mut prompt_logprobs = vec![None; stream.prompts().len()];
        let empty = Choice { text: String::new(), tokens: Vec::new(), reason: FinishReason::Length };
        let mut choices = vec![empty; stream.num_sequences() as usize];
        while let Some(event) = stream.next().await {
            match event? {
                GenerateEvent::Prompt { prompt, logprobs } => prompt_logprobs[prompt as usize] = logprobs,
                GenerateEvent::Token { choice, token, .. } => {
                    let choice = &mut choices[choice as usize];
                    choice.text.push_str(&token.text);
                    choice.tokens.push(token);
                }
                GenerateEvent::Finished { choice, reason } => choices[choice as usize].reason = reason,
            }
        }
        Ok(Self { prompt_logprobs, choices, record: stream.record() })
    }
}
