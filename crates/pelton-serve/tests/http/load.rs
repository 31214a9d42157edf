//! More work than fits, clients that go away, and what is counted of it all.

use http::StatusCode;
use serde_json::{Value, json};
use std::time::Duration;

use crate::support::{Answer, Events, Setup, letters, parse};

const LONG: u32 = 1000;

fn long_stream() -> Value {
    json!({"inputs": "abc", "parameters": {"max_new_tokens": LONG}})
}

/// A long stream takes five seconds then, which is more than anything else here takes.
const SLOW: Duration = Duration::from_millis(5);

/// One sequence runs at a time.
fn slow_and_narrow() -> Setup {
    Setup::alphabet().step_cost(SLOW).engine(|engine| engine.max_sequences = 1)
}

#[tokio::test]
async fn what_does_not_fit_is_refused_at_once_in_each_dialect() {
    let server = slow_and_narrow().serve(|serve| serve.max_concurrent_requests = 2).start().await;
    let (first, _first) = server.open("/generate_stream", long_stream()).await;
    let (_second, second) = server.open("/generate_stream", long_stream()).await;
    server.until("one runs, one waits", |gauges| gauges.running == 1 && gauges.waiting == 1).await;

    let answer = server.post("/generate", json!({"inputs": "abc"})).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!(answer.json(), json!({"error": "Model is overloaded", "error_type": "overloaded"}));
    let answer = server.post("/v1/completions", json!({"prompt": "abc", "stream": true})).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!(answer.json()["error"]["code"], 429);
    assert!(answer.json()["error"]["message"].as_str().expect("a message").contains("max_concurrent_requests is 2"));

    // A place that is given back is there for the next one.
    drop(second);
    server.until("the waiting one is gone", |gauges| gauges.waiting == 0).await;
    drop((first, _first));
    server.until("the running one is gone", |gauges| gauges.is_idle()).await;
    assert_eq!(server.post("/v1/completions", json!({"prompt": "abc"})).await.status, StatusCode::OK);
}

#[tokio::test]
async fn full_engine_queue_is_an_answer_too() {
    let server = slow_and_narrow().engine(|engine| engine.max_queued = 1).start().await;
    let _running = server.open("/generate_stream", long_stream()).await;
    let _waiting = server.open("/generate_stream", long_stream()).await;
    let answer = server.post("/generate_stream", long_stream()).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.header("retry-after"), "1");
}

#[tokio::test]
async fn client_that_leaves_a_stream_frees_its_sequence() {
    let server = Setup::alphabet().step_cost(SLOW).start().await;
    let (response, connection) = server.open("/generate_stream", long_stream()).await;
    let mut events = Events::new(response.into_body());
    events.next().await.expect("a first token");
    assert_eq!(server.gauges().running, 1);
    drop((events, connection));
    server.until("the sequence is freed", |gauges| gauges.is_idle()).await;
    assert!(server.gauges().steps < u64::from(LONG), "long before its end");
}

#[tokio::test]
async fn client_that_leaves_before_a_whole_answer_frees_all_choices() {
    let server = Setup::alphabet().step_cost(SLOW).start().await;
    let body = json!({"prompt": ["abc", "abd"], "max_tokens": LONG, "n": 2}).to_string();
    let connection = server.connect().await;
    let request = connection.send("POST", "/v1/completions", &[("content-type", "application/json")], body.into());
    let gone = async { server.until("all choices run", |gauges| gauges.running == 4).await };
    tokio::select! {
        _ = request => panic!("the answer came before its time"),
        () = gone => {} // The other future is dropped now, and with it the connection.
    }
    server.until("the sequences are freed", |gauges| gauges.is_idle()).await;
    assert!(server.gauges().steps < u64::from(LONG), "long before their end");
}

#[tokio::test]
async fn client_that_leaves_while_queued_is_forgotten() {
    let server = slow_and_narrow().start().await;
    let body = json!({"inputs": "abc", "parameters": {"max_new_tokens": 200}});
    let (response, _connection) = server.open("/generate_stream", body).await;
    let mut events = Events::new(response.into_body());
    events.next().await.expect("a first token");
    let queued = server.open("/v1/completions", json!({"prompt": "abc", "max_tokens": LONG, "stream": true})).await;
    server.until("it waits", |gauges| gauges.waiting == 1).await;
    drop(queued);
    server.until("it is gone while the other runs", |gauges| gauges.waiting == 0 && gauges.running == 1).await;
    let rest = events.rest().await;
    assert_eq!(parse(rest.last().expect("events"))["generated_text"], letters(3, 200));
}

#[tokio::test]
async fn many_at_once_get_their_own_answers() {
    let server = Setup::alphabet().start().await;
    let requests = (1..=60usize).map(|length| {
        let server = &server;
        async move {
            let body = json!({"inputs": "x".repeat(length), "parameters": {"max_new_tokens": 40}});
            let events = server.events("/generate_stream", body).await;
            assert_eq!(parse(events.last().expect("events"))["generated_text"], letters(length, 40));
        }
    });
    futures_util::future::join_all(requests).await;
    server.until("nothing is left", |gauges| gauges.is_idle()).await;
}

