//! Every mistake gets a 4xx answer in JSON that names field, limit and value, and other requests go on.

use http::StatusCode;
use serde_json::{Value, json};
use std::time::Duration;

use crate::support::{Answer, Body, Events, Server, Setup, letters};

/// Message of a refusal in either dialect.
fn message(answer: &Answer) -> String {
    let body = answer.json();
    let error = &body["error"];
    error.as_str().or_else(|| error["message"].as_str()).unwrap_or_else(|| panic!("no message: {answer:?}")).to_owned()
}

async fn refused(server: &Server, path: &str, body: impl Into<Body>, status: u16, words: &[&str]) {
    let answer = server.post(path, body).await;
    let message = message(&answer);
    assert_eq!(answer.status.as_u16(), status, "{path}: {message}");
    for word in words {
        assert!(message.contains(word), "{path}: {word:?} is not in {message:?}");
    }
}

fn completion(extra: Value) -> Value {
    let mut body = json!({"prompt": "abc"});
    body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    body
}

fn chat(extra: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "abc"}]});
    body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    body
}

#[tokio::test]
async fn tgi_mistakes() {
    let server = Setup::alphabet().start().await;
    let parameters = |parameters: Value| json!({"inputs": "abc", "parameters": parameters});
    for path in ["/generate", "/generate_stream", "/"] {
        let cases: Vec<(Value, &[&str])> = vec![
            (json!({"inputs": ""}), &["`inputs`", "empty"]),
            (json!({"inputs": "a".repeat(2000)}), &["`inputs` tokens + `max_new_tokens` must be <= 1024", "2000"]),
            (json!({"inputs": "a".repeat(1024)}), &["`inputs` must have less than 1024 tokens. Given: 1024"]),
            (json!({"inputs": 3}), &["`inputs`", "3"]),
            (json!({"parameters": {}}), &["inputs"]),
            (json!([]), &["body"]),
            (json!({"inputs": "abc", "parameters": []}), &["`parameters`", "object"]),
            (json!(["abc"]), &["`body`", "object"]),
            (parameters(json!({"max_new_tokens": 0})), &["`max_new_tokens`", "positive", "0"]),
            (parameters(json!({"max_new_tokens": -1})), &["`parameters.max_new_tokens`", "-1"]),
            (parameters(json!({"max_new_tokens": 1_000_000})), &["`max_new_tokens`", "1024", "1000000", "3"]),
            (parameters(json!({"max_new_tokens": "5"})), &["`parameters.max_new_tokens`", "5"]),
            (parameters(json!({"temperature": -1.0})), &["`temperature`", "strictly positive", "-1"]),
            (parameters(json!({"temperature": 0.0})), &["`temperature`", "strictly positive", "0"]),
            (parameters(json!({"temperature": 1e30})), &["`temperature`", "100", "1000000"]),
            (parameters(json!({"temperature": 1e300})), &["`parameters.temperature`", "number out of range"]),
            (parameters(json!({"top_p": 0.0})), &["`top_p`", "> 0.0 and <= 1.0", "0"]),
            (parameters(json!({"top_p": 7})), &["`top_p`", "1.0", "7"]),
            (parameters(json!({"typical_p": -0.5})), &["`typical_p`", "1.0", "-0.5"]),
            (parameters(json!({"top_k": 0})), &["`top_k`", "strictly positive", "0"]),
            (parameters(json!({"repetition_penalty": 0.0})), &["`repetition_penalty`", "positive", "0"]),
            (parameters(json!({"repetition_penalty": 1e30})), &["`repetition_penalty`", "100"]),
            (parameters(json!({"frequency_penalty": 3.0})), &["`frequency_penalty`", "2.0", "3"]),
            (parameters(json!({"stop": vec!["x"; 10_000]})), &["`stop`", "16", "10000"]),
            (parameters(json!({"stop": ["x".repeat(5000)]})), &["`stop`", "1024", "5000"]),
            (parameters(json!({"stop": [""]})), &["`stop`", "empty"]),
            (parameters(json!({"stop": "x"})), &["`parameters.stop`", "x"]),
            (parameters(json!({"top_n_tokens": 6})), &["`top_n_tokens`", "5", "6"]),
            (parameters(json!({"best_of": 3, "do_sample": true})), &["`best_of`", "2", "3"]),
            (parameters(json!({"truncate": 5000})), &["`truncate`", "1024", "5000"]),
            (parameters(json!({"truncate": 0})), &["`truncate`", "0"]),
            (parameters(json!({"seed": -1})), &["`parameters.seed`", "-1"]),
            (parameters(json!({"adapter_id": "a"})), &["`adapter_id`", "--lora-adapters", "a"]),
        ];
        for (mut body, words) in cases {
            if let Some(fields) = body.as_object_mut().filter(|_| path == "/") {
                fields.insert("stream".into(), json!(true));
            }
            refused(&server, path, body, 422, words).await;
        }
    }
    refused(&server, "/generate", parameters(json!({"best_of": 2})), 422, &["`best_of`", "sampling"]).await;
    let seeded = parameters(json!({"best_of": 2, "do_sample": true, "seed": 1}));
    refused(&server, "/generate", seeded, 422, &["`seed`", "`best_of`"]).await;
    let streamed = parameters(json!({"best_of": 2, "do_sample": true}));
    refused(&server, "/generate_stream", streamed, 422, &["`best_of`", "streaming"]).await;
    let details = parameters(json!({"decoder_input_details": true}));
    refused(&server, "/generate_stream", details, 422, &["`decoder_input_details`", "streaming"]).await;
    assert!(server.gauges().steps == 0, "nothing of all this reached the engine");
}

