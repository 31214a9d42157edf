//! `/generate`, `/generate_stream` and `POST /`: parse, whole, chunk.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Json, Response};
use pelton_engine::{AdapterId, Foretold};
use pelton_protocol::tgi::{
    BestOfSequence, Details, FinishReason as WireReason, GenerateParameters, GenerateRequest as WireRequest,
    GenerateResponse, PrefillToken, StreamDetails, StreamResponse, Token,
};
use pelton_text::TextModel;

use super::{refusal_body, refuse};
use crate::dialects::grammar;
use crate::generate::{
    Choice, Defaults, DetailsRequest, Field, FinishReason, GenerateEvent, GenerateRequest, GenerateStream,
    GeneratedToken, Generation, Prompt, SamplingRequest, ServeError, StoppingRequest, submit,
};
use crate::metrics::RequestRecord;
use crate::server::Server;
use crate::trace::Arrival;
use crate::{ServeConfig, body, sse, timing};

pub(super) async fn generate(State(server): State<Arc<Server>>, request: Request) -> Response {
    let arrival = Arrival::now("/generate", &request);
    let answer = async {
        let wire = body::read_json(&server, request).await?;
        let (request, asked) = parse(wire, server.config(), Delivery::Whole)?;
        whole(&server, request, &asked, arrival).await
    };
    answer.await.map(|(headers, body)| (headers, Json(body)).into_response()).unwrap_or_else(|e| refuse(&server, &e))
}

pub(super) async fn generate_stream(State(server): State<Arc<Server>>, request: Request) -> Response {
    let arrival = Arrival::now("/generate_stream", &request);
    let answer = async {
        let wire = body::read_json(&server, request).await?;
        let (request, asked) = parse(wire, server.config(), Delivery::Stream)?;
        stream(&server, request, asked, arrival).await
    };
    answer.await.unwrap_or_else(|error| refuse(&server, &error))
}

/// `POST /`: the body says whether to stream, and the whole answer is wrapped in an array.
pub(in crate::dialects) async fn compat(State(server): State<Arc<Server>>, request: Request) -> Response {
    let arrival = Arrival::now("/", &request);
    let answer = async {
        let mut wire: WireRequest = body::read_json(&server, request).await?;
        wire.parameters.return_full_text.get_or_insert(server.config().compat_return_full_text);
        if wire.stream {
            let (request, asked) = parse(wire, server.config(), Delivery::Stream)?;
            return stream(&server, request, asked, arrival).await;
        }
        let (request, asked) = parse(wire, server.config(), Delivery::Whole)?;
        let (headers, body) = whole(&server, request, &asked, arrival).await?;
        Ok((headers, Json([body])).into_response())
    };
    answer.await.unwrap_or_else(|error| refuse(&server, &error))
}

// Parse.

/// Characters of an unknown adapter's name that are told.
const MAX_NAME_CHARACTERS: usize = 200;

/// What the answer needs to know of the request beside the events.
pub(in crate::dialects) struct Asked {
    /// `inputs`, if the text shall begin with it.
    full_text: Option<String>,
    details: bool,
    prefill: bool,
    best_of: bool,
    /// Whether tokens are drawn, so that there is a seed to tell.
    is_sampled: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::dialects) enum Delivery {
    Whole,
    Stream,
}

