//! Reading a request's body: bounded in size, time, and memory of all bodies together; JSON with errors that say where. And answers that are
//! longer than their request, in the same memory.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use pelton_protocol::Object;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::generate::ServeError;
use crate::server::Server;

/// How much of a body beyond the limit is read and thrown away, in multiples of the limit. A client that is still sending does not listen, and
/// would see a broken connection in place of the answer.
const MAX_DISCARDED: usize = 16;

/// So many bodies of the greatest length, or more that are shorter, may be in memory unparsed; further ones are refused with 429. Bytes count when they
/// are there, not when they are announced: whoever sends nothing takes nothing from others.
const BODIES_AT_ONCE: usize = 64;

/// A body's buffer begins with at most so much, whatever is announced, and then grows with what comes.
const MAX_FIRST_CAPACITY: usize = 64 << 10;

/// One permit for each byte of all bodies that are read and not yet parsed, and of long answers that are not yet sent.
pub(crate) fn memory(payload_limit: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(payload_limit.saturating_mul(BODIES_AT_ONCE).min(Semaphore::MAX_PERMITS)))
}

/// Checks the key, then reads and parses the body of `request`.
pub(crate) async fn read_json<T: DeserializeOwned>(server: &Server, request: Request) -> Result<T, ServeError> {
    let (_, body) = read_request(server, request).await?;
    parse(&body.bytes)
}

/// Checks the key and reads the body of `request`, for who looks into it and hands it on at once: it counts as memory no more.
pub(crate) async fn read_bytes(server: &Server, request: Request) -> Result<(Parts, Bytes), ServeError> {
    let (parts, body) = read_request(server, request).await?;
    Ok((parts, body.bytes))
}

async fn read_request(server: &Server, request: Request) -> Result<(Parts, Held<'_>), ServeError> {
    let (parts, body) = request.into_parts();
    authorize(server.config().api_key.as_deref(), &parts.headers)?;
    check_content_type(&parts.headers)?;
    let config = server.config();
    let reading = read(&parts.headers, body, server.body_memory(), config.payload_limit, config.read_timeout);
    // What is not here when the server stops comes too late: stopping does not wait for slow senders.
    let body = tokio::select! {
        biased;
        body = reading => body?,
        () = server.stopped() => return Err(ServeError::Stopping),
    };
    Ok((parts, body))
}

/// A whole body, and its share of the memory.
#[derive(Debug)]
struct Held<'a> {
    bytes: Bytes,
    _memory: SemaphorePermit<'a>,
}

fn authorize(key: Option<&str>, headers: &HeaderMap) -> Result<(), ServeError> {
    let Some(key) = key else { return Ok(()) };
    let given = header(headers, http::header::AUTHORIZATION).unwrap_or_default();
    let given =
        given.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, given)| given);
    match given {
        Some(given) if is_equal(given.as_bytes(), key.as_bytes()) => Ok(()),
        _ => Err(ServeError::Unauthorized),
    }
}

/// Compares without telling by its duration where the difference is.
fn is_equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

/// A body without a stated type is taken as JSON.
fn check_content_type(headers: &HeaderMap) -> Result<(), ServeError> {
    let Some(stated) = header(headers, CONTENT_TYPE) else { return Ok(()) };
    let media_type = stated.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if media_type == "application/json" || (media_type.starts_with("application/") && media_type.ends_with("+json")) {
        return Ok(());
    }
    Err(ServeError::ContentType(stated.chars().take(100).collect()))
}

async fn read<'a>(
    headers: &HeaderMap,
    body: Body,
    memory: &'a Semaphore,
    limit: usize,
    patience: Duration,
) -> Result<Held<'a>, ServeError> {
    let announced = header(headers, CONTENT_LENGTH).and_then(|length| length.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) && headers.contains_key(EXPECT) {
        return Err(ServeError::BodyTooLarge { limit }); // The client asks before it sends.
    }
    tokio::time::timeout(patience, collect(body, memory, limit, announced.unwrap_or(0)))
        .await
        .unwrap_or_else(|_| Err(ServeError::BodyIncomplete(format!("waited {} seconds", patience.as_secs()))))
}

