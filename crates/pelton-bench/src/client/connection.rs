//! One HTTP/1.1 connection whose reads are timed.
//!
//! The connection is driven inside the task that uses it, so a byte passes from the socket to its reader without waiting for the
//! scheduler, and the time of each read is taken directly after the system call, before anything is parsed.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Longest time to make a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// An open connection, idle or with one request under way.
#[derive(Debug)]
pub struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    /// `None` once the connection has ended.
    driver: Option<http1::Connection<TimedIo, Full<Bytes>>>,
    last_read: Rc<Cell<Instant>>,
}

impl Connection {
    /// Connects, with small writes sent at once.
    pub async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await.map_err(|_| {
            io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {CONNECT_TIMEOUT:?}"))
        })??;
        stream.set_nodelay(true)?;
        let last_read = Rc::new(Cell::new(Instant::now()));
        let io = TimedIo { inner: TokioIo::new(stream), last_read: Rc::clone(&last_read) };
        let (sender, driver) = http1::handshake(io).await.map_err(io::Error::other)?;
        Ok(Self { sender, driver: Some(driver), last_read })
    }

    /// Whether another request can be sent. Notices that the server has closed an idle connection.
    pub async fn is_ready(&mut self) -> bool {
        let Self { sender, driver, .. } = self;
        // One look at the socket, so that a close that has already arrived is seen.
        std::future::poll_fn(|cx| {
            drive(driver, cx);
            Poll::Ready(())
        })
        .await;
        let ready = driving(driver, sender.ready()).await;
        ready.is_ok() && self.driver.is_some()
    }

    /// Sends a request and waits for the head of its answer.
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<(Response<Incoming>, Instant)> {
        let answer = self.sender.send_request(request);
        let response = driving(&mut self.driver, answer).await?;
        Ok((response, self.last_read.get()))
    }

    /// The next bytes of an answer, and when they were read from the socket; `None` at its end.
    pub async fn read(&mut self, body: &mut Incoming) -> Option<hyper::Result<(Bytes, Instant)>> {
        let Self { driver, last_read, .. } = self;
        let next = std::future::poll_fn(|cx| {
            loop {
                match Pin::new(&mut *body).poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(bytes) => return Poll::Ready(Some(Ok((bytes, last_read.get())))),
                        Err(_trailers) => continue,
                    },
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                    Poll::Ready(None) => return Poll::Ready(None),
                    Poll::Pending => return Poll::Pending,
                }
            }
        });
        driving(driver, next).await
    }
}

/// Waits for `future` while the connection's own work goes on.
async fn driving<F: Future>(driver: &mut Option<http1::Connection<TimedIo, Full<Bytes>>>, future: F) -> F::Output {
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

fn drive(driver: &mut Option<http1::Connection<TimedIo, Full<Bytes>>>, cx: &mut Context<'_>) {
    if let Some(connection) = driver
        && Pin::new(connection).poll(cx).is_ready()
    {
        *driver = None; // An error of the connection reaches the request under way by itself.
    }
}

/// Notes when each read from the socket returned.
#[derive(Debug)]
struct TimedIo {
    inner: TokioIo<TcpStream>,
    last_read: Rc<Cell<Instant>>,
}

impl Read for TimedIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        if result.is_ready() {
            self.last_read.set(Instant::now());
        }
        result
    }
}

impl Write for TimedIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
}
