//! What each token id adds to a text: the tokenizer's decoder, worked out once per token.
//!
//! A decoder of a `tokenizer.json` is a pipeline over token strings. For the pipelines that language models use, what a token adds does
//! not depend on its neighbours, but for two things: bytes of several tokens may form one character, and the first token of a text may lose
//! a space. So each token's bytes are kept in one table, and [`Assembly`] does the rest. Pipelines that do not fit are refused at load.
//!
//! One result differs from the tokenizers library on purpose: where a run of byte tokens (`<0xE4>`) is not wholly UTF-8, the library
//! replaces the whole run, so that nothing of a run may be shown before its end. Here, as in SentencePiece, only the offending bytes are replaced.

use crate::TextError;
use serde_json::Value;
use std::collections::HashMap;
use tokenizers::Tokenizer;

/// More ids than any vocabulary has; guards the tables against nonsense in a configuration.
const MAX_VOCAB: usize = 1 << 24;

/// The texts of all token ids.
pub(crate) struct Vocabulary {
    /// Bytes of all tokens, end to end.
    bytes: Vec<u8>,
    /// `[vocab]`: where each token's bytes end.
    ends: Vec<usize>,
    /// `[vocab]`.
    kinds: Vec<Kind>,
    decoding: Decoding,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Model,
    Added,
    Special,
}

/// The part of a decoder that looks beyond one token.
#[derive(Clone, Copy)]
struct Decoding {
    at_start: AtStart,
    /// Invalid bytes become one U+FFFD each (byte tokens), instead of one per invalid sequence (byte-level).
    replace_each_byte: bool,
}

/// What the beginning of a text loses.
#[derive(Clone, Copy)]
enum AtStart {
    Nothing,
    /// Up to `max` leading characters equal to `content`.
    Strip {
        content: char,
        max: usize,
    },
    /// The spaces of the first token, unless it is an added one.
    TokenSpaces,
    /// The separator in front of the first token.
    Separator,
}

impl Vocabulary {
    /// Works out the text of each token of `tokenizer`. Ids up to `model_vocab_size` that the tokenizer lacks are padding, without text.
    pub(crate) fn new(tokenizer: &Tokenizer, model_vocab_size: usize) -> Result<Self, TextError> {
        let unsupported = |reason| TextError::Unsupported { file: "tokenizer.json".to_owned(), reason };
        let last_id = tokenizer.get_vocab(true).into_values().max();
        let size = last_id.map_or(0, |id| id as usize + 1).max(model_vocab_size);
        if size > MAX_VOCAB {
            return Err(unsupported(format!("vocabulary of {size} tokens, limit is {MAX_VOCAB}")));
        }
        let decoder = match tokenizer.get_decoder() {
            Some(decoder) => serde_json::to_value(decoder).map_err(|error| unsupported(error.to_string()))?,
            None => Value::Null,
        };
        let pipeline = Pipeline::read(&decoder).map_err(unsupported)?;

        let added = tokenizer.get_added_vocabulary();
        let added_ids = added.get_added_tokens_decoder();
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(size);
        let mut kinds = Vec::with_capacity(size);
        for id in 0..size as u32 {
            let mut kind = Kind::Model;
            if let Some(token) = tokenizer.id_to_token(id) {
                if added.is_special_token(&token) {
                    kind = Kind::Special;
                } else if added_ids.contains_key(&id) {
                    kind = Kind::Added;
                }
                pipeline.append(token, &mut bytes);
            }
            ends.push(bytes.len());
            kinds.push(kind);
        }
        Ok(Self { bytes, ends, kinds, decoding: pipeline.decoding() })
    }

    /// Number of ids, padding included.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes that a token adds in the middle of a text.
    pub(crate) fn bytes(&self, id: u32) -> Option<&[u8]> {
        let index = id as usize;
        let end = *self.ends.get(index)?;
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        Some(&self.bytes[start..end])
    }

    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.kinds.get(id as usize) == Some(&Kind::Special)
    }
}

