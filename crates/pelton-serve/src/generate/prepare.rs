//! From what was asked to what the engine computes: limits, defaults, template, tokens.

use pelton_engine::{AdapterId, ReportParams, SamplingParams, StoppingParams, TokenId};
use pelton_text::{ChatInput, ChatTemplate, TextError, TextModel, TextPool};
use serde_json::{Map, Value};

use super::request::{
    Chat, ChatTools, Defaults, DetailsRequest, GenerateRequest, Prompt, SamplingRequest, StoppingRequest,
};
use super::{Field, Invalid, ServeError};
use crate::{Limits, ServeConfig};

/// Bytes that one stop string may have: the matcher holds back as much text.
const MAX_STOP_BYTES: usize = 1024;

/// Stop tokens that one request may name: each is compared with each token.
const MAX_STOP_TOKENS: usize = 128;

/// Temperatures below are greedy: dividing by them leaves one token anyway.
const GREEDY_BELOW: f32 = 1e-5;

/// Greatest temperature; beyond it all tokens are as likely as they can be told apart.
const MAX_TEMPERATURE: f32 = 100.0;

/// Greatest repetition penalty.
const MAX_REPETITION_PENALTY: f32 = 100.0;

/// A checked request.
pub(crate) struct Prepared {
    pub(crate) adapter: Option<AdapterId>,
    pub(crate) prompts: Vec<PreparedPrompt>,
    pub(crate) num_choices: u16,
    pub(crate) sampling: SamplingParams,
    pub(crate) report: ReportParams,
    /// End-of-text tokens that end a choice.
    pub(crate) eos_tokens: Vec<u32>,
    /// Tokens that end a choice because the request says so.
    pub(crate) stop_tokens: Vec<u32>,
    pub(crate) min_tokens: u32,
    pub(crate) stop: Vec<String>,
    pub(crate) include_stop: bool,
    pub(crate) skip_special_tokens: bool,
}

/// A prompt as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedPrompt {
    /// Its tokens, truncated if that was asked.
    pub tokens: Vec<TokenId>,
    /// Characters of its text (after the template), before truncation; 0 if it was given as tokens.
    pub num_characters: u64,
    /// Tokens that may be generated after it. 0 if only the prompt shall be computed.
    pub max_tokens: u32,
}

/// Checks everything about `request` that needs no tokens. Cheap: comes before anything is reserved.
pub(crate) fn check_shape(request: &GenerateRequest, config: &ServeConfig) -> Result<(), ServeError> {
    let max_prompts = config.max_client_batch_size;
    if request.prompts.is_empty() {
        return Err(Invalid::EmptyPrompt.into());
    }
    if request.prompts.len() > max_prompts as usize {
        return Err(ServeError::value(
            Field::Prompt,
            format!("must be at most {max_prompts} prompts (`max_client_batch_size`)"),
            request.prompts.len(),
        ));
    }
    for prompt in &request.prompts {
        let is_empty = match prompt {
            Prompt::Text(text) => text.is_empty(),
            Prompt::Tokens(tokens) => tokens.is_empty(),
            Prompt::Infill { prefix, suffix } => prefix.is_empty() && suffix.is_empty(),
            Prompt::Chat(chat) => chat.messages.is_empty(),
        };
        if is_empty {
            return Err(Invalid::EmptyPrompt.into());
        }
    }
    let max_choices = config.max_choices.max(config.max_best_of).min(u32::from(u16::MAX));
    if !(1..=max_choices).contains(&request.num_choices) {
        return Err(ServeError::value(
            Field::Choices,
            format!("must be >= 1 and <= {max_choices}"),
            request.num_choices,
        ));
    }
    let sequences = request.prompts.len() as u64 * u64::from(request.num_choices);
    let max = config.max_concurrent_requests;
    if sequences > u64::from(max) {
        let rule = format!("times the number of prompts must be <= {max} (`max_concurrent_requests`)");
        return Err(ServeError::value(Field::Choices, rule, sequences));
    }
    check_stopping(&request.stopping, config)
}

fn check_stopping(stopping: &StoppingRequest, config: &ServeConfig) -> Result<(), ServeError> {
    let max = config.max_stop_sequences;
    if stopping.stop.len() > max as usize {
        let rule = format!("supports up to {max} stop sequences");
        return Err(ServeError::value(Field::Stop, rule, stopping.stop.len()));
    }
    for stop in &stopping.stop {
        if stop.is_empty() {
            return Err(ServeError::value(Field::Stop, "must not hold an empty string", "\"\""));
        }
        if stop.len() > MAX_STOP_BYTES {
            let rule = format!("must hold strings of at most {MAX_STOP_BYTES} bytes");
            return Err(ServeError::value(Field::Stop, rule, stop.len()));
        }
    }
    if stopping.stop_tokens.len() > MAX_STOP_TOKENS {
        let rule = format!("supports up to {MAX_STOP_TOKENS} tokens");
        return Err(ServeError::value(Field::StopTokens, rule, stopping.stop_tokens.len()));
    }
    Ok(())
}

