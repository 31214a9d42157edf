//! A server on a free port over a scripted model, and a client that shows everything.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use pelton_engine::{EngineConfig, EngineHandle, FakeConfig, FakeModel, TokenId};
use pelton_protocol::sse::{Decoder, SseError};
use pelton_serve::{ServeConfig, ServeOutcome, ServeRunError};
use pelton_text::{TextModel, TextPool};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Nothing in these tests takes so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// End of text of the byte tokenizer.
pub const END_OF_TEXT: u32 = 256;

/// What to start.
pub struct Setup {
    pub fake: FakeConfig,
    pub engine: EngineConfig,
    pub serve: ServeConfig,
}

impl Setup {
    /// Every sequence reads `script` over and over: the token at position `q` is `script[q % len]`, prompt included in the count.
    pub fn telling(script: impl IntoIterator<Item = u32>) -> Self {
        Self {
            fake: FakeConfig {
                vocab_size: 262,
                script: script.into_iter().map(TokenId).collect(),
                ..FakeConfig::default()
            },
            engine: EngineConfig {
                max_step_tokens: 512,
                max_sequences: 64,
                max_queued: 256,
                ..EngineConfig::default()
            },
            serve: ServeConfig { model_id: "fake".into(), max_total_tokens: Some(1024), ..ServeConfig::default() },
        }
    }

    /// The alphabet over and over.
    pub fn alphabet() -> Self {
        Self::telling((b'a'..=b'z').map(u32::from))
    }

    pub fn step_cost(mut self, cost: Duration) -> Self {
        self.fake.step_cost = cost;
        self
    }

    pub fn serve(mut self, change: impl FnOnce(&mut ServeConfig)) -> Self {
        change(&mut self.serve);
        self
    }

    pub fn engine(mut self, change: impl FnOnce(&mut EngineConfig)) -> Self {
        change(&mut self.engine);
        self
    }

    pub async fn start(self) -> Server {
        self.try_start().await.expect("settings that can be kept")
    }

    pub async fn try_start(self) -> Result<Server, ServeRunError> {
        let engine = pelton_engine::start(Box::new(FakeModel::new(self.fake)), self.engine).expect("the engine starts");
        let pool = TextPool::new(TextModel::bytes(), 1, 64);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let (stop, stopped) = oneshot::channel::<()>();
        let server = pelton_serve::Server::new(self.serve, engine.clone(), pool)?;
        let run = pelton_serve::run(listener, server, async {
            let _dropped_or_sent = stopped.await;
        });
        Ok(Server { address, engine, stop: Some(stop), run: tokio::spawn(run) })
    }
}

/// A running server.
pub struct Server {
    pub address: SocketAddr,
    pub engine: EngineHandle,
    stop: Option<oneshot::Sender<()>>,
    run: JoinHandle<ServeOutcome>,
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}")).to_str().expect("a text header")
    }

    /// Fails unless the status is 200.
    pub fn ok(self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{self:?}");
        self.json()
    }
}

impl Server {
    pub async fn get(&self, path: &str) -> Answer {
        whole(self.send("GET", path, &[], Bytes::new()).await.0).await
    }

    pub async fn post(&self, path: &str, body: impl Into<Body>) -> Answer {
        whole(self.open(path, body).await.0).await
    }

    /// Sends a request and reads the head of the answer. Dropping the connection is going away.
    pub async fn open(&self, path: &str, body: impl Into<Body>) -> (http::Response<Incoming>, Connection) {
        self.send("POST", path, &[("content-type", "application/json")], body.into().0).await
    }

    /// Posts and reads the events of the answer.
    pub async fn events(&self, path: &str, body: impl Into<Body>) -> Vec<String> {
        let (response, _connection) = self.open(path, body).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert!(response.headers()["content-type"].to_str().expect("text").starts_with("text/event-stream"));
        let mut events = Events::new(response.into_body());
        let mut all = Vec::new();
        while let Some(event) = events.next().await {
            all.push(event);
        }
        all
    }

    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> (http::Response<Incoming>, Connection) {
        let connection = self.connect().await;
        connection.send(method, path, headers, body).await
    }

    /// An open connection without a request.
    pub async fn connect(&self) -> Idle {
        let stream = TcpStream::connect(self.address).await.expect("the server listens");
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("a handshake");
        Idle { sender, task: Connection(tokio::spawn(async { drop(connection.await) })) }
    }

