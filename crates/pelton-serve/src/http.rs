//! Connections: accepting them, bounding them in number and time, and stopping gracefully.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::{HeaderValue, Method, Version, header};
use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use pelton_engine::ShutdownOutcome;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tower_http::cors::{AllowOrigin, Any, CorsLayer};

use crate::{ServeConfig, Server, dialects, health};

/// After the deadline, how long cut streams may take to say so to their clients.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What counts as for ever.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How long a peer may leave what it was sent unacknowledged, and unread once its window is full, before it counts as gone.
const PEER_TIMEOUT: Duration = Duration::from_secs(60);

/// How long to wait when the system has no sockets left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Bytes of a connection's buffers: the longest header, and what is written ahead of a slow reader.
const CONNECTION_BUFFER_BYTES: usize = 64 << 10;

/// Connections at once to a port for metrics alone: a handful of scrapers.
const METRICS_CONNECTIONS: usize = 16;

/// How serving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServeOutcome {
    /// Every request that was taken up was answered.
    Drained,
    /// The deadline came first, or the engine had failed.
    Cut,
}

/// Why a server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServeRunError {
    /// A limit is beyond what the model and its KV cache can hold.
    #[error("{name} is {value}, the model and its KV cache allow at most {max}")]
    Limit {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: u32,
        /// The greatest that can be kept.
        max: u32,
    },
    /// A limit leaves no room for anything.
    #[error("{name} must be at least 1")]
    Zero {
        /// The setting.
        name: &'static str,
    },
    /// A setting cannot be understood.
    #[error("{name} cannot be {value:?}: {reason}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// Why not.
        reason: String,
    },
}

/// Serves `listener` until `shutdown` is ready. Then: no new connections, not ready, new work answered with 503; running requests go on until
/// `graceful_termination_timeout`, then they are cut with an error; the engine is shut down.
pub async fn run(listener: TcpListener, server: Arc<Server>, shutdown: impl Future<Output = ()>) -> ServeOutcome {
    let config = server.config();
    let engine = server.engine().clone();
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let places = Arc::new(Semaphore::new(config.num_connections().min(Semaphore::MAX_PERMITS)));
    let app = router(Arc::clone(&server)).layer(from_fn_with_state(Arc::clone(&places), give_way));
    let door = Door { app, places, read_timeout: config.read_timeout };
    door.accept_until(&listener, &graceful, &mut connections, shutdown).await;

    drop(listener);
    server.stop();
    let deadline = Instant::now() + config.graceful_termination_timeout.min(LONGEST_TIMEOUT);
    tracing::info!(timeout_s = config.graceful_termination_timeout.as_secs(), "stopping");
    let all_answered = tokio::time::timeout_at(deadline.into(), graceful.shutdown()).await.is_ok();
    let until = if all_answered { Instant::now() } else { deadline };
    let engine_outcome = tokio::task::spawn_blocking(move || engine.shutdown(until)).await;
    if !all_answered {
        // Their streams have ended now; what is left is to tell the clients.
        let last_words = async { while connections.join_next().await.is_some() {} };
        let _cut_off = tokio::time::timeout(LAST_WORDS, last_words).await;
    }
    connections.shutdown().await;
    match engine_outcome {
        Ok(ShutdownOutcome::Drained) if all_answered => ServeOutcome::Drained,
        _ => ServeOutcome::Cut,
    }
}

/// Answers `/metrics` and nothing else on `listener`, for scrapers that must not reach the rest; until `server` stops.
pub async fn run_metrics(listener: TcpListener, server: Arc<Server>) {
    let app = health::metrics_routes().with_state(Arc::clone(&server));
    let door =
        Door { app, places: Arc::new(Semaphore::new(METRICS_CONNECTIONS)), read_timeout: server.config().read_timeout };
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    door.accept_until(&listener, &graceful, &mut connections, server.stopped()).await;
    connections.shutdown().await;
}

