//! Speaks to the measured server: one request in, one row out. Each dialect has its file; what they share is here.

mod connection;
mod openai;
pub mod probe;
mod text;
mod tgi;

use std::time::Instant;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use http_body_util::Full;
use hyper::body::Incoming;
use pelton_protocol::sse;
use serde_json::{Map, Value};

pub use connection::Connection;
pub use openai::Lengthening;

use crate::BenchError;
use crate::plan::{Api, TargetPlan};
use crate::recorder::{CountedBy, ErrorKind, Failure, RowBuilder};
use crate::workload::Ask;

/// Longest event and longest answer that is read.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// How much of a refusal is read.
const MAX_REFUSAL_BYTES: usize = 64 << 10;

/// The server's address and what every request carries.
#[derive(Clone, Debug)]
pub struct Target {
    address: std::net::SocketAddr,
    /// Path in front of every route, without a slash at its end.
    prefix: String,
    headers: HeaderMap,
}

impl Target {
    /// Reads the address and resolves its host. Errors if it is not `http://host[:port][/prefix]` or a header is not valid.
    pub fn resolve(plan: &TargetPlan) -> Result<Self, BenchError> {
        let bad = |reason: String| BenchError::Plan(format!("url {:?} {reason}", plan.url));
        let uri: http::Uri = plan.url.parse().map_err(|error| bad(format!("cannot be read: {error}")))?;
        if uri.scheme_str() != Some("http") {
            return Err(bad("must begin with http:// (TLS is not supported)".to_owned()));
        }
        let (Some(host), Some(authority)) = (uri.host(), uri.authority()) else {
            return Err(bad("has no host".to_owned()));
        };
        let port = uri.port_u16().unwrap_or(80);
        let mut addresses = std::net::ToSocketAddrs::to_socket_addrs(&(host.trim_matches(['[', ']']), port))
            .map_err(|error| bad(format!("names a host that cannot be resolved: {error}")))?;
        let address = addresses.next().ok_or_else(|| bad("names a host without an address".to_owned()))?;

        let mut headers = HeaderMap::new();
        let value = |name: &str, text: &str| {
            HeaderValue::from_str(text)
                .map_err(|_| BenchError::Plan(format!("header {name:?} has a value that HTTP forbids")))
        };
        headers.insert(HOST, value("host", authority.as_str())?);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(key) = &plan.api_key {
            let mut secret = value("authorization", &format!("Bearer {key}"))?;
            secret.set_sensitive(true);
            headers.insert(AUTHORIZATION, secret);
        }
        for (name, text) in &plan.headers {
            let header: HeaderName =
                name.parse().map_err(|_| BenchError::Plan(format!("{name:?} is not a name of a header")))?;
            headers.insert(header, value(name, text)?);
        }
        Ok(Self { address, prefix: uri.path().trim_end_matches('/').to_owned(), headers })
    }

    /// Opens a connection to the server.
    pub async fn connect(&self) -> std::io::Result<Connection> {
        Connection::open(self.address).await
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        // Prefix and routes are valid paths: the prefix was read from a URI.
        *request.uri_mut() = format!("{}{path}", self.prefix).parse().unwrap_or_default();
        *request.headers_mut() = self.headers.clone();
        request
    }
}

/// Sends generation requests in one dialect.
#[derive(Debug)]
pub struct Client {
    target: Target,
    api: Api,
    stream: bool,
    path: &'static str,
    /// The body without what is set for each request.
    body: Map<String, Value>,
    extra_body: Map<String, Value>,
}

impl Client {
    /// A client of one dialect. `model` is used by the OpenAI dialects only.
    pub fn new(target: Target, plan: &TargetPlan, api: Api, model: &str, length: Lengthening) -> Self {
        let (path, body) = match (api, plan.stream) {
            (Api::Tgi, true) => ("/generate_stream", tgi::body()),
            (Api::Tgi, false) => ("/generate", tgi::body()),
            (Api::Openai, stream) => ("/v1/completions", openai::body(model, stream, length)),
            (Api::OpenaiChat, stream) => ("/v1/chat/completions", openai::body(model, stream, length)),
        };
        Self { target, api, stream: plan.stream, path, body, extra_body: plan.extra_body.clone() }
    }