/// A decoder that acts token by token.
enum Pipeline {
    /// No decoder: tokens are separated by spaces.
    Separated,
    /// Each character of a token stands for a byte.
    ByteLevel { byte_of: HashMap<char, u8> },
    /// The replacement character stands for a space.
    Metaspace { replacement: char, drop_first: bool },
    /// Replacements, then perhaps byte tokens, then perhaps a strip of the whole text.
    Pieces { replacements: Vec<(String, String)>, byte_tokens: bool, strip: Option<(char, usize)> },
}

impl Pipeline {
    fn read(decoder: &Value) -> Result<Self, String> {
        let mut steps = Vec::new();
        flatten(decoder, &mut steps);
        let kind = |step: &Value| step["type"].as_str().unwrap_or_default().to_owned();
        match steps[..] {
            [] => return Ok(Self::Separated),
            [step] if kind(step) == "ByteLevel" => return Ok(Self::ByteLevel { byte_of: byte_level_bytes() }),
            [step] if kind(step) == "Metaspace" => {
                let replacement = char_of(&step["replacement"]).ok_or("decoder Metaspace without a replacement")?;
                return Ok(Self::Metaspace { replacement, drop_first: step["prepend_scheme"] != "never" });
            }
            _ => {}
        }

        let (mut replacements, mut byte_tokens, mut fused, mut strip) = (Vec::new(), false, false, None);
        for step in steps {
            match kind(step).as_str() {
                "Replace" if !byte_tokens && !fused => {
                    let (Some(from), Some(to)) = (step["pattern"]["String"].as_str(), step["content"].as_str()) else {
                        return Err("decoder Replace with a pattern that is not plain text".to_owned());
                    };
                    if from.is_empty() {
                        return Err("decoder Replace of nothing".to_owned());
                    }
                    replacements.push((from.to_owned(), to.to_owned()));
                }
                "ByteFallback" if !fused => byte_tokens = true,
                "Fuse" => fused = true,
                "Strip" if fused && strip.is_none() && step["stop"] == 0 => {
                    let content = char_of(&step["content"]).ok_or("decoder Strip without content")?;
                    strip = Some((content, step["start"].as_u64().unwrap_or(0) as usize));
                }
                kind => return Err(format!("decoder step {kind} at this place")),
            }
        }
        Ok(Self::Pieces { replacements, byte_tokens, strip })
    }

    fn append(&self, mut token: String, bytes: &mut Vec<u8>) {
        match self {
            Self::Separated => {
                bytes.push(b' ');
                bytes.extend_from_slice(token.as_bytes());
            }
            Self::ByteLevel { byte_of } => {
                let start = bytes.len();
                for char in token.chars() {
                    let Some(&byte) = byte_of.get(&char) else {
                        // An added token with other characters is literal.
                        bytes.truncate(start);
                        bytes.extend_from_slice(token.as_bytes());
                        return;
                    };
                    bytes.push(byte);
                }
            }
            Self::Metaspace { replacement, .. } => {
                bytes.extend_from_slice(token.replace(*replacement, " ").as_bytes());
            }
            Self::Pieces { replacements, byte_tokens, .. } => {
                for (from, to) in replacements {
                    token = token.replace(from, to);
                }
                match byte_of_byte_token(&token) {
                    Some(byte) if *byte_tokens => bytes.push(byte),
                    _ => bytes.extend_from_slice(token.as_bytes()),
                }
            }
        }
    }

    fn decoding(&self) -> Decoding {
        let at_start = match *self {
            Self::Separated => AtStart::Separator,
            Self::ByteLevel { .. } => AtStart::Nothing,
            Self::Metaspace { drop_first, .. } => {
                if drop_first {
                    AtStart::TokenSpaces
                } else {
                    AtStart::Nothing
                }
            }
            Self::Pieces { strip, .. } => {
                strip.map_or(AtStart::Nothing, |(content, max)| AtStart::Strip { content, max })
            }
        };
        Decoding { at_start, replace_each_byte: matches!(self, Self::Pieces { .. }) }
    }
}

