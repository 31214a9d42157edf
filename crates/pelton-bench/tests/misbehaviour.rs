//! Servers that break, lie or never end.

mod mock;

use std::sync::Mutex;
use std::time::Duration;

use mock::{Act, Mock, kinds, openai_facts, plan, run, stream, whole};
use serde_json::json;

fn raw(text: &str) -> Vec<Act> {
    vec![Act::Raw(text.as_bytes().to_vec()), Act::Close]
}

const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

#[test]
fn every_misbehaviour_is_a_classified_row() {
    let cases: Vec<(Vec<Act>, &str)> = vec![
        (
            raw("HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 15\r\n\r\n<h1>proxy</h1>\n"),
            "malformed: content type is text/html, not text/event-stream: <h1>proxy</h1>",
        ),
        (
            whole(json!({ "error": { "message": "no such model" } })),
            "malformed: content type is application/json, not text/event-stream: no such model",
        ),
        (stream("data: {\"object\":\"error\",\"message\":\"too long\",\"code\":400}\n\n"), "error event: too long"),
        (
            stream("data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: {\"error\":{\"message\":\"gone\"}}\n\n"),
            "error event: gone",
        ),
        (stream("data: \u{0}\u{1}\n\n"), "malformed: "),
        (stream("data: [1,2]\n\n"), "malformed: "),
        (stream("data: {\"choices\":[{\"text\":7}]}\n\n"), "malformed: "),
        (stream("data: {\"choices\":[],\"usage\":{\"completion_tokens\":99999999999999999999}}\n\n"), "malformed: "),
        (
            stream("data: {\"choices\":[],\"usage\":{\"completion_tokens\":4000000000}}\n\n"),
            "malformed: 4000000000 tokens are told, limit is 1048576",
        ),
        (stream("data: {\"choices\":[],\"usage\":{\"completion_tokens\":-1}}\n\n"), "malformed: "),
        (stream(""), "broken stream: stream ended before its final event"),
        (raw("HTTP/1.1 200 OK\r\ncontent-ty"), "broken stream: "),
        (raw("\u{16}\u{3}\u{1} not HTTP at all\r\n\r\n"), "broken stream: "),
        (raw(&format!("{STREAM_HEAD}ffffffffffffffffff\r\nx")), "broken stream: "),
        (raw(&format!("{STREAM_HEAD}zz\r\n")), "broken stream: "),
        (raw(&format!("{STREAM_HEAD}40\r\ndata: {{\"choices\"")), "broken stream: "),
        (raw("HTTP/1.1 204 No Content\r\n\r\n"), "broken stream: stream ended before its final event"),
        (raw("HTTP/1.1 302 Found\r\nlocation: /login\r\ncontent-length: 0\r\n\r\n"), "status 302: "),
        (raw("HTTP/1.1 503 Busy\r\ncontent-length: 99999999999\r\n\r\nbusy"), "status 503: busy"),
    ];
    let expected: Vec<&str> = cases.iter().map(|(_, expected)| *expected).collect();
    let cases = Mutex::new(cases.into_iter());
    let mock = Mock::start(move |question| {
        openai_facts(question).unwrap_or_else(|| match question.nth {
            0 => stream("data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: [DONE]\n\n"),
            _ => cases.lock().expect("not poisoned").next().expect("as many cases as requests").0,
        })
    });
    let told = kinds(&run(&plan(mock.url(), expected.len() as u64, 1)).runs[0].rows);
    for (told, expected) in told.iter().zip(&expected) {
        assert!(!told.is_empty() && told.starts_with(expected), "{told:?}, expected {expected:?}");
    }
    assert_eq!(told.len(), expected.len());
}

#[test]
fn endless_answers_end() {
    let mock = Mock::start(|question| {
        openai_facts(question).unwrap_or_else(|| match question.nth {
            0 => stream("data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: [DONE]\n\n"),
            // Tokens without end, many at once.
            1 => {
                let ids = vec!["1"; 50_000].join(",");
                let event = format!("data: {{\"choices\":[{{\"text\":\"a\",\"token_ids\":[{ids}]}}]}}\n\n");
                let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                vec![Act::StreamHead, Act::Endless(chunk.into_bytes())]
            }
            // One event without end.
            2 => vec![Act::StreamHead, Act::Endless(format!("10000\r\n{}\r\n", "x".repeat(0x10000)).into_bytes())],
            // Comments without end: nothing is kept, and time ends it.
            _ => vec![Act::StreamHead, Act::Endless(b"6\r\n: hi\n\n\r\n".to_vec())],
        })
    });
    let mut plan = plan(mock.url(), 3, 1);
    plan.target.timeout = Duration::from_secs(8);
    let results = run(&plan);
    let told = kinds(&results.runs[0].rows);
    assert!(told[0].starts_with("malformed: stream goes on after 1048576 tokens"), "{told:?}");
    assert!(
        told[1].starts_with("malformed: event stream holds an event of more than") || told[1].starts_with("timeout"),
        "{told:?}"
    );
    assert!(told[2].starts_with("timeout: "), "{told:?}");
}
