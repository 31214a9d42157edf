//! Speaks to the measured server: one request in, one row out. Each dialect has its file; what they share is here.

mod connection;
mod grpc;
mod http1;
mod kserve;
mod openai;
pub mod probe;
mod target;
mod tgi;
mod tls;
mod values;

use std::time::Instant;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method};
use pelton_protocol::kserve::{ModelInferResponse, ModelStreamInferResponse, SERVICE};
use pelton_protocol::sse::{self, SseError};
use serde_json::{Map, Value};

pub use connection::Connection;
use connection::{Body, Broken};
pub use openai::Lengthening;
pub use target::Target;

use crate::BenchError;
use crate::answers::Answers;
use crate::plan::{Api, TargetPlan};
use crate::recorder::{CountedBy, ErrorKind, Failure, Row, RowBuilder};
use crate::workload::Ask;
use probe::Found;
use values::MAX_TOKENS;

/// Longest event and longest whole answer that is read.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Longest stream that is read: more than [`MAX_TOKENS`] events of usual size.
const MAX_STREAM_BYTES: usize = 1 << 30;

/// How much of a refusal is read.
const MAX_REFUSAL_BYTES: usize = 64 << 10;

/// A request ready to be sent. Composing is no part of its time.
#[derive(Clone, Debug)]
pub struct Question {
    body: Bytes,
    /// Kept where answers may begin with it.
    prompt: String,
}

/// Sends generation requests in one dialect.
#[derive(Debug)]
pub struct Client {
    target: Target,
    stream: bool,
    path: String,
    form: Form,
    /// Where texts go that a tokenizer shall count.
    answers: Option<Answers>,
    ignores_end_of_text: bool,
    accepts_any_certificate: bool,
}

/// What a body is made of.
#[derive(Debug)]
enum Form {
    /// JSON without what is set for each request, and the members that the user adds.
    Tgi(Map<String, Value>, Map<String, Value>),
    Openai(Map<String, Value>, Map<String, Value>),
    OpenaiChat(Map<String, Value>, Map<String, Value>),
    Infer(kserve::Composer),
    Generate(kserve::Composer),
    Grpc(kserve::Composer, kserve::Model),
}

impl Client {
    /// A client of the dialect that was found. Errors if the user adds fields that it has no form for.
    pub fn new(target: Target, plan: &TargetPlan, found: &Found, length: Lengthening) -> Result<Self, BenchError> {
        let extra = plan.extra_body.clone();
        let openai = || openai::body(&found.model, plan.stream, length, found.provider);
        let composer = || kserve::Composer::new(&found.tensors, plan, found.api);
        let route = |name: &str| format!("{}/{name}", kserve::Model::path(&found.model, plan.model_version.as_deref()));
        let (path, form) = match (found.api, plan.stream) {
            (Api::Tgi, true) => ("/generate_stream".to_owned(), Form::Tgi(tgi::body(), extra)),
            (Api::Tgi, false) => ("/generate".to_owned(), Form::Tgi(tgi::body(), extra)),
            (Api::Openai, _) => ("/v1/completions".to_owned(), Form::Openai(openai(), extra)),
            (Api::OpenaiChat, _) => ("/v1/chat/completions".to_owned(), Form::OpenaiChat(openai(), extra)),
            (Api::KserveInfer, _) => (route("infer"), Form::Infer(composer()?)),
            (Api::KserveGenerate, true) => (route("generate_stream"), Form::Generate(composer()?)),
            (Api::KserveGenerate, false) => (route("generate"), Form::Generate(composer()?)),
            (Api::KserveGrpc, true) => {
                (format!("{SERVICE}ModelStreamInfer"), Form::Grpc(composer()?, found.tensors.clone()))
            }
            (Api::KserveGrpc, false) => {
                (format!("{SERVICE}ModelInfer"), Form::Grpc(composer()?, found.tensors.clone()))
            }
        };
        let ignores_end_of_text = match &form {
            Form::Tgi(..) => false,
            Form::Openai(..) | Form::OpenaiChat(..) => length.ignores_end_of_text(),
            Form::Infer(composer) | Form::Generate(composer) | Form::Grpc(composer, _) => composer.lengthens,
        };
        let accepts_any_certificate = plan.insecure;
        Ok(Self {
            target,
            stream: plan.stream,
            path,
            form,
            answers: None,
            ignores_end_of_text,
            accepts_any_certificate,
        })
    }

