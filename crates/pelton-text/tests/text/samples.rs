//! Small tokenizers of the kinds in use, made by code.

use pelton_text::{TextError, TextModel};
use serde_json::{Map, Value, json};
use std::sync::LazyLock;
use tokenizers::Tokenizer;

/// A tokenizer and what the tokenizers library makes of the same file.
pub struct Sample {
    pub name: &'static str,
    pub model: TextModel,
    pub library: Tokenizer,
}

/// One sample of each kind.
pub fn all() -> &'static [Sample] {
    static SAMPLES: LazyLock<Vec<Sample>> = LazyLock::new(|| {
        let samples = [
            ("byte-level", byte_level()),
            ("byte tokens, stripped", byte_tokens(true)),
            ("byte tokens", byte_tokens(false)),
            ("metaspace", metaspace()),
            ("words", words()),
        ];
        samples.map(|(name, json)| Sample { name, model: load(&json), library: library(&json) }).into()
    });
    &SAMPLES
}

pub fn load(tokenizer: &Value) -> TextModel {
    with_files(&[("tokenizer.json", tokenizer.to_string())]).expect("the sample is valid")
}

/// A model of files in memory.
pub fn with_files(files: &[(&str, String)]) -> Result<TextModel, TextError> {
    TextModel::from_files(&|wanted| {
        Ok(files.iter().find(|(name, _)| *name == wanted).map(|(_, content)| content.clone().into_bytes()))
    })
}

fn library(tokenizer: &Value) -> Tokenizer {
    tokenizer.to_string().parse().expect("the sample is valid")
}

pub fn special(id: usize, content: &str) -> Value {
    json!({
        "id": id, "content": content, "special": true,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
    })
}

/// GPT-2's kind: characters stand for bytes. Some merges end inside a character.
pub fn byte_level() -> Value {
    let chars: Vec<String> = (0..=255u32)
        .scan(0x100, |next, byte| {
            let printable = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
            let code = if printable { byte } else { *next };
            *next += u32::from(!printable);
            char::from_u32(code).map(String::from)
        })
        .collect();
    let merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ã ©", "ð Ł", "ðŁ ĺ", "ä ½", "Ċ Ċ", "Ġ Ġ"];
    let mut vocab: Map<String, Value> = chars.into_iter().enumerate().map(|(id, char)| (char, id.into())).collect();
    for merge in merges {
        vocab.insert(merge.replace(' ', ""), vocab.len().into());
    }
    let next = vocab.len();
    json!({
        "version": "1.0",
        "added_tokens": [
            special(next, "<|endoftext|>"),
            {"id": next + 1, "content": "    ", "special": false, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false},
            special(next + 2, "<｜fim▁begin｜>"), special(next + 3, "<｜fim▁hole｜>"), special(next + 4, "<｜fim▁end｜>"),
        ],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    })
}

/// Llama 2's kind (or, not stripped, Gemma's): spaces are ▁, unknown characters become byte tokens.
pub fn byte_tokens(stripped: bool) -> Value {
    let mut vocab: Map<String, Value> = Map::new();
    let mut add = |token: String| {
        let id = vocab.len();
        vocab.entry(token).or_insert_with(|| id.into());
    };
    ["<unk>", "<s>", "</s>"].iter().for_each(|token| add((*token).to_owned()));
    (0..=255).for_each(|byte| add(format!("<0x{byte:02X}>")));
    "▁abcdehlow\n.".chars().for_each(|char| add(char.to_string()));
    let merges = ["▁ h", "▁h e", "l l", "▁he ll", "▁hell o", "▁ w", "▁ ▁"];
    merges.iter().for_each(|merge| add(merge.replace(' ', "")));

    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})];
    if stripped {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
    }
    json!({
        "version": "1.0",
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": merges},
    })
}

/// T5's kind: likeliest pieces, the first of which loses its space.
pub fn metaspace() -> Value {
    let pieces = ["<pad>", "</s>", "<unk>", "▁", "▁h", "e", "l", "o", "ll", "▁he", "▁w", "r", "d", "é", "▁▁", "."];
    let vocab: Vec<Value> = pieces.iter().enumerate().map(|(rank, piece)| json!([piece, -(rank as f64)])).collect();
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    json!({
        "version": "1.0",
        "added_tokens": [special(0, "<pad>"), special(1, "</s>"), special(2, "<unk>")],
        "pre_tokenizer": metaspace,
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": false},
    })
}

/// Words without a decoder.
pub fn words() -> Value {
    json!({
        "version": "1.0",
        "added_tokens": [special(0, "[UNK]")],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "hello": 1, "world": 2, "é": 3}, "unk_token": "[UNK]"},
    })
}
