//! The OpenAI dialect: completions, chat, models, usage, and the error body, with the sampling extras of vLLM.
//!
//! Fields that a server may not support are typed all the same, so that it can refuse them by name instead of ignoring them.

mod chat;
mod completions;
mod error;
mod models;
mod sampling;

pub use chat::{
    AssistantMessage, ChatChoice, ChatChunk, ChatChunkChoice, ChatDelta, ChatLogprobs, ChatMessage, ChatRequest,
    ChatResponse, ChatTokenLogprob, ChatTopLogprob, Content, ContentPart,
};
pub use completions::{
    CompletionChoice, CompletionChunk, CompletionLogprobs, CompletionRequest, CompletionResponse, Prompt,
    PromptLogprob, PromptLogprobs,
};
pub use error::{ErrorBody, ErrorCode, ErrorObject};
pub use models::{ModelCard, ModelList, ModelPermission};
pub use sampling::{SamplingFields, StopReason, StreamOptions, StringOrList};

use serde::{Deserialize, Deserializer, Serialize};

/// Token counts of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Usage {
    /// Tokens of all prompts, each counted once.
    pub prompt_tokens: u32,
    /// Tokens generated, over all choices.
    pub completion_tokens: u32,
    /// The sum of both.
    pub total_tokens: u32,
    /// What is known about the prompt's tokens; left out where nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<PromptTokensDetails>,
}

/// How the prompt's tokens were computed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct PromptTokensDetails {
    /// Tokens found in the prefix cache.
    pub cached_tokens: u32,
}

/// Reads null as the default value.
fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
