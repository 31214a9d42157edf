//! The fields that completions and chat share: honoured or refused by name.

use std::collections::BTreeMap;

use pelton_protocol::openai::{SamplingFields, StringOrList};

use super::refuse_set;
use crate::generate::{Defaults, Field, SamplingRequest, ServeError, StoppingRequest};

/// Refuses the fields that are known and not built, unless they are set to what happens anyway.
pub(super) fn refuse_unsupported(fields: &SamplingFields) -> Result<(), ServeError> {
    refuse_set("allowed_token_ids", &fields.allowed_token_ids)?;
    refuse_set("bad_words", &fields.bad_words.as_ref().filter(|words| !words.is_empty()))?;
    refuse_set("use_beam_search", &fields.use_beam_search.filter(|&wanted| wanted))?;
    refuse_set("length_penalty", &fields.length_penalty.filter(|&penalty| penalty != 1.0))?;
    refuse_set("priority", &fields.priority.filter(|&priority| priority != 0))?;
    refuse_set("cache_salt", &fields.cache_salt)?;
    refuse_set("return_token_ids", &fields.return_token_ids.filter(|&wanted| wanted))?;
    refuse_set("kv_transfer_params", &fields.kv_transfer_params)?;
    refuse_set("vllm_xargs", &fields.vllm_xargs)?;
    refuse_set("truncation_side", &fields.truncation_side.as_deref().filter(|&side| side != "left"))
}

pub(super) fn sampling(fields: &SamplingFields) -> Result<SamplingRequest, ServeError> {
    Ok(SamplingRequest {
        defaults: Defaults::Model,
        temperature: fields.temperature,
        top_k: fields.top_k,
        top_p: fields.top_p,
        min_p: fields.min_p,
        typical_p: fields.typical_p,
        repetition_penalty: fields.repetition_penalty,
        frequency_penalty: fields.frequency_penalty,
        presence_penalty: fields.presence_penalty,
        logit_bias: fields.logit_bias.as_ref().map_or(Ok(Vec::new()), logit_bias)?,
        // Any 64 bits are a seed.
        seed: fields.seed.map(|seed| seed as u64),
        watermark: false,
    })
}

fn logit_bias(biases: &BTreeMap<String, f32>) -> Result<Vec<(u32, f32)>, ServeError> {
    let parse = |(token, &bias): (&String, &f32)| {
        let token = token.parse().map_err(|_| {
            let shown: String = token.chars().take(40).collect();
            ServeError::value(Field::LogitBias, "must have token ids as keys", format!("{shown:?}"))
        })?;
        Ok((token, bias))
    };
    biases.iter().map(parse).collect()
}

/// `max_tokens` and its default differ between the endpoints.
pub(super) fn stopping(
    fields: &SamplingFields,
    max_tokens: Option<u32>,
    default_max_tokens: Option<u32>,
) -> StoppingRequest {
    StoppingRequest {
        max_tokens,
        default_max_tokens,
        min_tokens: fields.min_tokens.unwrap_or(0),
        stop: match &fields.stop {
            None => Vec::new(),
            Some(StringOrList::One(stop)) => vec![stop.clone()],
            Some(StringOrList::List(stops)) => stops.clone(),
        },
        include_stop: fields.include_stop_str_in_output == Some(true),
        stop_tokens: fields.stop_token_ids.clone().unwrap_or_default(),
        ignore_eos: fields.ignore_eos == Some(true),
    }
}

/// Alternatives wanted for each token of the prompt. The list comes in one piece, so nothing that is streamed has it.
pub(super) fn prompt_top_tokens(fields: &SamplingFields, stream: bool, max: u32) -> Result<Option<u32>, ServeError> {
    let Some(asked) = fields.prompt_logprobs else { return Ok(None) };
    if stream {
        let message = "`prompt_logprobs` cannot be streamed".into();
        return Err(ServeError::Conflict { field: "prompt_logprobs", message });
    }
    match u32::try_from(asked) {
        Ok(top) if top <= max => Ok(Some(top)),
        _ => Err(ServeError::value(Field::PromptTopTokens, format!("must be >= 0 and <= {max}"), asked)),
    }
}

/// Checks a number of alternatives.
pub(super) fn top_tokens(asked: i64, max: u32) -> Result<u32, ServeError> {
    match u32::try_from(asked) {
        Ok(top) if top <= max => Ok(top),
        _ => Err(ServeError::value(Field::TopTokens, format!("must be >= 0 and <= {max}"), asked)),
    }
}
