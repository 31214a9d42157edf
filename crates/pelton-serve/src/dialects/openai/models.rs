//! `/v1/models`.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Json, Response};
use http::Uri;
use pelton_protocol::openai::{ModelCard, ModelList, ModelPermission};

use super::{field_name, model_name, refuse};
use crate::server::Server;

pub(super) async fn list(State(server): State<Arc<Server>>) -> Json<ModelList> {
    let config = server.config();
    let names = match config.served_model_names.as_slice() {
        [] => std::slice::from_ref(&config.model_id),
        names => names,
    };
    Json(ModelList { object: "list".into(), data: names.iter().map(|name| card(&server, name)).collect() })
}

pub(super) async fn one(
    State(server): State<Arc<Server>>,
    uri: Uri,
    id: Result<Path<String>, PathRejection>,
) -> Response {
    // What is not UTF-8 names no model, and is told as it was sent.
    let id = id.map_or_else(|_| uri.path().trim_start_matches("/models/").to_owned(), |Path(id)| id);
    match model_name(&server, Some(id)) {
        Ok(id) => Json(card(&server, &id)).into_response(),
        Err(error) => refuse(&server, &error, field_name),
    }
}

fn card(server: &Server, name: &str) -> ModelCard {
    let created = server.created();
    ModelCard {
        id: name.to_owned(),
        object: "model".into(),
        created,
        // Load tests choose how to talk to the server by this.
        owned_by: "vllm".into(),
        root: Some(server.config().model_id.clone()),
        parent: None,
        max_model_len: Some(server.limits().max_total_tokens),
        permission: vec![ModelPermission {
            id: format!("modelperm-{created:x}"),
            object: "model_permission".into(),
            created,
            allow_sampling: true,
            allow_logprobs: true,
            allow_view: true,
            organization: "*".into(),
            ..ModelPermission::default()
        }],
    }
}
