//! Model directories: what is read, and what is said when something is wrong.

use crate::samples::{self, with_files};
use pelton_text::{DefaultSampling, EncodedToken, FimTokens, TextError, TextModel};
use serde_json::json;
use std::path::Path;

fn tokenizer() -> (&'static str, String) {
    ("tokenizer.json", samples::byte_tokens(true).to_string())
}

fn refusal(files: &[(&str, String)]) -> String {
    with_files(files).expect_err("the files are refused").to_string()
}

#[test]
fn a_missing_tokenizer_is_named() {
    assert!(matches!(with_files(&[]), Err(TextError::Missing { file: "tokenizer.json", .. })));
    assert!(refusal(&[]).starts_with("tokenizer.json is missing: "));
}

#[test]
fn broken_files_are_named_with_the_reason() {
    let (_, json) = tokenizer();
    let truncated = refusal(&[("tokenizer.json", json[..json.len() / 2].to_owned())]);
    assert!(truncated.starts_with("tokenizer.json is invalid: EOF while parsing"), "{truncated}");
    let empty = refusal(&[("tokenizer.json", "{}".to_owned())]);
    assert!(empty.starts_with("tokenizer.json is invalid: "), "{empty}");

    let eos = refusal(&[tokenizer(), ("generation_config.json", r#"{"eos_token_id": [2, -1]}"#.to_owned())]);
    assert_eq!(eos, "generation_config.json is invalid: eos_token_id holds -1, expected a token id");
    let vocab = refusal(&[tokenizer(), ("config.json", r#"{"vocab_size": "many"}"#.to_owned())]);
    assert_eq!(vocab, r#"config.json is invalid: vocab_size is "many", expected a count"#);
    let vocab = refusal(&[tokenizer(), ("config.json", r#"{"vocab_size": 1000000000000}"#.to_owned())]);
    assert!(vocab.contains("vocabulary of 1000000000000 tokens, limit is 16777216"), "{vocab}");
    let config = refusal(&[tokenizer(), ("tokenizer_config.json", "{".to_owned())]);
    assert!(config.starts_with("tokenizer_config.json is invalid: EOF"), "{config}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = TextModel::from_files(&|_| Err(std::io::Error::other("disk on fire"))).expect_err("reading fails");
    assert_eq!(error.to_string(), "tokenizer.json cannot be read: disk on fire");
    let error = TextModel::from_dir(Path::new("/nowhere")).expect_err("there is no such directory");
    assert!(matches!(error, TextError::Missing { .. }));
}

#[test]
fn decoders_that_look_around_are_refused_by_name() {
    for decoder in [
        json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 0, "stop": 1}]}),
        json!({"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"Regex": "a+"}, "content": ""}]}),
    ] {
        let mut tokenizer = samples::words();
        tokenizer["decoder"] = decoder;
        let message = refusal(&[("tokenizer.json", tokenizer.to_string())]);
        assert!(message.starts_with("tokenizer.json is not supported: decoder "), "{message}");
    }
}

#[test]
fn end_of_text_ids_are_merged_from_all_files() {
    let model = with_files(&[
        tokenizer(),
        ("generation_config.json", r#"{"eos_token_id": [7, 2]}"#.to_owned()),
        ("config.json", r#"{"eos_token_id": 9}"#.to_owned()),
        ("tokenizer_config.json", r#"{"eos_token": {"content": "</s>"}}"#.to_owned()),
    ]);
    assert_eq!(model.expect("the files are valid").eos_token_ids(), [7, 2, 9]);
    let model = with_files(&[tokenizer(), ("special_tokens_map.json", r#"{"eos_token": "</s>"}"#.to_owned())]);
    assert_eq!(model.expect("the files are valid").eos_token_ids(), [2]);
}

#[test]
fn padding_of_the_vocabulary_has_no_text() {
    let model =
        with_files(&[tokenizer(), ("config.json", r#"{"vocab_size": 512}"#.to_owned())]).expect("the files are valid");
    assert_eq!(model.vocab_size(), 512);
    assert_eq!(model.decode(&[511], false).expect("padding is known"), "");
    assert!(model.decode(&[512], false).is_err());
}

#[test]
fn sampling_defaults_count_only_where_the_model_samples() {
    let defaults = |do_sample: bool| {
        let config =
            json!({"do_sample": do_sample, "temperature": 0.5, "top_p": 0.25, "top_k": 20, "repetition_penalty": 1.5});
        with_files(&[tokenizer(), ("generation_config.json", config.to_string())])
            .expect("the files are valid")
            .default_sampling()
    };
    assert_eq!(defaults(false), DefaultSampling::default());
    let expected =
        DefaultSampling { temperature: Some(0.5), top_p: Some(0.25), top_k: Some(20), repetition_penalty: Some(1.5) };
    assert_eq!(defaults(true), expected);
}

#[test]
fn fill_in_the_middle_tokens_are_found_by_name() {
    let deepseek = samples::load(&samples::byte_level());
    let fim = deepseek.fim().expect("the sample has the tokens");
    let names = [fim.prefix, fim.suffix, fim.middle].map(|id| deepseek.token_text(id));
    assert_eq!(names, ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"]);
    assert_eq!(TextModel::bytes().fim(), Some(&FimTokens { prefix: 259, suffix: 260, middle: 261 }));
    assert_eq!(samples::load(&samples::words()).fim(), None);
}

#[test]
fn offsets_count_characters_as_the_text_does() {
    let model = samples::load(&samples::byte_tokens(true));
    let token = |id, text: &str, start, stop| EncodedToken { id, text: text.to_owned(), start, stop };
    let hello = model.encode("hello", false).expect("the text is encoded")[0];
    let tokens = model.encode_with_offsets("hello é", true).expect("the text is encoded");
    assert_eq!(tokens[..2], [token(1, "", 0, 0), token(hello, "hello", 0, 5)]);
    let space = tokens[2].id;
    assert_eq!(tokens[2..], [token(space, " ", 5, 6), token(3 + 0xC3, "é", 6, 7), token(3 + 0xA9, "é", 6, 7)]);
}

#[test]
fn settings_of_a_training_run_do_not_cut_prompts() {
    let mut tokenizer = samples::words();
    tokenizer["truncation"] = json!({"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0});
    tokenizer["padding"] = json!({
        "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "[UNK]"
    });
    assert_eq!(samples::load(&tokenizer).encode("hello world", true).expect("the text is encoded"), [1, 2]);
}

#[test]
fn the_byte_tokenizer_is_bytes_and_its_special_tokens() {
    let model = TextModel::bytes();
    let text: String = (0..0x250).filter_map(char::from_u32).collect();
    let ids = model.encode(&text, true).expect("the text is encoded");
    assert_eq!(ids, text.bytes().map(u32::from).collect::<Vec<_>>());
    assert_eq!(model.decode(&ids, true).expect("ids are known"), text);
    assert_eq!(model.encode("a<|endoftext|>", true).expect("the text is encoded"), [97, 256]);
    assert_eq!((model.vocab_size(), model.eos_token_ids()), (262, &[256][..]));
}

#[test]
fn the_demo_model_is_read_whole() {
    let model = TextModel::from_dir(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo"))
        .expect("the demo model is there");
    let text = "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1)  # é 😀\n";
    let ids = model.encode(text, true).expect("the text is encoded");
    assert!(ids.len() < text.len() * 2 / 3, "{} tokens", ids.len());
    assert_eq!(model.decode(&ids, true).expect("ids are known"), text);
    assert!(model.fim().is_some());
    assert!(model.chat_template().is_some());
    assert!(!model.eos_token_ids().is_empty());
    assert!(model.eos_token_ids().iter().all(|&id| model.is_special(id)));
}
