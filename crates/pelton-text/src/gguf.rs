//! A tokenizer from the metadata of a GGUF file: what `tokenizer.json` and the files beside it would say of the same model.
//!
//! | `tokenizer.ggml.model` | becomes |
//! | --- | --- |
//! | `gpt2` | byte-level BPE with the file's merges, cut before by the pattern that `tokenizer.ggml.pre` names |
//! | `llama` | BPE over SentencePiece's pieces, each merge as good as the score of what it gives, unknown characters as bytes |
//!
//! Sources: the keys in `docs/gguf.md` of ggml; patterns from the `tokenizer.json` files of the models they are named after; which merges pieces
//! stand for, from SentencePiece's BPE, which joins the two neighbours whose union scores best.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::TextError;

/// The metadata, as an object of its keys.
pub(crate) const FILE: &str = "tokenizer.gguf.json";

/// What the files of a model say of text.
pub(crate) struct Files {
    pub(crate) tokenizer: Vec<u8>,
    pub(crate) tokenizer_config: Value,
    pub(crate) generation_config: Value,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(rename = "tokenizer.ggml.model")]
    model: String,
    #[serde(rename = "tokenizer.ggml.pre")]
    pre: Option<String>,
    #[serde(rename = "tokenizer.ggml.tokens")]
    tokens: Vec<String>,
    #[serde(rename = "tokenizer.ggml.token_type", default)]
    types: Vec<i64>,
    #[serde(rename = "tokenizer.ggml.scores", default)]
    scores: Vec<f64>,
    #[serde(rename = "tokenizer.ggml.merges", default)]
    merges: Vec<String>,
    #[serde(rename = "tokenizer.ggml.bos_token_id")]
    bos: Option<usize>,
    #[serde(rename = "tokenizer.ggml.eos_token_id")]
    eos: Option<usize>,
    #[serde(rename = "tokenizer.ggml.eot_token_id")]
    end_of_turn: Option<usize>,
    #[serde(rename = "tokenizer.ggml.eom_token_id")]
    end_of_message: Option<usize>,
    #[serde(rename = "tokenizer.ggml.unknown_token_id")]
    unknown: Option<usize>,
    #[serde(rename = "tokenizer.ggml.add_bos_token")]
    add_bos: Option<bool>,
    #[serde(rename = "tokenizer.ggml.add_eos_token")]
    add_eos: Option<bool>,
    #[serde(rename = "tokenizer.ggml.add_space_prefix")]
    add_space: Option<bool>,
    #[serde(rename = "tokenizer.chat_template")]
    chat_template: Option<String>,
}

/// Kinds of tokens in `tokenizer.ggml.token_type`.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

/// How text is cut before it is merged.
struct Cut {
    /// In `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// One after the other, each within what those before left whole.
    patterns: &'static [&'static str],
    /// Whether text is brought into Unicode's composed form first.
    compose: bool,
    /// Whether a piece that is a token is taken whole.
    ignore_merges: bool,
    /// Whether a begin of text is added when the file does not say.
    add_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