    /// Keeps the text of every answer until [`settle`](Self::settle) counts it.
    pub fn counting(mut self, tokenizer: pelton_text::TextModel) -> Self {
        self.answers = Some(Answers::new(tokenizer));
        self
    }

    /// Counts, after a run, the tokens of answers that the server did not count, if there is a tokenizer. Returns what the reader should
    /// know of it, and of the connection.
    pub fn settle(&self, rows: &mut [Row]) -> Vec<String> {
        let mut notes = self.answers.as_ref().map(|answers| answers.settle(rows)).unwrap_or_default();
        if self.accepts_any_certificate {
            notes.push("any certificate was accepted (--insecure): who answered is unchecked".to_owned());
        }
        notes
    }

    /// Whether the server is asked to go on after the end of text.
    pub fn ignores_end_of_text(&self) -> bool {
        self.ignores_end_of_text
    }

    /// Where it sends to.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// A request. A dialect without messages gets their contents as paragraphs; one with them gets a text as one message of the user.
    pub fn body(&self, ask: &Ask) -> Question {
        let json = |body: &Map<String, Value>, extra, set: fn(&mut Map<String, Value>, &Ask)| {
            let mut body = body.clone();
            set(&mut body, ask);
            // What the user adds has the last word.
            merge(&mut body, extra);
            Bytes::from(Value::Object(body).to_string())
        };
        let body = match &self.form {
            Form::Tgi(body, extra) => json(body, extra, tgi::set),
            Form::Openai(body, extra) => json(body, extra, openai::set_prompt),
            Form::OpenaiChat(body, extra) => json(body, extra, openai::set_messages),
            Form::Infer(composer) => Bytes::from(composer.infer(ask).to_string()),
            Form::Generate(composer) => Bytes::from(composer.flat(ask).to_string()),
            Form::Grpc(composer, model) => grpc::frame(&grpc::request(model, composer.question(ask))),
        };
        let echoes = matches!(self.form, Form::Infer(_) | Form::Generate(_) | Form::Grpc(..)) && !self.stream;
        Question { body, prompt: if echoes { ask.prompt.as_text().into_owned() } else { String::new() } }
    }

    /// One request and its whole answer. `connection` is made if it is absent or closed, and stays if it can be used again.
    ///
    /// Dropping the future closes the connection, since it is taken out of its place meanwhile.
    pub async fn exchange(
        &self,
        slot: &mut Option<Connection>,
        question: Question,
        row: &mut RowBuilder,
    ) -> Result<(), Failure> {
        if self.answers.is_some() {
            row.keep_text();
        }
        let result = self.ask(slot, question, row).await;
        self.answers.iter().for_each(|answers| answers.keep(row));
        result
    }

