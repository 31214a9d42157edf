//! `/v1/models`.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Json, Response};
use http::Uri;
use pelton_protocol::openai::{ModelCard, ModelList, ModelPermission};

use super::{MAX_NAME_CHARACTERS, field_name, refuse};
use crate::generate::ServeError;
use crate::server::Server;

pub(super) async fn list(State(server): State<Arc<Server>>) -> Json<ModelList> {
    let config = server.config();
    let names = match config.served_model_names.as_slice() {
        [] => std::slice::from_ref(&config.model_id),
        names => names,
    };
    let names = names.iter().chain(config.adapters.iter().map(|adapter| &adapter.name));
    Json(ModelList { object: "list".into(), data: names.map(|name| card(&server, name)).collect() })
}

pub(super) async fn one(
    State(server): State<Arc<Server>>,
    uri: Uri,
    id: Result<Path<String>, PathRejection>,
) -> Response {
    // What is not UTF-8 names no model, and is told as it was sent.
    let id = id.map_or_else(|_| uri.path().trim_start_matches("/models/").to_owned(), |Path(id)| id);
    let config = server.config();
    if config.serves(&id) || config.adapter(&id).is_some() {
        return Json(card(&server, &id)).into_response();
    }
    let error = ServeError::UnknownModel(id.chars().take(MAX_NAME_CHARACTERS).collect());
    refuse(&server, &error, field_name)
}

fn card(server: &Server, name: &str) -> ModelCard {
    let (config, created) = (server.config(), server.created());
    let adapter = config.adapters.iter().find(|adapter| adapter.name == name);
    ModelCard {
        id: name.to_owned(),
        object: "model".into(),
        created,
        // Load tests choose how to talk to the server by this.
        owned_by: "vllm".into(),
        root: Some(adapter.map_or(&config.model_id, |adapter| &adapter.root).clone()),
        parent: adapter.map(|_| config.model_name().to_owned()),
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
