//! HTTP/1.1 as a measuring client needs it: one request under way, the answer handed over from the buffer it was read into.
//!
//! A general client drives each connection by a dispatcher and hands bodies over through a channel, which costs as much as all else that is
//! done with a short event. Here a read from the socket, its time, and the bytes of the event are one call. Heads and sizes of chunks are
//! read by [`httparse`]; where a body ends follows RFC 9112, section 6.3.

use std::io;
use std::pin::pin;
use std::task::Poll;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use httparse::Status;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::connection::Broken;

/// Longest head of an answer, longest line of a chunk's size, longest trailers.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// Most headers of an answer.
const MAX_HEADERS: usize = 100;

/// Most interim answers (100 Continue, 103 Early Hints) before the one that is meant.
const MAX_INTERIM: u32 = 100;

/// Room for one read. What is more stays in the socket for the next.
const READ_BYTES: usize = 16 << 10;

/// What is known of the rest of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// So many bytes.
    Length(u64),
    /// The size of a chunk comes next.
    Size,
    /// So many bytes of a chunk.
    Chunk(u64),
    /// The end of line behind a chunk.
    ChunkEnd,
    /// Trailers, and the empty line behind them.
    Trailers,
    /// Everything until the connection ends.
    UntilClose,
    /// Nothing: no answer is under way.
    Over,
}

/// What the buffer says before more is read.
enum Step {
    /// So many bytes of the body are at its front.
    Data(usize),
    /// Something was taken out of it: look again.
    Again,
    /// It holds too little.
    More,
    /// The body is over.
    End,
}

