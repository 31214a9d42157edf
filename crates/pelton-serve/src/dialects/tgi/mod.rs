//! The dialect of text-generation-inference: its routes, and refusals in its words.
//!
//! Where it differs from TGI 3.3 on purpose: errors before a stream begins have their HTTP status; every error is JSON and names field, limit
//! and value; `top_p` and `typical_p` of 1 are taken (and change nothing); stop strings are found anywhere, not only at the end of a token, and
//! the text ends with them; prompt details need no server setting; `max_new_tokens` beyond the context is refused; `/chat_tokenize` is guarded by
//! the key as `/tokenize` is.

pub(super) mod generate;
mod info;
mod tokenize;

use std::any::Any;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use http::{StatusCode, Uri};
use pelton_protocol::tgi::ErrorBody;
use tower_http::catch_panic::CatchPanicLayer;

use super::clouds;
use crate::generate::{Field, ServeError};
use crate::server::Server;
use crate::{describe, health, refusal};

/// All routes at the top; those of the clouds are refused in this dialect's words too.
pub(super) fn routes() -> Router<Arc<Server>> {
    Router::new()
        .route("/", post(generate::compat).get(health::health))
        .route("/generate", post(generate::generate))
        .route("/generate_stream", post(generate::generate_stream))
        .route("/info", get(info::info))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/chat_tokenize", post(tokenize::chat_tokenize))
        .merge(health::routes())
        .merge(clouds::routes())
        .merge(describe::routes())
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(CatchPanicLayer::custom(panicked))
}

pub(in crate::dialects) fn refuse(server: &Server, error: &ServeError) -> Response {
    let (status, body) = refusal_body(error);
    refusal::response(server, error, status, &body)
}

fn refusal_body(error: &ServeError) -> (StatusCode, ErrorBody) {
    let validation = |message: String| format!("Input validation error: {message}");
    let (status, message, error_type) = match error {
        ServeError::Syntax(_) => (StatusCode::BAD_REQUEST, error.to_string(), "validation"),
        ServeError::BodyIncomplete(_) => (StatusCode::REQUEST_TIMEOUT, error.to_string(), "validation"),
        ServeError::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, error.to_string(), "validation"),
        ServeError::ContentType(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, error.to_string(), "validation"),
        ServeError::Invalid(invalid) => {
            (StatusCode::UNPROCESSABLE_ENTITY, validation(invalid.message(field_name)), "validation")
        }
        ServeError::Shape { .. } | ServeError::Unsupported { .. } | ServeError::Conflict { .. } => {
            (StatusCode::UNPROCESSABLE_ENTITY, validation(error.to_string()), "validation")
        }
        ServeError::Grammar { .. } => (StatusCode::UNPROCESSABLE_ENTITY, validation(error.to_string()), "validation"),
        ServeError::Tool(_) => (StatusCode::UNPROCESSABLE_ENTITY, error.to_string(), "tool_error"),
        ServeError::Template(reason) => {
            (StatusCode::UNPROCESSABLE_ENTITY, format!("Template error: {reason}"), "template_error")
        }
        ServeError::UnknownModel(_) | ServeError::NotFound(_) => {
            (StatusCode::NOT_FOUND, error.to_string(), "not_found")
        }
        ServeError::MethodNotAllowed(_) => (StatusCode::METHOD_NOT_ALLOWED, error.to_string(), "method_not_allowed"),
        ServeError::Unauthorized => (StatusCode::UNAUTHORIZED, error.to_string(), "unauthorized"),
        ServeError::Overloaded { .. } => (StatusCode::TOO_MANY_REQUESTS, "Model is overloaded".into(), "overloaded"),
        ServeError::Stopping => (StatusCode::SERVICE_UNAVAILABLE, error.to_string(), "unavailable"),
        ServeError::EngineFailed | ServeError::Generation(_) => {
            (StatusCode::FAILED_DEPENDENCY, format!("Request failed during generation: {error}"), "generation")
        }
        ServeError::Internal => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string(), "internal"),
    };
    (status, ErrorBody { error: message, error_type: error_type.into() })
}

fn field_name(field: Field) -> &'static str {
    match field {
        Field::Prompt => "inputs",
        Field::MaxTokens => "max_new_tokens",
        Field::MinTokens => "min_new_tokens",
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
        Field::Choices | Field::BestOf => "best_of",
        Field::TopTokens => "top_n_tokens",
        Field::PromptTopTokens => "decoder_input_details",
        Field::Truncate => "truncate",
        Field::Adapter => "adapter_id",
    }
}

async fn not_found(State(server): State<Arc<Server>>, uri: Uri) -> Response {
    refuse(&server, &ServeError::NotFound(uri.path().chars().take(200).collect()))
}

async fn method_not_allowed(State(server): State<Arc<Server>>, method: http::Method) -> Response {
    refuse(&server, &ServeError::MethodNotAllowed(method.to_string()))
}

/// A handler panicked: a bug, told to the log by the panic itself. The server goes on.
pub(super) fn panicked(_panic: Box<dyn Any + Send>) -> Response {
    let (status, body) = refusal_body(&ServeError::Internal);
    (status, Json(body)).into_response()
}
