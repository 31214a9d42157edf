//! The Text Generation Inference dialect: `/generate`, `/generate_stream`, `/info`, `/tokenize`, `/chat_tokenize`, and the error body.
//!
//! Described after TGI 3.3; units are tokens unless a field says otherwise. Servers ignore unknown fields on every route.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Body of `POST /generate`, `/generate_stream`, `/` and `/tokenize`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GenerateRequest {
    /// The prompt.
    pub inputs: String,
    /// How to generate. Absent and present-but-empty differ: only an absent object samples by default, see [`GenerateParameters::absent`].
    #[serde(default = "GenerateParameters::absent", deserialize_with = "crate::object::object")]
    pub parameters: GenerateParameters,
    /// Read by `POST /` only: answer with server-sent events.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stream: bool,
}

/// The `parameters` object. `None` means that the client did not ask.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GenerateParameters {
    /// Generate this many candidates and answer the most likely.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_of: Option<u32>,
    /// Divides the logits; above 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Divides positive and multiplies negative logits of tokens already seen; above 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
    /// Subtracted from a token's logit per earlier occurrence; -2 to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f32>,
    /// Keeps only this many most likely tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<i32>,
    /// Keeps the most likely tokens that hold this share of probability.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Keeps the tokens nearest to the expected information, up to this share of probability.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub typical_p: Option<f32>,
    /// Draw tokens at random instead of taking the most likely.
    #[serde(default)]
    pub do_sample: bool,
    /// At most this many tokens are generated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<u32>,
    /// Put the prompt before the generated text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub return_full_text: Option<bool>,
    /// Texts that end generation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Keep only this many tokens from the end of the prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncate: Option<u32>,
    /// Watermark the text.
    #[serde(default, skip_serializing_if = "is_false")]
    pub watermark: bool,
    /// Answer with per-token details.
    #[serde(default, skip_serializing_if = "is_false")]
    pub details: bool,
    /// Answer with details of the prompt's tokens.
    #[serde(default, skip_serializing_if = "is_false")]
    pub decoder_input_details: bool,
    /// Seed of the random draws.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Report this many alternatives per token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_n_tokens: Option<u32>,
    /// Constrains the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grammar: Option<Grammar>,
    /// Name of a LoRA adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter_id: Option<String>,
}

impl GenerateParameters {
    /// What a request without `parameters` means: all defaults, but sampling. (A present object without `do_sample` does not sample.)
    pub fn absent() -> Self {
        Self { do_sample: true, ..Self::default() }
    }
}

/// A constraint on the generated text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Grammar {
    /// `json`, `regex` or `json_schema`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The schema or the pattern.
    pub value: Value,
}

/// Answer of `/generate`; `POST /` wraps it in an array of one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GenerateResponse {
    /// The generated text, after the prompt if `return_full_text` was asked.
    pub generated_text: String,
    /// Present only when `details` or `decoder_input_details` was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The token limit was reached.
    Length,
    /// The model ended its text.
    EosToken,
    /// A stop text was found.
    StopSequence,
}

/// Details of a finished generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Details {
    /// Why generation ended.
    pub finish_reason: FinishReason,
    /// Number of generated tokens, the end-of-text token included.
    pub generated_tokens: u32,
    /// Seed of the draws; null when nothing was drawn.
    #[serde(default)]
    pub seed: Option<u64>,
    /// The prompt's tokens; empty unless `decoder_input_details` was asked.
    #[serde(default)]
    pub prefill: Vec<PrefillToken>,
    /// The generated tokens.
    #[serde(default)]
    pub tokens: Vec<Token>,
    /// Alternatives per generated token, most likely first; left out when none were asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top_tokens: Vec<Vec<Token>>,
    /// The candidates that lost; left out unless `best_of` is above 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_of_sequences: Option<Vec<BestOfSequence>>,
}

/// A token of the prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PrefillToken {
    /// Token id.
    pub id: u32,
    /// Text of this token alone.
    pub text: String,
    /// Log-probability given the tokens before it; null for the first.
    #[serde(default)]
    pub logprob: Option<f32>,
}

