//! The OpenAI dialect.

use http::StatusCode;
use serde_json::{Value, json};

use crate::support::{END_OF_TEXT, Setup, letters, parse, whole};

/// Events without the closing `[DONE]`, which must be there.
fn chunks(events: Vec<String>) -> Vec<Value> {
    let (done, chunks) = events.split_last().expect("events");
    assert_eq!(done, "[DONE]");
    chunks.iter().map(|event| parse(event)).collect()
}

fn text_of(chunks: &[Value], index: u32, path: &str) -> String {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().expect("choices"));
    let choices = choices.filter(|choice| choice["index"] == index);
    choices.map(|choice| choice.pointer(path).and_then(Value::as_str).unwrap_or_default()).collect()
}

#[tokio::test]
async fn completion() {
    let server = Setup::alphabet().start().await;
    let answer = server.post("/v1/completions", json!({"prompt": "abc", "max_tokens": 4})).await;
    assert_eq!(answer.header("x-generated-tokens"), "4");
    let body = answer.ok();
    assert!(body["id"].as_str().expect("an id").starts_with("cmpl-"));
    assert_eq!(body["object"], "text_completion");
    let fingerprint = body["system_fingerprint"].as_str().expect("a fingerprint");
    assert!(fingerprint.starts_with("3.3.7+pelton.") && fingerprint.ends_with("-native"), "{fingerprint}");
    assert_eq!(body["model"], "fake");
    assert!(body["created"].as_u64().expect("seconds") > 1_700_000_000);
    let choice = json!({"index": 0, "text": "defg", "logprobs": null, "finish_reason": "length", "stop_reason": null});
    assert_eq!(body["choices"], json!([choice]));
    let usage = &body["usage"];
    assert_eq!([&usage["prompt_tokens"], &usage["completion_tokens"], &usage["total_tokens"]], [3, 4, 7]);
    // Sixteen tokens unless told otherwise, and fewer where the context ends.
    let body = server.post("/v1/completions", json!({"prompt": "abc", "max_tokens": null})).await.ok();
    assert_eq!(body["usage"]["completion_tokens"], 16);
    let body = server.post("/v1/completions", json!({"prompt": "a".repeat(1020)})).await.ok();
    assert_eq!(body["usage"]["completion_tokens"], 4);
}

#[tokio::test]
async fn completion_stream() {
    let server = Setup::alphabet().start().await;
    let request = json!({"prompt": "abc", "max_tokens": 4, "stream": true});
    let events = chunks(server.events("/v1/completions", request.clone()).await);
    assert_eq!(events.len(), 4);
    assert_eq!(text_of(&events, 0, "/text"), "defg");
    assert!(events[..3].iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null()));
    assert_eq!(events[3]["choices"][0]["finish_reason"], "length");
    assert!(events.iter().all(|chunk| chunk.get("usage").is_none()));

    let mut with_usage = request;
    with_usage["stream_options"] = json!({"include_usage": true, "continuous_usage_stats": true});
    let events = chunks(server.events("/v1/completions", with_usage).await);
    assert_eq!(events[0]["usage"]["completion_tokens"], 1);
    let last = events.last().expect("chunks");
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["total_tokens"], 7);
}

#[tokio::test]
async fn several_prompts_and_choices_are_numbered_prompt_by_prompt() {
    let server = Setup::alphabet().start().await;
    let request = json!({"prompt": ["abc", "abcd"], "max_tokens": 2, "n": 2, "temperature": 0});
    let body = server.post("/v1/completions", request.clone()).await.ok();
    let texts: Vec<_> = (0..4).map(|index| body["choices"][index]["text"].clone()).collect();
    assert_eq!(texts, ["de", "de", "ef", "ef"]);
    assert_eq!(body["usage"]["prompt_tokens"], 7);
    assert_eq!(body["usage"]["completion_tokens"], 8);
    let mut request = request;
    request["stream"] = json!(true);
    let events = chunks(server.events("/v1/completions", request).await);
    let texts: Vec<_> = (0..4).map(|index| text_of(&events, index, "/text")).collect();
    assert_eq!(texts, ["de", "de", "ef", "ef"]);
}

#[tokio::test]
async fn prompts_of_token_ids() {
    let server = Setup::alphabet().start().await;
    let body = server.post("/v1/completions", json!({"prompt": [[97, 98], [99]], "max_tokens": 1})).await.ok();
    assert_eq!((&body["choices"][0]["text"], &body["choices"][1]["text"]), (&json!("c"), &json!("b")));
    let body =
        server.post("/v1/completions", json!({"prompt": [97, 98, 99], "max_tokens": 1, "echo": true})).await.ok();
    assert_eq!(body["choices"][0]["text"], "abcd");
}

