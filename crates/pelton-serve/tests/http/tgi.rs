//! The dialect of text-generation-inference.

use bytes::Bytes;
use http::StatusCode;
use pelton_engine::Newcomers;
use serde_json::{Value, json};

use crate::support::{END_OF_TEXT, Setup, letters, parse, whole};

#[tokio::test]
async fn generate_answers_with_text_details_and_headers() {
    let server = Setup::alphabet().start().await;
    let answer = server.post("/generate", json!({"inputs": "abc", "parameters": {"max_new_tokens": 5}})).await;
    assert_eq!(answer.json(), json!({"generated_text": "defgh"}));
    assert_eq!(answer.header("x-compute-type"), "cpu");
    assert_eq!(answer.header("x-compute-characters"), "3");
    assert_eq!(answer.header("x-prompt-tokens"), "3");
    assert_eq!(answer.header("x-generated-tokens"), "5");
    answer.header("x-compute-time").parse::<f64>().expect("seconds");
    for name in ["x-total-time", "x-validation-time", "x-queue-time", "x-inference-time", "x-time-per-token"] {
        answer.header(name).parse::<u64>().unwrap_or_else(|_| panic!("{name} in milliseconds"));
    }

    let parameters = json!({"max_new_tokens": 2, "details": true, "decoder_input_details": true, "top_n_tokens": 2});
    let body = server.post("/generate", json!({"inputs": "abc", "parameters": parameters})).await.ok();
    let details = &body["details"];
    assert_eq!(details["finish_reason"], "length");
    assert_eq!(details["generated_tokens"], 2);
    assert_eq!(details["seed"], Value::Null);
    assert_eq!(details["tokens"][0]["id"], u32::from(b'd'));
    assert_eq!(details["tokens"][0]["text"], "d");
    assert_eq!(details["tokens"][0]["special"], false);
    assert!(details["tokens"][0]["logprob"].as_f64().expect("a number").abs() < 1e-3);
    assert_eq!(details["top_tokens"][0][0]["text"], "d");
    assert_eq!(details["top_tokens"][0].as_array().map(Vec::len), Some(2));
    assert_eq!(details["prefill"].as_array().map(Vec::len), Some(3));
    assert_eq!(details["prefill"][0], json!({"id": 97, "text": "a", "logprob": null}));
    assert!(details["prefill"][1]["logprob"].as_f64().expect("a number").abs() < 1e-3);
    assert!(details.get("best_of_sequences").is_none());
}

#[tokio::test]
async fn seed_is_told_where_something_was_drawn() {
    let server = Setup::alphabet().serve(|serve| serve.default_max_new_tokens = Some(3)).start().await;
    let answer = server.post("/generate", json!({"inputs": "abc", "parameters": {"details": true}})).await.ok();
    assert_eq!(answer["generated_text"], "def");
    assert_eq!(answer["details"]["seed"], Value::Null);
    let parameters = json!({"details": true, "do_sample": true, "seed": 7});
    let answer = server.post("/generate", json!({"inputs": "abc", "parameters": parameters})).await.ok();
    assert_eq!(answer["details"]["seed"], 7);
    let parameters = json!({"details": true, "temperature": 0.5});
    let answer = server.post("/generate", json!({"inputs": "abc", "parameters": parameters})).await.ok();
    assert!(answer["details"]["seed"].is_u64());
}

#[tokio::test]
async fn explicit_nulls_and_unknown_fields_are_taken() {
    let server = Setup::alphabet().start().await;
    let parameters = json!({
        "max_new_tokens": 2, "best_of": null, "temperature": null, "top_k": null, "top_p": null, "typical_p": null,
        "seed": null, "stop": [], "truncate": null, "watermark": false, "return_full_text": null, "details": true,
        "grammar": null, "adapter_id": null, "parameters": {"nested": true}, "no_such_field": [1],
    });
    let answer = server.post("/generate", json!({"inputs": "abc", "parameters": parameters})).await.ok();
    assert_eq!(answer["generated_text"], "de");
}