/// A generated token, or an alternative to one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Token {
    /// Token id.
    pub id: u32,
    /// Text that this token adds; empty while a character is incomplete.
    pub text: String,
    /// Log-probability. Finite: JSON has no infinity.
    pub logprob: f32,
    /// Whether the token is a special one, such as end of text.
    pub special: bool,
}

/// A candidate that lost a `best_of` comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BestOfSequence {
    /// Its text.
    pub generated_text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Number of generated tokens.
    pub generated_tokens: u32,
    /// Seed of its draws.
    #[serde(default)]
    pub seed: Option<u64>,
    /// The prompt's tokens, as in [`Details`].
    #[serde(default)]
    pub prefill: Vec<PrefillToken>,
    /// Its tokens.
    #[serde(default)]
    pub tokens: Vec<Token>,
    /// Alternatives per token; left out when none were asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top_tokens: Vec<Vec<Token>>,
}

/// One event of `/generate_stream`. An event may also hold an [`ErrorBody`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StreamResponse {
    /// Number of this token, from 1.
    #[serde(default)]
    pub index: u32,
    /// The token.
    pub token: Token,
    /// Alternatives; left out when none were asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top_tokens: Vec<Token>,
    /// The whole text, in the last event; null before.
    #[serde(default)]
    pub generated_text: Option<String>,
    /// In the last event, when `details` was asked; null otherwise.
    #[serde(default)]
    pub details: Option<StreamDetails>,
}

/// Details in the last event of a stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StreamDetails {
    /// Why generation ended.
    pub finish_reason: FinishReason,
    /// Number of generated tokens, the end-of-text token included.
    pub generated_tokens: u32,
    /// Seed of the draws; null when nothing was drawn.
    #[serde(default)]
    pub seed: Option<u64>,
    /// Number of prompt tokens.
    #[serde(default)]
    pub input_length: u32,
}

/// Answer of `/info`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Info {
    /// Name of the served model.
    pub model_id: String,
    /// Its revision.
    pub model_sha: Option<String>,
    /// Its task on the hub.
    pub model_pipeline_tag: Option<String>,
    /// Number format of the computation; left out where unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_dtype: Option<String>,
    /// Kind of device; left out where unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_device_type: Option<String>,
    /// Requests admitted at once.
    pub max_concurrent_requests: u32,
    /// Limit of `best_of`.
    pub max_best_of: u32,
    /// Limit of the `stop` list.
    pub max_stop_sequences: u32,
    /// Limit of the prompt.
    pub max_input_tokens: u32,
    /// Limit of prompt and generated tokens together.
    pub max_total_tokens: u32,
    /// Share of running sequences that must be waiting before they interrupt the running ones; version 2.2 tells this and the next three.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting_served_ratio: Option<f32>,
    /// Token positions of all sequences together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_batch_total_tokens: Option<u32>,
    /// Steps after which waiting sequences are not held back any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_waiting_tokens: Option<u32>,
    /// Sequences computed together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_batch_size: Option<u32>,
    /// Tokenizer threads.
    pub validation_workers: u32,
    /// Limit of prompts in one completions request.
    pub max_client_batch_size: u32,
    /// Name of the serving program.
    pub router: String,
    /// Version of the API, and after a `+` that of the program.
    pub version: String,
    /// Its revision.
    pub sha: Option<String>,
    /// Label of its container.
    pub docker_label: Option<String>,
}

/// Body of every JSON error, and of an error event in a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = TgiError))]
pub struct ErrorBody {
    /// What went wrong.
    pub error: String,
    /// Kind: `validation`, `overloaded`, `generation`, ...
    #[serde(default)]
    pub error_type: String,
}

/// Answer of `/tokenize`: a bare array.
pub type TokenizeResponse = Vec<TokenizedToken>;

/// One token of `/tokenize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TokenizedToken {
    /// Token id.
    pub id: u32,
    /// The slice of the input that it covers; empty for an added special token.
    pub text: String,
    /// Where the slice starts, in characters.
    pub start: usize,
    /// Where it ends (exclusive), in characters.
    pub stop: usize,
}

/// Answer of `/chat_tokenize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChatTokenizeResponse {
    /// The tokens of the text.
    pub tokenize_response: Vec<TokenizedToken>,
    /// What the chat template makes of the messages.
    pub templated_text: String,
}

fn is_false(value: &bool) -> bool {
    !value
}
