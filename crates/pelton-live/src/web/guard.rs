//! Who may ask: the page itself, and programs that know what they do; not another page in the same browser.
//!
//! A page from elsewhere can make a browser send requests here. It cannot set the `Host` header, cannot hide its `Origin`, and cannot send
//! JSON without asking first. A name that its owner lets point here (DNS rebinding) shows in `Host`, where only addresses, `localhost`, and
//! the name given on the command line are accepted.

use std::net::IpAddr;

use axum::http::header::{CONTENT_TYPE, HOST, ORIGIN};
use axum::http::{HeaderMap, Method, StatusCode};

/// Refuses what does not come from the page itself. `name` is the host name given for the page's own address, if it was one.
pub(crate) fn check(method: &Method, headers: &HeaderMap, name: Option<&str>) -> Result<(), (StatusCode, String)> {
    let text = |header| headers.get(header).map(|value| value.to_str().unwrap_or(""));
    let host = text(HOST).unwrap_or("");
    let bare = without_port(host);
    let is_address = bare.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
    let is_named = bare.eq_ignore_ascii_case("localhost") || name.is_some_and(|name| bare.eq_ignore_ascii_case(name));
    if !is_address && !is_named {
        return Err((StatusCode::FORBIDDEN, format!("host {host:?} is not this page's: use its address")));
    }
    if method == Method::GET || method == Method::HEAD {
        return Ok(());
    }
    if let Some(origin) = text(ORIGIN)
        && origin != format!("http://{host}")
    {
        return Err((StatusCode::FORBIDDEN, format!("origin {origin:?} may change nothing here")));
    }
    let kind = text(CONTENT_TYPE).unwrap_or("");
    let essence = kind.split(';').next().unwrap_or("").trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err((
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("content-type must be application/json, given {kind:?}"),
        ));
    }
    Ok(())
}

/// `host` of `host:port`; brackets of an IPv6 address stay.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((bare, port))
            if port.bytes().all(|byte| byte.is_ascii_digit()) && (!bare.contains(':') || bare.ends_with(']')) =>
        {
            bare
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: Method, headers: &[(&'static str, &'static str)]) -> Result<(), u16> {
        let headers =
            headers.iter().map(|&(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")));
        check(&method, &headers.collect(), Some("bench.example")).map_err(|(status, _)| status.as_u16())
    }

    #[test]
    fn only_own_names_and_addresses_are_hosts() {
        for host in ["127.0.0.1:8089", "localhost:8089", "LOCALHOST", "[::1]:8089", "10.0.0.7", "bench.example:80"] {
            assert_eq!(asked(Method::GET, &[("host", host)]), Ok(()), "{host}");
        }
        for host in ["evil.example:8089", "", "localhost.evil.example", "127.0.0.1.evil.example", "::1"] {
            assert_eq!(asked(Method::GET, &[("host", host)]).is_err(), host != "::1", "{host}");
        }
    }

    #[test]
    fn changes_come_from_the_page_itself_and_as_json() {
        let json = ("content-type", "application/json; charset=utf-8");
        let host = ("host", "127.0.0.1:8089");
        assert_eq!(asked(Method::POST, &[host, json]), Ok(()));
        assert_eq!(asked(Method::POST, &[host, json, ("origin", "http://127.0.0.1:8089")]), Ok(()));
        for origin in ["http://evil.example", "http://127.0.0.1:9000", "https://127.0.0.1:8089", "null"] {
            assert_eq!(asked(Method::POST, &[host, json, ("origin", origin)]), Err(403), "{origin}");
        }
        assert_eq!(asked(Method::POST, &[host]), Err(415));
        assert_eq!(asked(Method::POST, &[host, ("content-type", "text/plain")]), Err(415));
    }
}
