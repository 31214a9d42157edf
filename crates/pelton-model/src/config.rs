//! Typed look-ups in `config.json`, with errors that name the key.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

/// A configuration that cannot be served. `key` is the path of the entry: `rope_scaling.factor`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or not an object.
    #[error("{file} is not a JSON object: {cause}")]
    Json {
        /// Which file.
        file: String,
        /// What the reader stumbled over.
        cause: String,
    },
    /// The file itself is absent.
    #[error("{file} is missing")]
    NoFile {
        /// Which file.
        file: String,
    },
    /// A key without which the model is not known.
    #[error("{file} has no {key}")]
    Missing {
        /// Which file.
        file: String,
        /// The key looked for.
        key: String,
    },
    /// A value of the wrong type or outside what can be.
    #[error("{file}: {key} is {found}, expected {expected}")]
    Value {
        /// Which file.
        file: String,
        /// Whose value.
        key: String,
        /// The value.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// A value that means something, but nothing that can be served.
    #[error("{file}: {key} is {found}: {why}")]
    Unsupported {
        /// Which file.
        file: String,
        /// Whose value.
        key: String,
        /// The value.
        found: String,
        /// What is not supported.
        why: String,
    },
}

/// A JSON object with typed access. An explicit `null` counts as absent, as it does in Transformers.
#[derive(Debug, Clone)]
pub struct HfConfig {
    file: String,
    /// Path of this object inside the file, with a closing dot; empty for the file itself.
    prefix: String,
    values: Map<String, Value>,
    /// Other words of this file for keys: ours, then its own.
    words: &'static [(&'static str, &'static str)],
}