    /// Waits until what the engine says of itself fulfils `condition`.
    pub async fn until(&self, what: &str, condition: impl Fn(&Gauges) -> bool) {
        let waiting = async {
            while !condition(&self.gauges()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, waiting).await;
        assert!(in_time.is_ok(), "{what}: {:?}", self.gauges());
    }

    pub fn gauges(&self) -> Gauges {
        let gauges = self.engine.gauges();
        let load = |gauge: &AtomicU64| gauge.load(Ordering::Relaxed);
        Gauges {
            running: load(&gauges.running),
            waiting: load(&gauges.waiting),
            blocks_used: load(&gauges.blocks_used),
            steps: load(&gauges.steps),
        }
    }

    /// Gives the signal to stop; `run` is then to be awaited with [`Server::stopped`].
    pub fn stop(&mut self) {
        let stop = self.stop.take().expect("stopped once");
        stop.send(()).expect("the server runs");
    }

    /// Waits for the end of `run`.
    pub async fn stopped(self) -> ServeOutcome {
        let run = tokio::time::timeout(PATIENCE, self.run).await.expect("the server stops in time");
        run.expect("the server does not panic")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gauges {
    pub running: u64,
    pub waiting: u64,
    pub blocks_used: u64,
    pub steps: u64,
}

impl Gauges {
    pub fn is_idle(&self) -> bool {
        self.running == 0 && self.waiting == 0 && self.blocks_used == 0
    }
}

/// What is posted: JSON, or bytes as they are.
pub struct Body(pub Bytes);

impl From<Value> for Body {
    fn from(value: Value) -> Self {
        Self(value.to_string().into())
    }
}

impl From<&'static [u8]> for Body {
    fn from(bytes: &'static [u8]) -> Self {
        Self(bytes.into())
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

/// A connection without a request under way.
pub struct Idle {
    sender: http1::SendRequest<Full<Bytes>>,
    task: Connection,
}

impl Idle {
    pub async fn send(
        mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> (http::Response<Incoming>, Connection) {
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).expect("a request");
        let response = tokio::time::timeout(PATIENCE, self.sender.send_request(request)).await.expect("in time");
        (response.expect("an answer"), self.task)
    }
}

/// A client that keeps its connection as long as the server does.
pub struct Client<'a> {
    server: &'a Server,
    kept: Option<(http1::SendRequest<Full<Bytes>>, Connection)>,
}

impl<'a> Client<'a> {
    pub fn new(server: &'a Server) -> Self {
        Self { server, kept: None }
    }

    /// Posts JSON and reads the whole answer.
    pub async fn post(&mut self, path: &str, body: &Value) -> Answer {
        let kept = match self.kept.take() {
            Some((mut sender, task)) => sender.ready().await.is_ok().then_some((sender, task)),
            None => None,
        };
        let (mut sender, task) = match kept {
            Some(kept) => kept,
            None => {
                let idle = self.server.connect().await;
                (idle.sender, idle.task)
            }
        };
        let request = Request::builder().method("POST").uri(path).header("host", "localhost");
        let request = request.header("content-type", "application/json").body(Full::new(body.to_string().into()));
        let sending = sender.send_request(request.expect("a request"));
        let response = tokio::time::timeout(PATIENCE, sending).await.expect("in time").expect("an answer");
        let answer = whole(response).await;
        if answer.headers.get("connection").is_none_or(|value| value != "close") {
            self.kept = Some((sender, task));
        }
        answer
    }
}

/// Closes the socket when dropped.
pub struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub async fn whole(response: http::Response<Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let body = tokio::time::timeout(PATIENCE, body.collect()).await.expect("in time").expect("a body").to_bytes();
    Answer { status: parts.status, headers: parts.headers, body }
}

/// The events of a stream, as they come.
pub struct Events {
    body: Incoming,
    decoder: Decoder,
    ready: Vec<String>,
}

impl Events {
    pub fn new(body: Incoming) -> Self {
        Self { body, decoder: Decoder::new(1 << 20), ready: Vec::new() }
    }

    pub async fn next(&mut self) -> Option<String> {
        while self.ready.is_empty() {
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("in time")?;
            let data = frame.expect("an unbroken stream").into_data().expect("data");
            let ready = &mut self.ready;
            let read: Result<(), SseError> = self.decoder.push(&data, |event| {
                ready.push(event.to_owned());
                Ok(())
            });
            read.expect("well-formed events");
        }
        Some(self.ready.remove(0))
    }

    pub async fn rest(mut self) -> Vec<String> {
        let mut rest = Vec::new();
        while let Some(event) = self.next().await {
            rest.push(event);
        }
        rest
    }
}

pub fn parse(event: &str) -> Value {
    serde_json::from_str(event).unwrap_or_else(|error| panic!("{error}: {event}"))
}

/// `count` letters of the alphabet, beginning with the one at `position`.
pub fn letters(position: usize, count: usize) -> String {
    (position..position + count).map(|position| char::from(b'a' + (position % 26) as u8)).collect()
}
