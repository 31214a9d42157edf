//! Tokenizers of GGUF files, against the `tokenizer.json` that models with the same tokens have.

use crate::samples::with_files;
use pelton_text::{ChatInput, TextModel};
use serde_json::{Map, Value, json};

fn fixture(name: &str) -> Value {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/formats/gguf/");
    serde_json::from_slice(&std::fs::read(format!("{folder}{name}")).unwrap()).unwrap()
}

/// The fixture `name`, keys changed; null takes a key away.
fn metadata(name: &str, changes: &Value) -> (&'static str, String) {
    let mut keys = fixture(name);
    for (key, value) in changes.as_object().unwrap() {
        keys[key] = value.clone();
    }
    keys.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    ("tokenizer.gguf.json", keys.to_string())
}

fn model(name: &str, changes: &Value) -> TextModel {
    with_files(&[metadata(name, changes)]).unwrap()
}

fn refusal(name: &str, changes: &Value) -> String {
    with_files(&[metadata(name, changes)]).expect_err("it is refused").to_string()
}

#[test]
fn every_kind_gives_the_ids_of_the_models_own_files() {
    let expected = fixture("tokenizer-ids.json");
    let texts = expected["texts"].as_array().unwrap();
    assert!(texts.len() > 200);
    let kinds = expected["ids"].as_object().unwrap();
    assert_eq!(kinds.len(), 8);
    for (kind, ids) in kinds {
        let model = match kind.as_str() {
            "llama" => model("tokenizer-spm.json", &json!({})),
            "llama, no space in front" => {
                model("tokenizer-spm.json", &json!({"tokenizer.ggml.add_space_prefix": false}))
            }
            pre => model("tokenizer-bpe.json", &json!({"tokenizer.ggml.pre": pre})),
        };
        for (text, wanted) in texts.iter().zip(ids.as_array().unwrap()) {
            let text = text.as_str().unwrap();
            let found = model.encode(text, true).unwrap();
            assert_eq!(json!(found), *wanted, "{kind}: {text:?}");
        }
    }
}

#[test]
fn texts_come_back() {
    let bytes = model("tokenizer-bpe.json", &json!({"tokenizer.ggml.pre": "llama-bpe"}));
    let pieces = model("tokenizer-spm.json", &json!({}));
    for text in ["def f(x):\n\treturn x", " spaces  ", "🙂 天地 é", "<|im_start|>"] {
        for model in [&bytes, &pieces] {
            assert_eq!(model.decode(&model.encode(text, false).unwrap(), false).unwrap(), text);
        }
    }
}

#[test]
fn special_tokens_ends_and_the_chat_template_are_the_files() {
    let bytes = model("tokenizer-bpe.json", &json!({"tokenizer.ggml.eot_token_id": 0}));
    assert_eq!(bytes.eos_token_ids(), [2, 0]);
    assert!(bytes.is_special(1) && !bytes.is_special(3));
    let messages = [json!({"role": "user", "content": "hi"})];
    let input = ChatInput { messages: &messages, tools: None, add_generation_prompt: false, kwargs: &Map::new() };
    let prompt = bytes.chat_template().unwrap().render(&input).unwrap();
    assert_eq!(prompt, "<|im_start|>user\nhi<|im_end|>\n");

    let begin = |changes: Value| model("tokenizer-bpe.json", &changes).encode("a", true).unwrap();
    let a = begin(json!({}));
    let with = json!({"tokenizer.ggml.add_bos_token": true, "tokenizer.ggml.add_eos_token": true});
    assert_eq!(begin(with), [&[0], &a[..], &[2]].concat());
    // Llama 3's files need not say that they begin with a token.
    let silent = json!({"tokenizer.ggml.add_bos_token": null, "tokenizer.ggml.pre": "llama-bpe"});
    assert_eq!(begin(silent), [&[0], &a[..]].concat());

    let pieces = model("tokenizer-spm.json", &json!({}));
    assert_eq!(pieces.eos_token_ids(), [2]);
    assert!(pieces.chat_template().is_none());
    let user = pieces.encode("<|user|>", false).unwrap();
    assert_eq!(user.len(), 1);
    assert!(!pieces.is_special(user[0]), "defined by the user, not for control");
}

#[test]
fn digits_of_files_without_a_kind_go_in_threes() {
    let model = model("tokenizer-bpe.json", &json!({"tokenizer.ggml.pre": null}));
    let pieces: Vec<String> =
        model.encode_with_offsets("x=12345!?", false).unwrap().into_iter().map(|token| token.text).collect();
    assert_eq!(pieces.concat(), "x=12345!?");
    assert!(pieces.iter().all(|piece| !piece.contains("34")), "{pieces:?}");
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let error = refusal("tokenizer-bpe.json", &json!({"tokenizer.ggml.pre": "viking"}));
    assert!(
        error.starts_with("tokenizer.gguf.json is not supported: tokenizer.ggml.pre is \"viking\", known are gpt-2,")
    );
    let error = refusal("tokenizer-bpe.json", &json!({"tokenizer.ggml.model": "bert"}));
    assert!(error.contains("tokenizer.ggml.model is \"bert\", known are \"gpt2\" and \"llama\""), "{error}");
    for (name, changes, part) in [
        ("tokenizer-bpe.json", json!({"tokenizer.ggml.tokens": null}), "missing field `tokenizer.ggml.tokens`"),
        (
            "tokenizer-bpe.json",
            json!({"tokenizer.ggml.eos_token_id": 600}),
            "a special token has id 600, there are 600",
        ),
        ("tokenizer-bpe.json", json!({"tokenizer.ggml.bos_token_id": -1}), "invalid value"),
        ("tokenizer-bpe.json", json!({"tokenizer.ggml.token_type": [1, 2]}), "token_type has 2 items"),
        ("tokenizer-bpe.json", json!({"tokenizer.ggml.merges": ["ab"]}), "merge \"ab\" is no pair"),
        ("tokenizer-bpe.json", json!({"tokenizer.ggml.merges": ["qqq zzz"]}), "qqq"),
        (
            "tokenizer-bpe.json",
            json!({"tokenizer.ggml.tokens": [], "tokenizer.ggml.token_type": []}),
            "there are 0 tokens",
        ),
        ("tokenizer-spm.json", json!({"tokenizer.ggml.scores": null}), "tokenizer.ggml.scores is absent"),
        ("tokenizer-spm.json", json!({"tokenizer.ggml.scores": [1.5]}), "scores has 1 items"),
    ] {
        let error = refusal(name, &changes);
        assert!(error.starts_with("tokenizer.gguf.json is invalid") && error.contains(part), "{error}");
    }
    let empty = json!({
        "tokenizer.ggml.tokens": [], "tokenizer.ggml.token_type": [], "tokenizer.ggml.scores": null,
        "tokenizer.ggml.bos_token_id": null, "tokenizer.ggml.eos_token_id": null, "tokenizer.ggml.unknown_token_id": null,
    });
    assert!(refusal("tokenizer-spm.json", &empty).contains("scores is absent"));
}
