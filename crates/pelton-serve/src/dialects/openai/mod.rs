//! The OpenAI dialect, with the sampling extras of vLLM: routes, refusal, and what completions and chat share.
//!
//! Where it differs from vLLM on purpose: errors before a stream begins have their HTTP status; more work than fits is refused with 429 at
//! once; `n` above 1 is allowed with greedy sampling; `suffix` fills in the middle; a wrong key is told as an error object.

pub(super) mod chat;
pub(super) mod completions;
mod models;
mod sampling;
mod tool_text;
mod tools;

use std::any::Any;
use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use http::{HeaderMap, StatusCode, Uri};
use pelton_engine::{AdapterId, Foretold, TokenId};
use pelton_protocol::openai::{
    ErrorBody, ErrorCode, ErrorObject, PromptLogprob, PromptLogprobs, PromptTokensDetails, StopReason, StreamOptions,
    Usage,
};
use pelton_text::TextModel;
use tower_http::catch_panic::CatchPanicLayer;

use super::VERSION;
use crate::ServeConfig;
use crate::generate::{Field, FinishReason, Invalid, PreparedPrompt, ServeError};
use crate::metrics::RequestRecord;
use crate::refusal;
use crate::server::Server;

/// Routes below `/v1`.
pub(super) fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/models", get(models::list))
        .route("/models/{*id}", get(models::one))
        .route("/completions", post(completions::create))
        .route("/chat/completions", post(chat::create))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(CatchPanicLayer::custom(panicked))
}

// Shared by requests.

/// What the two endpoints call their fields.
type Names = fn(Field) -> &'static str;

/// Characters of a model's name that are told.
const MAX_NAME_CHARACTERS: usize = 200;

/// Characters of a request id that are kept.
const MAX_ID_CHARACTERS: usize = 128;

/// The name to report, which is the requested one, and the adapter it names. Any other name is the model: clients written for
/// text-generation-inference send what they like.
fn chosen(config: &ServeConfig, requested: Option<String>) -> (String, Option<AdapterId>) {
    match requested {
        None => (config.model_name().to_owned(), None),
        Some(name) if name == "tgi" && config.adapter(&name).is_none() => (config.model_name().to_owned(), None),
        Some(name) => (name.chars().take(MAX_NAME_CHARACTERS).collect(), config.adapter(&name)),
    }
}

/// The part of an answer's id after its prefix: the client's, or a random one.
fn id_suffix(headers: &HeaderMap, given: Option<&str>) -> String {
    let header = headers.get("x-request-id").and_then(|id| id.to_str().ok());
    match header.or(given).filter(|id| !id.is_empty()) {
        Some(id) => id.chars().take(MAX_ID_CHARACTERS).collect(),
        None => format!("{:032x}", fastrand::u128(..)),
    }
}

/// What to send besides text while streaming.
#[derive(Clone, Copy)]
struct UsageWanted {
    at_end: bool,
    with_every_chunk: bool,
}

fn usage_wanted(stream: bool, options: Option<StreamOptions>) -> Result<UsageWanted, ServeError> {
    if options.is_some() && !stream {
        let message = "`stream_options` needs `stream` to be true".into();
        return Err(ServeError::Conflict { field: "stream_options", message });
    }
    let options = options.unwrap_or_default();
    Ok(UsageWanted {
        at_end: options.include_usage == Some(true),
        with_every_chunk: options.continuous_usage_stats == Some(true),
    })
}

/// Refuses what is set to `value` and not built.
fn refuse_set<T>(field: &'static str, value: &Option<T>) -> Result<(), ServeError> {
    match value {
        None => Ok(()),
        Some(_) => Err(ServeError::unsupported(field, "this server does not have it")),
    }
}

// Shared by answers.

/// What answers with equal seeds have in common: the server's version and its container's label. Clients of text-generation-inference require it.
fn system_fingerprint() -> Cow<'static, str> {
    static FINGERPRINT: LazyLock<String> =
        LazyLock::new(|| format!("{VERSION}-{}", option_env!("DOCKER_LABEL").unwrap_or("native")));
    Cow::Borrowed(FINGERPRINT.as_str())
}

fn usage(num_prompt_tokens: u32, num_generated_tokens: u32) -> Usage {
    Usage {
        prompt_tokens: num_prompt_tokens,
        completion_tokens: num_generated_tokens,
        total_tokens: num_prompt_tokens + num_generated_tokens,
        prompt_tokens_details: None,
    }
}

fn usage_of(record: &RequestRecord) -> Usage {
    let details = PromptTokensDetails { cached_tokens: record.num_cached_tokens };
    Usage { prompt_tokens_details: Some(details), ..usage(record.num_prompt_tokens, record.num_generated_tokens) }
}

/// vLLM's list for a prompt: at each place its token and the `top` likeliest, by token id.
fn prompt_logprobs(
    prompt: &PreparedPrompt,
    foretold: &[Option<Foretold>],
    top: u32,
    text: &TextModel,
) -> PromptLogprobs {
    let entry = |token: TokenId, logprob, rank| {
        let told =
            PromptLogprob { logprob: finite(logprob), rank: Some(rank), decoded_token: Some(text.token_text(token.0)) };
        (token.0.to_string(), told)
    };
    let place = |(&token, foretold): (&TokenId, &Option<Foretold>)| {
        let Foretold { logprob, rank, top: likeliest } = foretold.as_ref()?;
        let likeliest = likeliest.iter().zip(1..=top).map(|(&(token, logprob), rank)| entry(token, logprob, rank));
        // The token itself last: its rank is true at ties too.
        Some(likeliest.chain([entry(token, *logprob, *rank)]).collect())
    };
    prompt.tokens.iter().zip(foretold).map(place).collect()
}