#[tokio::test]
async fn metrics_tell_of_requests_under_both_naming_tables() {
    let server = Setup::alphabet().start().await;
    server.post("/generate", json!({"inputs": "abc", "parameters": {"max_new_tokens": 5}})).await.ok();
    server.events("/v1/completions", json!({"prompt": "abc", "max_tokens": 4, "stream": true, "stop": "e"})).await;
    assert_eq!(server.post("/generate", json!({"inputs": ""})).await.status, StatusCode::UNPROCESSABLE_ENTITY);
    server.until("the engine has told that it is idle", |gauges| gauges.is_idle()).await;

    let answer = server.get("/metrics").await;
    assert!(answer.header("content-type").starts_with("text/plain"));
    let text = String::from_utf8(answer.body.to_vec()).expect("text");
    let labels = "model_name=\"fake\",engine=\"0\"";
    for line in [
        "tgi_request_count 3".to_owned(),
        "tgi_request_success 2".into(),
        "tgi_request_failure{err=\"validation\"} 1".into(),
        "tgi_request_duration_count 2".into(),
        "tgi_request_generated_tokens_sum 7".into(),
        "tgi_request_input_length_bucket{le=\"+Inf\"} 2".into(),
        "tgi_queue_size 0".into(),
        "tgi_batch_current_size 0".into(),
        format!("vllm:num_requests_running{{{labels}}} 0"),
        format!("vllm:num_requests_waiting{{{labels}}} 0"),
        format!("vllm:kv_cache_usage_perc{{{labels}}} 0"),
        format!("vllm:gpu_cache_usage_perc{{{labels}}} 0"),
        format!("vllm:prompt_tokens_total{{{labels}}} 6"),
        format!("vllm:generation_tokens_total{{{labels}}} 7"),
        format!("vllm:request_success_total{{{labels},finished_reason=\"stop\"}} 1"),
        format!("vllm:request_success_total{{{labels},finished_reason=\"length\"}} 1"),
        format!("vllm:time_to_first_token_seconds_count{{{labels}}} 2"),
        format!("vllm:e2e_request_latency_seconds_count{{{labels}}} 2"),
        format!("vllm:inter_token_latency_seconds_count{{{labels}}} 5"),
        format!("vllm:cache_config_info{{{labels},block_size=\"16\",num_gpu_blocks=\"16384\"}} 1"),
    ] {
        assert!(text.lines().any(|found| found == line), "{line:?} is not in\n{text}");
    }
    // Each metric is declared once.
    let mut declared: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
    let count = declared.len();
    declared.sort_unstable();
    declared.dedup();
    assert_eq!(declared.len(), count);
}

#[tokio::test]
async fn guesses_leave_the_stream_as_it_is_and_are_counted() {
    let asked = || json!({"inputs": "abc", "parameters": {"max_new_tokens": 200}});
    let (plain, guessing) = (Setup::alphabet(), Setup::alphabet().engine(|engine| engine.speculate = 4));
    let (plain, guessing) = (plain.start().await, guessing.start().await);
    let tokens =
        |events: Vec<String>| -> Vec<Value> { events.iter().map(|event| parse(event)["token"].clone()).collect() };
    let told = tokens(guessing.events("/generate_stream", asked()).await);
    assert_eq!(told, tokens(plain.events("/generate_stream", asked()).await));
    assert_eq!(told.len(), 200, "one event for each token");

    let metrics = |answer: Answer| String::from_utf8(answer.body.to_vec()).expect("text");
    let value = |text: &str, series: &str| -> u64 {
        let line =
            text.lines().find(|line| line.starts_with(series)).unwrap_or_else(|| panic!("no {series} in {text}"));
        line.rsplit(' ').next().and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{line}"))
    };
    let text = metrics(guessing.get("/metrics").await);
    let accepted = value(&text, "tgi_request_skipped_tokens_sum");
    assert!(accepted > 80, "the alphabet repeats itself: {accepted}");
    assert_eq!(value(&text, "tgi_request_skipped_tokens_count") + accepted, 200);
    assert_eq!(value(&text, "tgi_request_skipped_tokens{quantile=\"1\"}"), 4);
    assert_eq!(value(&text, "vllm:spec_decode_num_accepted_tokens_total"), accepted);
    assert!(value(&text, "vllm:spec_decode_num_draft_tokens_total") >= accepted);
    let rounds = value(&text, "vllm:spec_decode_num_drafts_total");
    assert!(rounds >= accepted / 4 && rounds < 200);
    let at = |position| {
        let series = "vllm:spec_decode_num_accepted_tokens_per_pos_total{model_name=\"fake\",engine=\"0\"";
        value(&text, &format!("{series},position=\"{position}\"}}"))
    };
    assert_eq!((0..16).map(at).sum::<u64>(), accepted);

    let text = metrics(plain.get("/metrics").await);
    assert_eq!(value(&text, "tgi_request_skipped_tokens_sum") + value(&text, "vllm:spec_decode_num_drafts_total"), 0);
    assert_eq!(value(&text, "tgi_request_skipped_tokens_count"), 200);
}

#[tokio::test]
async fn guesses_keep_to_a_grammar() {
    let grammar = json!({"type": "regex", "value": "(level [0-9]{2}, ){9}end"});
    let asked = || json!({"inputs": "abc", "parameters": {"max_new_tokens": 200, "details": true, "grammar": grammar}});
    let (plain, guessing) = (Setup::alphabet(), Setup::alphabet().engine(|engine| engine.speculate = 4));
    let (plain, guessing) = (plain.start().await, guessing.start().await);
    let told = guessing.post("/generate", asked()).await.json();
    assert_eq!(told, plain.post("/generate", asked()).await.json());
    let text = told["generated_text"].as_str().expect("a text");
    assert!(text.len() == 93 && text.starts_with("level ") && text.ends_with(", end"), "{text}");
    let metrics = String::from_utf8(guessing.get("/metrics").await.body.to_vec()).expect("text");
    let accepted = metrics.lines().find_map(|line| line.strip_prefix("tgi_request_skipped_tokens_sum "));
    assert!(accepted.expect("the sum").parse::<u32>().expect("a count") > 30, "{accepted:?}");
}
