//! The routes under which clouds call, and `/chat_tokenize`.

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use crate::support::{Server, Setup, letters, whole};

/// Tokens of a chat of one message of two letters: its text, `<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n`, in bytes and special tokens.
const CHAT_TOKENS: usize = 10 + 11;

fn chat() -> Value {
    json!({"messages": [{"role": "user", "content": "ab"}], "max_tokens": 3})
}

#[tokio::test]
async fn invocations_go_where_their_body_belongs() {
    let server = Setup::alphabet().start().await;
    let generate = json!({"inputs": "abc", "parameters": {"max_new_tokens": 2}});
    let answer = server.post("/invocations", generate.clone()).await;
    assert_eq!(answer.header("x-generated-tokens"), "2");
    assert_eq!(answer.ok(), json!([{"generated_text": "de"}]));
    let mut streamed = generate;
    streamed["stream"] = json!(true);
    assert_eq!(server.events("/invocations", streamed).await.len(), 2);

    let answer = server.post("/invocations", chat()).await.ok();
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["choices"][0]["message"]["content"], letters(CHAT_TOKENS, 3));
    let answer = server.post("/invocations", json!({"prompt": "abc", "max_tokens": 2})).await.ok();
    assert_eq!((&answer["object"], &answer["choices"][0]["text"]), (&json!("text_completion"), &json!("de")));
}

#[tokio::test]
async fn mistakes_in_invocations_are_told_as_the_api_tells_them() {
    let server = Setup::alphabet().start().await;
    for (body, status, words) in [
        (json!({"input": "abc"}), 422, "`inputs`"),
        (json!({"inputs": ""}), 422, "`inputs` cannot be empty"),
        (json!([1]), 422, "object"),
    ] {
        let answer = server.post("/invocations", body).await;
        let error = answer.json()["error"].as_str().expect("text").to_owned();
        assert_eq!((answer.status.as_u16(), error.contains(words)), (status, true), "{error}");
    }
    let answer = server.post("/invocations", json!({"messages": []})).await;
    assert_eq!((answer.status, answer.json()["error"]["param"].clone()), (StatusCode::BAD_REQUEST, json!("messages")));
    assert_eq!(server.post("/invocations", &b"{"[..]).await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn invocations_of_old_take_chats_alone_when_told_so() {
    let server = Setup::alphabet().serve(|serve| serve.messages_api_enabled = true).start().await;
    assert_eq!(server.post("/invocations", chat()).await.ok()["object"], "chat.completion");
    let answer = server.post("/invocations", json!({"inputs": "abc"})).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(answer.json()["error"]["message"].as_str().expect("text").contains("messages"));
}

#[tokio::test]
async fn vertex_predicts_each_instance_with_its_parameters() {
    let server = Setup::alphabet().start().await;
    let instances = json!([
        {"inputs": "abc", "parameters": {"max_new_tokens": 2, "return_full_text": true}},
        chat(),
        {"inputs": "abc", "parameters": {"max_new_tokens": 20, "stop": ["fg"], "do_sample": true, "top_k": 1}},
    ]);
    let answer = server.post("/vertex", json!({"instances": instances})).await.ok();
    assert_eq!(answer, json!({"predictions": ["abcde", letters(CHAT_TOKENS, 3), "defg"]}));
}

#[tokio::test]
async fn mistakes_in_an_instance_fail_the_whole() {
    let server = Setup::alphabet().start().await;
    let good = json!({"inputs": "abc", "parameters": {"max_new_tokens": 1}});
    for (instances, words) in [
        (json!([]), "`instances`"),
        (json!(vec![good.clone(); 129]), "128"),
        (json!([good, {"inputs": ""}]), "`inputs` cannot be empty"),
        (json!([{"inputs": "abc", "parameters": {"top_k": "many"}}]), "parameters.top_k"),
        (json!([good, "abc"]), "instances[1]"),
        (json!([{"inputs": "abc", "stream": true}]), "`stream`"),
        (json!([{"messages": []}]), "cannot be empty"),
        (json!([{"messages": [{"role": "user", "content": "a"}], "n": 2}]), "must be 1"),
    ] {
        let answer = server.post("/vertex", json!({"instances": instances})).await;
        let body = answer.json();
        assert_eq!((answer.status.as_u16(), &body["error_type"]), (422, &json!("validation")));
        assert!(body["error"].as_str().expect("text").contains(words), "{words}: {body}");
    }
    server.until("nothing goes on", |gauges| gauges.is_idle()).await;
}

async fn get(server: &Server, method: &str, path: &str) -> StatusCode {
    whole(server.send(method, path, &[], Bytes::new()).await.0).await.status
}

#[tokio::test]
async fn vertex_names_its_routes() {
    let server = Setup::alphabet()
        .serve(|serve| {
            serve.vertex_predict_route = Some("/generate".into());
            serve.vertex_health_route = Some("/v1/endpoints/{one}".into());
        })
        .start()
        .await;
    let body = json!({"instances": [{"inputs": "abc", "parameters": {"max_new_tokens": 2}}]});
    let answer = server.post("/generate", body.clone()).await.ok();
    assert_eq!(answer, json!({"predictions": ["de"]}));
    assert_eq!(server.post("/vertex", body).await.ok(), answer);
    assert_eq!(get(&server, "GET", "/v1/endpoints/{one}").await, StatusCode::OK);
    assert_eq!(get(&server, "HEAD", "/v1/endpoints/{one}").await, StatusCode::OK);
    assert_eq!(get(&server, "GET", "/v1/endpoints/two").await, StatusCode::NOT_FOUND);
    assert_eq!(get(&server, "GET", "/health").await, StatusCode::OK);
}

#[tokio::test]
async fn chat_tokenize_shows_what_the_template_makes() {
    let server = Setup::alphabet().start().await;
    let answer = server.post("/chat_tokenize", chat()).await.ok();
    let text = "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(answer["templated_text"], text);
    let tokens = answer["tokenize_response"].as_array().expect("a list");
    assert_eq!(tokens.len(), CHAT_TOKENS);
    assert_eq!(tokens[0], json!({"id": tokens[0]["id"], "text": "<|im_start|>", "start": 0, "stop": 12}));
    let told: String = tokens.iter().map(|token| token["text"].as_str().expect("text")).collect();
    assert_eq!(told, text);
    let answer = server.post("/chat_tokenize", json!({"messages": "ab"})).await;
    assert_eq!((answer.status.as_u16(), answer.json()["error_type"].clone()), (422, json!("validation")));
}