/// Checks `request` and makes tokens of its prompts, on the text pool. [`check_shape`] comes before.
pub(crate) async fn prepare(
    request: GenerateRequest,
    config: &ServeConfig,
    limits: &Limits,
    pool: &TextPool,
) -> Result<Prepared, ServeError> {
    let GenerateRequest {
        adapter,
        prompts,
        add_special_tokens,
        truncate,
        num_choices,
        sampling,
        stopping,
        details,
        ..
    } = request;
    let watermark = sampling.watermark.then_some(config.watermark);
    let sampling = SamplingParams { watermark, ..sampling_params(sampling, pool.model(), limits)? };
    let keep = kept_tokens(truncate, limits)?;
    if let Some(&token) = stopping.stop_tokens.iter().find(|&&token| token >= limits.vocab_size) {
        return Err(ServeError::value(Field::StopTokens, format!("must hold tokens < {}", limits.vocab_size), token));
    }
    let encoded = encode_all(prompts, add_special_tokens, pool).await?;
    let prompts = encoded
        .into_iter()
        .map(|(tokens, num_characters)| prepare_prompt(tokens, num_characters, keep, &stopping, limits))
        .collect::<Result<Vec<_>, _>>()?;

    let to_u8 = |count| u8::try_from(count).unwrap_or(u8::MAX);
    let DetailsRequest { logprobs, top_tokens, prompt: prompt_logprobs, skip_special_tokens } = details;
    // A tokenizer may know more tokens than the model.
    let can_come = |token: &u32| !stopping.ignore_eos && *token < limits.vocab_size;
    let eos_tokens = pool.model().eos_token_ids().iter().copied().filter(can_come).collect();
    Ok(Prepared {
        adapter,
        prompts,
        num_choices: num_choices as u16, // `check_shape` has seen to that.
        sampling,
        report: ReportParams { logprobs, top_n: to_u8(top_tokens), prompt_logprobs: prompt_logprobs.map(to_u8) },
        eos_tokens,
        stop_tokens: stopping.stop_tokens,
        min_tokens: stopping.min_tokens,
        stop: stopping.stop,
        include_stop: stopping.include_stop,
        skip_special_tokens,
    })
}

impl Prepared {
    /// Tokens of all prompts.
    pub(super) fn num_prompt_tokens(&self) -> u32 {
        self.prompts.iter().map(|prompt| prompt.tokens.len() as u32).sum()
    }

    pub(crate) fn stopping_params(&self, prompt: &PreparedPrompt) -> StoppingParams {
        StoppingParams {
            max_tokens: prompt.max_tokens.max(1),
            min_tokens: self.min_tokens,
            stop_tokens: self.eos_tokens.iter().chain(&self.stop_tokens).map(|&token| TokenId(token)).collect(),
        }
    }
}

fn kept_tokens(truncate: Option<i64>, limits: &Limits) -> Result<Option<usize>, ServeError> {
    let max = limits.max_input_tokens;
    match truncate {
        None => Ok(None),
        Some(-1) => Ok(Some(max as usize)),
        Some(keep) if (1..=i64::from(max)).contains(&keep) => Ok(Some(keep as usize)),
        Some(keep) => {
            let rule = format!("must be strictly positive and less than {}", u64::from(max) + 1);
            Err(ServeError::value(Field::Truncate, rule, keep))
        }
    }
}

fn prepare_prompt(
    mut tokens: Vec<u32>,
    num_characters: u64,
    keep: Option<usize>,
    stopping: &StoppingRequest,
    limits: &Limits,
) -> Result<PreparedPrompt, ServeError> {
    if let Some(&token) = tokens.iter().find(|&&token| token >= limits.vocab_size) {
        return Err(ServeError::value(Field::Prompt, format!("must hold tokens < {}", limits.vocab_size), token));
    }
    if let Some(keep) = keep {
        tokens.drain(..tokens.len().saturating_sub(keep));
    }
    if tokens.is_empty() {
        return Err(Invalid::EmptyPrompt.into());
    }
    let num_prompt_tokens = tokens.len() as u64;
    let max_tokens = stopping.max_tokens.unwrap_or(0);
    if num_prompt_tokens + u64::from(max_tokens) > u64::from(limits.max_total_tokens) {
        return Err(Invalid::TotalTooLong { num_prompt_tokens, max_tokens, max: limits.max_total_tokens }.into());
    }
    if num_prompt_tokens > u64::from(limits.max_input_tokens) {
        return Err(Invalid::PromptTooLong { num_tokens: num_prompt_tokens, max: limits.max_input_tokens }.into());
    }
    let rest = limits.max_total_tokens - num_prompt_tokens as u32;
    let max_tokens = stopping.max_tokens.unwrap_or_else(|| stopping.default_max_tokens.unwrap_or(rest).min(rest));
    if stopping.min_tokens > max_tokens {
        return Err(ServeError::value(Field::MinTokens, format!("must be <= {max_tokens}"), stopping.min_tokens));
    }
    let tokens = tokens.into_iter().map(TokenId).collect();
    Ok(PreparedPrompt { tokens, num_characters, max_tokens })
}