pub(in crate::dialects) fn parse(
    wire: WireRequest,
    config: &ServeConfig,
    delivery: Delivery,
) -> Result<(GenerateRequest, Asked), ServeError> {
    let parameters = wire.parameters;
    check(&parameters, config, delivery)?;
    let adapter = parameters.adapter_id.as_deref().map(|name| adapter(name, config)).transpose()?;
    let GenerateParameters { best_of, do_sample, temperature, top_k, top_p, typical_p, .. } = parameters;
    let is_sampled = is_sampled(&parameters);
    let grammar = parameters.grammar.as_ref();
    let grammar = grammar.map(|asked| grammar::typed("grammar", &asked.kind, &asked.value)).transpose()?;
    let asked = Asked {
        full_text: (parameters.return_full_text == Some(true)).then(|| wire.inputs.clone()),
        details: parameters.details || parameters.decoder_input_details,
        prefill: parameters.decoder_input_details,
        best_of: best_of.unwrap_or(1) > 1,
        is_sampled: do_sample || is_sampled,
    };
    let request = GenerateRequest {
        dialect: "tgi",
        adapter,
        prompts: vec![Prompt::Text(wire.inputs)],
        add_special_tokens: true,
        truncate: parameters.truncate.map(i64::from),
        num_choices: best_of.unwrap_or(1),
        sampling: SamplingRequest {
            defaults: Defaults::Neutral,
            temperature: if asked.is_sampled { temperature } else { Some(0.0) },
            top_k: top_k.map(i64::from),
            top_p,
            min_p: None,
            typical_p,
            repetition_penalty: parameters.repetition_penalty,
            frequency_penalty: parameters.frequency_penalty,
            presence_penalty: None,
            logit_bias: Vec::new(),
            seed: parameters.seed,
            watermark: parameters.watermark,
        },
        stopping: StoppingRequest {
            max_tokens: parameters.max_new_tokens,
            default_max_tokens: config.default_max_new_tokens,
            min_tokens: 0,
            stop: parameters.stop,
            include_stop: true,
            stop_tokens: Vec::new(),
            ignore_eos: false,
        },
        details: DetailsRequest {
            logprobs: asked.details || asked.best_of || delivery == Delivery::Stream,
            top_tokens: parameters.top_n_tokens.unwrap_or(0),
            prompt: asked.prefill.then_some(0),
            skip_special_tokens: true,
        },
        grammar,
    };
    Ok((request, asked))
}

/// The adapter of that name, or a refusal that lists those there are.
fn adapter(name: &str, config: &ServeConfig) -> Result<AdapterId, ServeError> {
    config.adapter(name).ok_or_else(|| {
        let names: Vec<&str> = config.adapters.iter().map(|adapter| adapter.name.as_str()).collect();
        let rule = match names[..] {
            [] => "must not be set: the server was started without `--lora-adapters`".to_owned(),
            _ => format!("must be one of {}", names.join(", ")),
        };
        let given: String = name.chars().take(MAX_NAME_CHARACTERS).collect();
        ServeError::value(Field::Adapter, rule, given)
    })
}

/// Whether a parameter that only makes sense for draws is set to something that has an effect.
fn is_sampled(parameters: &GenerateParameters) -> bool {
    let has_effect = |share: Option<f32>| share.is_some_and(|share| share != 1.0);
    has_effect(parameters.temperature)
        || parameters.top_k.is_some()
        || has_effect(parameters.top_p)
        || has_effect(parameters.typical_p)
}

/// The rules that only this dialect has; the others are checked where all dialects meet.
fn check(parameters: &GenerateParameters, config: &ServeConfig, delivery: Delivery) -> Result<(), ServeError> {
    let GenerateParameters { best_of, temperature, top_k, max_new_tokens, top_n_tokens, .. } = *parameters;
    let conflict = |field, message: &'static str| Err(ServeError::Conflict { field, message: message.into() });

    let best_of = best_of.unwrap_or(1);
    let max_best_of = config.max_best_of;
    if best_of != 1 && max_best_of == 1 {
        return conflict("best_of", "`best_of` != 1 is not allowed for this endpoint");
    }
    if best_of == 0 || best_of > max_best_of {
        return Err(ServeError::value(Field::BestOf, format!("must be > 0 and <= {max_best_of}"), best_of));
    }
    if best_of > 1 {
        if delivery == Delivery::Stream {
            return conflict("best_of", "`best_of` != 1 is not supported when streaming tokens");
        }
        if !(parameters.do_sample || is_sampled(parameters)) {
            return conflict("best_of", "you must use sampling when `best_of` is > 1");
        }
        if parameters.seed.is_some() {
            return conflict("seed", "`seed` must not be set when `best_of` > 1");
        }
    }
    let positive = "must be strictly positive";
    if let Some(temperature) = temperature.filter(|&temperature| temperature <= 0.0) {
        return Err(ServeError::value(Field::Temperature, positive, temperature));
    }
    if let Some(top_k) = top_k.filter(|&top_k| top_k <= 0) {
        return Err(ServeError::value(Field::TopK, positive, top_k));
    }
    if max_new_tokens == Some(0) {
        return Err(ServeError::value(Field::MaxTokens, positive, 0));
    }
    let max_top = config.max_top_n_tokens;
    if let Some(top_n) = top_n_tokens.filter(|&top_n| top_n > max_top) {
        return Err(ServeError::value(Field::TopTokens, format!("must be >= 0 and <= {max_top}"), top_n));
    }
    if parameters.decoder_input_details && delivery == Delivery::Stream {
        return conflict(
            "decoder_input_details",
            "`decoder_input_details` == true is not supported when streaming tokens",
        );
    }
    Ok(())
}

