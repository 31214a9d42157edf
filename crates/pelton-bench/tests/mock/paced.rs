//! A TGI server for many streams at once: one thread, one timer for each token, and a note of when each token really left.
//!
//! What left is the truth that a measurement is compared with: on a busy machine the server's own timers are late too.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};

/// When the tokens of an answer leave.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// First token after the request was read.
    pub first: Duration,
    /// Between tokens.
    pub gap: Duration,
    /// Nothing leaves inside this span after the server's first generation request: begin and end.
    pub stall: Option<(Duration, Duration)>,
}

/// One answer as it was given.
#[derive(Clone, Debug)]
pub struct Served {
    /// When the request had been read.
    pub received: Instant,
    /// Just before each token was written.
    pub sent: Vec<Instant>,
}

/// What all connections share.
#[derive(Debug)]
struct State {
    pace: Pace,
    first_request: Mutex<Option<Instant>>,
    served: Mutex<Vec<Served>>,
}

/// Serves until the process ends.
#[derive(Debug)]
pub struct Paced {
    pub address: SocketAddr,
    state: Arc<State>,
}

impl Paced {
    /// Serves on a thread of its own.
    pub fn start(pace: Pace) -> std::io::Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let state = Arc::new(State { pace, first_request: Mutex::default(), served: Mutex::default() });
        let shared = Arc::clone(&state);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::spawn(move || runtime.block_on(accept(listener, shared)));
        Ok(Self { address, state })
    }

    /// The answers since the last call, in order of their ends.
    pub fn take_served(&self) -> Vec<Served> {
        std::mem::take(&mut *self.state.served.lock().expect("not poisoned"))
    }
}

async fn accept(listener: std::net::TcpListener, state: Arc<State>) {
    let listener = TcpListener::from_std(listener).expect("a listener of a runtime");
    loop {
        // Out of files: those that are open go on.
        let Ok((stream, _)) = listener.accept().await else { continue };
        let state = Arc::clone(&state);
        // A client that goes away ends its connection; nothing is expected of it.
        tokio::spawn(async move { serve(stream, &state).await.ok() });
    }
}

async fn serve(stream: TcpStream, state: &State) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut pending = Vec::new();
    while let Some((path, body)) = request(&stream, &mut pending).await? {
        let received = Instant::now();
        let text = String::from_utf8_lossy(&body);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let words = |text: &serde_json::Value| text.as_str().unwrap_or_default().split_whitespace().count() + 1;
        match path.as_str() {
            "/info" => whole(&stream, 200, r#"{"model_id":"mock"}"#).await?,
            "/tokenize" => {
                whole(&stream, 200, &format!("[{}]", vec![r#"{"id":0}"#; words(&json["inputs"])].join(","))).await?
            }
            "/generate_stream" => {
                let wished = json["parameters"]["max_new_tokens"].as_u64().unwrap_or(1) as usize;
                let sent = answer(&stream, state, received, wished, words(&json["inputs"])).await?;
                state.served.lock().expect("not poisoned").push(Served { received, sent });
            }
            _ => whole(&stream, 404, "{}").await?,
        }
    }
    Ok(())
}

/// Streams an answer; gives back when each token left.
async fn answer(
    stream: &TcpStream,
    state: &State,
    received: Instant,
    wished: usize,
    input: usize,
) -> std::io::Result<Vec<Instant>> {
    let pace = state.pace;
    let began = *state.first_request.lock().expect("not poisoned").get_or_insert(received);
    write(stream, b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await?;
    let mut sent = Vec::with_capacity(wished);
    for n in 0..wished {
        let mut due = received + pace.first + pace.gap * n as u32;
        if let Some((from, to)) = pace.stall
            && (began + from..began + to).contains(&due)
        {
            due = began + to;
        }
        tokio::time::sleep_until(due.into()).await;
        let tail = if n + 1 == wished {
            format!(
                r#""generated_text":"w","details":{{"finish_reason":"length","generated_tokens":{wished},"seed":null,"input_length":{input}}}"#
            )
        } else {
            r#""generated_text":null,"details":null"#.to_owned()
        };
        let token = r#"{"id":5,"text":" w","logprob":-0.5,"special":false}"#;
        let event = format!("data: {{\"index\":{},\"token\":{token},{tail}}}\n\n", n + 1);
        let end = if n + 1 == wished { "0\r\n\r\n" } else { "" };
        sent.push(Instant::now());
        write(stream, format!("{:x}\r\n{event}\r\n{end}", event.len()).as_bytes()).await?;
    }
    Ok(sent)
}

async fn whole(stream: &TcpStream, status: u16, body: &str) -> std::io::Result<()> {
    let head =
        format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    write(stream, (head + body).as_bytes()).await
}

async fn write(stream: &TcpStream, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads one request: its path and its body. `None` at the end of the connection.
async fn request(stream: &TcpStream, pending: &mut Vec<u8>) -> std::io::Result<Option<(String, Vec<u8>)>> {
    loop {
        if let Some(head_end) = pending.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&pending[..head_end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
            let end = head_end + 4 + length.unwrap_or(0usize);
            if pending.len() >= end {
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                let body = pending[head_end + 4..end].to_vec();
                pending.drain(..end);
                return Ok(Some((path, body)));
            }
        }
        stream.readable().await?;
        let mut bytes = [0; 16 << 10];
        match stream.try_read(&mut bytes) {
            Ok(0) => return Ok(None),
            Ok(n) => pending.extend_from_slice(&bytes[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
