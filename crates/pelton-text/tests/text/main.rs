//! The crate as its users see it.

mod detokenizing;
mod gguf;
mod grammars;
mod loading;
mod pool;
mod samples;
mod templates;