#[tokio::test]
async fn stream_tells_each_token_once_and_the_whole_at_the_end() {
    let server = Setup::alphabet().start().await;
    let body = json!({"inputs": "abc", "parameters": {"max_new_tokens": 4, "details": true, "top_n_tokens": 1}});
    let events: Vec<_> = server.events("/generate_stream", body).await.iter().map(|event| parse(event)).collect();
    assert_eq!(events.len(), 4);
    for (index, event) in events.iter().enumerate() {
        assert_eq!(event["index"], index + 1);
        assert_eq!(event["token"]["text"], letters(3 + index, 1));
        assert_eq!(event["top_tokens"][0]["text"], letters(3 + index, 1));
        assert!(event["token"]["logprob"].is_number());
    }
    assert!(events[..3].iter().all(|event| event["generated_text"].is_null() && event["details"].is_null()));
    assert_eq!(events[3]["generated_text"], "defg");
    let details = json!({"finish_reason": "length", "generated_tokens": 4, "seed": null, "input_length": 3});
    assert_eq!(events[3]["details"], details);

    let (response, _connection) = server.open("/generate_stream", json!({"inputs": "abc"})).await;
    assert_eq!(response.headers()["x-accel-buffering"], "no");
    assert_eq!(response.headers()["x-compute-characters"], "3");
}

#[tokio::test]
async fn compat_route_answers_an_array_or_a_stream() {
    let server = Setup::alphabet().start().await;
    let body = json!({"inputs": "abc", "parameters": {"max_new_tokens": 2, "return_full_text": true}});
    assert_eq!(server.post("/", body).await.ok(), json!([{"generated_text": "abcde"}]));
    let body = json!({"inputs": "abc", "parameters": {"max_new_tokens": 2}, "stream": true});
    let events = server.events("/", body).await;
    assert_eq!(events.len(), 2);
    assert_eq!(parse(&events[1])["generated_text"], "de");
}

#[tokio::test]
async fn end_of_text_is_shown_as_a_special_token_and_left_out_of_the_text() {
    let server = Setup::telling([97, 98, 99, 100, END_OF_TEXT]).start().await;
    let body = json!({"inputs": "abc", "parameters": {"max_new_tokens": 9, "details": true}});
    let answer = server.post("/generate", body.clone()).await.ok();
    assert_eq!(answer["generated_text"], "d");
    assert_eq!(answer["details"]["finish_reason"], "eos_token");
    assert_eq!(answer["details"]["generated_tokens"], 2);
    assert_eq!(answer["details"]["tokens"][1]["text"], "<|endoftext|>");
    assert_eq!(answer["details"]["tokens"][1]["special"], true);
    let last = server.events("/generate_stream", body).await.pop().expect("events");
    assert_eq!(parse(&last)["generated_text"], "d");
    assert_eq!(parse(&last)["details"]["finish_reason"], "eos_token");
}

#[tokio::test]
async fn stop_strings_are_found_across_tokens_and_stay_in_the_text() {
    let server = Setup::alphabet().start().await;
    let parameters = json!({"max_new_tokens": 20, "details": true, "stop": ["zz", "ghi", "hij"]});
    let body = json!({"inputs": "abc", "parameters": parameters});
    let answer = server.post("/generate", body.clone()).await.ok();
    assert_eq!(answer["generated_text"], "defghi");
    assert_eq!(answer["details"]["finish_reason"], "stop_sequence");
    assert_eq!(answer["details"]["generated_tokens"], 6);
    let events = server.events("/generate_stream", body).await;
    let text: String =
        events.iter().map(|event| parse(event)["token"]["text"].as_str().unwrap_or_default().to_owned()).collect();
    assert_eq!(text, "defghi");
    assert_eq!(parse(&events[5])["generated_text"], "defghi");
    server.until("the engine frees the sequence", |gauges| gauges.is_idle()).await;
}

