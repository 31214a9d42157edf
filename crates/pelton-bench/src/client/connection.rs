//! One connection whose reads are timed: HTTP/1.1 or HTTP/2, with or without TLS.
//!
//! The connection is driven inside the task that uses it, so a byte passes from the socket to its reader without waiting for the
//! scheduler, and the time of each read is taken directly after the system call, before anything is decrypted or parsed. HTTP/1.1 has a
//! reader of its own ([`Http1`]); HTTP/2 is h2 itself rather than a channel on top of it: channels drive their connection in a task of
//! its own, whose wake-up would be measured.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::http1::Http1;
use super::tls::Tls;

/// Longest time to make a connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes that an HTTP/2 server may send before it is told that they were read: more than any answer holds between two looks.
const HTTP2_WINDOW: u32 = 1 << 20;

/// After so many bytes without a pause the others get their turn, time limits among them: a server that writes faster than it is read
/// would otherwise keep the thread.
const TURN_BYTES: usize = 256 << 10;

/// Why an exchange ended early.
#[derive(Debug)]
pub struct Broken {
    /// In the words of the protocol's library.
    pub message: String,
    /// Whether the request never left: another connection may be tried.
    pub is_unsent: bool,
}

impl From<h2::Error> for Broken {
    fn from(error: h2::Error) -> Self {
        let is_unsent = error.reason() == Some(h2::Reason::REFUSED_STREAM);
        Broken { message: error.to_string(), is_unsent }
    }
}

/// An open connection, idle or with one request under way.
#[derive(Debug)]
pub struct Connection {
    wire: Wire,
    last_read: Rc<Cell<Instant>>,
    /// Bytes read in this turn.
    turn_bytes: usize,
}

#[derive(Debug)]
enum Wire {
    Http1(Box<Http1<Stream>>),
    Http2 {
        sender: h2::client::SendRequest<Bytes>,
        /// `None` once the connection has ended.
        driver: Option<Box<h2::client::Connection<Stream>>>,
    },
}

/// The rest of an answer.
#[derive(Debug)]
pub enum Body {
    /// Of HTTP/1.1: in the connection.
    Http1,
    /// Of HTTP/2.
    Http2(h2::RecvStream),
}

/// Bytes of an answer, in the buffer that they were read into.
#[derive(Debug)]
pub enum Data<'a> {
    /// Of HTTP/1.1.
    Lent(&'a [u8]),
    /// Of HTTP/2.
    Own(Bytes),
}

impl std::ops::Deref for Data<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Data::Lent(bytes) => bytes,
            Data::Own(bytes) => bytes,
        }
    }
}

impl Connection {
    /// Connects with HTTP/1.1, or with HTTP/2 without asking whether the server knows it. Small writes are sent at once.
    pub async fn open(address: SocketAddr, tls: Option<&Tls>, is_http2: bool) -> io::Result<Self> {
        let opening = async {
            let socket = TcpStream::connect(address).await?;
            socket.set_nodelay(true)?;
            let last_read = Rc::new(Cell::new(Instant::now()));
            let socket = Timed { socket, last_read: Rc::clone(&last_read) };
            let stream = match tls {
                Some(tls) => Stream::Tls(Box::new(tls.connect(socket).await?)),
                None => Stream::Plain(socket),
            };
            let wire = if is_http2 {
                let mut builder = h2::client::Builder::new();
                builder
                    .initial_window_size(HTTP2_WINDOW)
                    .initial_connection_window_size(HTTP2_WINDOW)
                    .enable_push(false);
                let (sender, driver) = builder.handshake(stream).await.map_err(io::Error::other)?;
                Wire::Http2 { sender, driver: Some(Box::new(driver)) }
            } else {
                Wire::Http1(Box::new(Http1::new(stream)))
            };
            Ok(Self { wire, last_read, turn_bytes: 0 })
        };
        tokio::time::timeout(CONNECT_TIMEOUT, opening)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {CONNECT_TIMEOUT:?}")))?
    }

