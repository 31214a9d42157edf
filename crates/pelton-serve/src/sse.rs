//! A streamed answer: events of a generation, written by a dialect, several to a piece when they are ready together.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderName, HeaderValue};
use http_body::Frame;
use pelton_protocol::sse;
use serde::Serialize;
use tokio::time::{Instant, Sleep};

use crate::generate::{GenerateEvent, GenerateStream, ServeError};
use crate::metrics::RequestRecord;

/// A stream that is silent for so long sends a comment, so that nobody between takes it for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Events that are ready are gathered up to so many bytes before they are sent.
const MAX_PIECE_BYTES: usize = 16 << 10;

/// How a dialect writes a stream. Each call appends any number of framed events.
pub(crate) trait Chunks: Send + Unpin + 'static {
    /// Something happened.
    fn event(&mut self, event: GenerateEvent, out: &mut Vec<u8>);
    /// Nothing comes any more; all went well.
    fn end(&mut self, record: &RequestRecord, out: &mut Vec<u8>);
    /// Nothing comes any more: the answer is cut.
    fn error(&mut self, error: &ServeError, out: &mut Vec<u8>);
}

/// Appends one event. Wire types have no maps with odd keys, so writing them cannot fail.
pub(crate) fn write(value: &impl Serialize, out: &mut Vec<u8>) {
    if let Err(error) = sse::encode_json(value, out) {
        tracing::error!(%error, "an event could not be written");
    }
}

/// The answer that streams `stream`. The client's going away drops it, and with it the sequences.
pub(crate) fn response(
    server_headers: Vec<(HeaderName, HeaderValue)>,
    stream: GenerateStream,
    chunks: impl Chunks,
) -> Response {
    let body = SseBody {
        stream: Some(stream),
        chunks,
        last_piece_bytes: 0,
        last_sent_at: Instant::now(),
        keep_alive: Box::pin(tokio::time::sleep(KEEP_ALIVE)),
    };
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    headers.extend(server_headers);
    response
}

struct SseBody<C> {
    /// `None` once the last event is written.
    stream: Option<GenerateStream>,
    chunks: C,
    /// A piece is about as long as the one before.
    last_piece_bytes: usize,
    last_sent_at: Instant,
    /// Not moved with each piece: when it rings, `last_sent_at` says whether it rang too early.
    keep_alive: Pin<Box<Sleep>>,
}

impl<C: Chunks> http_body::Body for SseBody<C> {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::convert::Infallible>>> {
        let this = self.get_mut();
        let Some(stream) = &mut this.stream else { return Poll::Ready(None) };
        let mut out = Vec::new();
        let mut is_over = false;
        while out.len() < MAX_PIECE_BYTES && !is_over {
            let Poll::Ready(event) = stream.poll_next(cx) else { break };
            if out.capacity() == 0 {
                out.reserve(this.last_piece_bytes + this.last_piece_bytes / 4);
            }
            match event {
                Some(Ok(event)) => this.chunks.event(event, &mut out),
                Some(Err(error)) => {
                    this.chunks.error(&error, &mut out);
                    is_over = true;
                }
                None => {
                    this.chunks.end(&stream.record(), &mut out);
                    is_over = true;
                }
            }
        }
        if is_over {
            this.stream = None;
        }
        if out.is_empty() && !is_over {
            while this.keep_alive.as_mut().poll(cx).is_ready() {
                let due = this.last_sent_at + KEEP_ALIVE;
                let now = Instant::now();
                if now >= due {
                    out.extend_from_slice(sse::KEEP_ALIVE);
                }
                this.keep_alive.as_mut().reset(due.max(now + KEEP_ALIVE / 15));
            }
            if out.is_empty() {
                return Poll::Pending;
            }
        }
        if out.is_empty() {
            return Poll::Ready(None);
        }
        this.last_sent_at = Instant::now();
        this.last_piece_bytes = out.len();
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(out)))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_none()
    }
}