async fn collect(mut body: Body, memory: &Semaphore, limit: usize, announced: usize) -> Result<Held<'_>, ServeError> {
    let mut bytes = BytesMut::with_capacity(announced.min(limit).min(MAX_FIRST_CAPACITY));
    let mut held = take(memory, 0, limit)?;
    let mut total = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ServeError::BodyIncomplete(error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        total += data.remaining();
        if total > limit.saturating_mul(MAX_DISCARDED) {
            break;
        }
        if total > limit {
            bytes = BytesMut::new();
            held = take(memory, 0, limit)?;
        } else {
            held.merge(take(memory, data.remaining(), limit)?);
            bytes.extend_from_slice(&data);
        }
    }
    if total > limit {
        return Err(ServeError::BodyTooLarge { limit });
    }
    Ok(Held { bytes: bytes.freeze(), _memory: held })
}

/// `num_bytes` of the memory, if they are there now: bodies that waited for each other might wait for ever.
fn take(memory: &Semaphore, num_bytes: usize, limit: usize) -> Result<SemaphorePermit<'_>, ServeError> {
    memory.try_acquire_many(to_u32(num_bytes)).map_err(|_| no_memory(limit))
}

fn no_memory(payload_limit: usize) -> ServeError {
    let max = to_u32(payload_limit.saturating_mul(BODIES_AT_ONCE));
    ServeError::Overloaded { limit: "bytes of bodies in memory", max }
}

fn to_u32(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// An answer of `json`, which may be many times as long as its request: clients that do not read what they asked for must not fill the memory.
pub(crate) fn long_answer(
    memory: &Arc<Semaphore>,
    payload_limit: usize,
    json: Vec<u8>,
) -> Result<Response, ServeError> {
    let held = Arc::clone(memory).try_acquire_many_owned(to_u32(json.len())).map_err(|_| no_memory(payload_limit))?;
    let mut response = Response::new(Body::new(LongAnswer { rest: json.into(), _memory: held }));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// Handed out piece by piece, as the connection takes it, and freed when all is sent or the client has gone.
struct LongAnswer {
    rest: Bytes,
    _memory: OwnedSemaphorePermit,
}

impl http_body::Body for LongAnswer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        const PIECE_BYTES: usize = 64 << 10;
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        // Copied: a piece that waits in a buffer of the connection would keep the whole.
        let piece = Bytes::copy_from_slice(&self.rest[..self.rest.len().min(PIECE_BYTES)]);
        self.rest.advance(piece.len());
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

/// The object that `bytes` hold as JSON.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ServeError> {
    let text = std::str::from_utf8(bytes).map_err(|error| ServeError::Syntax(format!("not UTF-8: {error}")))?;
    let mut json = serde_json::Deserializer::from_str(text);
    let Object(value) = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        // A number that no float holds is an error of syntax to the parser, yet valid JSON.
        let is_json = inner.is_data() || serde_json::from_str::<IgnoredAny>(text).is_ok();
        if is_json { shape(path, inner.to_string()) } else { ServeError::Syntax(inner.to_string()) }
    })?;
    json.end().map_err(|error| ServeError::Syntax(error.to_string()))?;
    Ok(value)
}

/// Characters of a message of the parser that are told: it quotes values, which may be as long as the body.
const MAX_PROBLEM_CHARACTERS: usize = 300;

/// Type errors inside flattened structures have lost the path and tell it at the front of the message instead.
fn shape(path: String, problem: String) -> ServeError {
    let is_path = |path: &str| !path.is_empty() && !path.contains(' ');
    let (path, problem) = match problem.split_once(": ") {
        Some((inner, rest)) if path == "." && is_path(inner) => (inner.to_owned(), rest),
        _ if path == "." => ("body".to_owned(), problem.as_str()),
        _ => (path, problem.as_str()),
    };
    ServeError::Shape { path, problem: shortened(problem) }
}

fn shortened(problem: &str) -> String {
    match problem.char_indices().nth(MAX_PROBLEM_CHARACTERS) {
        Some((end, _)) => format!("{}...", &problem[..end]),
        None => problem.to_owned(),
    }
}

