//! What is asked: prompts with wished numbers of tokens.

pub mod count;
pub mod synthetic;
