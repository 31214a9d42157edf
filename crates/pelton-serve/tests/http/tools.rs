//! Calls of functions.

use serde_json::{Value, json};

use crate::support::{Server, Setup, letters, parse};

fn function(name: &str) -> Value {
    let properties = json!({"a": {"type": "integer", "minimum": 0, "maximum": 9}, "kind": {"enum": ["x", "y"]}});
    let parameters = json!({"type": "object", "properties": properties, "required": ["a", "kind"]});
    json!({"type": "function", "function": {"name": name, "description": "does it", "parameters": parameters}})
}

fn ask(extra: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "abc"}], "temperature": 0, "max_tokens": 120, "tools": [function("add"), function("zap")]});
    body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    body
}

async fn whole(server: &Server, extra: Value) -> Value {
    server.post("/v1/chat/completions", ask(extra)).await.ok()
}

/// The pieces of a streamed answer.
async fn chunks(server: &Server, extra: Value) -> Vec<Value> {
    let mut body = ask(extra);
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let events = server.events("/v1/chat/completions", body).await;
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    events[..events.len() - 1].iter().map(|event| parse(event)).collect()
}

/// Name and arguments of the only call of an answer.
fn call(answer: &Value) -> (String, Value) {
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
    let message = &choice["message"];
    assert_eq!((&message["role"], &message["content"]), (&json!("assistant"), &Value::Null));
    let calls = message["tool_calls"].as_array().expect("calls");
    assert_eq!((calls.len(), &calls[0]["type"]), (1, &json!("function")));
    let function = &calls[0]["function"];
    let arguments = function["arguments"].as_str().expect("arguments are a string");
    (function["name"].as_str().expect("a name").to_owned(), serde_json::from_str(arguments).expect("JSON"))
}

fn check_arguments(arguments: &Value) {
    assert_eq!(arguments.as_object().expect("an object").len(), 2, "{arguments}");
    assert!(
        arguments["a"].as_u64().expect("a number") <= 9
            && ["x", "y"].contains(&arguments["kind"].as_str().expect("text"))
    );
}

#[tokio::test]
async fn a_function_is_called_as_it_is_chosen() {
    let server = Setup::alphabet().start().await;
    // Of equal tokens the lowest is taken: the first name by the alphabet.
    for (choice, name) in [
        (json!("auto"), "add"),
        (Value::Null, "add"),
        (json!("required"), "add"),
        (json!("zap"), "zap"),
        (json!({"type": "function", "function": {"name": "zap"}}), "zap"),
    ] {
        let answer = whole(&server, json!({"tool_choice": choice})).await;
        let (found, arguments) = call(&answer);
        assert_eq!(found, name);
        check_arguments(&arguments);
        assert_eq!(answer["choices"][0]["message"]["tool_calls"][0]["id"], "0");
    }
    let answer = whole(&server, json!({"tool_choice": "none", "max_tokens": 3})).await;
    assert_eq!(answer["choices"][0]["message"]["content"].as_str().map(str::len), Some(3));
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn a_call_is_streamed_in_pieces_that_add_up() {
    let server = Setup::alphabet().start().await;
    for choice in ["auto", "required", "zap"] {
        let expected = whole(&server, json!({"tool_choice": choice})).await;
        let chunks = chunks(&server, json!({"tool_choice": choice})).await;
        let (usage, chunks) = chunks.split_last().expect("chunks");
        assert_eq!(usage["choices"], json!([]));
        assert_eq!(usage["usage"]["completion_tokens"], expected["usage"]["completion_tokens"]);
        let choices: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]).collect();
        assert_eq!(choices[0]["delta"]["role"], "assistant");
        let (last, before) = choices.split_last().expect("choices");
        assert_eq!(last["finish_reason"], "tool_calls");
        assert!(before.iter().all(|choice| choice["finish_reason"].is_null() && choice["delta"]["content"].is_null()));
        let pieces: Vec<&Value> =
            choices.iter().map(|choice| &choice["delta"]["tool_calls"][0]).filter(|piece| !piece.is_null()).collect();
        assert!(pieces.len() > 2, "the arguments come as they are made");
        let wanted = &expected["choices"][0]["message"]["tool_calls"][0];
        assert_eq!(pieces[0]["function"]["name"], wanted["function"]["name"]);
        assert_eq!((&pieces[0]["id"], &pieces[0]["type"]), (&wanted["id"], &json!("function")));
        assert!(pieces.iter().all(|piece| piece["index"] == 0));
        assert!(pieces[1..].iter().all(|piece| piece["id"].is_null() && piece["function"]["name"].is_null()));
        let arguments: String = pieces.iter().filter_map(|piece| piece["function"]["arguments"].as_str()).collect();
        assert_eq!(json!(arguments), wanted["function"]["arguments"]);
    }
}