fn wire_reason(reason: &FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        FinishReason::EndOfText | FinishReason::StopToken(_) | FinishReason::StopString(_) => "stop",
    }
}

fn stop_reason(reason: &FinishReason) -> Option<StopReason> {
    match reason {
        FinishReason::Length | FinishReason::EndOfText => None,
        FinishReason::StopToken(token) => Some(StopReason::Token(*token)),
        FinishReason::StopString(stop) => Some(StopReason::Text(stop.to_string())),
    }
}

/// JSON has no infinity.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

// Refusal.

fn refuse(server: &Server, error: &ServeError, names: Names) -> Response {
    let (status, body) = refusal_body(error, names);
    refusal::response(server, error, status, &body)
}

fn refusal_body(error: &ServeError, names: Names) -> (StatusCode, ErrorBody) {
    let (status, kind) = match error {
        ServeError::Syntax(_)
        | ServeError::Shape { .. }
        | ServeError::Invalid(_)
        | ServeError::Unsupported { .. }
        | ServeError::Conflict { .. }
        | ServeError::Grammar { .. }
        | ServeError::Template(_) => (StatusCode::BAD_REQUEST, "BadRequestError"),
        ServeError::Tool(_) => (StatusCode::UNPROCESSABLE_ENTITY, "tool_error"),
        ServeError::BodyIncomplete(_) => (StatusCode::REQUEST_TIMEOUT, "BadRequestError"),
        ServeError::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "BadRequestError"),
        ServeError::ContentType(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "BadRequestError"),
        ServeError::UnknownModel(_) | ServeError::NotFound(_) => (StatusCode::NOT_FOUND, "NotFoundError"),
        ServeError::MethodNotAllowed(_) => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowedError"),
        ServeError::Unauthorized => (StatusCode::UNAUTHORIZED, "AuthenticationError"),
        ServeError::Overloaded { .. } => (StatusCode::TOO_MANY_REQUESTS, "RateLimitError"),
        ServeError::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailableError"),
        ServeError::EngineFailed | ServeError::Generation(_) | ServeError::Internal => {
            (StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError")
        }
    };
    let message = match error {
        // The words by which clients know that a prompt must be shortened.
        ServeError::Invalid(invalid @ Invalid::TotalTooLong { max, .. }) => {
            format!("This model's maximum context length is {max} tokens: {}", invalid.message(names))
        }
        ServeError::Invalid(invalid) => invalid.message(names),
        error => error.to_string(),
    };
    let param = match error {
        ServeError::Shape { path, .. } => Some(path.clone()),
        ServeError::Invalid(invalid) => Some(names(invalid.field()).to_owned()),
        ServeError::Unsupported { field, .. }
        | ServeError::Conflict { field, .. }
        | ServeError::Grammar { field, .. } => Some((*field).to_owned()),
        ServeError::Tool(_) => Some("tools".to_owned()),
        ServeError::UnknownModel(_) => Some("model".to_owned()),
        ServeError::Template(_) => Some("messages".to_owned()),
        _ => None,
    };
    let code = Some(ErrorCode::Number(status.as_u16()));
    (status, ErrorBody { error: ErrorObject { message, kind: kind.to_owned(), param, code } })
}

/// Spelling of the fields that both endpoints have; the others are theirs.
fn field_name(field: Field) -> &'static str {
    match field {
        Field::Prompt => "prompt",
        Field::MaxTokens => "max_tokens",
        Field::MinTokens => "min_tokens",
        Field::Temperature => "temperature",
        Field::TopK => "top_k",
        Field::TopP => "top_p",
        Field::MinP => "min_p",
        Field::TypicalP => "typical_p",
        Field::RepetitionPenalty => "repetition_penalty",
        Field::FrequencyPenalty => "frequency_penalty",
        Field::PresencePenalty => "presence_penalty",
        Field::LogitBias => "logit_bias",
        Field::Stop => "stop",
        Field::StopTokens => "stop_token_ids",
        Field::Choices => "n",
        Field::BestOf => "best_of",
        Field::TopTokens => "logprobs",
        Field::PromptTopTokens => "prompt_logprobs",
        Field::Truncate => "truncate_prompt_tokens",
        Field::Adapter => "model",
    }
}

async fn not_found(State(server): State<Arc<Server>>, uri: Uri) -> Response {
    // A nested router sees the path without its prefix.
    let path = format!("/v1{}", uri.path());
    refuse(&server, &ServeError::NotFound(path.chars().take(200).collect()), field_name)
}

async fn method_not_allowed(State(server): State<Arc<Server>>, method: http::Method) -> Response {
    refuse(&server, &ServeError::MethodNotAllowed(method.to_string()), field_name)
}

/// A handler panicked: a bug, told to the log by the panic itself. The server goes on.
pub(super) fn panicked(_panic: Box<dyn Any + Send>) -> Response {
    let (status, body) = refusal_body(&ServeError::Internal, field_name);
    (status, Json(body)).into_response()
}
