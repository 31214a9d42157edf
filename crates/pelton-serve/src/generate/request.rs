//! What any dialect can ask, as asked: nothing here is checked yet.

use pelton_engine::AdapterId;
use pelton_text::Grammar;
use serde_json::{Map, Value};

/// A request to generate.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// Which dialect asks, for the log.
    pub dialect: &'static str,
    /// What to compute with beside the model; dialects know adapters by name.
    pub adapter: Option<AdapterId>,
    /// What to continue; each prompt gets all choices. Choices are numbered prompt by prompt.
    pub prompts: Vec<Prompt>,
    /// Whether the tokenizer adds its own special tokens to texts.
    pub add_special_tokens: bool,
    /// Keep only this many tokens from the end of each prompt.
    pub truncate: Option<i64>,
    /// Sequences to generate for each prompt.
    pub num_choices: u32,
    /// How tokens are chosen.
    pub sampling: SamplingRequest,
    /// When to end.
    pub stopping: StoppingRequest,
    /// What to tell beside the text.
    pub details: DetailsRequest,
    /// What the text shall keep to.
    pub grammar: Option<GrammarRequest>,
}

/// A grammar, and where it stands in the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrammarRequest {
    /// As the client wrote it, for errors.
    pub field: &'static str,
    /// The grammar.
    pub grammar: Grammar,
}

/// One prompt.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Text to continue.
    Text(String),
    /// Tokens to continue.
    Tokens(Vec<u32>),
    /// A gap to fill.
    Infill {
        /// Before the gap.
        prefix: String,
        /// After the gap.
        suffix: String,
    },
    /// A conversation to answer.
    Chat(Chat),
}

/// A conversation, as the chat template reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct Chat {
    /// Message objects; contents are strings.
    pub messages: Vec<Value>,
    /// End the prompt with the beginning of an answer.
    pub add_generation_prompt: bool,
    /// Leave the last message open, so that the answer continues it.
    pub continue_final_message: bool,
    /// Functions that may be called, and what is said of them; for the template, or for the last message where the template knows no tools.
    pub tools: Option<ChatTools>,
    /// More variables for the template.
    pub variables: Map<String, Value>,
}

/// Tools, as a prompt tells them.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatTools {
    /// List of `{"type": "function", "function": {"name": ..., "description": ..., "parameters": ...}}`.
    pub list: Value,
    /// How to call them; put behind the last message.
    pub prompt: String,
}

/// Where values come from that a request leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defaults {
    /// Every step of sampling is switched off.
    Neutral,
    /// The model's generation settings, then as `Neutral`.
    Model,
}

/// How tokens are chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingRequest {
    /// What stands for `None` below.
    pub defaults: Defaults,
    /// `0` is greedy.
    pub temperature: Option<f32>,
    /// `0` and `-1` keep all.
    pub top_k: Option<i64>,
    /// Above 0, up to 1.
    pub top_p: Option<f32>,
    /// 0 to 1.
    pub min_p: Option<f32>,
    /// Above 0, up to 1.
    pub typical_p: Option<f32>,
    /// Above 0.
    pub repetition_penalty: Option<f32>,
    /// -2 to 2.
    pub frequency_penalty: Option<f32>,
    /// -2 to 2.
    pub presence_penalty: Option<f32>,
    /// Token ids with -100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
    /// `None` draws one.
    pub seed: Option<u64>,
    /// Whether to mark the text, as strongly as the server is set to.
    pub watermark: bool,
}

/// When to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoppingRequest {
    /// Refused when prompt and answer may become too long. `0` computes the prompt only.
    pub max_tokens: Option<u32>,
    /// What stands for `max_tokens` that is `None`, as far as the context goes; `None` fills the context.
    pub default_max_tokens: Option<u32>,
    /// End-of-text and stop tokens are impossible before.
    pub min_tokens: u32,
    /// Texts that end a choice.
    pub stop: Vec<String>,
    /// Whether the text keeps the stop string.
    pub include_stop: bool,
    /// Tokens that end a choice.
    pub stop_tokens: Vec<u32>,
    /// Go on after end-of-text.
    pub ignore_eos: bool,
}

/// What to tell beside the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DetailsRequest {
    /// Log-probability of each token.
    pub logprobs: bool,
    /// Alternatives for each token.
    pub top_tokens: u32,
    /// Log-probabilities of the prompt's tokens, with so many alternatives for each.
    pub prompt: Option<u32>,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
}
