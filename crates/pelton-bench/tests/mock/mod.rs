//! A server with scripted answers and delays, on threads of its own, so that its clock does not depend on the measured side.

// Each test binary uses a part of it.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pelton_bench::results::Results;
use pelton_bench::watch::{Blind, Control};
use pelton_bench::{
    BenchError, BenchPlan, Goals, Limits, Load, MetricsPlan, MetricsSource, Row, Scale, TargetPlan, Warmup,
    WorkloadPlan,
};
use serde_json::Value;

/// A load test of one user: nothing is left out, the server's metrics are not asked for.
pub fn plan(url: String, requests: u64, output_tokens: u32) -> BenchPlan {
    BenchPlan {
        target: TargetPlan { timeout: Duration::from_secs(20), ..TargetPlan::at(url) },
        workload: WorkloadPlan::synthetic(20, output_tokens, 1),
        metrics: MetricsPlan { source: MetricsSource::Off, ..MetricsPlan::default() },
        load: Load::users([1]),
        limits: Limits {
            duration: Duration::from_secs(60),
            requests,
            grace: Duration::from_secs(10),
            at_least: Duration::ZERO,
        },
        warmup: Warmup::Requests(0),
        cooldown: Duration::ZERO,
        goals: Goals::default(),
        scale: Scale::default(),
    }
}

pub fn try_run(plan: &BenchPlan) -> Result<Results, BenchError> {
    pelton_bench::run(plan, Vec::new(), &mut Blind, &Control::default())
}

pub fn run(plan: &BenchPlan) -> Results {
    try_run(plan).expect("the server answers")
}

/// Kinds and messages of failures; empty where there is none.
pub fn kinds(rows: &[Row]) -> Vec<String> {
    let told = |row: &Row| row.failure.as_ref().map(|failure| format!("{}: {}", failure.kind, failure.message));
    rows.iter().map(|row| told(row).unwrap_or_default()).collect()
}

/// A request as received.
pub struct Question {
    pub path: String,
    pub body: Value,
    /// Header lines in lower case.
    pub headers: Vec<String>,
    /// How many requests to this path came before.
    pub nth: usize,
    /// When it had been read.
    pub received: Instant,
}

/// One act of an answer.
pub enum Act {
    /// Head of a streamed answer.
    StreamHead,
    /// Bytes of a streamed answer, as one chunk.
    Send(String),
    /// A pause until this long after the request was received.
    Until(Duration),
    /// End of a streamed answer.
    StreamEnd,
    /// A whole answer with a status, further header lines, and a body.
    Whole(u16, &'static str, String),
    /// Bytes as they are, head and framing included.
    Raw(Vec<u8>),
    /// The same bytes until the client goes away.
    Endless(Vec<u8>),
    /// Closes the connection.
    Close,
}

pub type Script = dyn Fn(&Question) -> Vec<Act> + Send + Sync;

/// Listens until the process ends.
pub struct Mock {
    pub address: SocketAddr,
    pub connections: Arc<AtomicUsize>,
}

impl Mock {
    /// `script` answers every request; `/info` makes it a TGI server, `/v1/models` an OpenAI one, by what the script answers.
    pub fn start(script: impl Fn(&Question) -> Vec<Act> + Send + Sync + 'static) -> Self {
        Self::start_for(usize::MAX, script)
    }

    /// As [`start`](Self::start), but listens no longer once so many connections were made.
    pub fn start_for(max_connections: usize, script: impl Fn(&Question) -> Vec<Act> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("the listener is bound");
        let connections = Arc::new(AtomicUsize::new(0));
        let (script, counter): (Arc<Script>, _) = (Arc::new(script), Arc::clone(&connections));
        let generations = Arc::new(AtomicUsize::new(0));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten().take(max_connections) {
                counter.fetch_add(1, Ordering::Relaxed);
                let (script, generations) = (Arc::clone(&script), Arc::clone(&generations));
                std::thread::spawn(move || {
                    // A client that goes away ends its connection; nothing is expected of it.
                    let _ = serve(stream, &*script, &generations);
                });
            }
        });
        Self { address, connections }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn serve(stream: TcpStream, script: &Script, generations: &AtomicUsize) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut length = 0;
        let mut headers = Vec::new();
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let header = header.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            headers.push(header);
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let received = Instant::now();
        let nth = if is_generation(&path) { generations.fetch_add(1, Ordering::Relaxed) } else { 0 };
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let question = Question { path, body, headers, nth, received };
        for act in script(&question) {
            match act {
                Act::StreamHead => writer.write_all(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
                )?,
                Act::Send(text) => write!(writer, "{:x}\r\n{text}\r\n", text.len())?,
                Act::Until(after) => std::thread::sleep((received + after).saturating_duration_since(Instant::now())),
                Act::StreamEnd => writer.write_all(b"0\r\n\r\n")?,
                Act::Whole(status, headers, body) => write!(
                    writer,
                    "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n{body}",
                    body.len()
                )?,
                Act::Raw(bytes) => writer.write_all(&bytes)?,
                Act::Endless(bytes) => loop {
                    writer.write_all(&bytes)?;
                },
                Act::Close => return writer.shutdown(std::net::Shutdown::Both),
            }
        }
    }
}