/// What is behind a port, and for how many.
struct Door {
    app: Router,
    /// One for each connection at once.
    places: Arc<Semaphore>,
    read_timeout: Duration,
}

impl Door {
    /// Takes connections, as many at once as there are places, until `end` is ready; each is a task of `connections`, watched by `graceful`.
    async fn accept_until(
        &self,
        listener: &TcpListener,
        graceful: &GracefulShutdown,
        connections: &mut JoinSet<()>,
        end: impl Future<Output = ()>,
    ) {
        let http = http_settings(self.read_timeout);
        let mut end = std::pin::pin!(end);
        loop {
            tokio::select! {
                biased;
                () = &mut end => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                (place, accepted) = accept(listener, &self.places) => match accepted {
                    Ok(stream) => {
                        prepare_socket(&stream);
                        let service = TowerToHyperService::new(self.app.clone());
                        let connection = http.serve_connection(TokioIo::new(stream), service).into_owned();
                        let connection = graceful.watch(connection);
                        connections.spawn(async move {
                            let _place = place;
                            if let Err(error) = connection.await {
                                tracing::debug!(%error, "connection ended");
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }
}

/// All routes of all dialects.
pub fn router(server: Arc<Server>) -> Router {
    dialects::routes(&server).layer(server.cors().clone())
}

/// While no place is free, an answer is the last one on its connection, so that whoever waits for a place gets one: else clients that keep
/// their connections would shut out all others. (Streams of HTTP/2 share one connection, which is not theirs to close.)
async fn give_way(State(places): State<Arc<Semaphore>>, request: Request, next: Next) -> Response {
    let is_alone = request.version() < Version::HTTP_2;
    let mut response = next.run(request).await;
    if is_alone && places.available_permits() == 0 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> (OwnedSemaphorePermit, io::Result<TcpStream>) {
    let place = Arc::clone(places).acquire_owned().await.expect("the semaphore is never closed");
    (place, listener.accept().await.map(|(stream, _)| stream))
}

fn http_settings(read_timeout: Duration) -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(read_timeout).max_buf_size(CONNECTION_BUFFER_BYTES);
    // An answer in a stream is cancelled by resetting the stream; a peer that is gone is noticed by its silence.
    http.http2().timer(TokioTimer::new()).keep_alive_interval(read_timeout).keep_alive_timeout(PEER_TIMEOUT);
    http
}

/// Small events leave at once, and peers that have vanished or do not read are noticed. A system that cannot do one of these serves all the same.
fn prepare_socket(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keep_alive = TcpKeepalive::new().with_time(PEER_TIMEOUT).with_interval(PEER_TIMEOUT / 4);
    let settings = [stream.set_nodelay(true), socket.set_tcp_keepalive(&keep_alive)];
    #[cfg(target_os = "linux")]
    let settings = settings.into_iter().chain([socket.set_tcp_user_timeout(Some(PEER_TIMEOUT))]);
    for error in settings.into_iter().filter_map(Result::err) {
        tracing::debug!(%error, "a socket option could not be set");
    }
}

/// Which pages of other origins may call, from the settings.
pub(crate) fn cors(config: &ServeConfig) -> Result<CorsLayer, ServeRunError> {
    let origins = config.cors_allow_origin.iter().map(|origin| {
        HeaderValue::from_str(origin).map_err(|error| ServeRunError::Setting {
            name: "cors_allow_origin",
            value: origin.clone(),
            reason: error.to_string(),
        })
    });
    let origins = origins.collect::<Result<Vec<_>, _>>()?;
    let origins = if origins.is_empty() || origins.iter().any(|origin| origin == "*") {
        AllowOrigin::from(Any)
    } else {
        AllowOrigin::list(origins)
    };
    let headers = [header::CONTENT_TYPE, header::AUTHORIZATION];
    Ok(CorsLayer::new().allow_methods([Method::GET, Method::POST]).allow_headers(headers).allow_origin(origins))
}