#[tokio::test]
async fn completion_logprobs() {
    let server = Setup::alphabet().start().await;
    let request = json!({"prompt": "abc", "max_tokens": 2, "logprobs": 2});
    let body = server.post("/v1/completions", request.clone()).await.ok();
    let logprobs = &body["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["d", "e"]));
    assert_eq!(logprobs["text_offset"], json!([0, 1]));
    assert_eq!(logprobs["top_logprobs"][0].as_object().map(serde_json::Map::len), Some(2));
    assert!(logprobs["top_logprobs"][0]["d"].is_number());
    assert!(logprobs["token_logprobs"][1].as_f64().expect("a number") > -1e-3);

    let mut request = request;
    request["stream"] = json!(true);
    let events = chunks(server.events("/v1/completions", request).await);
    assert_eq!(events[1]["choices"][0]["logprobs"]["tokens"], json!(["e"]));
    assert_eq!(events[1]["choices"][0]["logprobs"]["text_offset"], json!([1]));

    let request = json!({"prompt": "ab", "max_tokens": 0, "echo": true, "logprobs": 0});
    let body = server.post("/v1/completions", request.clone()).await.ok();
    assert_eq!(body["choices"][0]["text"], "ab");
    assert_eq!(body["choices"][0]["logprobs"]["tokens"], json!(["a", "b"]));
    assert_eq!(body["choices"][0]["logprobs"]["token_logprobs"][0], Value::Null);
    assert_eq!(body["usage"]["completion_tokens"], 0);
    let mut request = request;
    request["stream"] = json!(true);
    let events = chunks(server.events("/v1/completions", request).await);
    assert_eq!(text_of(&events, 0, "/text"), "ab");
    assert_eq!(events.last().expect("chunks")["choices"][0]["finish_reason"], "length");
    server.until("nothing goes on", |gauges| gauges.is_idle()).await;
}

#[tokio::test]
async fn echoed_prompts_have_alternatives_too() {
    let server = Setup::alphabet().start().await;
    let request = json!({"prompt": "abX", "max_tokens": 1, "echo": true, "logprobs": 2});
    let choice = server.post("/v1/completions", request.clone()).await.ok()["choices"][0].clone();
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["a", "b", "X", "d"]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2, 3]));
    assert_eq!((&logprobs["token_logprobs"][0], &logprobs["top_logprobs"][0]), (&Value::Null, &Value::Null));
    let top = |place: usize| logprobs["top_logprobs"][place].as_object().expect("candidates");
    assert!(top(1).len() == 2 && top(1)["b"] == logprobs["token_logprobs"][1]);
    // Nobody foretold the third: it stands beside the two likeliest.
    assert!(top(2).len() == 3 && top(2)["c"].as_f64() > top(2)["X"].as_f64());
    assert_eq!(top(2)["X"], logprobs["token_logprobs"][2]);

    let mut request = request;
    request["stream"] = json!(true);
    let events = chunks(server.events("/v1/completions", request).await);
    assert_eq!(events[0]["choices"][0]["logprobs"]["top_logprobs"][2], logprobs["top_logprobs"][2]);
    assert_eq!(text_of(&events, 0, "/text"), "abXd");
}

#[tokio::test]
async fn prompt_logprobs_tell_rank_and_text() {
    let server = Setup::alphabet().start().await;
    let request = json!({"prompt": ["abX", "ab"], "max_tokens": 1, "prompt_logprobs": 1});
    let choices = server.post("/v1/completions", request).await.ok()["choices"].clone();
    let told = choices[0]["prompt_logprobs"].as_array().expect("a list");
    assert_eq!(
        (told.len(), &told[0], choices[1]["prompt_logprobs"].as_array().map(Vec::len)),
        (3, &Value::Null, Some(2))
    );
    assert_eq!(told[1].as_object().map(serde_json::Map::len), Some(1));
    assert_eq!((&told[1]["98"]["rank"], &told[1]["98"]["decoded_token"]), (&json!(1), &json!("b")));
    assert_eq!((&told[2]["99"]["rank"], &told[2]["88"]["rank"]), (&json!(1), &json!(2)));
    assert!(told[2]["88"]["logprob"].as_f64() < told[2]["99"]["logprob"].as_f64());

    let chat = json!({"messages": [{"role": "user", "content": "ab"}], "max_tokens": 1, "prompt_logprobs": 0});
    let body = server.post("/v1/chat/completions", chat).await.ok();
    assert_eq!(body["prompt_logprobs"].as_array().map(Vec::len), Some(21));
    let plain = server.post("/v1/completions", json!({"prompt": "ab", "max_tokens": 1})).await.ok();
    assert!(plain["choices"][0].get("prompt_logprobs").is_none());
}