fn flatten<'a>(decoder: &'a Value, steps: &mut Vec<&'a Value>) {
    match decoder["decoders"].as_array() {
        Some(inner) => inner.iter().for_each(|step| flatten(step, steps)),
        None if decoder.is_null() => {}
        None => steps.push(decoder),
    }
}

fn char_of(value: &Value) -> Option<char> {
    value.as_str()?.chars().next()
}

fn byte_of_byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 { None } else { u8::from_str_radix(digits, 16).ok() }
}

/// GPT-2's spelling of bytes as characters: printable Latin-1 stands for itself, the rest follows from U+0100 on.
pub(crate) fn byte_level_chars() -> impl Iterator<Item = (u8, char)> {
    let mut next = 0x100;
    (0..=255u8).map(move |byte| {
        let char = match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
            _ => {
                next += 1;
                char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
            }
        };
        (byte, char)
    })
}

fn byte_level_bytes() -> HashMap<char, u8> {
    byte_level_chars().map(|(byte, char)| (char, byte)).collect()
}

/// A text being put together from tokens.
#[derive(Clone, Debug)]
pub(crate) struct Assembly {
    /// Bytes of a character that is not complete: at most three.
    pending: Vec<u8>,
    /// No token has been added yet.
    at_start: bool,
    /// How many more leading characters may be stripped.
    strip_left: usize,
}

impl Assembly {
    pub(crate) fn new(vocabulary: &Vocabulary) -> Self {
        let strip_left = match vocabulary.decoding.at_start {
            AtStart::Strip { max, .. } => max,
            _ => 0,
        };
        Self { pending: Vec::new(), at_start: true, strip_left }
    }

    /// Adds one token; appends the characters that are complete now to `text`.
    pub(crate) fn add(&mut self, vocabulary: &Vocabulary, id: u32, text: &mut String) -> Result<(), TextError> {
        let bytes = vocabulary.bytes(id).ok_or(TextError::UnknownToken { id, vocab_size: vocabulary.len() })?;
        if std::mem::take(&mut self.at_start) {
            match vocabulary.decoding.at_start {
                AtStart::TokenSpaces if vocabulary.kinds[id as usize] == Kind::Model => {
                    self.pending.extend(bytes.iter().filter(|&&byte| byte != b' '));
                }
                AtStart::Separator => self.pending.extend_from_slice(bytes.strip_prefix(b" ").unwrap_or(bytes)),
                _ => self.pending.extend_from_slice(bytes),
            }
        } else {
            self.pending.extend_from_slice(bytes);
        }
        self.release(vocabulary, false, text);
        Ok(())
    }

    /// Ends the text: what is left of an incomplete character becomes U+FFFD.
    pub(crate) fn finish(&mut self, vocabulary: &Vocabulary, text: &mut String) {
        self.release(vocabulary, true, text);
    }

    fn release(&mut self, vocabulary: &Vocabulary, all: bool, text: &mut String) {
        let start = text.len();
        let mut keep = 0;
        let mut chunks = self.pending.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            if !all
                && chunks.peek().is_none()
                && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none())
            {
                keep = invalid.len();
                break;
            }
            let count = if vocabulary.decoding.replace_each_byte { invalid.len() } else { 1 };
            text.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, count));
        }
        self.pending.drain(..self.pending.len() - keep);

        if let AtStart::Strip { content, .. } = vocabulary.decoding.at_start {
            while self.strip_left > 0 && text.len() > start {
                if text[start..].starts_with(content) {
                    text.remove(start);
                    self.strip_left -= 1;
                } else {
                    self.strip_left = 0;
                }
            }
        }
    }
}