    /// Where it sends to.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The bytes of a request. A dialect without messages gets their contents as paragraphs; one with them gets a text as one message of
    /// the user.
    pub fn body(&self, ask: &Ask) -> Bytes {
        let mut body = self.body.clone();
        match self.api {
            Api::Tgi => tgi::set(&mut body, ask),
            Api::Openai => openai::set_prompt(&mut body, ask),
            Api::OpenaiChat => openai::set_messages(&mut body, ask),
        }
        // What the user adds has the last word.
        merge(&mut body, &self.extra_body);
        Bytes::from(Value::Object(body).to_string())
    }

    /// One request and its whole answer. `connection` is made if it is absent or closed, and stays if it can be used again.
    ///
    /// Dropping the future closes the connection, since it is taken out of its place meanwhile.
    pub async fn exchange(
        &self,
        slot: &mut Option<Connection>,
        body: Bytes,
        row: &mut RowBuilder,
    ) -> Result<(), Failure> {
        let mut reused = match slot.take() {
            Some(mut connection) => connection.is_ready().await.then_some(connection),
            None => None,
        };
        let (mut connection, response, at) = loop {
            let (mut connection, is_reused) = match reused.take() {
                Some(connection) => (connection, true),
                None => {
                    let began = Instant::now();
                    let opened = self.target.connect().await;
                    row.connected(began.elapsed());
                    (opened.map_err(|error| Failure::new(ErrorKind::Connect, error))?, false)
                }
            };
            match connection.send(self.target.request(Method::POST, self.path, body.clone())).await {
                Ok((response, at)) => break (connection, response, at),
                // The server closed an idle connection before the request left: nothing has been asked yet.
                Err(error) if is_reused && error.is_canceled() => continue,
                Err(error) => return Err(broken(&error)),
            }
        };
        let status = response.status();
        row.head(at, status.as_u16());
        if !status.is_success() {
            let mut text = Vec::new();
            let _ = read_body(&mut connection, response.into_body(), MAX_REFUSAL_BYTES, &mut text).await;
            return Err(Failure::new(ErrorKind::Status(status.as_u16()), message_of(&text)));
        }
        let (head, body) = response.into_parts();
        if self.stream {
            self.read_stream(&mut connection, body, row).await?;
        } else {
            self.read_whole(&mut connection, &head.headers, body, row).await?;
        }
        *slot = Some(connection);
        Ok(())
    }

    async fn read_stream(
        &self,
        connection: &mut Connection,
        body: Incoming,
        row: &mut RowBuilder,
    ) -> Result<(), Failure> {
        let mut decoder = sse::Decoder::new(MAX_ANSWER_BYTES);
        let mut reader = match self.api {
            Api::Tgi => StreamReader::Tgi(tgi::StreamReader::default()),
            Api::Openai | Api::OpenaiChat => StreamReader::Openai(openai::StreamReader::default()),
        };
        let mut events = Vec::new();
        let result = pump(connection, body, &mut decoder, &mut events, &mut reader, row).await;
        let complete = reader.end(row);
        result?;
        if !complete {
            return Err(Failure::new(ErrorKind::Broken, "stream ended before its final event"));
        }
        Ok(())
    }

    async fn read_whole(
        &self,
        connection: &mut Connection,
        headers: &HeaderMap,
        body: Incoming,
        row: &mut RowBuilder,
    ) -> Result<(), Failure> {
        let mut bytes = Vec::new();
        let at = read_body(connection, body, MAX_ANSWER_BYTES, &mut bytes).await?;
        let number = |name: &str| headers.get(name)?.to_str().ok()?.parse::<u32>().ok();
        number("x-prompt-tokens").into_iter().for_each(|n| row.prompt_tokens(n));
        let counted = match self.api {
            Api::Tgi => tgi::whole(&bytes, row)?,
            Api::Openai | Api::OpenaiChat => openai::whole(&bytes, row)?,
        };
        if let Some(at) = at {
            row.touch(at);
            if let Some(tokens) = counted.or_else(|| number("x-generated-tokens")) {
                row.arrived(at, 1, tokens);
                row.count(tokens, CountedBy::Server);
            }
        }
        Ok(())
    }
}

enum StreamReader {
    Tgi(tgi::StreamReader),
    Openai(openai::StreamReader),
}

