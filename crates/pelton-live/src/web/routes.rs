//! Addresses of the page.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream;
use pelton_bench::results::Results;
use serde_json::json;
use tokio::sync::Semaphore;

use super::guard;
use super::order::{self, Change, Refusal, Start};
use super::state::{Seen, Shared};
use crate::sheets;

/// Largest body of a request.
const MAX_BODY_BYTES: usize = 16 * 1024;

/// Listeners at once.
const MAX_LISTENERS: usize = 32;

/// Nothing is loaded from elsewhere, and no other page may show this one.
const POLICY: &str =
    "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'";

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";

/// A further form of results to download.
#[derive(Clone, Copy, Debug)]
pub struct Download {
    /// Name of the file, `report.html` for example.
    pub name: &'static str,
    /// Its content type.
    pub kind: &'static str,
    /// Makes it.
    pub write: fn(&Results) -> Result<Vec<u8>, String>,
}

/// What the handlers need.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub shared: Arc<Shared>,
    pub downloads: Arc<Vec<Download>>,
    /// Host name of the page, if it was given one.
    pub name: Option<String>,
    listeners: Arc<Semaphore>,
}

impl Site {
    pub fn new(shared: Arc<Shared>, further: Vec<Download>, name: Option<String>) -> Self {
        let mut downloads = vec![
            Download { name: "results.json", kind: "application/json", write: results_json },
            Download { name: "statistics.csv", kind: "text/csv; charset=utf-8", write: statistics_csv },
            Download { name: "failures.csv", kind: "text/csv; charset=utf-8", write: failures_csv },
        ];
        downloads.extend(further);
        Self { shared, downloads: Arc::new(downloads), name, listeners: Arc::new(Semaphore::new(MAX_LISTENERS)) }
    }

    /// All addresses, guarded.
    pub fn router(self) -> Router {
        let file = |kind, text: &'static str| get(async move || ([(CONTENT_TYPE, kind)], text));
        Router::new()
            .route("/", file("text/html; charset=utf-8", include_str!("../../assets/page.html")))
            .route("/page.css", file(CSS, include_str!("../../assets/page.css")))
            .route("/page.js", file(JAVASCRIPT, include_str!("../../assets/page.js")))
            // The files that reports hold too.
            .route("/uplot.css", file(CSS, include_str!("../../../pelton-report/assets/uplot/uPlot.min.css")))
            .route("/uplot.js", file(JAVASCRIPT, include_str!("../../../pelton-report/assets/uplot/uPlot.iife.min.js")))
            .route("/api/state", get(state))
            .route("/api/events", get(events))
            .route("/api/start", post(start))
            .route("/api/users", post(users))
            .route("/api/stop", post(stop))
            .route("/download/{name}", get(download))
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            .layer(middleware::from_fn_with_state(self.clone(), guarded))
            .with_state(self)
    }
}

async fn guarded(State(site): State<Site>, request: Request, next: Next) -> Response {
    let mut response = match guard::check(request.method(), request.headers(), site.name.as_deref()) {
        Ok(()) => next.run(request).await,
        Err((status, error)) => refuse(status, Refusal::new("", error)),
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn refuse(status: StatusCode, refusal: Refusal) -> Response {
    (status, axum::Json(refusal)).into_response()
}

/// Everything that a listener would be told at once.
async fn state(State(site): State<Site>) -> Response {
    let update = site.shared.lock().update(&mut Seen::default());
    axum::Json(json!({ "update": update, "downloads": site.names() })).into_response()
}

/// Server-sent events: everything first, then what is new at each change.
async fn events(State(site): State<Site>) -> Response {
    let Ok(permit) = Arc::clone(&site.listeners).try_acquire_owned() else {
        let error = format!("{MAX_LISTENERS} pages listen already: close one");
        return refuse(StatusCode::SERVICE_UNAVAILABLE, Refusal::new("", error));
    };
    let mut changes = site.shared.changes.subscribe();
    changes.mark_changed();
    let start = (site.shared, changes, Seen::default(), permit);
    let updates = stream::unfold(start, |(shared, mut changes, mut seen, permit)| async move {
        // Fails when the process ends, and with it the stream.
        changes.changed().await.ok()?;
        let update = shared.lock().update(&mut seen);
        let event = Event::default().json_data(&update).ok()?;
        Some((Ok::<_, Infallible>(event), (shared, changes, seen, permit)))
    });
    Sse::new(updates).keep_alive(KeepAlive::default()).into_response()
}

async fn start(State(site): State<Site>, bytes: Bytes) -> Result<Response, Response> {
    let bad = |refusal| refuse(StatusCode::BAD_REQUEST, refusal);
    let order = order::read::<Start>(&bytes).and_then(|start| start.order()).map_err(bad)?;
    let words = order.to_string();
    let number =
        site.shared.start(order, words).map_err(|error| refuse(StatusCode::CONFLICT, Refusal::new("", error)))?;
    Ok((StatusCode::ACCEPTED, axum::Json(json!({ "number": number }))).into_response())
}

async fn users(State(site): State<Site>, bytes: Bytes) -> Result<Response, Response> {
    let bad = |refusal| refuse(StatusCode::BAD_REQUEST, refusal);
    let change: Change = order::read(&bytes).map_err(bad)?;
    change.check().map_err(bad)?;
    let changed = site.shared.change_users(change.users, change.spawn_rate);
    changed.map_err(|refusal| refuse(StatusCode::CONFLICT, refusal))?;
    Ok(axum::Json(json!({ "users": change.users })).into_response())
}

async fn stop(State(site): State<Site>) -> Result<Response, Response> {
    site.shared.stop().map_err(|error| refuse(StatusCode::CONFLICT, Refusal::new("", error)))?;
    Ok(axum::Json(json!({ "stopping": true })).into_response())
}

async fn download(State(site): State<Site>, Path(name): Path<String>) -> Result<Response, Response> {
    let missing = |error: String| refuse(StatusCode::NOT_FOUND, Refusal::new("", error));
    let Some(&download) = site.downloads.iter().find(|download| download.name == name) else {
        return Err(missing(format!("{name:?} is no download; there are {}", site.names().join(", "))));
    };
    let results = site.shared.lock().results.clone();
    let results = results.ok_or_else(|| missing("no run is over yet".to_owned()))?;
    // May be long: a row for each request.
    let made = tokio::task::spawn_blocking(move || (download.write)(&results)).await;
    let bytes = made.map_err(|error| error.to_string()).flatten();
    let bytes = bytes.map_err(|error| refuse(StatusCode::INTERNAL_SERVER_ERROR, Refusal::new("", error)))?;
    let disposition = format!("attachment; filename=\"pelton-bench-{}\"", download.name);
    Ok(([(CONTENT_TYPE, download.kind.to_owned()), (CONTENT_DISPOSITION, disposition)], bytes).into_response())
}

impl Site {
    fn names(&self) -> Vec<&'static str> {
        self.downloads.iter().map(|download| download.name).collect()
    }
}

fn results_json(results: &Results) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    results.write_json(&mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

fn statistics_csv(results: &Results) -> Result<Vec<u8>, String> {
    sheets::statistics(results).map_err(|error| error.to_string())
}

fn failures_csv(results: &Results) -> Result<Vec<u8>, String> {
    sheets::failures(results).map_err(|error| error.to_string())
}