const CUTS: [Cut; 7] = [
    Cut { names: &["gpt-2", "phi-2"], patterns: &[GPT2], ..PLAIN },
    Cut { names: &["mpt", "olmo"], patterns: &[GPT2], compose: true, ..PLAIN },
    // What llama.cpp does with files that do not say.
    Cut { names: &["default"], patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"], ..PLAIN },
    Cut {
        names: &["llama-bpe", "llama3", "llama-v3"],
        patterns: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        ignore_merges: true,
        add_bos: true,
        ..PLAIN
    },
    Cut {
        names: &["qwen2", "deepseek-r1-qwen"],
        patterns: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        compose: true,
        ..PLAIN
    },
    Cut { names: &["starcoder", "refact", "smollm"], patterns: &[r"\p{N}", GPT2], ..PLAIN },
    Cut {
        names: &["deepseek-coder"],
        patterns: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"],
        ..PLAIN
    },
];

const PLAIN: Cut = Cut { names: &[], patterns: &[], compose: false, ignore_merges: false, add_bos: false };

/// What `bytes`, the contents of [`FILE`], say.
pub(crate) fn files(bytes: &[u8]) -> Result<Files, TextError> {
    let metadata: Metadata = serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
    let ids = [metadata.bos, metadata.eos, metadata.end_of_turn, metadata.end_of_message, metadata.unknown];
    if let Some(id) = ids.into_iter().flatten().find(|&id| id >= metadata.tokens.len()) {
        return Err(invalid(format!("a special token has id {id}, there are {} tokens", metadata.tokens.len())));
    }
    for (name, len) in [("token_type", metadata.types.len()), ("scores", metadata.scores.len())] {
        if len != 0 && len != metadata.tokens.len() {
            return Err(invalid(format!(
                "tokenizer.ggml.{name} has {len} items, there are {} tokens",
                metadata.tokens.len()
            )));
        }
    }
    let tokenizer = match metadata.model.as_str() {
        "gpt2" => metadata.byte_level()?,
        "llama" => metadata.pieces()?,
        other => {
            return Err(unsupported(format!("tokenizer.ggml.model is {other:?}, known are \"gpt2\" and \"llama\"")));
        }
    };
    let text = |id: Option<usize>| id.map(|id| metadata.tokens[id].as_str());
    let eos: Vec<usize> = [metadata.eos, metadata.end_of_turn, metadata.end_of_message].into_iter().flatten().collect();
    Ok(Files {
        tokenizer: tokenizer.to_string().into_bytes(),
        tokenizer_config: json!({
            "bos_token": text(metadata.bos), "eos_token": text(metadata.eos), "unk_token": text(metadata.unknown),
            "chat_template": metadata.chat_template,
        }),
        generation_config: json!({ "eos_token_id": eos }),
    })
}

impl Metadata {
    /// The pattern of [`Metadata::pre`].
    fn cut(&self) -> Result<&'static Cut, TextError> {
        let name = self.pre.as_deref().unwrap_or("default");
        CUTS.iter().find(|cut| cut.names.contains(&name)).ok_or_else(|| {
            let known: Vec<&str> = CUTS.iter().flat_map(|cut| cut.names).copied().collect();
            unsupported(format!("tokenizer.ggml.pre is {name:?}, known are {}", known.join(", ")))
        })
    }

    fn byte_level(&self) -> Result<Value, TextError> {
        let cut = self.cut()?;
        let mut merges = Vec::with_capacity(self.merges.len());
        for merge in &self.merges {
            let pair = merge.split_once(' ').ok_or_else(|| invalid(format!("merge {merge:?} is no pair")))?;
            merges.push(json!([pair.0, pair.1]));
        }
        let split = |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let steps: Vec<Value> = cut.patterns.iter().map(split).chain([bytes.clone()]).collect();
        Ok(self.tokenizer(Parts {
            normalizer: if cut.compose { json!({"type": "NFC"}) } else { Value::Null },
            pre_tokenizer: json!({"type": "Sequence", "pretokenizers": steps}),
            decoder: bytes,
            add_bos: cut.add_bos,
            model: json!({
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": cut.ignore_merges, "vocab": self.vocab(), "merges": merges,
            }),
        }))
    }

    fn pieces(&self) -> Result<Value, TextError> {
        if self.scores.is_empty() {
            return Err(invalid("tokenizer.ggml.scores is absent, and pieces are joined by their scores".to_owned()));
        }
        let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        let mut normalizers = vec![replace(" ", "▁")];
        let mut decoders = vec![replace("▁", " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
        if self.add_space.unwrap_or(true) {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let unknown = &self.tokens[self.unknown.unwrap_or(0)];
        Ok(self.tokenizer(Parts {
            normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
            pre_tokenizer: Value::Null,
            decoder: json!({"type": "Sequence", "decoders": decoders}),
            add_bos: true,
            model: json!({
                "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                "vocab": self.vocab(), "merges": self.merges_by_score(),
            }),
        }))
    }

    /// Every way to make a piece of two others, best scores first; of equal ones the longer left part, then the longer right part.
    fn merges_by_score(&self) -> Vec<[&str; 2]> {
        let normal = |&(id, _): &(usize, &String)| self.kind(id) == NORMAL;
        let ids: HashMap<&str, usize> =
            self.tokens.iter().enumerate().filter(normal).map(|(id, token)| (token.as_str(), id)).collect();
        let mut merges = Vec::new();
        for (id, token) in self.tokens.iter().enumerate().filter(normal) {
            for (place, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(place);
                if let (Some(&left_id), Some(&right_id)) = (ids.get(left), ids.get(right)) {
                    let lengths = (left.chars().count(), right.chars().count());
                    merges.push((self.scores[id], lengths, (id, left_id, right_id), [left, right]));
                }
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(a.2.cmp(&b.2)));
        merges.into_iter().map(|(.., pair)| pair).collect()
    }

    /// Ids of all tokens that stand for something.
    fn vocab(&self) -> Map<String, Value> {
        let used = self.tokens.iter().enumerate().filter(|(id, _)| self.kind(*id) != UNUSED);
        let mut vocab = Map::with_capacity(self.tokens.len());
        for (id, token) in used {
            // Of tokens that read alike, the first is found in texts.
            vocab.entry(token.as_str()).or_insert_with(|| id.into());
        }
        vocab
    }

    fn kind(&self, id: usize) -> i64 {
        self.types.get(id).copied().unwrap_or(NORMAL)
    }

    fn tokenizer(&self, parts: Parts) -> Value {
        let mut seen = HashSet::new();
        let added = self.tokens.iter().enumerate().filter_map(|(id, content)| {
            let special = match self.kind(id) {
                CONTROL | UNKNOWN => true,
                USER_DEFINED => false,
                _ => return None,
            };
            seen.insert(content).then(|| {
                json!({
                    "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": special,
                })
            })
        });
        let added: Vec<Value> = added.collect();
        let wanted = |wanted: bool, id: Option<usize>| id.filter(|_| wanted).map(|id| (id, &self.tokens[id]));
        let bos = wanted(self.add_bos.unwrap_or(parts.add_bos), self.bos);
        let eos = wanted(self.add_eos.unwrap_or(false), self.eos);
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": parts.normalizer, "pre_tokenizer": parts.pre_tokenizer,
            "post_processor": around(bos, eos), "decoder": parts.decoder, "model": parts.model,
        })
    }
}

/// What differs between the two kinds.
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
    /// When the file does not say.
    add_bos: bool,
}

/// The post-processor that puts `bos` before a text and `eos` after it.
fn around(bos: Option<(usize, &String)>, eos: Option<(usize, &String)>) -> Value {
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let special = |(_, token): (usize, &String)| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let template = |texts: &[&str]| -> Vec<Value> {
        let one = |text: &&str| {
            let text = json!({"Sequence": {"id": text, "type_id": 0}});
            bos.map(special).into_iter().chain([text]).chain(eos.map(special))
        };
        texts.iter().flat_map(one).collect()
    };
    let tokens: Map<String, Value> = bos
        .into_iter()
        .chain(eos)
        .map(|(id, token)| (token.clone(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    json!({
        "type": "TemplateProcessing", "single": template(&["A"]), "pair": template(&["A", "B"]), "special_tokens": tokens,
    })
}

fn invalid(reason: String) -> TextError {
    TextError::Invalid { file: FILE.to_owned(), reason }
}

fn unsupported(reason: String) -> TextError {
    TextError::Unsupported { file: FILE.to_owned(), reason }
}