impl HfConfig {
    /// Reads `bytes`, the contents of `file`.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, ConfigError> {
        let json = |cause: String| ConfigError::Json { file: file.to_owned(), cause };
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(values)) => Ok(Self { file: file.to_owned(), prefix: String::new(), values, words: &[] }),
            Ok(other) => Err(json(format!("it is {}", shown(&other)))),
            Err(error) => Err(json(error.to_string())),
        }
    }

    /// Which file this is, or is part of.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The same, where a key that is not there is looked up under the file's own word for it: pairs of ours and its.
    pub fn with_words(&self, words: &'static [(&'static str, &'static str)]) -> Self {
        Self { words, ..self.clone() }
    }

    /// The same with the entries of `defaults`, an object, for keys that are not there, not even as `null`.
    pub fn with_defaults(&self, defaults: Value) -> Self {
        let mut config = self.clone();
        if let Value::Object(defaults) = defaults {
            for (key, value) in defaults {
                if !config.values.contains_key(config.word(&key)) {
                    config.values.insert(key, value);
                }
            }
        }
        config
    }

    /// The object under `key`, if there is one.
    pub fn section(&self, key: &str) -> Result<Option<HfConfig>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(values)) => Ok(Some(HfConfig {
                file: self.file.clone(),
                prefix: format!("{}{key}.", self.prefix),
                values: values.clone(),
                words: &[],
            })),
            Some(_) => Err(self.refuse(key, "an object")),
        }
    }

    /// Whether `key` is there and not `null`.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// A whole number within `range`.
    pub fn size(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize, ConfigError> {
        self.optional_size(key, range)?.ok_or_else(|| self.missing(key))
    }

    /// A whole number within `range`, or `default`.
    pub fn size_or(&self, key: &str, default: usize, range: RangeInclusive<usize>) -> Result<usize, ConfigError> {
        Ok(self.optional_size(key, range)?.unwrap_or(default))
    }

    /// A whole number within `range`, if there is one. `4096.0` is whole.
    pub fn optional_size(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let whole = value.as_u64().or_else(|| {
            value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..=2f64.powi(53)).contains(x)).map(|x| x as u64)
        });
        match whole.and_then(|x| usize::try_from(x).ok()).filter(|x| range.contains(x)) {
            Some(size) => Ok(Some(size)),
            None => Err(self.refuse(key, &format!("a whole number from {} to {}", range.start(), range.end()))),
        }
    }

    /// A whole number within `range`, which may be below zero, if there is one.
    pub fn optional_integer(&self, key: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_i64().filter(|x| range.contains(x)) {
            Some(integer) => Ok(Some(integer)),
            None => Err(self.refuse(key, &format!("a whole number from {} to {}", range.start(), range.end()))),
        }
    }

    /// A list of whole numbers within `range`, if there is one.
    pub fn optional_sizes(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<Vec<usize>>, ConfigError> {
        let expected =
            || self.refuse(key, &format!("a list of whole numbers from {} to {}", range.start(), range.end()));
        let Some(value) = self.get(key) else { return Ok(None) };
        let items = value.as_array().ok_or_else(expected)?;
        let size = |item: &Value| item.as_u64().and_then(|x| usize::try_from(x).ok()).filter(|x| range.contains(x));
        items.iter().map(size).collect::<Option<Vec<_>>>().map(Some).ok_or_else(expected)
    }

    /// A number within `range`.
    pub fn float(&self, key: &str, range: RangeInclusive<f64>) -> Result<f64, ConfigError> {
        self.optional_float(key, range)?.ok_or_else(|| self.missing(key))
    }

    /// A number within `range`, or `default`.
    pub fn float_or(&self, key: &str, default: f64, range: RangeInclusive<f64>) -> Result<f64, ConfigError> {
        Ok(self.optional_float(key, range)?.unwrap_or(default))
    }

    /// A number within `range`, if there is one.
    pub fn optional_float(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64().filter(|x| range.contains(x)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.refuse(key, &format!("a number from {} to {}", range.start(), range.end()))),
        }
    }

    /// True or false, or `default`.
    pub fn bool_or(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(_) => Err(self.refuse(key, "true or false")),
        }
    }

    /// A string, if there is one.
    pub fn optional_text(&self, key: &str) -> Result<Option<&str>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.refuse(key, "a string")),
        }
    }

    /// A string.
    pub fn text(&self, key: &str) -> Result<&str, ConfigError> {
        self.optional_text(key)?.ok_or_else(|| self.missing(key))
    }

    /// A list of strings.
    pub fn texts(&self, key: &str) -> Result<Vec<&str>, ConfigError> {
        match self.get(key) {
            None => Err(self.missing(key)),
            Some(Value::Array(items)) => {
                items.iter().map(|item| item.as_str().ok_or_else(|| self.refuse(key, "a list of strings"))).collect()
            }
            Some(_) => Err(self.refuse(key, "a list of strings")),
        }
    }

    /// Numbers within `range`, as many as `count` says.
    pub fn floats(&self, key: &str, count: usize, range: RangeInclusive<f64>) -> Result<Vec<f64>, ConfigError> {
        let expected = || self.refuse(key, &format!("{count} numbers from {} to {}", range.start(), range.end()));
        match self.get(key) {
            None => Err(self.missing(key)),
            Some(Value::Array(items)) if items.len() == count => {
                items.iter().map(|item| item.as_f64().filter(|x| range.contains(x)).ok_or_else(expected)).collect()
            }
            Some(_) => Err(expected()),
        }
    }

    /// A list of whole numbers; empty when there is none.
    pub fn indices(&self, key: &str) -> Result<Vec<u64>, ConfigError> {
        let expected = || self.refuse(key, "a list of whole numbers");
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items.iter().map(|item| item.as_u64().ok_or_else(expected)).collect(),
            Some(_) => Err(expected()),
        }
    }

    /// Its keys, sorted.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// Whether the value of `key` is more than `null`, `false`, or an empty list or object.
    pub(crate) fn says_something(&self, key: &str) -> bool {
        match self.get(key) {
            None | Some(Value::Bool(false)) => false,
            Some(Value::Array(items)) => !items.is_empty(),
            Some(Value::Object(values)) => !values.is_empty(),
            Some(_) => true,
        }
    }

    /// Keys whose values are objects themselves.
    pub(crate) fn nested_keys(&self) -> impl Iterator<Item = &str> {
        self.values.iter().filter(|(_, value)| value.is_object()).map(|(key, _)| key.as_str())
    }

    /// The error for a key that is not there.
    pub fn missing(&self, key: &str) -> ConfigError {
        ConfigError::Missing { file: self.file.clone(), key: self.path(key) }
    }

    /// The error for a value that cannot be, on its own or beside another key's.
    pub fn refuse(&self, key: &str, expected: &str) -> ConfigError {
        ConfigError::Value {
            file: self.file.clone(),
            key: self.path(key),
            found: self.found(key),
            expected: expected.to_owned(),
        }
    }

    /// The error for a value that means something which is not supported.
    pub fn unsupported(&self, key: &str, why: &str) -> ConfigError {
        ConfigError::Unsupported {
            file: self.file.clone(),
            key: self.path(key),
            found: self.found(key),
            why: why.to_owned(),
        }
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(self.word(key)).filter(|value| !value.is_null())
    }

    /// What the file calls `key`.
    fn word<'a>(&self, key: &'a str) -> &'a str {
        if self.values.contains_key(key) {
            return key;
        }
        self.words.iter().find(|(ours, _)| *ours == key).map_or(key, |(_, own)| own)
    }

    fn path(&self, key: &str) -> String {
        format!("{}{}", self.prefix, self.word(key))
    }

    fn found(&self, key: &str) -> String {
        self.values.get(self.word(key)).map_or_else(|| "absent".to_owned(), shown)
    }
}

