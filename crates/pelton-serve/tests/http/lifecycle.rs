//! Starting, stopping, and the engine's end.

use http::StatusCode;
use serde_json::json;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Events, Setup, parse, whole};
use pelton_serve::{ServeConfig, ServeOutcome};

#[tokio::test]
async fn ready_while_requests_can_be_answered() {
    let server = Setup::alphabet().start().await;
    for path in ["/health", "/ping"] {
        let answer = server.get(path).await;
        assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, 0), "{path}");
    }
}

#[tokio::test]
async fn stopping_finishes_what_runs_and_takes_nothing_new() {
    let mut server = Setup::alphabet().step_cost(Duration::from_millis(1)).start().await;
    let (response, _connection) =
        server.open("/generate_stream", json!({"inputs": "abc", "parameters": {"max_new_tokens": 200}})).await;
    let mut events = Events::new(response.into_body());
    events.next().await.expect("a first token");
    let address = server.address;
    server.stop();
    let (rest, outcome) = tokio::join!(events.rest(), server.stopped());
    assert_eq!(rest.len(), 199);
    assert_eq!(parse(&rest[198])["generated_text"].as_str().map(str::len), Some(200));
    assert_eq!(outcome, ServeOutcome::Drained);
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn what_runs_at_the_deadline_is_cut_with_an_error() {
    let setup = Setup::alphabet().step_cost(Duration::from_millis(5));
    let mut server = setup.serve(|serve| serve.graceful_termination_timeout = Duration::from_millis(50)).start().await;
    let body = json!({"prompt": "abc", "max_tokens": 1000, "stream": true});
    let (response, _stream) = server.open("/v1/completions", body).await;
    let mut events = Events::new(response.into_body());
    events.next().await.expect("a first token");
    let connection = server.connect().await;
    let body = json!({"inputs": "abc", "parameters": {"max_new_tokens": 1000}}).to_string();
    let whole_answer = tokio::spawn(async move {
        let (response, _connection) =
            connection.send("POST", "/generate", &[("content-type", "application/json")], body.into()).await;
        whole(response).await
    });
    server.until("both run", |gauges| gauges.running == 2).await;
    server.stop();
    let (rest, outcome, answer) = tokio::join!(events.rest(), server.stopped(), whole_answer);
    assert_eq!(outcome, ServeOutcome::Cut);
    let [.., error, done] = rest.as_slice() else { panic!("{rest:?}") };
    assert_eq!(parse(error)["error"]["code"], 503);
    assert_eq!(done, "[DONE]");
    let answer = answer.expect("an answer");
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.json()["error"], "the server is stopping");
}

#[tokio::test]
async fn failed_engine_ends_streams_with_an_error_and_readiness_with_it() {
    let mut setup = Setup::alphabet().step_cost(Duration::from_millis(1));
    setup.fake.fail_at_step = Some(20);
    let server = setup.start().await;
    let events =
        server.events("/generate_stream", json!({"inputs": "abc", "parameters": {"max_new_tokens": 900}})).await;
    let (last, before) = events.split_last().expect("events");
    assert_eq!(before.len(), 20);
    assert_eq!(parse(last)["error_type"], "generation");

    let answer = server.get("/health").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.json(), json!({"error": "unhealthy", "error_type": "healthcheck"}));
    let answer = server.post("/generate", json!({"inputs": "abc"})).await;
    assert_eq!((answer.status.as_u16(), answer.json()["error_type"].clone()), (424, json!("generation")));
    let answer = server.post("/v1/completions", json!({"prompt": "abc"})).await;
    assert_eq!(answer.json()["error"]["code"], 500);
    let metrics = server.get("/metrics").await;
    assert!(String::from_utf8_lossy(&metrics.body).contains("tgi_request_failure{err=\"generation\"} 1\n"));
}

#[tokio::test]
async fn header_that_never_ends_is_not_waited_for() {
    let server = Setup::alphabet().serve(|serve| serve.read_timeout = Duration::from_millis(50)).start().await;
    let mut stream = TcpStream::connect(server.address).await.expect("the server listens");
    stream.write_all(b"POST /generate HTTP/1.1\r\nhost: x\r\n").await.expect("written");
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await;
    assert!(read.is_ok(), "the server closes the connection");
}

#[tokio::test]
async fn body_that_never_ends_is_not_waited_for() {
    let server = Setup::alphabet().serve(|serve| serve.read_timeout = Duration::from_millis(50)).start().await;
    let mut stream = TcpStream::connect(server.address).await.expect("the server listens");
    let head = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    stream.write_all(head).await.expect("written");
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await;
    assert!(read.is_ok(), "the server closes the connection");
    assert!(String::from_utf8_lossy(&rest).starts_with("HTTP/1.1 408"));
}

#[tokio::test]
async fn body_that_never_ends_does_not_hold_up_the_end() {
    let mut server = Setup::alphabet().start().await;
    let mut stream = TcpStream::connect(server.address).await.expect("the server listens");
    // The server asks for the body when it begins to read it.
    let head = b"POST /generate HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 100\r\n\r\n{";
    stream.write_all(head).await.expect("written");
    let mut asked = [0; 25];
    stream.read_exact(&mut asked).await.expect("the server reads");
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
    server.stop();
    assert_eq!(server.stopped().await, ServeOutcome::Drained);
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.expect("an answer");
    assert!(rest.starts_with(b"HTTP/1.1 503"), "{}", String::from_utf8_lossy(&rest));
}

#[tokio::test]
async fn first_token_does_not_wait_for_the_others() {
    let server = Setup::alphabet().step_cost(Duration::from_millis(2)).start().await;
    let body = json!({"inputs": "abc", "parameters": {"max_new_tokens": 500}});
    let (response, _connection) = server.open("/generate_stream", body).await;
    let mut events = Events::new(response.into_body());
    events.next().await.expect("a first token");
    assert!(server.gauges().steps < 400, "most steps are still to come");
}

#[tokio::test]
async fn promises_that_the_model_cannot_keep_are_refused_at_start() {
    let start = async |change: fn(&mut ServeConfig)| {
        let server = Setup::alphabet().serve(change).try_start().await;
        server.err().expect("the settings are impossible").to_string()
    };
    let message = start(|serve| serve.max_total_tokens = Some(1_000_000)).await;
    assert_eq!(message, "max_total_tokens is 1000000, the model and its KV cache allow at most 4096");
    let message = start(|serve| serve.max_input_tokens = Some(1024)).await;
    assert_eq!(message, "max_input_tokens is 1024, the model and its KV cache allow at most 1023");
    let message = start(|serve| serve.max_concurrent_requests = 0).await;
    assert_eq!(message, "max_concurrent_requests must be at least 1");
}