#[tokio::test]
async fn who_has_no_use_for_tools_answers_without_them_and_pays_for_both() {
    let server = Setup::alphabet().start().await;
    let tools = json!({"tools": [function("zap")], "max_tokens": 40});
    let plain = whole(&server, json!({"tools": null, "max_tokens": 40})).await;
    let answer = whole(&server, tools.clone()).await;
    assert_eq!(answer["choices"], plain["choices"]);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let count = |answer: &Value, name: &str| answer["usage"][name].as_u64().expect("a count");
    assert!(count(&answer, "completion_tokens") > 40, "what chose not to call is counted");
    assert!(count(&answer, "prompt_tokens") > 2 * count(&plain, "prompt_tokens"));
    let chunks = chunks(&server, tools).await;
    let text: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(json!(text), plain["choices"][0]["message"]["content"]);
    assert_eq!(chunks[chunks.len() - 2]["choices"][0]["finish_reason"], "length");
    let usage = &chunks[chunks.len() - 1]["usage"];
    assert_eq!(usage["prompt_tokens"], answer["usage"]["prompt_tokens"]);
    assert_eq!(text.len(), 40);
    assert!(letters(0, 100).contains(&text));
    server.until("nothing is left behind", |gauges| gauges.running == 0).await;
    let metrics = String::from_utf8(server.get("/metrics").await.body.to_vec()).expect("text");
    for line in ["tgi_request_count 3", "tgi_request_success 3", "tgi_request_failure{err=\"dropped\"} 0"] {
        assert!(metrics.lines().any(|found| found == line), "asked twice is one request: no {line}");
    }
}

#[tokio::test]
async fn a_call_that_is_cut_says_so() {
    let server = Setup::alphabet().start().await;
    let answer = whole(&server, json!({"tool_choice": "required", "max_tokens": 36})).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(choice["message"]["tool_calls"][0]["function"]["name"], "add");
    let unnamed = whole(&server, json!({"max_tokens": 5})).await;
    assert_eq!(unnamed["choices"][0]["finish_reason"], "length");
    assert!(unnamed["choices"][0]["message"]["tool_calls"].is_null());
}

#[tokio::test]
async fn a_conversation_goes_on_after_a_call() {
    let server = Setup::alphabet().start().await;
    let messages = json!([
        {"role": "user", "content": "abc"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "4", "type": "function", "function": {"name": "add", "arguments": "{\"a\": 1}"}}]},
        {"role": "tool", "tool_call_id": "4", "content": "2"},
    ]);
    let answer = whole(&server, json!({"messages": messages, "tool_choice": "required"})).await;
    assert_eq!(answer["choices"][0]["message"]["tool_calls"][0]["id"], "5");
    let prompt = server.post("/chat_tokenize", ask(json!({"messages": messages}))).await.ok();
    let prompt = prompt["templated_text"].as_str().expect("a text");
    assert!(prompt.contains(r#""name":"add""#) && prompt.contains(r#"{"a":1}"#), "the call is told: {prompt}");
    assert!(prompt.contains("no_tool") && prompt.contains("does it"), "tools are told: {prompt}");
    let own = server.post("/chat_tokenize", ask(json!({"tool_prompt": "USE THEM"}))).await.ok();
    assert!(own["templated_text"].as_str().expect("a text").contains("USE THEM"));
}

#[tokio::test]
async fn parameters_may_be_referred_to() {
    let server = Setup::alphabet().start().await;
    let mut tool = function("add");
    let arguments = tool["function"]["parameters"].take();
    tool["function"]["parameters"] =
        json!({"$ref": "#/definitions/Arguments", "definitions": {"Arguments": arguments}});
    let answer = whole(&server, json!({"tools": [tool], "tool_choice": "required"})).await;
    check_arguments(&call(&answer).1);
}

#[tokio::test]
async fn mistakes_with_tools_are_told() {
    let server = Setup::alphabet().start().await;
    for (extra, status, words) in [
        (json!({"tool_choice": "nobody"}), 422, "Tool error: Tool with name nobody not found"),
        (json!({"tools": null, "tool_choice": "required"}), 400, "`tool_choice` needs `tools`"),
        (json!({"tool_choice": {"type": "function"}}), 400, "`tool_choice.function.name`"),
        (json!({"tools": 3}), 400, "`tools`"),
        (json!({"tools": [{"type": "function"}]}), 400, "`tools[0].function`"),
        (json!({"tools": [{"type": "retrieval", "function": {"name": "f"}}]}), 400, "`tools[0].type`"),
        (json!({"tools": [{"function": {"name": ""}}]}), 400, "`tools[0].function.name`"),
        (json!({"tools": vec![function("f"); 200]}), 400, "200"),
        (json!({"tools": [{"function": {"name": "f", "parameters": {"anyOf": []}}}]}), 400, "parameters.anyOf`"),
        (json!({"tools": [{"function": {"name": "f", "parameters": {"$ref": "#"}}}]}), 400, "parameters.$ref`"),
        (json!({"n": 2}), 400, "`n`"),
        (json!({"functions": []}), 400, "`functions`"),
    ] {
        let answer = server.post("/v1/chat/completions", ask(extra.clone())).await;
        let body = answer.json();
        let message = body["error"]["message"].as_str().expect("a message");
        assert_eq!(answer.status.as_u16(), status, "{extra}: {message}");
        assert!(message.contains(words), "{words:?} is not in {message:?}");
    }
}
