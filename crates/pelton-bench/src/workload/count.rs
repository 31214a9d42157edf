//! Who says how many tokens a text has: a tokenizer file, or the server.

use std::path::Path;

use pelton_text::TextModel;

use crate::BenchError;
use crate::client::probe::{Questions, TokenizeForm};

/// Counts tokens as the measured server does, up to a constant.
pub trait Count {
    /// Tokens of `text`, special tokens that the tokenizer adds included.
    async fn count(&mut self, text: &str) -> Result<usize, BenchError>;
}

/// A tokenizer that is at hand.
#[derive(Debug)]
pub struct Local(TextModel);

impl Local {
    /// Reads a `tokenizer.json`, or a directory that holds one.
    pub fn load(path: &Path) -> Result<Self, BenchError> {
        let model = if path.is_dir() {
            TextModel::from_dir(path)
        } else {
            // Whatever its name: the one file is the tokenizer.
            TextModel::from_files(&|name| {
                if name == "tokenizer.json" { std::fs::read(path).map(Some) } else { Ok(None) }
            })
        };
        Ok(Self(model.map_err(|source| BenchError::Tokenizer { path: path.to_owned(), source })?))
    }

    /// The tokenizer itself.
    pub fn into_model(self) -> TextModel {
        self.0
    }
}

impl Count for Local {
    async fn count(&mut self, text: &str) -> Result<usize, BenchError> {
        Ok(self.0.encode(text, true).map_err(|error| BenchError::Prompts(error.to_string()))?.len())
    }
}

/// The server's `/tokenize`.
#[derive(Debug)]
pub struct Remote<'a> {
    /// The conversation.
    pub questions: &'a mut Questions,
    /// The form that the server understands.
    pub form: TokenizeForm,
    /// The model's name, where there are several.
    pub model: &'a str,
}

impl Count for Remote<'_> {
    async fn count(&mut self, text: &str) -> Result<usize, BenchError> {
        self.questions.count(text, self.form, self.model).await
    }
}
