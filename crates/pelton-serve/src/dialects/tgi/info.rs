//! `/info`: what is served, and within which limits.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Json;
use pelton_protocol::tgi::Info;

use crate::dialects::VERSION;
use crate::server::Server;

pub(super) async fn info(State(server): State<Arc<Server>>) -> Json<Info> {
    let (config, limits, engine) = (server.config(), server.limits(), server.engine());
    let newcomers = engine.config().newcomers;
    let cache_tokens = u64::from(engine.spec().num_blocks) * u64::from(engine.spec().block_tokens);
    Json(Info {
        model_id: config.model_id.clone(),
        model_sha: config.model_sha.clone(),
        model_pipeline_tag: config.model_pipeline_tag.clone(),
        model_dtype: Some(config.model_dtype.clone()),
        model_device_type: Some(config.model_device_type.clone()),
        max_concurrent_requests: config.max_concurrent_requests,
        max_best_of: config.max_best_of,
        max_stop_sequences: config.max_stop_sequences,
        max_input_tokens: limits.max_input_tokens,
        max_total_tokens: limits.max_total_tokens,
        waiting_served_ratio: Some(newcomers.waiting_served_ratio),
        max_batch_total_tokens: Some(u32::try_from(cache_tokens).unwrap_or(u32::MAX)),
        max_waiting_tokens: Some(newcomers.max_waiting_steps),
        max_batch_size: Some(engine.config().max_sequences),
        validation_workers: config.validation_workers,
        max_client_batch_size: config.max_client_batch_size,
        router: env!("CARGO_PKG_NAME").into(),
        version: VERSION.into(),
        sha: option_env!("PELTON_GIT_SHA").map(str::to_owned),
        docker_label: option_env!("DOCKER_LABEL").map(str::to_owned),
    })
}