#[tokio::test]
async fn stop_strings_are_cut_and_named() {
    let server = Setup::alphabet().start().await;
    let request = json!({"prompt": "abc", "max_tokens": 20, "stop": "ghi"});
    let choice = server.post("/v1/completions", request.clone()).await.ok()["choices"][0].clone();
    assert_eq!(
        (&choice["text"], &choice["finish_reason"], &choice["stop_reason"]),
        (&json!("def"), &json!("stop"), &json!("ghi"))
    );
    let mut streamed = request.clone();
    streamed["stream"] = json!(true);
    assert_eq!(text_of(&chunks(server.events("/v1/completions", streamed).await), 0, "/text"), "def");
    let mut kept = request;
    kept["include_stop_str_in_output"] = json!(true);
    assert_eq!(server.post("/v1/completions", kept).await.ok()["choices"][0]["text"], "defghi");
    // What looked like a beginning of a stop string and was none is not lost.
    let request = json!({"prompt": "abc", "max_tokens": 4, "stop": ["fgX"]});
    assert_eq!(server.post("/v1/completions", request).await.ok()["choices"][0]["text"], "defg");
}

#[tokio::test]
async fn stop_tokens_end_of_text_and_its_opposite() {
    let server = Setup::telling([97, 98, 99, 100, END_OF_TEXT]).start().await;
    let ask = async |extra: Value| {
        let mut request = json!({"prompt": "abc", "max_tokens": 6});
        request.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        server.post("/v1/completions", request).await.ok()["choices"][0].clone()
    };
    let choice = ask(json!({})).await;
    assert_eq!(
        (&choice["text"], &choice["finish_reason"], &choice["stop_reason"]),
        (&json!("d"), &json!("stop"), &Value::Null)
    );
    let choice = ask(json!({"stop_token_ids": [100]})).await;
    assert_eq!((&choice["text"], &choice["stop_reason"]), (&json!(""), &json!(100)));
    let choice = ask(json!({"ignore_eos": true})).await;
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("dabcd"), &json!("length")));
    let choice = ask(json!({"ignore_eos": true, "skip_special_tokens": false})).await;
    assert_eq!(choice["text"], "d<|endoftext|>abcd");
    let choice = ask(json!({"min_tokens": 6, "temperature": 0})).await;
    assert_eq!(choice["finish_reason"], "length");
}

#[tokio::test]
async fn sampling_fields_reach_the_engine() {
    let server = Setup::alphabet().start().await;
    let ask = async |extra: Value| {
        let mut request = json!({"prompt": "abc", "max_tokens": 3, "temperature": 0});
        request.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        server.post("/v1/completions", request).await.ok()["choices"][0]["text"].clone()
    };
    assert_eq!(ask(json!({"logit_bias": {"120": 100}})).await, "xxx");
    let hot = json!({"temperature": 100, "seed": 5, "top_k": 50});
    assert_eq!(ask(hot.clone()).await, ask(hot).await);
    assert_ne!(ask(json!({"temperature": 100, "seed": 5})).await, ask(json!({"temperature": 100, "seed": 6})).await);
    assert_eq!(ask(json!({"temperature": 100, "seed": 5, "top_k": 1})).await, "def");
    assert_eq!(ask(json!({"temperature": 50, "seed": 5, "min_p": 0.9})).await, "def");
}

#[tokio::test]
async fn best_of_answers_the_likeliest() {
    let server = Setup::alphabet().start().await;
    let request = json!({"prompt": "abc", "max_tokens": 3, "n": 1, "best_of": 3, "temperature": 0.5});
    let body = server.post("/v1/completions", request).await.ok();
    assert_eq!(body["choices"].as_array().map(Vec::len), Some(1));
    assert_eq!(body["choices"][0]["text"], "def");
    assert_eq!(body["choices"][0]["logprobs"], Value::Null);
    assert_eq!(body["usage"]["completion_tokens"], 9);
}

#[tokio::test]
async fn suffix_fills_in_the_middle() {
    let server = Setup::alphabet().start().await;
    // prefix token, two of the prompt, suffix token, one of the suffix, middle token: six.
    let body = server.post("/v1/completions", json!({"prompt": "ab", "suffix": "z", "max_tokens": 2})).await.ok();
    assert_eq!(body["usage"]["prompt_tokens"], 6);
    assert_eq!(body["choices"][0]["text"], letters(6, 2));
}

