//! Grammars: which tokens may come next so that a text keeps to a JSON schema, a pattern, a list of texts or a Lark grammar.
//!
//! llguidance does the work: it follows the bytes of the text and walks the vocabulary's prefix tree for each mask. Nothing is precomputed for a vocabulary but
//! this tree, and tokens are looked at as the bytes they add in the middle of a text, so that every kind of tokenizer fits. Bounds on size
//! and effort keep any grammar from a stranger affordable: usual ones are read in a millisecond and give a mask in some ten microseconds, the
//! worst that were found took some seconds to read, and a tenth of a second for a single mask, on a busy machine.
//!
//! JSON is compact, as in text-generation-inference: between two of its tokens stands at most one space. Objects that name properties and say nothing of
//! others get no others, unless `allOf` puts objects together.

mod matcher;
mod schema;

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, INVALID_TOKEN, TokRxInfo, TokTrie, TokenId};
use llguidance::{Matcher, ParserFactory};
use lru::LruCache;

use crate::TextModel;
pub use matcher::{GrammarEnding, GrammarMatcher, MatchError};

/// What a text shall keep to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Grammar {
    /// JSON that is valid under this schema (draft 2020-12), which is JSON itself.
    JsonSchema(String),
    /// Text that this pattern matches as a whole, in the syntax of Rust's `regex` crate without look-around and back-references.
    Regex(String),
    /// One of these texts.
    Choices(Vec<String>),
    /// Text of this grammar, in llguidance's variant of Lark.
    Lark(String),
}

/// Why a grammar cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// It is longer than grammars may be.
    #[error("the grammar has {num_bytes} bytes, limit is {limit}")]
    TooLong {
        /// Bytes of the grammar.
        num_bytes: usize,
        /// Most bytes.
        limit: usize,
    },
    /// It has more brackets in one another than it may have.
    #[error("brackets are nested {depth} deep, limit is {limit}")]
    TooDeep {
        /// Greatest depth found.
        depth: usize,
        /// Most brackets in one another.
        limit: usize,
    },
    /// A bound of the schema lets it grow beyond what can be followed.
    #[error("`{keyword}` is {value}, limit is {limit}")]
    TooMany {
        /// `minItems`, ...
        keyword: &'static str,
        /// Its value.
        value: String,
        /// Most it may be.
        limit: u64,
    },
    /// It means nothing, or something that cannot be followed.
    #[error("{0}")]
    Invalid(String),
}