#[tokio::test]
async fn characters_are_never_broken_across_events() {
    let text = "ab€😀é";
    let server = Setup::telling(text.bytes().map(u32::from)).start().await;
    let count = text.len() - 2;
    let body = json!({"inputs": "ab", "parameters": {"max_new_tokens": count}});
    let events = server.events("/generate_stream", body.clone()).await;
    assert_eq!(events.len(), count);
    let texts: Vec<_> =
        events.iter().map(|event| parse(event)["token"]["text"].as_str().expect("text").to_owned()).collect();
    assert_eq!(texts, ["", "", "€", "", "", "", "😀", "", "é"]);
    assert_eq!(server.post("/generate", body).await.ok()["generated_text"], "€😀é");
    // What cannot be completed any more is told at the end.
    let body = json!({"inputs": "ab", "parameters": {"max_new_tokens": 2}});
    assert_eq!(server.post("/generate", body).await.ok()["generated_text"], "\u{FFFD}");
}

#[tokio::test]
async fn best_of_tells_the_losers_too() {
    let server = Setup::alphabet().start().await;
    let parameters = json!({"max_new_tokens": 3, "details": true, "do_sample": true, "best_of": 2});
    let answer = server.post("/generate", json!({"inputs": "abc", "parameters": parameters})).await.ok();
    assert_eq!(answer["generated_text"], "def");
    let losers = answer["details"]["best_of_sequences"].as_array().expect("losers");
    assert_eq!(losers.len(), 1);
    assert_eq!(losers[0]["generated_text"], "def");
    assert_eq!(losers[0]["tokens"].as_array().map(Vec::len), Some(3));
}

#[tokio::test]
async fn truncate_keeps_the_end_of_the_prompt() {
    let server = Setup::alphabet().start().await;
    let parameters = json!({"max_new_tokens": 2, "truncate": 1, "details": true, "decoder_input_details": true});
    let answer = server.post("/generate", json!({"inputs": "xyz", "parameters": parameters})).await.ok();
    assert_eq!(answer["details"]["prefill"], json!([{"id": 122, "text": "z", "logprob": null}]));
    assert_eq!(answer["generated_text"], "bc");
}

#[tokio::test]
async fn info_and_tokenize() {
    let newcomers = Newcomers { waiting_served_ratio: 0.5, max_waiting_steps: 7 };
    let server = Setup::alphabet()
        .serve(|serve| serve.model_sha = Some("abc".into()))
        .engine(|engine| engine.newcomers = newcomers)
        .start()
        .await;
    let info = server.get("/info").await.ok();
    assert_eq!(info["model_id"], "fake");
    assert_eq!(info["model_sha"], "abc");
    assert_eq!(info["max_total_tokens"], 1024);
    for (key, value) in [
        ("max_batch_size", json!(64)),
        ("max_batch_total_tokens", json!(16_384 * 16)),
        ("waiting_served_ratio", json!(0.5)),
        ("max_waiting_tokens", json!(7)),
        ("model_device_type", json!("cpu")),
        ("docker_label", Value::Null),
    ] {
        assert_eq!(info[key], value, "{key}");
    }
    assert!(info["version"].as_str().is_some_and(|version| version.starts_with("3.3.7+pelton.")));
    assert_eq!(info["max_input_tokens"], 1023);
    assert_eq!(info["max_concurrent_requests"], 128);
    let tokens = server.post("/tokenize", json!({"inputs": "a€"})).await.ok();
    assert_eq!(tokens[0], json!({"id": 97, "text": "a", "start": 0, "stop": 1}));
    assert_eq!(tokens.as_array().map(Vec::len), Some(4));
}

#[tokio::test]
async fn unknown_paths_and_methods_answer_json() {
    let server = Setup::alphabet().start().await;
    let answer = server.get("/no/such/path").await;
    assert_eq!((answer.status, answer.json()["error_type"].clone()), (StatusCode::NOT_FOUND, json!("not_found")));
    let answer = server.get("/generate").await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    assert!(answer.json()["error"].is_string());
    let answer = whole(server.send("DELETE", "/health", &[], Bytes::new()).await.0).await;
    assert_eq!(answer.json(), json!({"error": "method not allowed: DELETE", "error_type": "method_not_allowed"}));
    assert_eq!(server.get("/").await.status, StatusCode::OK);
    for (path, shown) in [("/v1/none", "not found: /v1/none"), ("/v1/models/%ff", "`%ff` does not exist")] {
        let answer = server.get(path).await;
        let message = answer.json()["error"]["message"].clone();
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        assert!(message.as_str().is_some_and(|message| message.contains(shown)), "{message}");
    }
}