fn header(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pelton_protocol::{openai, tgi};

    #[tokio::test]
    async fn bodies_share_a_bounded_memory_until_they_are_parsed() {
        let memory = Semaphore::new(10);
        let read = |body: &'static str| collect(Body::from(body), &memory, 8, body.len());
        let first = read("1234567").await.expect("there is room");
        assert!(matches!(read("1234").await, Err(ServeError::Overloaded { .. })));
        assert_eq!(memory.available_permits(), 3, "a refused body holds nothing");
        let second = read("123").await.expect("there is room");
        assert_eq!((&first.bytes[..], &second.bytes[..]), (&b"1234567"[..], &b"123"[..]));
        drop((first, second));
        assert_eq!(read("123456789").await.map(|body| body.bytes), Err(ServeError::BodyTooLarge { limit: 8 }));
        assert_eq!(memory.available_permits(), 10);
    }

    #[tokio::test]
    async fn long_answers_take_memory_until_they_are_sent_or_dropped() {
        let memory = memory(4000);
        let room = memory.available_permits();
        let answer = || long_answer(&memory, 4000, (0..200_000u32).map(|index| index as u8).collect());
        let first = answer().expect("there is room");
        let error = answer().err();
        assert!(matches!(error, Some(ServeError::Overloaded { max: 256_000, .. })), "{error:?}");
        let sent = first.into_body().collect().await.expect("a body").to_bytes();
        assert_eq!((sent.len(), sent[199_999]), (200_000, 199_999u32 as u8));
        assert_eq!(memory.available_permits(), room);
        drop(answer().expect("there is room again"));
        assert_eq!(memory.available_permits(), room);
    }

    fn shape_of<T: DeserializeOwned + std::fmt::Debug>(body: &str) -> (String, String) {
        match parse::<T>(body.as_bytes()).expect_err("the body is of another form") {
            ServeError::Shape { path, problem } => (path, problem),
            error => panic!("{error:?}"),
        }
    }

    #[test]
    fn type_errors_name_the_field() {
        let (path, problem) = shape_of::<tgi::GenerateRequest>(r#"{"inputs": "x", "parameters": {"top_k": "many"}}"#);
        assert_eq!(path, "parameters.top_k");
        assert!(problem.contains("many"), "{problem}");
        assert_eq!(shape_of::<openai::CompletionRequest>(r#"{"prompt": "x", "temperature": []}"#).0, "temperature");
        assert!(shape_of::<openai::CompletionRequest>("{}").1.contains("prompt"));
        assert!(shape_of::<openai::CompletionRequest>("[]").1.contains("expected"));
        let long = format!(r#"{{"inputs": "x", "parameters": {{"top_k": "{}"}}}}"#, "é".repeat(100_000));
        assert_eq!(shape_of::<tgi::GenerateRequest>(&long).1.chars().count(), MAX_PROBLEM_CHARACTERS + 3);
    }

    #[test]
    fn broken_json_is_told_apart_from_wrong_json() {
        for body in [&b"{\"inputs\":"[..], b"{\"inputs\": \"\xFF\"}", b"{\"inputs\": \"x\"} trailing", b""] {
            assert!(matches!(parse::<tgi::GenerateRequest>(body), Err(ServeError::Syntax(_))), "{body:?}");
        }
    }

    #[test]
    fn keys_are_compared_whole() {
        let mut headers = HeaderMap::new();
        assert_eq!(authorize(None, &headers), Ok(()));
        assert_eq!(authorize(Some("secret"), &headers), Err(ServeError::Unauthorized));
        for (value, expected) in [
            ("Bearer secret", Ok(())),
            ("bearer secret", Ok(())),
            ("Bearer secre", Err(ServeError::Unauthorized)),
            ("Bearer SECRET", Err(ServeError::Unauthorized)),
            ("secret", Err(ServeError::Unauthorized)),
        ] {
            headers.insert(http::header::AUTHORIZATION, value.parse().expect("a header value"));
            assert_eq!(authorize(Some("secret"), &headers), expected, "{value}");
        }
    }

    #[test]
    fn content_types() {
        for (value, is_json) in [
            ("application/json", true),
            ("application/json; charset=utf-8", true),
            ("application/problem+json", true),
            ("text/plain", false),
            ("application/x-www-form-urlencoded", false),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, value.parse().expect("a header value"))]);
            assert_eq!(check_content_type(&headers).is_ok(), is_json, "{value}");
        }
        assert_eq!(check_content_type(&HeaderMap::new()), Ok(()));
    }
}
