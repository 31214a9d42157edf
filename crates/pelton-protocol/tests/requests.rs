//! Requests as clients write them: forms, absent fields, and errors that name the field.

use pelton_protocol::Object;
use pelton_protocol::openai::{ChatRequest, CompletionRequest, Content, Prompt, StringOrList};
use pelton_protocol::tgi;
use serde::de::DeserializeOwned;

fn read<T: DeserializeOwned>(json: &str) -> T {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
}

/// The error with its path, as a server shows it.
fn refusal<T: DeserializeOwned>(json: &str) -> String {
    let error = serde_path_to_error::deserialize::<_, T>(&mut serde_json::Deserializer::from_str(json));
    error.err().unwrap_or_else(|| panic!("{json} is accepted")).to_string()
}

#[test]
fn absent_tgi_parameters_sample_and_empty_ones_do_not() {
    assert!(read::<tgi::GenerateRequest>(r#"{"inputs": "a"}"#).parameters.do_sample);
    assert!(!read::<tgi::GenerateRequest>(r#"{"inputs": "a", "parameters": {}}"#).parameters.do_sample);
    let message = refusal::<tgi::GenerateRequest>(r#"{"inputs": "a", "parameters": null}"#);
    assert!(message.starts_with("parameters: invalid type: null"), "{message}");
}

#[test]
fn tgi_clients_may_send_null_for_what_they_do_not_ask() {
    let body = r#"{"inputs": "a", "stream": false, "parameters": {"best_of": null, "temperature": null, "seed": null, "do_sample": false,
        "max_new_tokens": 20, "stop": [], "grammar": null, "unknown": 1}}"#;
    let parameters = read::<tgi::GenerateRequest>(body).parameters;
    assert_eq!(parameters, tgi::GenerateParameters { max_new_tokens: Some(20), ..Default::default() });
}

#[test]
fn prompts_are_read_in_all_four_forms() {
    let prompt = |json: &str| read::<CompletionRequest>(&format!(r#"{{"prompt": {json}}}"#)).prompt;
    assert_eq!(prompt(r#""a""#), Prompt::Text("a".to_owned()));
    assert_eq!(prompt(r#""\u00e9""#), Prompt::Text("é".to_owned()));
    assert_eq!(prompt(r#"["a", "\n"]"#), Prompt::Texts(vec!["a".to_owned(), "\n".to_owned()]));
    assert_eq!(prompt("[]"), Prompt::Texts(Vec::new()));
    assert_eq!(prompt("[1, 4294967295]"), Prompt::Tokens(vec![1, u32::MAX]));
    assert_eq!(prompt("[[1], []]"), Prompt::TokenLists(vec![vec![1], vec![]]));
}

#[test]
fn stop_and_content_take_one_or_many() {
    let stop = |json: &str| read::<CompletionRequest>(&format!(r#"{{"prompt": "", "stop": {json}}}"#)).sampling.stop;
    assert_eq!(stop("null"), None);
    assert_eq!(stop(r#""a""#), Some(StringOrList::One("a".to_owned())));
    assert_eq!(stop(r#"["a"]"#), Some(StringOrList::List(vec!["a".to_owned()])));

    let chat: ChatRequest =
        read(r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null}]}"#);
    assert_eq!(chat.messages[0].content, Some(Content::Text("a".to_owned())));
    assert_eq!(chat.messages[1].content, None);
}

#[test]
fn null_and_absent_mean_the_same_to_openai_requests() {
    let absent: CompletionRequest = read(r#"{"prompt": "a"}"#);
    let null: CompletionRequest = read(
        r#"{"prompt": "a", "model": null, "max_tokens": null, "temperature": null, "logit_bias": null, "stream": null, "stream_options": null,
            "response_format": null, "suffix": null, "logprobs": null, "stop_token_ids": null, "not_a_field": {"a": [1]}}"#,
    );
    assert_eq!(null, absent);
}

#[test]
fn type_errors_name_the_field() {
    let tgi = refusal::<tgi::GenerateRequest>;
    let completion = refusal::<CompletionRequest>;
    let chat = refusal::<ChatRequest>;
    let cases = [
        (
            tgi(r#"{"inputs": "a", "parameters": {"temperature": "a"}}"#),
            r#"parameters.temperature: invalid type: string "a", expected f32"#,
        ),
        (tgi(r#"{"inputs": 5}"#), "inputs: invalid type: integer `5`, expected a string"),
        (
            tgi(r#"{"inputs": "a", "parameters": {"max_new_tokens": -1}}"#),
            "parameters.max_new_tokens: invalid value: integer `-1`, expected u32",
        ),
        (
            tgi(r#"{"inputs": "a", "parameters": {"stop": "x"}}"#),
            r#"parameters.stop: invalid type: string "x", expected a sequence"#,
        ),
        (tgi(r#"{"parameters": {}}"#), "missing field `inputs`"),
        (
            completion(r#"{"prompt": "a", "temperature": "hot"}"#),
            r#"temperature: invalid type: string "hot", expected f32"#,
        ),
        (completion(r#"{"prompt": "a", "max_tokens": -5}"#), "max_tokens: invalid value: integer `-5`, expected u32"),
        (
            completion(r#"{"prompt": "a", "max_tokens": 1e30}"#),
            "max_tokens: invalid type: floating point `1e+30`, expected u32",
        ),
        (
            completion(r#"{"prompt": "a", "logit_bias": {"5": "x"}}"#),
            r#"logit_bias.5: invalid type: string "x", expected f32"#,
        ),
        (completion(r#"{"prompt": "a", "logit_bias": [1]}"#), "logit_bias: invalid type: sequence, expected a map"),
        (
            completion(r#"{"prompt": "a", "stop": 5}"#),
            "stop: invalid type: integer `5`, expected a string or a list of strings",
        ),
        (completion(r#"{"prompt": "a", "stop": ["a", 5]}"#), "stop[1]: invalid type: integer `5`, expected a string"),
        (completion(r#"{"prompt": 5}"#), "prompt: invalid type: integer `5`, expected a string, a list of strings"),
        (completion(r#"{"prompt": ["a", 5]}"#), "prompt[1]: invalid type: integer `5`, expected a string"),
        (completion(r#"{"prompt": [1, -5]}"#), "prompt[1]: invalid value: integer `-5`, expected u32"),
        (completion(r#"{"prompt": [-5]}"#), "prompt[0]: invalid type: integer `-5`, expected a string, a token id"),
        (completion(r#"{"prompt": [4294967296]}"#), "prompt[0]: 4294967296 is not a token id"),
        (completion(r#"{"max_tokens": 1}"#), "missing field `prompt`"),
        (
            completion(r#"{"prompt": "a", "stream": "yes"}"#),
            r#"stream: invalid type: string "yes", expected a boolean"#,
        ),
        (chat(r#"{"messages": "hi"}"#), r#"messages: invalid type: string "hi", expected a sequence"#),
        (
            chat(r#"{"messages": [{"role": "user", "content": 5}]}"#),
            "messages[0].content: invalid type: integer `5`, expected a string or a list",
        ),
        (chat(r#"{"messages": [{"content": "a"}]}"#), "messages[0]: missing field `role`"),
        (
            chat(r#"{"messages": [{"role": "user", "content": [{"text": "a"}]}]}"#),
            "messages[0].content[0]: missing field `type`",
        ),
    ];
    for (message, expected) in cases {
        assert!(message.contains(expected), "{message:?} should contain {expected:?}");
    }
}

#[test]
fn lists_do_not_pass_for_objects() {
    let cases = [
        (refusal::<tgi::GenerateRequest>(r#"{"inputs": "a", "parameters": []}"#), "parameters"),
        (refusal::<CompletionRequest>(r#"{"prompt": "a", "stream_options": []}"#), "stream_options"),
        (refusal::<ChatRequest>(r#"{"messages": [], "stream_options": [true]}"#), "stream_options"),
        (refusal::<Object<tgi::GenerateRequest>>(r#"["a"]"#), "invalid"),
    ];
    for (message, path) in cases {
        assert!(message.contains("invalid type: sequence, expected an object"), "{message}");
        assert!(message.starts_with(path), "{message}");
    }
    assert_eq!(read::<CompletionRequest>(r#"{"prompt": "a", "stream_options": null}"#).stream_options, None);
}
