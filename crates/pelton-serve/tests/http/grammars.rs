//! Texts that keep to grammars, on every surface that can ask for one; the watermark.

use http::StatusCode;
use pelton_engine::{TokenId, Watermark};
use serde_json::{Value, json};
use std::time::Duration;

use crate::support::{Server, Setup, letters, parse};

fn generate(grammar: Value) -> Value {
    json!({"inputs": "abc", "parameters": {"grammar": grammar, "max_new_tokens": 200, "details": true}})
}

async fn refusal(server: &Server, path: &str, body: Value) -> (u16, String) {
    let answer = server.post(path, body).await;
    let body = answer.json();
    let error = &body["error"];
    let message = error.as_str().or_else(|| error["message"].as_str()).unwrap_or_else(|| panic!("no message: {body}"));
    (answer.status.as_u16(), message.to_owned())
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["name", "age"],
    })
}

fn check_person(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let object = value.as_object().expect("an object");
    assert_eq!(object.keys().collect::<Vec<_>>(), ["name", "age"], "{text}");
    assert!(object["name"].as_str().expect("a string").len() <= 5 && object["age"].as_u64().expect("a number") <= 99);
}

#[tokio::test]
async fn tgi_takes_patterns_and_schemas_in_all_its_spellings() {
    let server = Setup::alphabet().start().await;
    let answer = server.post("/generate", generate(json!({"type": "regex", "value": "[0-9]{3}x?"}))).await.ok();
    assert_eq!(
        answer["generated_text"], "000x",
        "of equal tokens the lowest, and the scripted one where it is allowed"
    );
    assert_eq!(answer["details"]["finish_reason"], "eos_token");
    assert_eq!(answer["details"]["tokens"][4]["special"], true, "the end is a token");
    for grammar in [
        json!({"type": "json", "value": person()}),
        json!({"type": "json", "value": person().to_string()}),
        json!({"type": "json_object", "value": person()}),
        json!({"type": "json_schema", "value": {"name": "person", "schema": person()}}),
    ] {
        let answer = server.post("/generate", generate(grammar.clone())).await.ok();
        check_person(answer["generated_text"].as_str().expect("a text"));
        let events = server.events("/generate_stream", generate(grammar)).await;
        let last = parse(events.last().expect("events"));
        assert_eq!(last["generated_text"], answer["generated_text"]);
        assert_eq!(last["details"]["finish_reason"], "eos_token");
    }
    // Candidates keep to it each on its own.
    let mut drawn = generate(json!({"type": "regex", "value": "[a-e]{6}"}));
    drawn["parameters"]["do_sample"] = json!(true);
    drawn["parameters"]["temperature"] = json!(50.0);
    drawn["parameters"]["best_of"] = json!(2);
    let answer = server.post("/generate", drawn).await.ok();
    let loser = &answer["details"]["best_of_sequences"][0]["generated_text"];
    for text in [&answer["generated_text"], loser].map(|text| text.as_str().expect("a text")) {
        assert!(text.len() == 6 && text.bytes().all(|byte| (b'a'..=b'e').contains(&byte)), "{text}");
    }
}

#[tokio::test]
async fn a_text_that_is_cut_ends_by_length() {
    let server = Setup::alphabet().start().await;
    let mut body = generate(json!({"type": "regex", "value": "[0-9]{30}"}));
    body["parameters"]["max_new_tokens"] = json!(5);
    let answer = server.post("/generate", body).await.ok();
    assert_eq!(answer["generated_text"], "00000");
    assert_eq!(answer["details"]["finish_reason"], "length");
}

#[tokio::test]
async fn mistakes_in_grammars_are_told_in_tgis_words() {
    let server = Setup::alphabet().start().await;
    for (grammar, expected) in [
        (json!({"type": "json", "value": 3}), "Input validation error: grammar is not supported"),
        (
            json!({"type": "json", "value": {"name": "x"}}),
            "Input validation error: grammar is not valid: Grammar must have a 'properties' field",
        ),
        (json!({"type": "json", "value": "{"}), "Input validation error: grammar is not valid: "),
        (json!({"type": "json", "value": {"type": "nonsense"}}), "Input validation error: grammar is not valid: "),
        (json!({"type": "regex", "value": "a("}), "Input validation error: grammar is not valid: "),
        (json!({"type": "regex", "value": "a".repeat(20_000)}), "limit is 16384"),
        (json!({"type": "yaml", "value": "a"}), "json_schema or regex. Given: yaml"),
    ] {
        for path in ["/generate", "/generate_stream", "/"] {
            let (status, message) = refusal(&server, path, generate(grammar.clone())).await;
            assert_eq!(status, 422, "{message}");
            assert!(message.contains(expected), "{expected:?} is not in {message:?}");
        }
    }
    assert_eq!(server.gauges().steps, 0);
}