#[tokio::test]
async fn openai_mistakes() {
    let server = Setup::alphabet().start().await;
    let cases: Vec<(Value, &[&str])> = vec![
        (json!({"temperature": -1}), &["`temperature`", "100", "-1"]),
        (json!({"temperature": 1e30}), &["`temperature`", "100"]),
        (json!({"top_p": 0}), &["`top_p`", "1.0", "0"]),
        (json!({"top_k": -2}), &["`top_k`", "-2"]),
        (json!({"min_p": 1.5}), &["`min_p`", "1.0", "1.5"]),
        (json!({"typical_p": 0}), &["`typical_p`", "1.0"]),
        (json!({"presence_penalty": -2.5}), &["`presence_penalty`", "-2.0", "-2.5"]),
        (json!({"frequency_penalty": 2.5}), &["`frequency_penalty`", "2.0", "2.5"]),
        (json!({"repetition_penalty": -1}), &["`repetition_penalty`", "-1"]),
        (json!({"logit_bias": {"5": 101}}), &["`logit_bias`", "100", "101"]),
        (json!({"logit_bias": {"5000": 1}}), &["`logit_bias`", "262", "5000"]),
        (json!({"logit_bias": {"x": 1}}), &["`logit_bias`", "x"]),
        (json!({"stop_token_ids": [5000]}), &["`stop_token_ids`", "262", "5000"]),
        (json!({"stop_token_ids": vec![1; 1000]}), &["`stop_token_ids`", "128", "1000"]),
        (json!({"stop": vec!["x"; 10_000]}), &["`stop`", "16", "10000"]),
        (json!({"stop": [""]}), &["`stop`", "empty"]),
        (json!({"stop": 5}), &["`stop`", "5"]),
        (json!({"max_tokens": 0}), &["`max_tokens`", "1", "0"]),
        (json!({"max_tokens": -3}), &["`max_tokens`", "-3"]),
        (json!({"max_tokens": 100_000}), &["`max_tokens`", "1024", "100000"]),
        (json!({"max_tokens": 2, "min_tokens": 3}), &["`min_tokens`", "2", "3"]),
        (json!({"n": 0}), &["`n`", "1", "0"]),
        (json!({"n": 1000}), &["`n`", "16", "1000"]),
        (json!({"truncate_prompt_tokens": -5}), &["`truncate_prompt_tokens`", "-5"]),
        (json!({"stream_options": {"include_usage": true}}), &["`stream_options`", "`stream`"]),
        (json!({"use_beam_search": true}), &["`use_beam_search`", "not supported"]),
        (json!({"prompt_logprobs": 21}), &["`prompt_logprobs`", "20", "21"]),
        (json!({"prompt_logprobs": -1}), &["`prompt_logprobs`", "-1"]),
        (json!({"prompt_logprobs": 1, "stream": true}), &["`prompt_logprobs`", "streamed"]),
        (json!({"allowed_token_ids": [1]}), &["`allowed_token_ids`", "not supported"]),
        (json!({"bad_words": ["x"]}), &["`bad_words`", "not supported"]),
        (json!({"return_token_ids": true}), &["`return_token_ids`", "not supported"]),
        (json!({"priority": 3}), &["`priority`", "not supported"]),
        (json!({"truncation_side": "right"}), &["`truncation_side`", "not supported"]),
    ];
    for (extra, words) in cases {
        refused(&server, "/v1/completions", completion(extra.clone()), 400, words).await;
        refused(&server, "/v1/chat/completions", chat(extra), 400, words).await;
    }
    let completions: Vec<(Value, &[&str])> = vec![
        (json!({"prompt": ""}), &["`prompt`", "empty"]),
        (json!({"prompt": []}), &["`prompt`", "empty"]),
        (json!({"prompt": [[]]}), &["`prompt`"]),
        (json!({"prompt": ["a", ""]}), &["`prompt`", "empty"]),
        (json!({"prompt": vec!["a"; 5]}), &["`prompt`", "4", "5"]),
        (json!({"prompt": [5000]}), &["`prompt`", "262", "5000"]),
        (json!({"prompt": ["a", 5]}), &["`prompt[1]`"]),
        (json!({"prompt": {"a": 1}}), &["`prompt`"]),
        (json!({"prompt": "a".repeat(5000)}), &["maximum context length is 1024 tokens", "`prompt`", "5000"]),
        (json!({}), &["prompt"]),
        (completion(json!({"logprobs": 21})), &["`logprobs`", "20", "21"]),
        (completion(json!({"logprobs": -1})), &["`logprobs`", "-1"]),
        (completion(json!({"n": 3, "best_of": 2})), &["`best_of`", "3", "2"]),
        (completion(json!({"best_of": 2, "stream": true})), &["`best_of`", "stream"]),
        (completion(json!({"best_of": 100})), &["`best_of`", "16", "100"]),
        (completion(json!({"n": 100, "best_of": 100})), &["`n`", "16", "100"]),
        (completion(json!({"suffix": "x", "echo": true})), &["`suffix`", "`echo`"]),
        (json!({"prompt": [97], "suffix": "x"}), &["`suffix`", "not supported"]),
    ];
    for (body, words) in completions {
        refused(&server, "/v1/completions", body, 400, words).await;
    }
    let image = json!([{"type": "image_url", "image_url": {"url": "data:,"}}]);
    let chats: Vec<(Value, &[&str])> = vec![
        (json!({"messages": []}), &["`messages`", "empty"]),
        (json!({"messages": "hi"}), &["`messages`"]),
        (json!({"messages": [{"role": "user"}]}), &["`messages[0].content`"]),
        (json!({"messages": [{"role": "user", "content": image}]}), &["`messages[0].content[0].type`", "image_url"]),
        (
            json!({"messages": [{"role": "user", "content": "a".repeat(5000)}]}),
            &["maximum context length is 1024 tokens", "`messages`", "5"],
        ),
        (chat(json!({"functions": []})), &["`functions`", "not supported"]),
        (chat(json!({"top_logprobs": 2})), &["`top_logprobs`", "`logprobs`"]),
        (chat(json!({"logprobs": true, "top_logprobs": 21})), &["`top_logprobs`", "20", "21"]),
        (chat(json!({"chat_template": "x"})), &["`chat_template`", "not supported"]),
        (chat(json!({"modalities": ["audio"]})), &["`modalities`", "not supported"]),
        (chat(json!({"add_generation_prompt": true, "continue_final_message": true})), &["`continue_final_message`"]),
        (chat(json!({"max_completion_tokens": 0})), &["`max_completion_tokens`", "0"]),
        (chat(json!({"max_completion_tokens": 5000})), &["`max_completion_tokens`", "1024", "5000"]),
        (chat(json!({"max_tokens": 5000})), &["`max_tokens`", "1024", "5000"]),
    ];
    for (body, words) in chats {
        refused(&server, "/v1/chat/completions", body, 400, words).await;
    }
    assert!(server.gauges().steps == 0, "nothing of all this reached the engine");
}

