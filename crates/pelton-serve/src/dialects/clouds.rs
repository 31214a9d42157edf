//! Routes under which clouds call a server: SageMaker's `/invocations` and Vertex AI's `/vertex`. Both lead to the dialects.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::post;
use http::{HeaderMap, Method, Uri};
use pelton_protocol::vertex::{Instance, Predictions, VertexRequest};
use serde::de::IgnoredAny;
use tokio::task::JoinSet;

use super::openai::{chat, completions};
use super::tgi::generate::{self, Delivery};
use super::tgi::refuse;
use crate::body;
use crate::generate::{Field, Generation, Invalid, ServeError, submit};
use crate::server::Server;
use crate::trace::Arrival;

pub(super) fn routes() -> Router<Arc<Server>> {
    Router::new().route("/invocations", post(invocations)).route("/vertex", post(vertex))
}

/// Vertex AI tells a container by environment variables under which paths it will be called; they may be any. Requests for them go on under the path
/// that has the handler.
pub(super) async fn rename_routes(State(server): State<Arc<Server>>, mut request: Request) -> Request {
    let config = server.config();
    let is_at = |route: &Option<String>| route.as_deref() == Some(request.uri().path());
    let path = match *request.method() {
        Method::POST if is_at(&config.vertex_predict_route) => "/vertex",
        Method::GET | Method::HEAD if is_at(&config.vertex_health_route) => "/health",
        _ => return request,
    };
    *request.uri_mut() = Uri::from_static(path);
    request
}

/// What the body holds says which API it is meant for.
async fn invocations(State(server): State<Arc<Server>>, request: Request) -> Response {
    let (request, api) = match sniff(&server, request).await {
        Ok(found) => found,
        Err(error) => return refuse(&server, &error),
    };
    match api {
        Api::Generate => generate::compat(State(server), request).await,
        Api::Chat => chat::create(State(server), request).await,
        Api::Completions => completions::create(State(server), request).await,
    }
}

enum Api {
    Generate,
    Chat,
    Completions,
}

/// Reads the body of `request`, and gives it back.
async fn sniff(server: &Server, request: Request) -> Result<(Request, Api), ServeError> {
    let (parts, bytes) = body::read_bytes(server, request).await?;
    let keys: HashMap<String, IgnoredAny> = body::parse(&bytes)?;
    let has = |key| keys.contains_key(key);
    let api = if server.config().messages_api_enabled {
        Api::Chat
    } else if has("inputs") {
        Api::Generate
    } else if has("messages") {
        Api::Chat
    } else if has("prompt") {
        Api::Completions
    } else {
        let problem = "must have `inputs` (to generate), `messages` (to chat) or `prompt` (to complete)".into();
        return Err(ServeError::Shape { path: "body".into(), problem });
    };
    Ok((Request::from_parts(parts, Body::from(bytes)), api))
}

/// One text for each instance, all of which run at once. One that cannot be answered fails them all.
async fn vertex(State(server): State<Arc<Server>>, request: Request) -> Response {
    let arrival = Arrival::now("/vertex", &request);
    let headers = request.headers().clone();
    let answer = async {
        let VertexRequest { instances } = body::read_json(&server, request).await?;
        let max = server.config().max_concurrent_requests as usize;
        if instances.is_empty() || instances.len() > max {
            let problem =
                format!("must hold 1 to {max} instances (`max_concurrent_requests`). Given: {}", instances.len());
            return Err(ServeError::Shape { path: "instances".into(), problem });
        }
        let mut running = JoinSet::new();
        let num_instances = instances.len();
        for (index, instance) in instances.into_iter().enumerate() {
            let (server, headers, arrival) = (Arc::clone(&server), headers.clone(), arrival.clone());
            running.spawn(async move { (index, predict(&server, instance, &headers, arrival).await) });
        }
        let mut predictions = vec![String::new(); num_instances];
        while let Some(ended) = running.join_next().await {
            let (index, text) = ended.map_err(|_| ServeError::Internal)?;
            predictions[index] = text?;
        }
        Ok(Json(Predictions { predictions }).into_response())
    };
    answer.await.unwrap_or_else(|error| refuse(&server, &error))
}

async fn predict(
    server: &Arc<Server>,
    instance: Instance,
    headers: &HeaderMap,
    arrival: Arrival,
) -> Result<String, ServeError> {
    let is_streamed = match &instance {
        Instance::Generate(wire) => wire.stream,
        Instance::Chat(wire) => wire.stream == Some(true),
    };
    if is_streamed {
        return Err(ServeError::unsupported("stream", "predictions come all at once"));
    }
    match instance {
        Instance::Generate(wire) => {
            let (request, asked) = generate::parse(*wire, server.config(), Delivery::Whole)?;
            let (_, answer) = generate::whole(server, request, &asked, arrival).await?;
            Ok(answer.generated_text)
        }
        Instance::Chat(wire) => {
            let (request, asked) = chat::parse(*wire, headers, server)?;
            if asked.has_tools() {
                return Err(ServeError::unsupported("tools", "a prediction is a text"));
            }
            if request.num_choices > 1 {
                let rule = "must be 1: each instance has one prediction";
                return Err(Invalid::value(Field::Choices, rule, request.num_choices).into());
            }
            let stream = submit(server, request, arrival).await?;
            let choices = Generation::fold(stream).await?.choices;
            Ok(choices.into_iter().map(|choice| choice.text).collect())
        }
    }
}