/// Whether text is asked for, rather than facts.
pub fn is_generation(path: &str) -> bool {
    let last = path.rsplit('/').next().unwrap_or_default();
    ["generate", "generate_stream", "completions", "infer"].contains(&last)
}

/// Tokens of a text under the mock's tokenizer: one for each word, and one at the beginning.
pub fn tokens(text: &str) -> usize {
    text.split_whitespace().count() + 1
}

/// The pacing of streamed answers.
#[derive(Clone, Copy)]
pub struct Pace {
    pub first: Duration,
    pub gap: Duration,
}

impl Pace {
    pub const fn ms(first: u64, gap: u64) -> Self {
        Self { first: Duration::from_millis(first), gap: Duration::from_millis(gap) }
    }

    fn at(self, n: usize) -> Duration {
        self.first + self.gap * n as u32
    }
}

/// What a TGI server answers to questions; `None` for generation requests.
pub fn tgi_facts(question: &Question) -> Option<Vec<Act>> {
    let json = match question.path.as_str() {
        "/info" => r#"{"model_id":"mock"}"#.to_owned(),
        "/tokenize" => {
            let count = tokens(question.body["inputs"].as_str().unwrap_or_default());
            Value::Array(vec![serde_json::json!({ "id": 0 }); count]).to_string()
        }
        path if is_generation(path) => return None,
        _ => return Some(vec![Act::Whole(404, "", "{}".to_owned())]),
    };
    Some(vec![Act::Whole(200, "", json)])
}

/// A correct streamed TGI answer.
pub fn tgi_stream(question: &Question, pace: Pace) -> Vec<Act> {
    let wished = question.body["parameters"]["max_new_tokens"].as_u64().expect("a number of tokens") as usize;
    let input = tokens(question.body["inputs"].as_str().expect("a prompt"));
    let mut acts = vec![Act::StreamHead];
    for n in 0..wished {
        acts.push(Act::Until(pace.at(n)));
        acts.push(Act::Send(tgi_event(n + 1, (n + 1 == wished).then_some((wished, input)))));
    }
    acts.push(Act::StreamEnd);
    acts
}

/// One TGI event; `last` holds generated tokens and prompt tokens.
pub fn tgi_event(index: usize, last: Option<(usize, usize)>) -> String {
    let token = r#"{"id":5,"text":" w","logprob":-0.5,"special":false}"#;
    let tail = match last {
        Some((generated, input)) => format!(
            r#""generated_text":" w w","details":{{"finish_reason":"length","generated_tokens":{generated},"seed":null,"input_length":{input}}}"#
        ),
        None => r#""generated_text":null,"details":null"#.to_owned(),
    };
    format!("data: {{\"index\":{index},\"token\":{token},{tail}}}\n\n")
}

/// What an OpenAI server of the vLLM kind answers to questions; `None` for generation requests.
pub fn openai_facts(question: &Question) -> Option<Vec<Act>> {
    let json = match question.path.as_str() {
        "/v1/models" => r#"{"object":"list","data":[{"id":"mock-model","object":"model"}]}"#.to_owned(),
        "/tokenize" => {
            let Some(prompt) = question.body["prompt"].as_str() else {
                return Some(vec![Act::Whole(400, "", "{}".to_owned())]);
            };
            format!(r#"{{"count":{},"max_model_len":4096,"tokens":[]}}"#, tokens(prompt))
        }
        path if is_generation(path) => return None,
        _ => return Some(vec![Act::Whole(404, "", "{}".to_owned())]),
    };
    Some(vec![Act::Whole(200, "", json)])
}

/// An answer that is not streamed.
pub fn whole(json: Value) -> Vec<Act> {
    vec![Act::Whole(200, "", json.to_string())]
}

/// The body of a stream.
pub fn stream(text: &str) -> Vec<Act> {
    vec![Act::StreamHead, Act::Send(text.to_owned()), Act::StreamEnd]
}
