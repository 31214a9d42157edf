//! Health and metrics: read from the engine, never constant, and never waiting for it.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use pelton_protocol::tgi;

use crate::server::Server;

pub(crate) fn routes() -> Router<Arc<Server>> {
    Router::new().route("/health", get(health)).route("/ping", get(health).post(health)).merge(metrics_routes())
}

/// What another port than that of clients answers.
pub(crate) fn metrics_routes() -> Router<Arc<Server>> {
    Router::new().route("/metrics", get(metrics))
}

/// 200 without a body while requests can be answered, else 503.
pub(crate) async fn health(State(server): State<Arc<Server>>) -> Response {
    if server.is_ready() {
        return StatusCode::OK.into_response();
    }
    let body = tgi::ErrorBody { error: "unhealthy".into(), error_type: "healthcheck".into() };
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

async fn metrics(State(server): State<Arc<Server>>) -> Response {
    let text = server.metrics().render(server.engine().gauges());
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}