    /// Whether another request can be sent. Notices that the server has closed an idle connection.
    pub async fn is_ready(&mut self) -> bool {
        match &mut self.wire {
            Wire::Http1(connection) => connection.is_ready().await,
            Wire::Http2 { sender, driver } => {
                look(driver).await;
                driving(driver, std::future::poll_fn(|cx| sender.poll_ready(cx))).await.is_ok() && driver.is_some()
            }
        }
    }

    /// Sends a request and waits for the head of its answer.
    pub async fn send(&mut self, request: Request<Bytes>) -> Result<(Response<Body>, Instant), Broken> {
        let response = match &mut self.wire {
            Wire::Http1(connection) => connection.send(request).await?.map(|()| Body::Http1),
            Wire::Http2 { sender, driver } => {
                let answer = async {
                    std::future::poll_fn(|cx| sender.poll_ready(cx)).await?;
                    let (head, body) = request.into_parts();
                    let (answer, mut upload) = sender.send_request(Request::from_parts(head, ()), false)?;
                    upload.send_data(body, true)?;
                    answer.await
                };
                driving(driver, answer).await?.map(Body::Http2)
            }
        };
        Ok((response, self.last_read.get()))
    }

    /// The next bytes of an answer, and when they were read from the socket; `None` at its end.
    pub async fn read(&mut self, body: &mut Body) -> Option<Result<(Data<'_>, Instant), Broken>> {
        if self.turn_bytes > TURN_BYTES {
            self.turn_bytes = 0;
            tokio::task::yield_now().await;
        }
        let data = match (&mut self.wire, body) {
            (Wire::Http1(connection), _) => connection.data().await?.map(Data::Lent),
            (Wire::Http2 { driver, .. }, Body::Http2(body)) => {
                let bytes = driving(driver, std::future::poll_fn(|cx| body.poll_data(cx))).await?;
                let released = bytes.map_err(Broken::from).and_then(|bytes| {
                    body.flow_control().release_capacity(bytes.len())?;
                    Ok(bytes)
                });
                released.map(Data::Own)
            }
            // A body is read on the connection that it came on.
            (Wire::Http2 { .. }, Body::Http1) => return None,
        };
        self.turn_bytes += data.as_ref().map_or(0, |data| data.len());
        Some(data.map(|data| (data, self.last_read.get())))
    }

    /// What follows a body that was read to its end, and when it was read. HTTP/1.1 answers have none.
    pub async fn trailers(&mut self, body: &mut Body) -> Result<(Option<HeaderMap>, Instant), Broken> {
        let trailers = match (&mut self.wire, body) {
            (Wire::Http2 { driver, .. }, Body::Http2(body)) => {
                driving(driver, std::future::poll_fn(|cx| body.poll_trailers(cx))).await?
            }
            _ => None,
        };
        Ok((trailers, self.last_read.get()))
    }
}

/// One look at the socket, so that a close that has already arrived is seen.
async fn look<D: Future + Unpin>(driver: &mut Option<D>) {
    std::future::poll_fn(|cx| {
        drive(driver, cx);
        Poll::Ready(())
    })
    .await;
}

/// Waits for `future` while the connection's own work goes on.
async fn driving<D: Future + Unpin, F: Future>(driver: &mut Option<D>, future: F) -> F::Output {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(output);
        }
        drive(driver, cx);
        // What the driver has just read may be what the future waits for.
        future.as_mut().poll(cx)
    })
    .await
}

fn drive<D: Future + Unpin>(driver: &mut Option<D>, cx: &mut Context<'_>) {
    if let Some(connection) = driver
        && Pin::new(connection).poll(cx).is_ready()
    {
        *driver = None; // An error of the connection reaches the request under way by itself.
    }
}

/// A socket that notes when each read from it returned.
#[derive(Debug)]
pub struct Timed {
    socket: TcpStream,
    last_read: Rc<Cell<Instant>>,
}

impl AsyncRead for Timed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.socket).poll_read(cx, buf);
        if result.is_ready() {
            self.last_read.set(Instant::now());
        }
        result
    }
}

impl AsyncWrite for Timed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }
}

/// What HTTP is spoken over.
#[derive(Debug)]
enum Stream {
    Plain(Timed),
    Tls(Box<TlsStream<Timed>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }
}