impl StreamReader {
    fn event(&mut self, data: &str, at: Instant, row: &mut RowBuilder) -> Result<(), Failure> {
        match self {
            StreamReader::Tgi(reader) => reader.event(data, at, row),
            StreamReader::Openai(reader) => reader.event(data, at, row),
        }
    }

    fn end(&mut self, row: &mut RowBuilder) -> bool {
        match self {
            StreamReader::Tgi(reader) => reader.end(row),
            StreamReader::Openai(reader) => reader.end(row),
        }
    }
}

/// From socket to rows, until the body ends.
async fn pump(
    connection: &mut Connection,
    mut body: Incoming,
    decoder: &mut sse::Decoder,
    events: &mut Vec<String>,
    reader: &mut StreamReader,
    row: &mut RowBuilder,
) -> Result<(), Failure> {
    while let Some(read) = connection.read(&mut body).await {
        let (bytes, at) = read.map_err(|error| broken(&error))?;
        let decoded = decoder.push(&bytes, events);
        for data in events.drain(..) {
            reader.event(&data, at, row)?;
        }
        decoded.map_err(|error| Failure::new(ErrorKind::Malformed, error))?;
    }
    Ok(())
}

/// Reads a body of at most `limit` bytes. Returns when its last bytes arrived; `None` if it is empty.
async fn read_body(
    connection: &mut Connection,
    mut body: Incoming,
    limit: usize,
    out: &mut Vec<u8>,
) -> Result<Option<Instant>, Failure> {
    let mut last = None;
    while let Some(read) = connection.read(&mut body).await {
        let (bytes, at) = read.map_err(|error| broken(&error))?;
        if out.len() + bytes.len() > limit {
            return Err(Failure::new(ErrorKind::Malformed, format!("answer is longer than {limit} bytes")));
        }
        out.extend_from_slice(&bytes);
        last = Some(at);
    }
    Ok(last)
}

fn broken(error: &hyper::Error) -> Failure {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    Failure::new(ErrorKind::Broken, format!("{error}{cause}"))
}

fn malformed(error: impl std::fmt::Display, data: &str) -> Failure {
    let start: String = data.chars().take(80).collect();
    Failure::new(ErrorKind::Malformed, format!("{error} in {start:?}"))
}

/// An error told inside an answer: TGI gives a string, OpenAI an object with a message.
fn server_error(error: &Value) -> Failure {
    let text = error.as_str().or_else(|| error.get("message").and_then(Value::as_str));
    Failure::new(ErrorKind::ErrorEvent, text.map_or_else(|| error.to_string(), str::to_owned))
}

/// The words of a refusal, whether JSON or plain.
fn message_of(body: &[u8]) -> String {
    let parsed: Option<Value> = serde_json::from_slice(body).ok();
    let error = parsed.as_ref().and_then(|value| value.get("error").or_else(|| value.get("message")));
    match error {
        Some(error) => server_error(error).message,
        None => String::from_utf8_lossy(body).trim().to_owned(),
    }
}

/// Sets `extra`'s members in `body`; where both hold an object, its members.
fn merge(body: &mut Map<String, Value>, extra: &Map<String, Value>) {
    for (key, value) in extra {
        match (body.get_mut(key), value) {
            (Some(Value::Object(inner)), Value::Object(value)) => merge(inner, value),
            _ => {
                body.insert(key.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_members_join_the_objects_of_the_body() {
        let object = |text: &str| serde_json::from_str::<Map<String, Value>>(text).expect("object");
        let mut body = object(r#"{"inputs":"","parameters":{"details":true,"max_new_tokens":5}}"#);
        merge(&mut body, &object(r#"{"parameters":{"max_new_tokens":7,"stop":["x"]},"user":"u"}"#));
        let expected = r#"{"inputs":"","parameters":{"details":true,"max_new_tokens":7,"stop":["x"]},"user":"u"}"#;
        assert_eq!(Value::Object(body).to_string(), expected);
    }

    #[test]
    fn refusals_are_told_in_the_words_of_the_server() {
        assert_eq!(message_of(br#"{"error":"Model is overloaded","error_type":"overloaded"}"#), "Model is overloaded");
        assert_eq!(message_of(br#"{"error":{"message":"bad","type":"x"}}"#), "bad");
        assert_eq!(message_of(b"plain\n"), "plain");
    }
}
