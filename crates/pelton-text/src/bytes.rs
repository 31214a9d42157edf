//! The built-in byte tokenizer, as the files of a model directory.

use crate::vocabulary::byte_level_chars;
use serde_json::{Map, Value, json};

const SPECIAL_TOKENS: [&str; 6] =
    ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"];

const CHAT_TEMPLATE: &str = "\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}";

/// Reads one of the built-in files.
pub(crate) fn read(file: &str) -> std::io::Result<Option<Vec<u8>>> {
    let content = match file {
        "tokenizer.json" => tokenizer(),
        "tokenizer_config.json" => json!({"eos_token": SPECIAL_TOKENS[0], "chat_template": CHAT_TEMPLATE}),
        _ => return Ok(None),
    };
    Ok(Some(content.to_string().into_bytes()))
}

fn tokenizer() -> Value {
    let vocab: Map<String, Value> = byte_level_chars().map(|(byte, char)| (char.to_string(), byte.into())).collect();
    let added: Vec<Value> = SPECIAL_TOKENS
        .iter()
        .enumerate()
        .map(|(index, token)| {
            json!({
                "id": 256 + index, "content": token, "special": true,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    json!({
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })
}
