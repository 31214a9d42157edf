//! Where requests go, and what every one of them carries.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, TE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};

use super::connection::Connection;
use super::tls::Tls;
use crate::BenchError;
use crate::plan::TargetPlan;

/// The server's address and what every request carries.
#[derive(Clone, Debug)]
pub struct Target {
    /// Of the host, in the system's order: `localhost` is often two, of which a server may listen on one.
    addresses: Arc<[SocketAddr]>,
    /// The one that answered last.
    answering: Arc<AtomicUsize>,
    tls: Option<Tls>,
    is_grpc: bool,
    /// In front of every route: of HTTP/1.1 a path without a slash at its end, of gRPC scheme and authority.
    prefix: String,
    headers: HeaderMap,
}

impl Target {
    /// Reads the address and resolves its host. Errors if it has another form than the plan says, or a header is not valid.
    pub fn resolve(plan: &TargetPlan) -> Result<Self, BenchError> {
        let bad = |reason: String| BenchError::Plan(format!("url {:?} {reason}", plan.url));
        let uri: http::Uri = plan.url.parse().map_err(|error| bad(format!("cannot be read: {error}")))?;
        let (is_grpc, is_secure, default_port) = match uri.scheme_str() {
            Some("http") => (false, false, 80),
            Some("https") => (false, true, 443),
            Some("grpc") => (true, false, 8001),
            Some("grpcs") => (true, true, 443),
            _ => return Err(bad("must begin with http://, https://, grpc:// or grpcs://".to_owned())),
        };
        let (Some(host), Some(authority)) = (uri.host(), uri.authority()) else {
            return Err(bad("has no host".to_owned()));
        };
        let path = uri.path().trim_end_matches('/');
        if is_grpc && !path.is_empty() {
            return Err(bad(format!("has the path {path:?}, which gRPC has no place for")));
        }
        let host = host.trim_matches(['[', ']']);
        let port = uri.port_u16().unwrap_or(default_port);
        let addresses: Arc<[SocketAddr]> = (host, port)
            .to_socket_addrs()
            .map_err(|error| bad(format!("names a host that cannot be resolved: {error}")))?
            .collect();
        if addresses.is_empty() {
            return Err(bad("names a host without an address".to_owned()));
        }
        let protocol = if is_grpc { &b"h2"[..] } else { b"http/1.1" };
        let tls = if is_secure { Some(Tls::new(plan, host, protocol)?) } else { None };

        let mut headers = HeaderMap::new();
        let value = |name: &str, text: &str| {
            HeaderValue::from_str(text)
                .map_err(|_| BenchError::Plan(format!("header {name:?} has a value that HTTP forbids")))
        };
        let prefix = if is_grpc {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(TE, HeaderValue::from_static("trailers"));
            format!("{}://{authority}", if is_secure { "https" } else { "http" })
        } else {
            headers.insert(HOST, value("host", authority.as_str())?);
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            path.to_owned()
        };
        if let Some(key) = &plan.api_key {
            let mut secret = value("authorization", &format!("Bearer {key}"))?;
            secret.set_sensitive(true);
            headers.insert(AUTHORIZATION, secret);
        }
        for (name, text) in &plan.headers {
            let header: HeaderName =
                name.parse().map_err(|_| BenchError::Plan(format!("{name:?} is not a name of a header")))?;
            if is_grpc && (header == HOST || header.as_str().ends_with("-bin")) {
                return Err(BenchError::Plan(format!("header {name:?} cannot be sent as metadata of gRPC")));
            }
            headers.insert(header, value(name, text)?);
        }
        Ok(Self { addresses, answering: Arc::default(), tls, is_grpc, prefix, headers })
    }

    /// Whether gRPC is spoken.
    pub fn is_grpc(&self) -> bool {
        self.is_grpc
    }

    /// Opens a connection to the server, at the first of its addresses that takes one. The error is of the one tried first.
    pub async fn connect(&self) -> std::io::Result<Connection> {
        let first = self.answering.load(Ordering::Relaxed);
        let mut refused = None;
        for at in (first..self.addresses.len()).chain(0..first) {
            match Connection::open(self.addresses[at], self.tls.as_ref(), self.is_grpc).await {
                Ok(connection) => {
                    self.answering.store(at, Ordering::Relaxed);
                    return Ok(connection);
                }
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(refused.unwrap_or_else(|| std::io::ErrorKind::AddrNotAvailable.into()))
    }

    /// A request to the route `path`, which is a valid path.
    pub fn request(&self, method: Method, path: &str, body: Bytes) -> Request<Bytes> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        // Prefix and routes are valid: the prefix was read from a URI.
        *request.uri_mut() = format!("{}{path}", self.prefix).parse().unwrap_or_default();
        *request.headers_mut() = self.headers.clone();
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `localhost` where the first of its addresses is the one on which nobody listens.
    #[tokio::test]
    async fn the_first_address_that_answers_is_taken() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let alive = listener.local_addr().expect("bound");
        // Port 1 is nobody's.
        let dead = SocketAddr::from(([127, 0, 0, 1], 1));
        let target = Target::resolve(&TargetPlan::at(format!("http://{alive}"))).expect("an address");
        let target = Target { addresses: [dead, alive].into(), ..target };
        target.connect().await.expect("the second address answers");
        assert_eq!(target.answering.load(Ordering::Relaxed), 1);
        let nobody = Target { addresses: [dead].into(), answering: Arc::default(), ..target };
        let error = nobody.connect().await.expect_err("nobody listens");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}