/// One connection.
#[derive(Debug)]
pub struct Http1<S> {
    stream: S,
    /// Read and not yet given back.
    buffer: BytesMut,
    /// Bytes at the front of `buffer` that the caller has.
    lent: usize,
    rest: Rest,
    keeps_alive: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Http1<S> {
    /// Over a stream on which nothing was said.
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: BytesMut::new(), lent: 0, rest: Rest::Over, keeps_alive: true }
    }

    /// Whether another request can be sent: the answer before was read to its end, and the server has not closed the connection.
    pub async fn is_ready(&mut self) -> bool {
        if self.rest != Rest::Over || !self.keeps_alive {
            return false;
        }
        self.give_back();
        // A look at the socket: what has already arrived there, an end or anything else, belongs to no request.
        let is_silent = {
            let mut filled = pin!(self.fill());
            std::future::poll_fn(|cx| Poll::Ready(filled.as_mut().poll(cx).is_pending())).await
        };
        is_silent && self.buffer.is_empty()
    }

    /// Sends a request, and reads the head of its answer.
    pub async fn send(&mut self, request: Request<Bytes>) -> Result<Response<()>, Broken> {
        self.keeps_alive = false; // Until the answer says so.
        let bytes = written(&request);
        let sent = async {
            self.stream.write_all(&bytes).await?;
            self.stream.flush().await
        };
        let sent = sent.await;
        drop(bytes); // The answer may be long in coming.
        // A server that refuses a long request may answer and close before it has read all of it.
        match (self.read_head().await, sent) {
            (Ok(answer), _) => Ok(answer),
            (Err(_), Err(error)) => {
                Err(Broken { message: format!("request cannot be sent: {error}"), is_unsent: true })
            }
            (Err(broken), Ok(())) => Err(broken),
        }
    }

    /// The next bytes of the body; `None` at its end.
    pub async fn data(&mut self) -> Option<Result<&[u8], Broken>> {
        self.give_back();
        loop {
            match self.step() {
                Ok(Step::Data(length)) => {
                    self.lent = length;
                    return Some(Ok(&self.buffer[..length]));
                }
                Ok(Step::Again) => {}
                Ok(Step::End) => return None,
                Ok(Step::More) => match self.fill().await {
                    Ok(0) if self.rest == Rest::UntilClose => {
                        self.rest = Rest::Over;
                        return None;
                    }
                    Ok(0) => return Some(Err(cut())),
                    Ok(_) => {}
                    Err(error) => return Some(Err(unreadable(&error))),
                },
                Err(broken) => return Some(Err(broken)),
            }
        }
    }

    /// Takes what the buffer holds of the body.
    fn step(&mut self) -> Result<Step, Broken> {
        let held = self.buffer.len();
        // Of `left` bytes those that are there.
        let part = |left: u64| held.min(usize::try_from(left).unwrap_or(usize::MAX));
        match self.rest {
            Rest::Over => Ok(Step::End),
            Rest::Length(0) => {
                self.rest = Rest::Over;
                Ok(Step::End)
            }
            _ if held == 0 => Ok(Step::More),
            Rest::UntilClose => Ok(Step::Data(held)),
            Rest::Length(left) => {
                self.rest = Rest::Length(left - part(left) as u64);
                Ok(Step::Data(part(left)))
            }
            Rest::Chunk(left) => {
                let part = part(left);
                self.rest = if part as u64 == left { Rest::ChunkEnd } else { Rest::Chunk(left - part as u64) };
                Ok(Step::Data(part))
            }
            Rest::ChunkEnd => match &self.buffer[..held.min(2)] {
                b"\r" => Ok(Step::More),
                b"\r\n" => {
                    self.buffer.advance(2);
                    self.rest = Rest::Size;
                    Ok(Step::Again)
                }
                _ => Err(malformed("a chunk does not end where its size says")),
            },
            Rest::Size => match httparse::parse_chunk_size(&self.buffer) {
                Ok(Status::Complete((end, size))) => {
                    self.buffer.advance(end);
                    self.rest = if size == 0 { Rest::Trailers } else { Rest::Chunk(size) };
                    Ok(Step::Again)
                }
                Ok(Status::Partial) if held < MAX_HEAD_BYTES => Ok(Step::More),
                Ok(Status::Partial) => Err(malformed("the size of a chunk does not end")),
                Err(_) => Err(malformed("the size of a chunk is not a number")),
            },
            Rest::Trailers => {
                let mut trailers = [httparse::EMPTY_HEADER; MAX_HEADERS];
                match httparse::parse_headers(&self.buffer, &mut trailers) {
                    Ok(Status::Complete((end, _))) => {
                        self.buffer.advance(end);
                        self.rest = Rest::Over;
                        Ok(Step::End)
                    }
                    Ok(Status::Partial) if held < MAX_HEAD_BYTES => Ok(Step::More),
                    Ok(Status::Partial) => Err(malformed("trailers do not end")),
                    Err(error) => Err(malformed(format!("trailers: {error}"))),
                }
            }
        }
    }

    async fn read_head(&mut self) -> Result<Response<()>, Broken> {
        self.give_back();
        let mut num_interim = 0;
        loop {
            if let Some((answer, rest, keeps_alive)) = self.parse_head()? {
                // Interim answers come before the one that is meant.
                if answer.status().is_informational() {
                    num_interim += 1;
                    if num_interim > MAX_INTERIM {
                        return Err(malformed(format!(
                            "more than {MAX_INTERIM} interim answers came before the answer"
                        )));
                    }
                    continue;
                }
                (self.rest, self.keeps_alive) = (rest, keeps_alive);
                return Ok(answer);
            }
            if self.buffer.len() >= MAX_HEAD_BYTES {
                return Err(malformed(format!("head of the answer is longer than {MAX_HEAD_BYTES} bytes")));
            }
            match self.fill().await {
                Ok(0) => return Err(cut()),
                Ok(_) => {}
                Err(error) => return Err(unreadable(&error)),
            }
        }
    }

    /// Takes the head out of the buffer, if all of it is there: it, what follows, and whether the connection stays open behind that.
    fn parse_head(&mut self) -> Result<Option<(Response<()>, Rest, bool)>, Broken> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut head = httparse::Response::new(&mut headers);
        let end = match head.parse(&self.buffer) {
            Ok(Status::Complete(end)) => end,
            Ok(Status::Partial) => return Ok(None),
            Err(error) => return Err(malformed(format!("head of the answer: {error}"))),
        };
        let mut answer = Response::new(());
        let status = head.code.and_then(|code| StatusCode::from_u16(code).ok());
        *answer.status_mut() = status.ok_or_else(|| malformed("status of the answer is not one"))?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(malformed("the server speaks another protocol now"));
        }
        for header in head.headers.iter() {
            let name = HeaderName::from_bytes(header.name.as_bytes());
            let value = HeaderValue::from_bytes(header.value);
            if let (Ok(name), Ok(value)) = (name, value) {
                answer.headers_mut().append(name, value);
            }
        }
        let rest = rest_of(answer.status(), answer.headers())?;
        let keeps_alive = match head.version {
            Some(1) => !has_token(answer.headers(), &CONNECTION, "close"),
            _ => has_token(answer.headers(), &CONNECTION, "keep-alive"),
        };
        self.buffer.advance(end);
        Ok(Some((answer, rest, keeps_alive && rest != Rest::UntilClose)))
    }

    fn give_back(&mut self) {
        self.buffer.advance(std::mem::take(&mut self.lent));
    }

    /// Reads once; 0 is the end of the connection.
    async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.reserve(READ_BYTES);
        self.stream.read_buf(&mut self.buffer).await
    }
}