/// `value` as it stands in the file, cut to a length that fits an error message.
fn shown(value: &Value) -> String {
    const MAX_CHARS: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> HfConfig {
        HfConfig::parse("config.json", text.as_bytes()).unwrap()
    }

    #[test]
    fn null_is_absent_and_whole_floats_are_sizes() {
        let config = config(r#"{"a": null, "b": 4096.0, "c": 3}"#);
        assert!(!config.has("a"));
        assert_eq!(config.size_or("a", 7, 1..=9), Ok(7));
        assert_eq!(config.size("b", 1..=9999), Ok(4096));
        assert_eq!(config.float("c", 0.0..=10.0), Ok(3.0));
    }

    #[test]
    fn other_words_and_defaults_stand_in_for_what_is_not_there() {
        let words = &[("hidden_size", "n_embd"), ("layers", "n_layer")];
        let config = config(r#"{"n_embd": 48, "window": null, "layers": 3, "n_layer": 4}"#).with_words(words);
        let config = config.with_defaults(serde_json::json!({"hidden_size": 7, "window": 8, "act": "gelu"}));
        assert_eq!(config.size("hidden_size", 1..=99), Ok(48));
        assert_eq!(config.size("layers", 1..=99), Ok(3));
        assert_eq!(config.optional_size("window", 1..=99), Ok(None));
        assert_eq!(config.text("act"), Ok("gelu"));
        assert_eq!(
            config.size("hidden_size", 1..=8).unwrap_err().to_string(),
            "config.json: n_embd is 48, expected a whole number from 1 to 8"
        );
        assert_eq!(config.floats("list", 2, 0.0..=1.0).unwrap_err().to_string(), "config.json has no list");
        assert_eq!(config.indices("list"), Ok(vec![]));
    }

    #[test]
    fn errors_name_file_key_value_and_range() {
        let config = config(r#"{"hidden_size": -4, "act": 3, "rope_scaling": {"factor": "x"}, "list": [1]}"#);
        let message = |error: ConfigError| error.to_string();
        assert_eq!(
            message(config.size("hidden_size", 1..=8).unwrap_err()),
            "config.json: hidden_size is -4, expected a whole number from 1 to 8"
        );
        assert_eq!(message(config.size("vocab_size", 1..=8).unwrap_err()), "config.json has no vocab_size");
        assert_eq!(message(config.text("act").unwrap_err()), "config.json: act is 3, expected a string");
        assert_eq!(message(config.bool_or("act", true).unwrap_err()), "config.json: act is 3, expected true or false");
        let rope = config.section("rope_scaling").unwrap().unwrap();
        assert_eq!(
            message(rope.float("factor", 1.0..=8.0).unwrap_err()),
            "config.json: rope_scaling.factor is \"x\", expected a number from 1 to 8"
        );
        assert!(config.section("act").is_err());
        assert!(config.texts("list").is_err());
    }

    #[test]
    fn absurd_numbers_are_refused_and_shown_short() {
        let long = format!(r#"{{"n": "{}", "huge": 1e300, "big": 18446744073709551615}}"#, "é".repeat(500));
        let config = config(&long);
        assert!(config.size("huge", 1..=100).is_err());
        assert!(config.size("big", 1..=100).is_err());
        assert!(config.size("n", 1..=100).unwrap_err().to_string().len() < 300);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in ["", "[]", "3", "{", "{\"a\": }", "\u{feff}{}"] {
            assert!(HfConfig::parse("config.json", text.as_bytes()).is_err(), "{text:?}");
        }
        let deep = "{\"a\":".repeat(100_000);
        assert!(HfConfig::parse("config.json", deep.as_bytes()).is_err());
        assert!(HfConfig::parse("config.json", &[0xff, 0xfe]).is_err());
    }
}