// Whole.

pub(in crate::dialects) type Headers = axum::response::AppendHeaders<Vec<(http::HeaderName, http::HeaderValue)>>;

pub(in crate::dialects) async fn whole(
    server: &Arc<Server>,
    request: GenerateRequest,
    asked: &Asked,
    arrival: Arrival,
) -> Result<(Headers, GenerateResponse), ServeError> {
    let stream = submit(server, request, arrival).await?;
    let (seed, prompt) = (asked.is_sampled.then(|| stream.seed()), stream.prompts().to_vec());
    let Generation { prompt_logprobs, mut choices, record } = Generation::fold(stream).await?;
    let headers = timing::whole_headers(server, &prompt, &record);

    let prefill = if asked.prefill { prefill(&prompt, &prompt_logprobs, server.text()) } else { Vec::new() };
    // The likeliest comes first; of equal ones the first.
    let score = |choice: &Choice| choice.mean_logprob();
    let best = (0..choices.len()).reduce(|a, b| if score(&choices[b]) > score(&choices[a]) { b } else { a });
    let winner = choices.swap_remove(best.unwrap_or(0));
    let text = |choice: &Choice| asked.full_text.as_deref().unwrap_or_default().to_owned() + &choice.text;
    let losers = choices.iter().map(|choice| BestOfSequence {
        generated_text: text(choice),
        finish_reason: wire_reason(&choice.reason),
        generated_tokens: choice.tokens.len() as u32,
        seed,
        prefill: prefill.clone(),
        tokens: choice.tokens.iter().map(|token| wire_token(token, server.text())).collect(),
        top_tokens: top_tokens(choice, server.text()),
    });
    let details = asked.details.then(|| Details {
        finish_reason: wire_reason(&winner.reason),
        generated_tokens: winner.tokens.len() as u32,
        seed,
        tokens: winner.tokens.iter().map(|token| wire_token(token, server.text())).collect(),
        top_tokens: top_tokens(&winner, server.text()),
        best_of_sequences: asked.best_of.then(|| losers.collect()),
        prefill: prefill.clone(),
    });
    let body = GenerateResponse { generated_text: text(&winner), details };
    Ok((axum::response::AppendHeaders(headers), body))
}

fn prefill(
    prompts: &[crate::generate::PreparedPrompt],
    logprobs: &[Option<Vec<Option<Foretold>>>],
    text: &TextModel,
) -> Vec<PrefillToken> {
    let (Some(prompt), Some(Some(logprobs))) = (prompts.first(), logprobs.first()) else { return Vec::new() };
    let tokens = prompt.tokens.iter().zip(logprobs);
    tokens
        .map(|(token, foretold)| PrefillToken {
            id: token.0,
            text: text.token_text(token.0),
            logprob: foretold.as_ref().map(|foretold| finite(foretold.logprob)),
        })
        .collect()
}

fn top_tokens(choice: &Choice, text: &TextModel) -> Vec<Vec<Token>> {
    if choice.tokens.iter().all(|token| token.top.is_empty()) {
        return Vec::new();
    }
    choice.tokens.iter().map(|token| alternatives(&token.top, text)).collect()
}

fn alternatives(top: &[(u32, f32)], text: &TextModel) -> Vec<Token> {
    let token = |&(id, logprob): &(u32, f32)| Token {
        id,
        text: text.token_text(id),
        logprob: finite(logprob),
        special: text.is_special(id),
    };
    top.iter().map(token).collect()
}

/// Special tokens show themselves here, though they are left out of the generated text.
fn wire_token(token: &GeneratedToken, text: &TextModel) -> Token {
    let special = text.is_special(token.id);
    let shown = if special { text.token_text(token.id) } else { token.text.clone() };
    Token { id: token.id, text: shown, logprob: finite(token.logprob.unwrap_or(0.0)), special }
}