/// The request as it goes over the wire.
fn written(request: &Request<Bytes>) -> Vec<u8> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let mut bytes = format!("{} {path} HTTP/1.1\r\n", request.method()).into_bytes();
    for (name, value) in request.headers() {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    let body = request.body();
    if !body.is_empty() {
        bytes.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

/// Where the body ends, by RFC 9112, section 6.3.
fn rest_of(status: StatusCode, headers: &HeaderMap) -> Result<Rest, Broken> {
    if status.is_informational() || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED {
        return Ok(Rest::Over);
    }
    if headers.contains_key(TRANSFER_ENCODING) {
        let is_chunked = has_token(headers, &TRANSFER_ENCODING, "chunked");
        return Ok(if is_chunked { Rest::Size } else { Rest::UntilClose });
    }
    let mut length = None;
    for value in headers.get_all(CONTENT_LENGTH).iter().flat_map(|value| value.as_bytes().split(|&byte| byte == b',')) {
        let number = std::str::from_utf8(value).ok().and_then(|text| text.trim().parse::<u64>().ok());
        match number {
            Some(number) if length.is_none_or(|length| length == number) => length = Some(number),
            _ => return Err(malformed("content-length of the answer is not one number")),
        }
    }
    Ok(length.map_or(Rest::UntilClose, Rest::Length))
}

/// Whether a header that is a list holds this word.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case(token))
}

fn cut() -> Broken {
    malformed("connection closed before message completed")
}

fn unreadable(error: &io::Error) -> Broken {
    malformed(format!("connection cannot be read: {error}"))
}

fn malformed(message: impl Into<String>) -> Broken {
    Broken { message: message.into(), is_unsent: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client makes of these bytes, sent in pieces of `piece`, and then of the end of the connection if `closes`.
    async fn exchange(answer: &'static [u8], piece: usize, closes: bool) -> (Result<(u16, Vec<u8>), String>, bool) {
        let (client, mut server) = tokio::io::duplex(1 << 20);
        let mut client = Http1::new(client);
        let served = async {
            for piece in answer.chunks(piece) {
                server.write_all(piece).await.expect("the client reads");
                tokio::task::yield_now().await;
            }
            if closes {
                server.shutdown().await.expect("open");
            }
        };
        let read = async {
            let mut request = Request::new(Bytes::from_static(b"{}"));
            *request.uri_mut() = "/generate".parse().expect("a path");
            let head = client.send(request).await.map_err(|broken| broken.message)?;
            let mut body = Vec::new();
            while let Some(data) = client.data().await {
                body.extend_from_slice(data.map_err(|broken| broken.message)?);
            }
            Ok((head.status().as_u16(), body))
        };
        let (_, result) = tokio::join!(served, read);
        let is_ready = client.is_ready().await;
        (result, is_ready)
    }

    #[tokio::test]
    async fn bodies_end_where_the_standard_says() {
        // The answer, whether the connection ends behind it, status and body, whether another request may follow.
        type Case = (&'static str, bool, (u16, &'static str), bool);
        const CASES: [Case; 8] = [
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", false, (200, "hello"), true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\nconnection: Close\r\n\r\nhello", false, (200, "hello"), false),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n",
                false,
                (200, "hello"),
                true,
            ),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-took: 3\r\n\r\n",
                false,
                (200, "hello"),
                true,
            ),
            ("HTTP/1.1 200 OK\r\n\r\nhello", true, (200, "hello"), false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello", false, (200, "hello"), false),
            (
                "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
                false,
                (404, ""),
                true,
            ),
            ("HTTP/1.1 204 No Content\r\n\r\n", false, (204, ""), true),
        ];
        for (answer, closes, (status, body), is_ready) in CASES {
            for piece in 1..=answer.len() {
                let (result, ready) = exchange(answer.as_bytes(), piece, closes).await;
                assert_eq!(result, Ok((status, body.as_bytes().to_vec())), "{answer:?} in pieces of {piece}");
                assert_eq!(ready, is_ready, "{answer:?} in pieces of {piece}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_answer_is_told_in_words() {
        let cases: [(&[u8], &str); 9] = [
            (b"", "connection closed before message completed"),
            (b"HTTP/1.1 200 OK\r\ncontent-le", "connection closed before message completed"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel", "connection closed before message completed"),
            (
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
                "connection closed before message completed",
            ),
            (
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhelloo\r\n",
                "does not end where its size says",
            ),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfive\r\nhello\r\n", "not a number"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello", "not one number"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "head of the answer"),
            (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n", "another protocol"),
        ];
        for (answer, words) in cases {
            for piece in 1..=answer.len().max(1) {
                let (result, is_ready) = exchange(answer, piece, true).await;
                let message = result.expect_err("no answer");
                assert!(message.contains(words), "{:?}: {message}", String::from_utf8_lossy(answer));
                assert!(!is_ready);
            }
        }
    }

    #[tokio::test]
    async fn endless_heads_are_refused() {
        let (client, mut server) = tokio::io::duplex(1 << 20);
        let mut client = Http1::new(client);
        let mut answer = b"HTTP/1.1 200 OK\r\nx-long: ".to_vec();
        answer.resize(2 * MAX_HEAD_BYTES, b'x');
        server.write_all(&answer).await.expect("room");
        let broken = client.send(Request::new(Bytes::new())).await.expect_err("no head");
        assert!(broken.message.contains("longer than 65536 bytes"), "{}", broken.message);

        let (client, mut server) = tokio::io::duplex(1 << 20);
        let mut client = Http1::new(client);
        server.write_all(&b"HTTP/1.1 100 Continue\r\n\r\n".repeat(1000)).await.expect("room");
        let broken = client.send(Request::new(Bytes::new())).await.expect_err("no answer");
        assert!(broken.message.contains("more than 100 interim"), "{}", broken.message);
    }
}