#[tokio::test]
async fn templates_refuse_in_their_own_words() {
    let server = Setup::alphabet().start().await;
    // The template adds role and content; a number cannot be added to text.
    let message = json!({"role": "user", "content": null, "tool_calls": []});
    refused(&server, "/v1/chat/completions", json!({"messages": [message]}), 400, &["template"]).await;
}

#[tokio::test]
async fn broken_bodies() {
    let server = Setup::alphabet().start().await;
    for path in ["/generate", "/generate_stream", "/", "/tokenize", "/v1/completions", "/v1/chat/completions"] {
        refused(&server, path, &b"{\"inputs\":"[..], 400, &["JSON", "line 1"]).await;
        refused(&server, path, &b""[..], 400, &["JSON"]).await;
        refused(&server, path, &b"{\"inputs\": \"\xC3\x28\"}"[..], 400, &["JSON", "UTF-8"]).await;
        let deep = format!("{{\"inputs\": {}", "[".repeat(100_000)).into_bytes();
        refused(&server, path, deep, if path.starts_with("/v1") { 400 } else { 422 }, &[]).await;
        let deep = format!("{{\"unknown\": {}", "[".repeat(100_000)).into_bytes();
        refused(&server, path, deep, 400, &["JSON"]).await;
        refused(&server, path, vec![b' '; 10_000_000], 413, &["2000000"]).await;
        let headers = [("content-type", "text/plain")];
        let (response, _connection) = server.send("POST", path, &headers, "{}".into()).await;
        let answer = crate::support::whole(response).await;
        assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert!(message(&answer).contains("text/plain"));
    }
}