    async fn ask(
        &self,
        slot: &mut Option<Connection>,
        question: Question,
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
            match connection.send(self.target.request(Method::POST, &self.path, question.body.clone())).await {
                Ok((response, at)) => break (connection, response, at),
                // The server closed an idle connection before the request left: nothing has been asked yet.
                Err(error) if is_reused && error.is_unsent => continue,
                Err(error) => return Err(error.into()),
            }
        };
        let status = response.status();
        row.head(at, status.as_u16());
        let (head, mut body) = response.into_parts();
        if !status.is_success() {
            let mut text = Vec::new();
            let _ = read_body(&mut connection, &mut body, MAX_REFUSAL_BYTES, &mut text).await;
            return Err(Failure::new(ErrorKind::Status(status.as_u16()), message_of(&text)));
        }
        let expected = match (&self.form, self.stream) {
            (Form::Grpc(..), _) => "application/grpc",
            (_, true) => "text/event-stream",
            (_, false) => "application/json",
        };
        if let Some(given) = other_content_type(&head.headers, expected) {
            let mut text = Vec::new();
            let _ = read_body(&mut connection, &mut body, MAX_REFUSAL_BYTES, &mut text).await;
            let words = message_of(&text);
            return Err(Failure::new(
                ErrorKind::Malformed,
                format!("content type is {given}, not {expected}: {words}"),
            ));
        }
        tgi::server_times(&head.headers).into_iter().for_each(|times| row.server_times(times));
        match (&self.form, self.stream) {
            (Form::Grpc(composer, _), _) => {
                let prompt = &question.prompt;
                self.read_messages(&mut connection, &head.headers, &mut body, composer, prompt, row).await?;
            }
            (_, true) => self.read_stream(&mut connection, &mut body, row).await?,
            (_, false) => self.read_whole(&mut connection, &head.headers, &mut body, &question.prompt, row).await?,
        }
        *slot = Some(connection);
        Ok(())
    }

    async fn read_stream(
        &self,
        connection: &mut Connection,
        body: &mut Body,
        row: &mut RowBuilder,
    ) -> Result<(), Failure> {
        let mut reader = match &self.form {
            Form::Tgi(..) => StreamReader::Tgi(tgi::StreamReader::default()),
            Form::Openai(..) | Form::OpenaiChat(..) => StreamReader::Openai(openai::StreamReader::default()),
            // Whole answers and messages have readers of their own.
            Form::Infer(composer) | Form::Generate(composer) | Form::Grpc(composer, _) => {
                StreamReader::Kserve(kserve::StreamReader::default(), &composer.text)
            }
        };
        let result = pump(connection, body, &mut reader, row).await;
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
        body: &mut Body,
        prompt: &str,
        row: &mut RowBuilder,
    ) -> Result<(), Failure> {
        let mut bytes = Vec::new();
        let at = read_body(connection, body, MAX_ANSWER_BYTES, &mut bytes).await?;
        let number = |name: &str| headers.get(name)?.to_str().ok()?.parse().ok().filter(|&n: &u32| n <= MAX_TOKENS);
        number("x-prompt-tokens").into_iter().for_each(|n| row.prompt_tokens(n));
        let text = || std::str::from_utf8(&bytes).map_err(|error| malformed(error, &String::from_utf8_lossy(&bytes)));
        let counted = match &self.form {
            Form::Tgi(..) => tgi::whole(&bytes, row)?,
            Form::Openai(..) | Form::OpenaiChat(..) => openai::whole(&bytes, row)?,
            Form::Infer(composer) | Form::Grpc(composer, _) => kserve::inferred(text()?, &composer.text, prompt, row)?,
            Form::Generate(composer) => kserve::generated(text()?, &composer.text, prompt, row)?,
        };
        if let Some(at) = at {
            arrived_whole(at, counted.or_else(|| number("x-generated-tokens")), row);
        }
        Ok(())
    }

    /// The messages of a call of gRPC, and the status that ends it.
    async fn read_messages(
        &self,
        connection: &mut Connection,
        head: &HeaderMap,
        body: &mut Body,
        composer: &kserve::Composer,
        prompt: &str,
        row: &mut RowBuilder,
    ) -> Result<(), Failure> {
        let mut frames = grpc::Frames::new(MAX_ANSWER_BYTES);
        let mut reader = kserve::StreamReader::default();
        let mut length = 0;
        let mut answered = None;
        let reading = async {
            while let Some(read) = connection.read(body).await {
                let (bytes, at) = read?;
                length += bytes.len();
                frames.push(&bytes);
                if self.stream {
                    while let Some(message) = frames.next::<ModelStreamInferResponse>()? {
                        if !message.error_message.is_empty() {
                            return Err(Failure::new(ErrorKind::ErrorEvent, message.error_message));
                        }
                        let response = message.infer_response.unwrap_or_default();
                        reader.response(grpc::said(response, &composer.text)?, at, row)?;
                    }
                } else if let Some(message) = frames.next::<ModelInferResponse>()? {
                    let counted = kserve::whole(grpc::said(message, &composer.text)?, prompt, row)?;
                    answered = Some((at, counted));
                }
                bound(length, row)?;
            }
            let (trailers, at) = connection.trailers(body).await?;
            Ok((trailers, at))
        };
        let ended: Result<(Option<HeaderMap>, Instant), Failure> = reading.await;
        let mut complete = true;
        if self.stream {
            complete = reader.end(row);
        } else if let Some((at, counted)) = answered {
            arrived_whole(at, counted, row);
        }
        let (trailers, at) = ended?;
        // An error without an answer has its status in the head.
        let status = trailers.as_ref().and_then(grpc::status).or_else(|| grpc::status(head));
        status.unwrap_or_else(|| Err(Failure::new(ErrorKind::Broken, "stream ended without a status")))?;
        if frames.is_mid_message() || !complete || (!self.stream && answered.is_none()) {
            return Err(Failure::new(ErrorKind::Broken, "stream ended before its message"));
        }
        row.touch(at);
        Ok(())
    }
}

