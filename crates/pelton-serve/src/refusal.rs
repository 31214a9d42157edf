//! Counting and logging refusals: the one place through which every error on its way to a client goes.

use std::sync::atomic::Ordering::Relaxed;

use http::header::RETRY_AFTER;
use http::{HeaderValue, StatusCode};

use axum::response::{IntoResponse, Json, Response};
use serde::Serialize;

use crate::generate::ServeError;
use crate::server::Server;

/// Seconds after which a refused client may try again.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// The answer to a request that was refused with `error`, in a dialect's words.
pub(crate) fn response(server: &Server, error: &ServeError, status: StatusCode, body: &impl Serialize) -> Response {
    count(server, error);
    if status.is_server_error() {
        tracing::warn!(status = status.as_u16(), %error, "refused");
    } else {
        tracing::info!(status = status.as_u16(), reason = reason(error), "refused");
    }
    let mut response = (status, Json(body)).into_response();
    if matches!(error, ServeError::Overloaded { .. }) {
        response.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_SECONDS);
    }
    response
}

/// What the log says of a client's mistake. Messages may quote the request, and prompts do not belong into logs.
fn reason(error: &ServeError) -> String {
    match error {
        ServeError::Syntax(_) => "the body is not JSON".to_owned(),
        ServeError::Shape { path, .. } => format!("{path} has another type"),
        ServeError::Invalid(invalid) => format!("{:?} is out of its limits", invalid.field()),
        ServeError::Grammar { field, .. } => format!("{field} cannot be followed"),
        ServeError::Tool(_) => "the tools cannot be used as asked".to_owned(),
        ServeError::Template(_) => "the template refuses the messages".to_owned(),
        error => error.to_string(),
    }
}

fn count(server: &Server, error: &ServeError) {
    let counters = &server.metrics().counters;
    let counter = match error {
        ServeError::Overloaded { .. } => &counters.overloaded,
        ServeError::Template(_) => &counters.bad_template,
        // A request that the engine cut off has been counted by its record; one that came too late has not been counted and does not fail.
        ServeError::EngineFailed | ServeError::Generation(_) | ServeError::Stopping | ServeError::Internal => return,
        // Scanners and wrong keys are no requests that failed.
        ServeError::Unauthorized
        | ServeError::NotFound(_)
        | ServeError::MethodNotAllowed(_)
        | ServeError::BodyIncomplete(_)
        | ServeError::BodyTooLarge { .. }
        | ServeError::ContentType(_) => return,
        ServeError::Syntax(_)
        | ServeError::Shape { .. }
        | ServeError::Invalid(_)
        | ServeError::Unsupported { .. }
        | ServeError::Conflict { .. }
        | ServeError::UnknownModel(_)
        | ServeError::Grammar { .. }
        | ServeError::Tool(_) => &counters.invalid,
    };
    counter.fetch_add(1, Relaxed);
}
