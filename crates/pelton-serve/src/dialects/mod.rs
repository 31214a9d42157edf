//! Dialects: each is four translations (parse, chunk, whole, refusal) and its routes. They do not know each other; `clouds` and `/chat_tokenize` join them.

mod clouds;
mod grammar;
mod openai;
mod tgi;

use std::sync::Arc;

use axum::Router;
use axum::middleware::map_request_with_state;

use crate::server::Server;

/// What the server says its version is. Clients choose by it which fields they read, so the version of the API stands first; ours follows as a
/// local label, which Python (PEP 440) and semantic versioning both allow.
const VERSION: &str = concat!("3.3.7+pelton.", env!("CARGO_PKG_VERSION"));

/// Routes of all dialects. A path that none has is answered in the words of the one whose prefix it carries.
pub(crate) fn routes(server: &Arc<Server>) -> Router {
    let routes = mounted().with_state(Arc::clone(server));
    let config = server.config();
    if config.vertex_predict_route.is_none() && config.vertex_health_route.is_none() {
        return routes;
    }
    // Around the router, so that it sees the path as it is then.
    let rename = map_request_with_state(Arc::clone(server), clouds::rename_routes);
    Router::new().fallback_service(routes).layer(rename)
}

/// All routes under their own paths.
pub(crate) fn mounted() -> Router<Arc<Server>> {
    tgi::routes().nest("/v1", openai::routes())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::extract::Request;
    use axum::routing::get;
    use http::StatusCode;
    use http_body_util::BodyExt;
    use serde_json::Value;
    use tower::ServiceExt;
    use tower_http::catch_panic::CatchPanicLayer;

    use super::*;

    async fn bug() {
        panic!("a bug")
    }

    #[tokio::test]
    async fn panic_of_a_handler_is_an_answer_in_json() {
        let tgi = Router::new().route("/", get(bug)).layer(CatchPanicLayer::custom(tgi::panicked));
        let openai = Router::new().route("/", get(bug)).layer(CatchPanicLayer::custom(openai::panicked));
        for (router, message) in [(tgi, "/error"), (openai, "/error/message")] {
            let response = router.oneshot(Request::new(Body::empty())).await.expect("routers do not fail");
            assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
            let body = response.into_body().collect().await.expect("a body").to_bytes();
            let body: Value = serde_json::from_slice(&body).expect("JSON");
            assert_eq!(body.pointer(message).and_then(Value::as_str), Some("internal error"));
        }
    }
}