#[tokio::test]
async fn openais_and_vllms_fields_ask_for_the_same() {
    let server = Setup::alphabet().start().await;
    let asks = [
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": person(), "strict": true}}}),
        json!({"response_format": {"type": "json_object", "value": person()}}),
        json!({"response_format": {"type": "json_schema", "value": {"name": "person", "schema": person()}}}),
        json!({"guided_json": person()}),
        json!({"guided_json": person().to_string()}),
        json!({"structured_outputs": {"json": person()}}),
    ];
    for ask in asks {
        check_person(&text_of(&server, ask).await);
    }
    for ask in [
        json!({"guided_choice": ["yes", "no"]}),
        json!({"structured_outputs": {"choice": ["yes", "no"], "regex": null}}),
        json!({"guided_regex": "yes|no"}),
        json!({"response_format": {"type": "regex", "value": "yes|no"}}),
        json!({"guided_grammar": "start: \"yes\" | \"no\""}),
    ] {
        let text = text_of(&server, ask.clone()).await;
        assert!(text == "yes" || text == "no", "{ask}: {text}");
    }
    let text = text_of(&server, json!({"response_format": {"type": "json_object"}, "logit_bias": {"125": 100}})).await;
    assert!(serde_json::from_str::<Value>(&text).expect("JSON").is_object(), "{text}");
    let plain = text_of(&server, json!({"response_format": {"type": "text"}, "max_tokens": 3})).await;
    assert_eq!(plain.len(), 3);
    let several = json!({"prompt": ["a", "b"], "n": 2, "guided_regex": "[x-z]{4}", "temperature": 0, "max_tokens": 9});
    let answer = server.post("/v1/completions", several).await.ok();
    let choices = answer["choices"].as_array().expect("choices");
    assert_eq!(choices.len(), 4);
    for choice in choices {
        let text = choice["text"].as_str().expect("a text");
        assert!(text.len() == 4 && text.bytes().all(|byte| (b'x'..=b'z').contains(&byte)), "{text}");
    }
}

/// The same text on both of OpenAI's endpoints, streamed or not, or this fails.
async fn text_of(server: &Server, ask: Value) -> String {
    let mut chat = json!({"messages": [{"role": "user", "content": "abc"}], "temperature": 0, "max_tokens": 200});
    chat.as_object_mut().expect("an object").extend(ask.as_object().expect("an object").clone());
    let answer = server.post("/v1/chat/completions", chat.clone()).await.ok();
    let text = answer["choices"][0]["message"]["content"].as_str().expect("a text").to_owned();
    chat["stream"] = json!(true);
    let events = server.events("/v1/chat/completions", chat.clone()).await;
    let pieces = events.iter().filter(|event| *event != "[DONE]").map(|event| parse(event));
    let streamed: String =
        pieces.filter_map(|piece| piece["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect();
    assert_eq!(streamed, text);
    let mut completion = chat;
    completion["prompt"] = json!("abc");
    completion["stream"] = json!(false);
    completion.as_object_mut().expect("an object").remove("messages");
    server.post("/v1/completions", completion).await.ok();
    text
}

#[tokio::test]
async fn what_cannot_be_together_is_refused() {
    let server = Setup::alphabet().start().await;
    for (ask, status, words) in [
        (json!({"guided_regex": "a", "guided_choice": ["b"]}), 400, "exclude each other"),
        (json!({"guided_regex": "a", "ignore_eos": true}), 400, "`ignore_eos`"),
        (json!({"guided_regex": 3}), 400, "`guided_regex`"),
        (json!({"guided_choice": []}), 400, "`guided_choice`"),
        (json!({"structured_outputs": {"regex": "a", "json": {"type": "object"}}}), 400, "one of"),
        (json!({"structured_outputs": {"structural_tag": "a"}}), 400, "structural_tag"),
        (json!({"response_format": {"type": "json_schema"}}), 400, "`response_format.json_schema.schema`"),
        (json!({"response_format": {"type": "yaml", "value": "x"}}), 400, "yaml"),
        (json!({"response_format": 3}), 400, "`response_format.type`"),
        (
            json!({"response_format": {"type": "json_object"}, "tools": []}),
            422,
            "Tool error: Grammar and tools are mutually exclusive",
        ),
    ] {
        let mut body = json!({"messages": [{"role": "user", "content": "abc"}]});
        body.as_object_mut().expect("an object").extend(ask.as_object().expect("an object").clone());
        let (found, message) = refusal(&server, "/v1/chat/completions", body).await;
        assert_eq!(found, status, "{message}");
        assert!(message.contains(words), "{words:?} is not in {message:?}");
    }
}

#[tokio::test]
async fn grammars_can_be_switched_off() {
    let server = Setup::alphabet().serve(|serve| serve.grammar_support = false).start().await;
    let grammar = json!({"type": "regex", "value": "a"});
    let expected = (422, "Input validation error: grammar is not supported".to_owned());
    assert_eq!(refusal(&server, "/generate", generate(grammar)).await, expected);
}

#[tokio::test]
async fn who_brings_a_large_grammar_keeps_nobody_waiting() {
    let server = Setup::alphabet().start().await;
    let words: Vec<String> = (0..6000).map(|index| format!("word{index}")).collect();
    let large = json!({"prompt": "abc", "max_tokens": 1, "guided_choice": words});
    let small = json!({"inputs": "abc", "parameters": {"max_new_tokens": 3}});
    let large = server.post("/v1/completions", large);
    tokio::pin!(large);
    let mut answered = 0;
    let first = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            tokio::select! {
                biased;
                large = &mut large => return large,
                small = server.post("/generate", small.clone()) => {
                    assert_eq!(small.ok()["generated_text"], letters(3, 3));
                    answered += 1;
                }
            }
        }
    });
    assert_eq!(first.await.expect("in time").status, StatusCode::OK);
    assert!(answered >= 1, "others were answered meanwhile");
}

#[tokio::test]
async fn a_watermark_is_found_where_it_was_asked_for() {
    let watermark = Watermark { gamma: 0.5, delta: 100.0 };
    let server = Setup::alphabet().serve(|serve| serve.watermark = watermark).start().await;
    let z_score = async |is_marked: bool| {
        let parameters = json!({"watermark": is_marked, "max_new_tokens": 60, "details": true});
        let answer = server.post("/generate", json!({"inputs": "abc", "parameters": parameters})).await.ok();
        let tokens = answer["details"]["tokens"].as_array().expect("tokens").iter();
        let tokens: Vec<_> = tokens.map(|token| TokenId(token["id"].as_u64().expect("an id") as u32)).collect();
        watermark.z_score(&tokens)
    };
    assert!(z_score(true).await > 6.0);
    assert!(z_score(false).await < 4.0);
}
