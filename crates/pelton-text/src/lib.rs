//! Text at the border: tokenizers, chat templates, detokenizing, stop strings, grammars. Token ids are plain `u32` here.
//!
//! Reading order: [`TextModel`] loads what a model directory says about text; [`ChatTemplate`] makes a prompt of a conversation;
//! [`Detokenizer`] and [`StopMatcher`] follow one stream of generated tokens, a [`GrammarMatcher`] says which may come next; [`TextPool`]
//! runs the slow parts away from async workers.
#![forbid(unsafe_code)]

mod bytes;
mod detokenize;
mod error;
mod files;
mod gguf;
mod grammar;
mod model;
mod pool;
mod stop;
mod template;
mod vocabulary;

pub use detokenize::Detokenizer;
pub use error::TextError;
pub use files::DefaultSampling;
pub use grammar::{Grammar, GrammarEnding, GrammarError, GrammarMatcher, MatchError};
pub use model::{EncodedToken, FimTokens, TextModel};
pub use pool::TextPool;
pub use stop::{StopMatcher, StopStep};
pub use template::{ChatInput, ChatTemplate};