/// Tokens and number of characters of each prompt.
async fn encode_all(
    prompts: Vec<Prompt>,
    add_special_tokens: bool,
    pool: &TextPool,
) -> Result<Vec<(Vec<u32>, u64)>, ServeError> {
    if prompts.iter().all(|prompt| matches!(prompt, Prompt::Tokens(_))) {
        let given = prompts.into_iter().filter_map(|prompt| match prompt {
            Prompt::Tokens(tokens) => Some((tokens, 0)),
            _ => None,
        });
        return Ok(given.collect());
    }
    let encoded = pool.run(move |model| {
        prompts.into_iter().map(|prompt| encode(prompt, add_special_tokens, model)).collect::<Result<Vec<_>, _>>()
    });
    encoded.await.map_err(text_error)?
}

fn encode(prompt: Prompt, add_special_tokens: bool, model: &TextModel) -> Result<(Vec<u32>, u64), ServeError> {
    let characters = |text: &str| text.chars().count() as u64;
    match prompt {
        Prompt::Tokens(tokens) => Ok((tokens, 0)),
        Prompt::Text(text) => Ok((model.encode(&text, add_special_tokens).map_err(text_error)?, characters(&text))),
        Prompt::Infill { prefix, suffix } => {
            let why = "the model has no fill-in-the-middle tokens";
            let fim = model.fim().ok_or_else(|| ServeError::unsupported("suffix", why))?;
            let mut tokens = vec![fim.prefix];
            tokens.extend(model.encode(&prefix, false).map_err(text_error)?);
            tokens.push(fim.suffix);
            tokens.extend(model.encode(&suffix, false).map_err(text_error)?);
            tokens.push(fim.middle);
            Ok((tokens, characters(&prefix) + characters(&suffix)))
        }
        Prompt::Chat(chat) => {
            let text = render(&chat, model)?;
            Ok((model.encode(&text, add_special_tokens).map_err(text_error)?, characters(&text)))
        }
    }
}

/// The text that `prompt` stands for.
pub(super) fn text_of(prompt: Prompt, model: &TextModel) -> Result<String, ServeError> {
    match prompt {
        Prompt::Text(text) => Ok(text),
        Prompt::Tokens(tokens) => model.decode(&tokens, false).map_err(text_error),
        Prompt::Infill { prefix, suffix } => Ok(prefix + &suffix),
        Prompt::Chat(chat) => render(&chat, model),
    }
}

fn render(chat: &Chat, model: &TextModel) -> Result<String, ServeError> {
    let template =
        model.chat_template().ok_or_else(|| ServeError::Template("the model has no chat template".into()))?;
    let told = tell_tools(chat, template);
    let messages = messages_for(told.as_deref().unwrap_or(&chat.messages), template);
    let input = ChatInput {
        messages: &messages,
        tools: chat.tools.as_ref().map(|tools| &tools.list).filter(|_| template.mentions("tools")),
        add_generation_prompt: chat.add_generation_prompt,
        kwargs: &chat.variables,
    };
    let mut text = template.render(&input).map_err(text_error)?;
    if chat.continue_final_message {
        // What the template writes after the last message's content is what closes it.
        let last = messages.last().and_then(|message| message.get("content")).and_then(|content| content.as_str());
        let content = last.unwrap_or_default().trim_end();
        let end = text.rfind(content).map(|start| start + content.len());
        text.truncate(
            end.ok_or_else(|| ServeError::Template("the last message is not in the rendered prompt".into()))?,
        );
    }
    Ok(text)
}

/// The messages with what is said of tools behind the last one: how to call them, and which there are where the template does not say it.
fn tell_tools(chat: &Chat, template: &ChatTemplate) -> Option<Vec<Value>> {
    let ChatTools { list, prompt } = chat.tools.as_ref()?;
    let mut messages = chat.messages.clone();
    let content = messages.last_mut()?.get_mut("content")?;
    let mut text = content.as_str()?.to_owned();
    if !template.mentions("tools") {
        text.push_str("\n---\n");
        text.push_str(&list.to_string());
        text.push('\n');
    } else {
        text.push_str("\n---\n");
    }
    text.push_str(prompt);
    *content = Value::String(text);
    Some(messages)
}