/// An answer that came at once.
fn arrived_whole(at: Instant, counted: Option<u32>, row: &mut RowBuilder) {
    row.touch(at);
    row.arrived(at, 1, counted.unwrap_or(1));
    row.count(counted.unwrap_or(1), if counted.is_some() { CountedBy::Server } else { CountedBy::Chunks });
}

enum StreamReader<'a> {
    Tgi(tgi::StreamReader),
    Openai(openai::StreamReader),
    Kserve(kserve::StreamReader, &'a str),
}

impl StreamReader<'_> {
    fn event(&mut self, data: &str, at: Instant, row: &mut RowBuilder) -> Result<(), Failure> {
        match self {
            StreamReader::Tgi(reader) => reader.event(data, at, row),
            StreamReader::Openai(reader) => reader.event(data, at, row),
            StreamReader::Kserve(reader, text) => reader.event(data, text, at, row),
        }
    }

    fn end(&mut self, row: &mut RowBuilder) -> bool {
        match self {
            StreamReader::Tgi(reader) => reader.end(row),
            StreamReader::Openai(reader) => reader.end(row),
            StreamReader::Kserve(reader, _) => reader.end(row),
        }
    }
}

/// From socket to rows, until the body ends.
async fn pump(
    connection: &mut Connection,
    body: &mut Body,
    reader: &mut StreamReader<'_>,
    row: &mut RowBuilder,
) -> Result<(), Failure> {
    let mut decoder = sse::Decoder::new(MAX_ANSWER_BYTES);
    let mut length = 0;
    while let Some(read) = connection.read(body).await {
        let (bytes, at) = read?;
        length += bytes.len();
        decoder.push(&bytes, |data| reader.event(data, at, row))?;
        bound(length, row)?;
    }
    Ok(())
}

impl From<SseError> for Failure {
    fn from(error: SseError) -> Self {
        Failure::new(ErrorKind::Malformed, error)
    }
}

/// Refuses streams that do not end.
fn bound(length: usize, row: &RowBuilder) -> Result<(), Failure> {
    let endless = |what: String| Err(Failure::new(ErrorKind::Malformed, format!("stream goes on after {what}")));
    if row.tokens_so_far() > MAX_TOKENS {
        return endless(format!("{MAX_TOKENS} tokens"));
    }
    if length > MAX_STREAM_BYTES {
        return endless(format!("{MAX_STREAM_BYTES} bytes"));
    }
    Ok(())
}

/// Reads a body of at most `limit` bytes. Returns when its last bytes arrived; `None` if it is empty.
async fn read_body(
    connection: &mut Connection,
    body: &mut Body,
    limit: usize,
    out: &mut Vec<u8>,
) -> Result<Option<Instant>, Failure> {
    let mut last = None;
    while let Some(read) = connection.read(body).await {
        let (bytes, at) = read?;
        if out.len() + bytes.len() > limit {
            return Err(Failure::new(ErrorKind::Malformed, format!("answer is longer than {limit} bytes")));
        }
        out.extend_from_slice(&bytes);
        last = Some(at);
    }
    Ok(last)
}

/// The content type, if it shows that the answer is of another kind. Servers are lax about it, so only what is surely wrong counts: a page,
/// or an answer that is not streamed in place of a stream, or the other way round.
fn other_content_type<'a>(headers: &'a HeaderMap, expected: &str) -> Option<&'a str> {
    let given = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let kind = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let wrong = match kind.as_str() {
        kind if kind == expected => false,
        "text/html" | "text/event-stream" | "application/json" => true,
        kind => expected == "application/grpc" && !kind.starts_with("application/grpc"),
    };
    wrong.then_some(given)
}

impl From<Broken> for Failure {
    fn from(error: Broken) -> Self {
        Failure::new(ErrorKind::Broken, error.message)
    }
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