#[tokio::test]
async fn chat() {
    let server = Setup::alphabet().start().await;
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let messages = json!([{"role": "system", "content": "s"}, {"role": "user", "content": parts}]);
    let request = json!({"messages": messages, "max_completion_tokens": 3, "model": "dummy", "logprobs": true, "top_logprobs": 2});
    let body = server.post("/v1/chat/completions", request).await.ok();
    assert!(body["id"].as_str().expect("an id").starts_with("chatcmpl-"));
    assert_eq!((&body["object"], &body["model"]), (&json!("chat.completion"), &json!("dummy")));
    // <|im_start|>system\ns<|im_end|>\n<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n
    let num_prompt_tokens = 11 + 10 + 11;
    assert_eq!(body["usage"]["prompt_tokens"], num_prompt_tokens);
    let choice = &body["choices"][0];
    let expected = letters(num_prompt_tokens, 3);
    assert_eq!(choice["message"], json!({"role": "assistant", "content": expected, "refusal": null}));
    assert_eq!(choice["finish_reason"], "length");
    let logprobs = choice["logprobs"]["content"].as_array().expect("logprobs");
    assert_eq!(logprobs.len(), 3);
    assert_eq!(logprobs[0]["token"], expected[..1]);
    assert_eq!(logprobs[0]["bytes"], json!([expected.as_bytes()[0]]));
    assert_eq!(logprobs[0]["top_logprobs"].as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn chat_stream() {
    let server = Setup::alphabet().start().await;
    let request = json!({
        "messages": [{"role": "user", "content": "ab"}], "max_tokens": 3, "stream": true, "n": 2,
        "stream_options": {"include_usage": true},
    });
    let events = chunks(server.events("/v1/chat/completions", request).await);
    let (usage, events) = events.split_last().expect("chunks");
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(6)));
    for index in [0, 1] {
        let own: Vec<_> =
            events.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == index).collect();
        assert_eq!(own[0]["delta"], json!({"role": "assistant", "content": ""}));
        assert!(own[1..].iter().all(|choice| choice["delta"].get("role").is_none()));
        assert_eq!(own.last().expect("chunks")["finish_reason"], "length");
        assert_eq!(text_of(events, index, "/delta/content").len(), 3);
    }
    assert!(events.iter().all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk.get("usage").is_none()));
}

#[tokio::test]
async fn last_message_can_be_continued() {
    let server = Setup::alphabet().start().await;
    let messages = json!([{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]);
    let ask = async |extra: Value| {
        let mut request = json!({"messages": messages, "max_tokens": 1});
        request.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        server.post("/v1/chat/completions", request).await.ok()["usage"]["prompt_tokens"].as_u64().expect("a count")
    };
    let closed = ask(json!({"continue_final_message": false, "add_generation_prompt": false})).await;
    assert_eq!(
        ask(json!({"continue_final_message": true})).await,
        closed - 2,
        "the closing token and line end are gone"
    );
    assert_eq!(ask(json!({})).await, closed - 2, "that is what happens anyway");
    assert_eq!(ask(json!({"add_generation_prompt": true})).await, closed + 11);
    assert_eq!(ask(json!({"continue_final_message": false})).await, closed + 11);
    let nothing_said = json!([{"role": "user", "content": "ab"}, {"role": "assistant", "content": ""}]);
    assert_eq!(ask(json!({"messages": nothing_said})).await, closed + 9, "there is nothing to go on from");
    let effort =
        server.post("/v1/chat/completions", json!({"messages": messages, "max_tokens": 1, "reasoning_effort": "low"}));
    effort.await.ok();
}

#[tokio::test]
async fn models() {
    let server =
        Setup::alphabet().serve(|serve| serve.served_model_names = vec!["one".into(), "org/two".into()]).start().await;
    let list = server.get("/v1/models").await.ok();
    assert_eq!((&list["data"][0]["id"], &list["data"][1]["id"]), (&json!("one"), &json!("org/two")));
    assert_eq!((&list["data"][0]["owned_by"], &list["data"][0]["max_model_len"]), (&json!("vllm"), &json!(1024)));
    assert_eq!(server.get("/v1/models/org/two").await.ok()["id"], "org/two");
    let answer = server.get("/v1/models/three").await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert_eq!(answer.json()["error"]["type"], "NotFoundError");
    for asked in [json!({"prompt": "abc"}), json!({"prompt": "abc", "model": "tgi"})] {
        assert_eq!(server.post("/v1/completions", asked).await.ok()["model"], "one");
    }
}

#[tokio::test]
async fn request_id_becomes_the_answers_id() {
    let server = Setup::alphabet().start().await;
    let headers = [("content-type", "application/json"), ("x-request-id", "abc-1")];
    let body = json!({"prompt": "abc", "max_tokens": 1}).to_string();
    let (response, _connection) = server.send("POST", "/v1/completions", &headers, body.into()).await;
    assert_eq!(whole(response).await.json()["id"], "cmpl-abc-1");
}
