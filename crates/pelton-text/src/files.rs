//! The small files beside a tokenizer: special tokens, generation defaults, chat templates.

use crate::TextError;
use serde_json::Value;

/// Sampling that a model's `generation_config.json` recommends. All absent unless it says `do_sample`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DefaultSampling {
    /// Divides the logits.
    pub temperature: Option<f32>,
    /// Share of probability to keep.
    pub top_p: Option<f32>,
    /// Number of tokens to keep.
    pub top_k: Option<u32>,
    /// Factor against repetition.
    pub repetition_penalty: Option<f32>,
}

/// What the small files say. A file that is absent reads as null.
pub(crate) struct ModelFiles {
    config: Value,
    generation_config: Value,
    tokenizer_config: Value,
    special_tokens_map: Value,
    /// Templates by name; the usual one is `default`.
    pub(crate) templates: Vec<(String, String)>,
}

impl ModelFiles {
    pub(crate) fn read(read: &dyn Fn(&str) -> std::io::Result<Option<Vec<u8>>>) -> Result<Self, TextError> {
        let tokenizer_config = read_json(read, "tokenizer_config.json")?;
        Self::with(read, tokenizer_config, read_json(read, "generation_config.json")?)
    }

    /// As [`ModelFiles::read`], two of the files told.
    pub(crate) fn with(
        read: &dyn Fn(&str) -> std::io::Result<Option<Vec<u8>>>,
        tokenizer_config: Value,
        generation_config: Value,
    ) -> Result<Self, TextError> {
        let mut templates = Vec::new();
        // The order of preference: a file of its own, a JSON file of its own, the tokenizer's configuration.
        if let Some(source) = read_file(read, "chat_template.jinja")? {
            let source = String::from_utf8(source).map_err(|error| TextError::Invalid {
                file: "chat_template.jinja".to_owned(),
                reason: error.to_string(),
            })?;
            templates.push(("default".to_owned(), source));
        }
        collect_templates(&read_json(read, "chat_template.json")?["chat_template"], &mut templates);
        collect_templates(&tokenizer_config["chat_template"], &mut templates);
        Ok(Self {
            config: read_json(read, "config.json")?,
            generation_config,
            tokenizer_config,
            special_tokens_map: read_json(read, "special_tokens_map.json")?,
            templates,
        })
    }

    /// `vocab_size` of the model, 0 if it is not said.
    pub(crate) fn model_vocab_size(&self) -> Result<usize, TextError> {
        let size = match &self.config["vocab_size"] {
            Value::Null => &self.config["text_config"]["vocab_size"],
            size => size,
        };
        match size {
            Value::Null => Ok(0),
            size => size.as_u64().and_then(|size| usize::try_from(size).ok()).ok_or_else(|| TextError::Invalid {
                file: "config.json".to_owned(),
                reason: format!("vocab_size is {size}, expected a count"),
            }),
        }
    }

    /// The text of a special token (`eos_token`, `bos_token`, ...).
    pub(crate) fn special_token(&self, name: &str) -> Option<&str> {
        [&self.tokenizer_config, &self.special_tokens_map].into_iter().find_map(|file| {
            let token = &file[name];
            token.as_str().or_else(|| token["content"].as_str())
        })
    }

    /// End-of-text ids of the configurations, in order of authority.
    pub(crate) fn eos_token_ids(&self) -> Result<Vec<u32>, TextError> {
        let mut ids = Vec::new();
        let sources = [
            ("generation_config.json", &self.generation_config["eos_token_id"]),
            ("config.json", &self.config["eos_token_id"]),
            ("config.json", &self.config["text_config"]["eos_token_id"]),
        ];
        for (file, value) in sources {
            let list = match value {
                Value::Null => &[],
                Value::Array(list) => list.as_slice(),
                one => std::slice::from_ref(one),
            };
            for id in list {
                let id = id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| TextError::Invalid {
                    file: file.to_owned(),
                    reason: format!("eos_token_id holds {id}, expected a token id"),
                })?;
                ids.push(id);
            }
        }
        Ok(ids)
    }

    pub(crate) fn default_sampling(&self) -> DefaultSampling {
        let config = &self.generation_config;
        if config["do_sample"] != true {
            return DefaultSampling::default();
        }
        let float = |name: &str| config[name].as_f64().map(|value| value as f32).filter(|value| value.is_finite());
        DefaultSampling {
            temperature: float("temperature").filter(|&value| value > 0.0),
            top_p: float("top_p").filter(|&value| value > 0.0 && value <= 1.0),
            top_k: config["top_k"].as_u64().and_then(|k| u32::try_from(k).ok()).filter(|&k| k > 0),
            repetition_penalty: float("repetition_penalty").filter(|&value| value > 0.0),
        }
    }
}

/// A template alone, or a list of `{name, template}`. The first of a name wins.
fn collect_templates(value: &Value, templates: &mut Vec<(String, String)>) {
    let mut add = |name: &str, source: &str| {
        if !templates.iter().any(|(known, _)| known == name) {
            templates.push((name.to_owned(), source.to_owned()));
        }
    };
    if let Some(source) = value.as_str() {
        add("default", source);
    }
    for entry in value.as_array().into_iter().flatten() {
        if let (Some(name), Some(source)) = (entry["name"].as_str(), entry["template"].as_str()) {
            add(name, source);
        }
    }
}

/// Reads a file that may be absent.
pub(crate) fn read_file(
    read: &dyn Fn(&str) -> std::io::Result<Option<Vec<u8>>>,
    file: &str,
) -> Result<Option<Vec<u8>>, TextError> {
    read(file).map_err(|source| TextError::Unreadable { file: file.to_owned(), source })
}

fn read_json(read: &dyn Fn(&str) -> std::io::Result<Option<Vec<u8>>>, file: &str) -> Result<Value, TextError> {
    match read_file(read, file)? {
        None => Ok(Value::Null),
        Some(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| TextError::Invalid { file: file.to_owned(), reason: error.to_string() }),
    }
}
