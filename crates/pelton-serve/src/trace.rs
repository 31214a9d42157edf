//! Where a request came from and whom its end is told, for distributed traces: the W3C headers `traceparent` and `tracestate`.
//!
//! Nothing is traced while a request runs. When it has ended its record holds every time, and a [`TraceSink`] makes spans of them.

use std::time::Instant;

use axum::extract::Request;
use http::HeaderMap;

use crate::RequestRecord;

/// The span of a client that sent a request (<https://www.w3.org/TR/trace-context/>).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace; not 0.
    pub trace_id: u128,
    /// The client's span; not 0.
    pub span_id: u64,
    /// Whether the client records the trace.
    pub is_sampled: bool,
    /// What other systems keep with the trace: the `tracestate` header, empty if there is none.
    pub state: String,
}

/// Bytes of `tracestate` that are kept. The recommendation asks for 512; a longer one is left out, since half an entry means nothing.
const MAX_STATE_BYTES: usize = 2048;

impl TraceParent {
    /// What the headers tell; nothing when there is no `traceparent` or it is malformed.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut given = headers.get_all("traceparent").iter();
        let (Some(parent), None) = (given.next(), given.next()) else { return None };
        let (trace_id, span_id, is_sampled) = parse_parent(parent.to_str().ok()?)?;
        let states = headers.get_all("tracestate").iter().map(|state| state.to_str().ok());
        let state = states.collect::<Option<Vec<_>>>().map(|states| states.join(",")).unwrap_or_default();
        let state = if state.len() > MAX_STATE_BYTES { String::new() } else { state };
        Some(Self { trace_id, span_id, is_sampled, state })
    }
}

/// `00-{trace id, 32 hex digits}-{span id, 16}-{flags, 2}`, all in lower case. Later versions may add fields at the end.
fn parse_parent(text: &str) -> Option<(u128, u64, bool)> {
    let mut fields = text.trim().split('-');
    let [version, trace_id, span_id, flags] = [fields.next()?, fields.next()?, fields.next()?, fields.next()?];
    let is_version = is_hex(version, 2) && version != "ff" && (version != "00" || fields.next().is_none());
    if !(is_version && is_hex(trace_id, 32) && is_hex(span_id, 16) && is_hex(flags, 2)) {
        return None;
    }
    let trace_id = u128::from_str_radix(trace_id, 16).ok().filter(|&id| id != 0)?;
    let span_id = u64::from_str_radix(span_id, 16).ok().filter(|&id| id != 0)?;
    Some((trace_id, span_id, u8::from_str_radix(flags, 16).ok()? & 1 == 1))
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// How a request came in.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    /// When its head was read.
    pub(crate) at: Instant,
    pub(crate) origin: Origin,
}

/// Which way a request came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The route that it was sent to: `/generate`.
    pub route: &'static str,
    /// The span that it belongs to, if the client told.
    pub parent: Option<TraceParent>,
}

impl Arrival {
    /// `request` has come to `route`.
    pub(crate) fn now(route: &'static str, request: &Request) -> Self {
        Self { at: Instant::now(), origin: Origin { route, parent: TraceParent::of(request.headers()) } }
    }
}

/// Where requests are told when they have ended.
pub trait TraceSink: Send + Sync {
    /// A request has ended, well or not. Must return at once: it is called where answers are written.
    fn ended(&self, origin: &Origin, record: &RequestRecord);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(parent: &str, states: &[&str]) -> Option<TraceParent> {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", parent.parse().expect("a header value"));
        for state in states {
            headers.append("tracestate", state.parse().expect("a header value"));
        }
        TraceParent::of(&headers)
    }

    #[test]
    fn parents_are_read_as_the_recommendation_writes_them() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let parent = TraceParent {
            trace_id: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c,
            span_id: 0xb7ad_6b71_6920_3331,
            is_sampled: true,
            state: "a=1,b=2".into(),
        };
        assert_eq!(parse(text, &["a=1", "b=2"]), Some(parent));
        assert_eq!(parse(&text.replace("-01", "-00"), &[]).map(|parent| parent.is_sampled), Some(false));
        let later = format!("cc{}-what-the-future", &text[2..]);
        assert_eq!(parse(&later, &[]).map(|parent| parent.span_id), Some(0xb7ad_6b71_6920_3331));
        let long = "x".repeat(MAX_STATE_BYTES + 1);
        assert_eq!(parse(text, &[&long]).map(|parent| parent.state), Some(String::new()));
    }

    #[test]
    fn malformed_parents_are_no_parents() {
        for text in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319-cb7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-+1",
        ] {
            assert_eq!(parse(text, &[]), None, "{text}");
        }
        let mut twice = HeaderMap::new();
        for _ in 0..2 {
            let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
            twice.append("traceparent", text.parse().expect("a header value"));
        }
        assert_eq!(TraceParent::of(&twice), None);
    }
}