#[tokio::test]
async fn others_go_on_meanwhile() {
    let server = Setup::alphabet().step_cost(Duration::from_millis(4)).start().await;
    let body = json!({"inputs": "abc", "parameters": {"max_new_tokens": 500}});
    let (response, _connection) = server.open("/generate_stream", body).await;
    let mut events = Events::new(response.into_body());
    events.next().await.expect("a first token");
    refused(&server, "/generate", vec![b'x'; 10_000_000], 413, &["2000000"]).await;
    refused(&server, "/generate", json!({"inputs": "abc", "parameters": {"stop": vec!["x"; 10_000]}}), 422, &["10000"])
        .await;
    refused(&server, "/v1/completions", &b"{"[..], 400, &["JSON"]).await;
    assert!(server.gauges().running == 1, "the stream still runs");
    let rest = events.rest().await;
    assert_eq!(rest.len(), 499);
    assert!(rest[498].contains(&letters(3, 500)));
}

#[tokio::test]
async fn keys_guard_generating_and_nothing_else() {
    let server = Setup::alphabet().serve(|serve| serve.api_key = Some("secret".into())).start().await;
    refused(&server, "/generate", json!({"inputs": "abc"}), 401, &["key"]).await;
    refused(&server, "/v1/completions", completion(json!({})), 401, &["key"]).await;
    let headers = [("content-type", "application/json"), ("authorization", "Bearer secret")];
    let body = json!({"prompt": "abc", "max_tokens": 1}).to_string();
    let (response, _connection) = server.send("POST", "/v1/completions", &headers, body.into()).await;
    assert_eq!(response.status(), StatusCode::OK);
    for path in ["/health", "/info", "/metrics", "/v1/models"] {
        assert_eq!(server.get(path).await.status, StatusCode::OK, "{path}");
    }
}