impl Grammar {
    /// Any JSON object.
    pub fn json_object() -> Self {
        Self::JsonSchema(r#"{"type":"object"}"#.to_owned())
    }

    fn num_bytes(&self) -> usize {
        match self {
            Self::JsonSchema(text) | Self::Regex(text) | Self::Lark(text) => text.len(),
            Self::Choices(texts) => texts.iter().map(|text| text.len() + 1).sum(),
        }
    }
}

/// Longest JSON schema and longest list of choices, in bytes.
const MAX_BYTES: usize = 128 << 10;

/// Longest pattern and Lark grammar, in bytes: their parts are followed by functions that call themselves.
const MAX_PATTERN_BYTES: usize = 16 << 10;

/// Most brackets in one another.
const MAX_DEPTH: usize = 64;

/// Grammars that are kept, ready to be followed.
const NUM_KEPT: NonZeroUsize = NonZeroUsize::new(32).unwrap();

/// Longest token that a grammar can use, in bytes: the prefix tree has a limit.
const MAX_TOKEN_BYTES: usize = 512;

/// Characters of a message that is told.
const MAX_MESSAGE_CHARACTERS: usize = 300;

/// What the model's grammars share.
#[derive(Default)]
pub(crate) struct Grammars {
    /// The vocabulary as a prefix tree; made when the first grammar comes.
    factory: OnceLock<Result<ParserFactory, String>>,
    /// The latest grammars, at their beginnings.
    kept: Mutex<Option<LruCache<Grammar, Arc<Matcher>>>>,
}

impl TextModel {
    /// Makes `grammar` ready to be followed, or finds it among the latest ones. Slow: some milliseconds, for the worst grammars seconds, and for
    /// the first one some tenths of a second more, to sort the vocabulary. Belongs on a thread of a [`TextPool`](crate::TextPool).
    ///
    /// # Errors
    /// [`GrammarError`]: what to change in the grammar.
    pub fn grammar(&self, grammar: &Grammar) -> Result<GrammarMatcher, GrammarError> {
        let limit = if matches!(grammar, Grammar::Regex(_) | Grammar::Lark(_)) { MAX_PATTERN_BYTES } else { MAX_BYTES };
        if grammar.num_bytes() > limit {
            return Err(GrammarError::TooLong { num_bytes: grammar.num_bytes(), limit });
        }
        let grammars = self.grammars();
        let lock = || grammars.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = lock().as_mut().and_then(|kept| kept.get(grammar).cloned());
        if let Some(beginning) = found {
            return Ok(GrammarMatcher::beginning(&beginning));
        }
        let factory = grammars.factory.get_or_init(|| make_factory(self)).as_ref();
        let factory = factory.map_err(|reason| GrammarError::Invalid(reason.clone()))?;
        let parser = factory.create_parser(top_level(grammar)?).map_err(|error| invalid(&error))?;
        let mut matcher = Matcher::new(Ok(parser));
        // What cannot even begin is told now. The lexer's first states are there for all who follow.
        matcher.compute_mask_or_eos().map_err(|error| invalid(&error))?;
        if let Some(error) = matcher.get_error() {
            return Err(GrammarError::Invalid(shorten(&error)));
        }
        let _ = matcher.is_accepting();
        let beginning = Arc::new(matcher);
        lock().get_or_insert_with(|| LruCache::new(NUM_KEPT)).put(grammar.clone(), Arc::clone(&beginning));
        Ok(GrammarMatcher::beginning(&beginning))
    }
}

fn make_factory(model: &TextModel) -> Result<ParserFactory, String> {
    let vocab_size = model.vocab_size() as u32;
    let word = |id: u32| {
        let bytes = model.token_bytes(id);
        if model.is_special(id) {
            return [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes.as_slice()].concat();
        }
        // The marker is no byte of UTF-8.
        if bytes.len() > MAX_TOKEN_BYTES || bytes.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) {
            Vec::new()
        } else {
            bytes
        }
    };
    let words: Vec<Vec<u8>> = (0..vocab_size).map(word).collect();
    let eos: TokenId = model.eos_token_ids().iter().copied().find(|&id| id < vocab_size).unwrap_or(INVALID_TOKEN);
    let trie = TokTrie::from(&TokRxInfo::new(vocab_size, eos), &words);
    // Texts are never forced upon the model as tokens, so none has to be spelled as its tokenizer would.
    let environment = ApproximateTokEnv::new(trie);
    let mut factory =
        ParserFactory::new_simple(&(Arc::new(environment) as _)).map_err(|error| shorten(&format!("{error:#}")))?;
    factory.quiet();
    *factory.limits_mut() = ParserLimits {
        // About 2 kB each.
        max_lexer_states: 20_000,
        max_grammar_size: 200_000,
        verbose_errors: false,
        ..ParserLimits::default()
    };
    Ok(factory)
}

fn top_level(grammar: &Grammar) -> Result<TopLevelGrammar, GrammarError> {
    match grammar {
        Grammar::JsonSchema(schema) => Ok(TopLevelGrammar::from_json_schema(schema::prepare(schema)?)),
        Grammar::Regex(pattern) => {
            check_depth(pattern)?;
            Ok(TopLevelGrammar::from_regex(without_anchors(pattern)))
        }
        Grammar::Choices(texts) => {
            if texts.is_empty() {
                return Err(GrammarError::Invalid("there is nothing to choose from".to_owned()));
            }
            let texts: Vec<String> = texts.iter().map(|text| escape(text)).collect();
            Ok(TopLevelGrammar::from_regex(&format!("(?:{})", texts.join("|"))))
        }
        Grammar::Lark(grammar) => {
            check_depth(grammar)?;
            Ok(TopLevelGrammar::from_lark(grammar.clone()))
        }
    }
}

/// Refuses brackets in one another beyond the limit, wherever they stand: even inside a string they are a rare sight in such number.
fn check_depth(text: &str) -> Result<(), GrammarError> {
    let (mut depth, mut deepest) = (0usize, 0);
    for char in text.chars() {
        match char {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    if deepest > MAX_DEPTH { Err(GrammarError::TooDeep { depth: deepest, limit: MAX_DEPTH }) } else { Ok(()) }
}

/// A pattern is matched as a whole anyway.
fn without_anchors(pattern: &str) -> &str {
    let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
    match pattern.strip_suffix('$') {
        Some(rest) if rest.bytes().rev().take_while(|&byte| byte == b'\\').count() % 2 == 0 => rest,
        _ => pattern,
    }
}

/// A pattern that matches `text` alone.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        if r"\.+*?()|[]{}^$".contains(char) {
            escaped.push('\\');
        }
        escaped.push(char);
    }
    escaped
}

fn invalid(error: &impl std::fmt::Display) -> GrammarError {
    GrammarError::Invalid(shorten(&format!("{error:#}")))
}

/// One line of a bearable length: messages quote the grammar, line by line.
fn shorten(message: &str) -> String {
    let words = message.split_whitespace().collect::<Vec<_>>().join(" ");
    words.chars().take(MAX_MESSAGE_CHARACTERS).collect()
}
