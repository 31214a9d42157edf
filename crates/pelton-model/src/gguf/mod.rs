//! Models in one GGUF file: configuration, tokenizer and tensors, told in the terms that the rest of this crate and its readers know.
//!
//! [`Gguf`] is the file, its header read and checked; `config` says its metadata as a `config.json`, `weights` its tensors under the names
//! and in the order of the family that is, and [`Gguf::tokenizer`] hands on what it says of text.

mod config;
mod header;
mod kind;
#[cfg(test)]
mod tests;
mod weights;

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::{Map, Value};

use crate::files::Blob;
use crate::weights::listed;
use header::{Header, Problem};
pub(crate) use weights::GgufWeights;

/// Ending of such files.
pub(crate) const ENDING: &str = ".gguf";
/// Largest header: vocabularies take some 10 MB.
const MAX_HEADER_BYTES: u64 = 256 << 20;
/// What is read first. A header is as long as its tokenizer, and says nowhere how long that is.
const FIRST_BYTES: u64 = 1 << 20;

/// A GGUF file that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// Cut off, for instance by a download that was interrupted.
    #[error("{file} is truncated: its header goes beyond its {found} bytes")]
    Truncated {
        /// Which file.
        file: String,
        /// Its size.
        found: u64,
    },
    /// The header is not what the format says.
    #[error("{file} is broken: {cause}")]
    Broken {
        /// Which file.
        file: String,
        /// What is wrong.
        cause: String,
    },
    /// Metadata that a model needs is absent, or makes no sense.
    #[error("{file}: {key} is {found}, expected {expected}")]
    Key {
        /// Which file.
        file: String,
        /// Which key.
        key: String,
        /// Its value.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// Means something, but nothing that can be served.
    #[error("{file}: {what} is not supported: {why}")]
    Unsupported {
        /// Which file.
        file: String,
        /// What.
        what: String,
        /// Why, or what is.
        why: String,
    },
    /// Tensors missing, left over, or of another shape than the metadata says.
    #[error("the tensors of {file} do not fit its metadata ({count} wrong): {problems}")]
    Mismatch {
        /// Which file.
        file: String,
        /// How many tensors are wrong.
        count: usize,
        /// The first of them.
        problems: String,
    },
    /// The operating system refused.
    #[error("cannot read {file}: {source}")]
    Io {
        /// Which file.
        file: String,
        /// Its reason.
        source: std::io::Error,
    },
}

/// One file, its header read and every tensor known to lie within.
#[derive(Debug)]
pub(crate) struct Gguf {
    file: String,
    header: Header,
    /// Bytes of each tensor, from the file's begin.
    ranges: BTreeMap<String, Range<u64>>,
    blob: Blob<'static>,
}

impl Gguf {
    /// Reads and checks the header of `blob`, the file called `file`.
    pub(crate) fn open(file: &str, blob: Blob<'static>) -> Result<Self, GgufError> {
        let (header, ranges) = read_header(file, &blob)?;
        let gguf = Self { file: file.to_owned(), header, ranges, blob };
        match gguf.header.integer("split.count") {
            Some(count) if count > 1 => Err(gguf.unsupported(
                &format!("one of {count} files of a model"),
                "join them with `llama-gguf-split --merge` and name the result",
            )),
            _ => Ok(gguf),
        }
    }

    /// What the metadata says, as the model's `config.json`.
    pub(crate) fn config(&self) -> Result<Vec<u8>, GgufError> {
        Ok(config::config(self)?.to_string().into_bytes())
    }

    /// All that the metadata says of text, key by key: `tokenizer.ggml.tokens`, `tokenizer.chat_template`, ...
    pub(crate) fn tokenizer(&self) -> Vec<u8> {
        let header = &self.header;
        let value = |key: &str| -> Option<Value> {
            if let Some(texts) = header.texts(key) {
                return Some(texts.into());
            }
            if let Some(integers) = header.integers(key) {
                return Some(integers.into());
            }
            if let Some(floats) = header.floats(key) {
                return Some(floats.into());
            }
            let number = || header.integer(key).map(Value::from);
            header.text(key).map(Value::from).or_else(|| header.bool(key).map(Value::from)).or_else(number)
        };
        let keys = header.keys().filter(|key| key.starts_with("tokenizer."));
        let values: Map<String, Value> = keys.filter_map(|key| Some((key.to_owned(), value(key)?))).collect();
        Value::Object(values).to_string().into_bytes()
    }

    fn mismatch(&self, problems: &[String]) -> GgufError {
        let (count, problems) = (problems.len(), listed(problems, "; "));
        GgufError::Mismatch { file: self.file.clone(), count, problems }
    }

    fn unsupported(&self, what: &str, why: &str) -> GgufError {
        GgufError::Unsupported { file: self.file.clone(), what: what.to_owned(), why: why.to_owned() }
    }
}

/// The header of `blob`, and the bytes of every tensor.
fn read_header(file: &str, blob: &Blob<'_>) -> Result<(Header, BTreeMap<String, Range<u64>>), GgufError> {
    let broken = |cause| GgufError::Broken { file: file.to_owned(), cause };
    let len = blob.len();
    let mut bytes = Vec::new();
    let mut wished = FIRST_BYTES;
    let header = loop {
        let begin = bytes.len();
        bytes.resize(len.min(wished) as usize, 0);
        blob.read_at(begin as u64, &mut bytes[begin..])
            .map_err(|source| GgufError::Io { file: file.to_owned(), source })?;
        match Header::parse(bytes) {
            Ok(header) => break header,
            Err((Problem::Broken(cause), _)) => return Err(broken(cause)),
            Err((Problem::Ends, _)) if wished >= len => {
                return Err(GgufError::Truncated { file: file.to_owned(), found: len });
            }
            Err((Problem::Ends, _)) if wished >= MAX_HEADER_BYTES => {
                return Err(broken(format!("its header has more than {MAX_HEADER_BYTES} bytes")));
            }
            Err((Problem::Ends, read)) => {
                bytes = read;
                wished = (wished * 4).min(MAX_HEADER_BYTES);
            }
        }
    };
    let ranges = header::ranges(&header, len).map_err(broken)?;
    Ok((header, ranges))
}

/// For the fuzzer: reads a header and everything that is made of it.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz(bytes: &[u8]) {
    if let Ok((header, ranges)) = read_header("fuzzed.gguf", &Blob::Memory(bytes)) {
        let gguf = Gguf { file: "fuzzed.gguf".to_owned(), header, ranges, blob: Blob::Memory(&[]) };
        let _ = gguf.config();
        gguf.tokenizer();
    }
}