/// Calls that the assistant made, as templates read them: arguments are objects; where the template knows no calls, they are the message's text.
fn messages_for(messages: &[Value], template: &ChatTemplate) -> Vec<Value> {
    let mut messages = messages.to_vec();
    for message in &mut messages {
        let Some(calls) = message.get_mut("tool_calls").and_then(Value::as_array_mut) else { continue };
        if calls.is_empty() {
            continue;
        }
        for call in calls.iter_mut() {
            let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
            if let Some(object) =
                arguments.as_str().and_then(|text| serde_json::from_str::<Map<String, Value>>(text).ok())
            {
                *arguments = Value::Object(object);
            }
        }
        if !template.mentions("tool_calls") && message["content"].is_null() {
            message["content"] = Value::String(message["tool_calls"].to_string());
        }
    }
    messages
}

pub(super) fn text_error(error: TextError) -> ServeError {
    match error {
        TextError::Template(reason) => ServeError::Template(reason),
        TextError::Busy { limit } => {
            ServeError::Overloaded { limit: "tokenizing queue", max: u32::try_from(limit).unwrap_or(u32::MAX) }
        }
        TextError::Encode(reason) => {
            ServeError::value(Field::Prompt, "must be text that the tokenizer can encode", reason)
        }
        error => {
            tracing::warn!(%error, "text could not be prepared");
            ServeError::Internal
        }
    }
}

fn sampling_params(request: SamplingRequest, model: &TextModel, limits: &Limits) -> Result<SamplingParams, ServeError> {
    let defaults = match request.defaults {
        Defaults::Neutral => pelton_text::DefaultSampling::default(),
        Defaults::Model => model.default_sampling(),
    };
    let temperature = request.temperature.or(defaults.temperature).unwrap_or(1.0);
    check(Field::Temperature, (0.0..=MAX_TEMPERATURE).contains(&temperature), "must be >= 0 and <= 100", temperature)?;

    let top_k = request.top_k.unwrap_or_else(|| defaults.top_k.unwrap_or(0).into());
    check(Field::TopK, top_k >= -1, "must be >= 1, or 0 or -1 to keep all tokens", top_k)?;

    let share = |field, value: f32| check(field, value > 0.0 && value <= 1.0, "must be > 0.0 and <= 1.0", value);
    let top_p = request.top_p.or(defaults.top_p).unwrap_or(1.0);
    share(Field::TopP, top_p)?;
    let typical_p = request.typical_p.unwrap_or(1.0);
    share(Field::TypicalP, typical_p)?;
    let min_p = request.min_p.unwrap_or(0.0);
    check(Field::MinP, (0.0..=1.0).contains(&min_p), "must be >= 0.0 and <= 1.0", min_p)?;

    let repetition_penalty = request.repetition_penalty.or(defaults.repetition_penalty).unwrap_or(1.0);
    let may_be = repetition_penalty > 0.0 && repetition_penalty <= MAX_REPETITION_PENALTY;
    check(Field::RepetitionPenalty, may_be, "must be strictly positive and <= 100", repetition_penalty)?;
    let penalty = |field, value: Option<f32>| {
        let value = value.unwrap_or(0.0);
        check(field, (-2.0..=2.0).contains(&value), "must be >= -2.0 and <= 2.0", value)?;
        Ok::<_, ServeError>(value)
    };
    for &(token, bias) in &request.logit_bias {
        let vocab_size = limits.vocab_size;
        check(Field::LogitBias, token < vocab_size, format!("must name tokens < {vocab_size}"), token)?;
        check(Field::LogitBias, (-100.0..=100.0).contains(&bias), "must hold values >= -100 and <= 100", bias)?;
    }
    Ok(SamplingParams {
        temperature: if temperature < GREEDY_BELOW { 0.0 } else { temperature },
        // No vocabulary is as large as the greatest u32.
        top_k: u32::try_from(top_k.max(0)).unwrap_or(0),
        top_p,
        min_p,
        typical_p,
        repetition_penalty,
        frequency_penalty: penalty(Field::FrequencyPenalty, request.frequency_penalty)?,
        presence_penalty: penalty(Field::PresencePenalty, request.presence_penalty)?,
        watermark: None,
        logit_bias: request.logit_bias.into_iter().map(|(token, bias)| (TokenId(token), bias)).collect(),
        // Every dialect can say it: OpenAI's seeds have a sign.
        seed: request.seed.unwrap_or_else(|| fastrand::u64(..) >> 1),
    })
}

fn check(
    field: Field,
    holds: bool,
    rule: impl Into<std::borrow::Cow<'static, str>>,
    given: impl ToString,
) -> Result<(), ServeError> {
    if holds { Ok(()) } else { Err(ServeError::value(field, rule, given)) }
}