fn wire_reason(reason: &FinishReason) -> WireReason {
    match reason {
        FinishReason::Length => WireReason::Length,
        FinishReason::EndOfText | FinishReason::StopToken(_) => WireReason::EosToken,
        FinishReason::StopString(_) => WireReason::StopSequence,
    }
}

/// JSON has no infinity.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

// Chunk.

async fn stream(
    server: &Arc<Server>,
    request: GenerateRequest,
    asked: Asked,
    arrival: Arrival,
) -> Result<Response, ServeError> {
    let stream = submit(server, request, arrival).await?;
    let headers = timing::stream_headers(server, stream.prompts());
    let chunks = Chunks::new(server.text().clone(), asked, &stream);
    Ok(sse::response(headers, stream, chunks))
}

struct Chunks {
    text: TextModel,
    asked: Asked,
    seed: u64,
    input_length: u32,
    num_tokens: u32,
    generated_text: String,
    /// The last token, which goes out together with the end.
    last: Option<GeneratedToken>,
}

impl Chunks {
    fn new(text: TextModel, mut asked: Asked, stream: &GenerateStream) -> Self {
        let input_length = stream.prompts().iter().map(|prompt| prompt.tokens.len() as u32).sum();
        let generated_text = asked.full_text.take().unwrap_or_default();
        Self { text, asked, seed: stream.seed(), input_length, num_tokens: 0, generated_text, last: None }
    }

    fn token(&mut self, token: &GeneratedToken, end: Option<FinishReason>, out: &mut Vec<u8>) {
        self.num_tokens += 1;
        self.generated_text.push_str(&token.text);
        let details = end.as_ref().filter(|_| self.asked.details).map(|reason| StreamDetails {
            finish_reason: wire_reason(reason),
            generated_tokens: self.num_tokens,
            seed: self.asked.is_sampled.then_some(self.seed),
            input_length: self.input_length,
        });
        let event = StreamResponse {
            index: self.num_tokens,
            token: wire_token(token, &self.text),
            top_tokens: alternatives(&token.top, &self.text),
            generated_text: end.map(|_| std::mem::take(&mut self.generated_text)),
            details,
        };
        sse::write(&event, out);
    }
}

impl sse::Chunks for Chunks {
    fn event(&mut self, event: GenerateEvent, out: &mut Vec<u8>) {
        match event {
            GenerateEvent::Prompt { .. } => {}
            GenerateEvent::Token { token, is_last: false, .. } => self.token(&token, None, out),
            GenerateEvent::Token { token, is_last: true, .. } => self.last = Some(token),
            GenerateEvent::Finished { reason, .. } => {
                if let Some(token) = self.last.take() {
                    self.token(&token, Some(reason), out);
                }
            }
        }
    }

    fn end(&mut self, _record: &RequestRecord, _out: &mut Vec<u8>) {}

    fn error(&mut self, error: &ServeError, out: &mut Vec<u8>) {
        sse::write(&refusal_body(error).1, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temperature_of(body: &str) -> Option<f32> {
        let wire = serde_json::from_str(body).expect("a request");
        let (request, _) = parse(wire, &ServeConfig::default(), Delivery::Whole).expect("a valid request");
        request.sampling.temperature
    }

    #[test]
    fn absent_parameters_sample_and_present_ones_only_if_they_say_so() {
        let (sampled, greedy) = (None, Some(0.0));
        assert_eq!(temperature_of(r#"{"inputs": "x"}"#), sampled);
        for (parameters, expected) in [
            ("{}", greedy),
            (r#"{"temperature": 1.0, "top_p": 1.0}"#, greedy),
            (r#"{"do_sample": true}"#, sampled),
            (r#"{"top_k": 5}"#, sampled),
            (r#"{"typical_p": 0.5}"#, sampled),
            (r#"{"temperature": 0.5}"#, Some(0.5)),
        ] {
            let body = format!(r#"{{"inputs": "x", "parameters": {parameters}}}"#);
            assert_eq!(temperature_of(&body), expected, "{parameters}");
        }
    }
}
