//! `/v1/completions`.

use super::{SamplingFields, StopReason, StreamOptions, Usage, null_as_default};
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Body of `POST /v1/completions`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CompletionRequest {
    /// Name of the model; the served one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What to continue.
    pub prompt: Prompt,
    /// Text after the gap, for fill-in-the-middle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suffix: Option<String>,
    /// Put the prompt before the generated text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub echo: Option<bool>,
    /// Sample this many candidates and answer the `n` most likely.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_of: Option<u32>,
    /// Report log-probabilities, with this many alternatives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<i64>,
    /// Answer with server-sent events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// How to stream.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::object::optional_object")]
    pub stream_options: Option<StreamOptions>,
    /// How to sample and when to stop.
    #[serde(flatten)]
    pub sampling: SamplingFields,
}

/// One prompt or several, as text or as token ids. An empty list reads as no texts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(untagged)]
pub enum Prompt {
    /// One text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// One prompt of token ids.
    Tokens(Vec<u32>),
    /// Several prompts of token ids.
    TokenLists(Vec<Vec<u32>>),
}

impl<'de> Deserialize<'de> for Prompt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PromptVisitor)
    }
}

const PROMPT_FORMS: &str = "a string, a list of strings, a list of token ids, or a list of lists of token ids";

struct PromptVisitor;

impl<'de> Visitor<'de> for PromptVisitor {
    type Value = Prompt;

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(PROMPT_FORMS)
    }

    fn visit_str<E>(self, text: &str) -> Result<Prompt, E> {
        Ok(Prompt::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Prompt, E> {
        Ok(Prompt::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Prompt, A::Error> {
        // The first element decides; the rest is then read, and refused, as that type.
        Ok(match list.next_element::<PromptElement>()? {
            None => Prompt::Texts(Vec::new()),
            Some(PromptElement::Text(first)) => Prompt::Texts(rest_after(first, list)?),
            Some(PromptElement::Token(first)) => Prompt::Tokens(rest_after(first, list)?),
            Some(PromptElement::Tokens(first)) => Prompt::TokenLists(rest_after(first, list)?),
        })
    }
}

fn rest_after<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(first: T, mut list: A) -> Result<Vec<T>, A::Error> {
    let mut all = vec![first];
    while let Some(next) = list.next_element()? {
        all.push(next);
    }
    Ok(all)
}

enum PromptElement {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
}

impl<'de> Deserialize<'de> for PromptElement {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ElementVisitor;

        impl<'de> Visitor<'de> for ElementVisitor {
            type Value = PromptElement;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a string, a token id, or a list of token ids")
            }

            fn visit_str<E>(self, text: &str) -> Result<PromptElement, E> {
                Ok(PromptElement::Text(text.to_owned()))
            }

            fn visit_u64<E: Error>(self, id: u64) -> Result<PromptElement, E> {
                let id = u32::try_from(id).map_err(|_| E::custom(format_args!("{id} is not a token id")))?;
                Ok(PromptElement::Token(id))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<PromptElement, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(PromptElement::Tokens)
            }
        }

        deserializer.deserialize_any(ElementVisitor)
    }
}

/// Answer of `/v1/completions`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CompletionResponse {
    /// `cmpl-` and a suffix.
    #[serde(default)]
    pub id: String,
    /// `text_completion`.
    #[serde(default)]
    pub object: Cow<'static, str>,
    /// Unix seconds.
    #[serde(default)]
    pub created: u64,
    /// The model that answered.
    #[serde(default)]
    pub model: String,
    /// Version of the server and of its container; left out where unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_fingerprint: Option<Cow<'static, str>>,
    /// Prompt-major: `index = prompt * n + choice`.
    pub choices: Vec<CompletionChoice>,
    /// Token counts.
    #[serde(default)]
    pub usage: Option<Usage>,
}

/// One choice, whole or (in a chunk) the next piece of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CompletionChoice {
    /// Number of the choice.
    #[serde(default)]
    pub index: u32,
    /// The text, or its next piece.
    #[serde(default, deserialize_with = "null_as_default")]
    pub text: String,
    /// Log-probabilities of the text's tokens, when asked.
    #[serde(default)]
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop`, `length` or `abort`; null in all chunks of a choice but its last.
    #[serde(default)]
    pub finish_reason: Option<Cow<'static, str>>,
    /// The stop text or token that matched; null for end of text.
    #[serde(default)]
    pub stop_reason: Option<StopReason>,
    /// How the prompt's tokens were foretold (vLLM); left out unless asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<Option<BTreeMap<String, PromptLogprob>>>>,
}

/// For each token of a prompt the candidates at its place, by token id; null for the first.
pub type PromptLogprobs = Vec<Option<BTreeMap<String, PromptLogprob>>>;

/// A candidate at a place of a prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PromptLogprob {
    /// Its log-probability; minus infinity is written as -9999.
    pub logprob: f32,
    /// Its place among all tokens, from 1.
    #[serde(default)]
    pub rank: Option<u32>,
    /// Its text.
    #[serde(default)]
    pub decoded_token: Option<String>,
}

/// One event of a streamed completion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CompletionChunk {
    /// As in the whole answer.
    #[serde(default)]
    pub id: String,
    /// `text_completion`.
    #[serde(default)]
    pub object: Cow<'static, str>,
    /// Unix seconds.
    #[serde(default)]
    pub created: u64,
    /// The model that answers.
    #[serde(default)]
    pub model: String,
    /// Version of the server and of its container; left out where unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_fingerprint: Option<Cow<'static, str>>,
    /// Pieces; none in a chunk that holds only usage.
    pub choices: Vec<CompletionChoice>,
    /// Token counts, where `stream_options` asks for them; left out otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// Log-probabilities of completions: four lists of equal length, one entry per token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct CompletionLogprobs {
    /// Where each token's text begins, in characters.
    #[serde(deserialize_with = "null_as_default")]
    pub text_offset: Vec<usize>,
    /// Log-probability of each token; null for the first of an echoed prompt. Minus infinity is written as -9999.
    #[serde(deserialize_with = "null_as_default")]
    pub token_logprobs: Vec<Option<f32>>,
    /// Text of each token.
    #[serde(deserialize_with = "null_as_default")]
    pub tokens: Vec<String>,
    /// Most likely tokens, and the chosen one, at each place.
    #[serde(deserialize_with = "null_as_default")]
    pub top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
}
