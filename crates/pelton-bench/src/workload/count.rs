//! Who says how many tokens a text has: a tokenizer file, the server's `/tokenize`, or the server's reports of prompts it was sent.

use std::path::Path;

use pelton_text::TextModel;

use crate::BenchError;
use crate::client::Client;
use crate::client::probe::{Found, Questions, TokenizeForm};
use crate::results::TokenSource;

/// A text to learn from what the server adds to each prompt.
pub const SAMPLE: &str = "the time of the year when all the people go to the house on the hill";

/// Bytes of a token, where nobody counts: English and code under the tokenizers of today.
const BYTES_PER_TOKEN: f64 = 4.0;

/// Most requests that are sent to learn how long the tokens of some texts are.
const MAX_SAMPLES: usize = 4;

/// Longest text sent for this.
const MAX_SAMPLE_BYTES: usize = 4096;

/// Counts tokens as the measured server does, up to a constant.
pub trait Count {
    /// Tokens of `text`, special tokens that the tokenizer adds included.
    async fn count(&mut self, text: &str) -> Result<usize, BenchError>;

    /// Bytes of `text` after each of its tokens, ascending, where that is known.
    fn ends(&self, _text: &str) -> Option<Vec<usize>> {
        None
    }
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

    fn ends(&self, text: &str) -> Option<Vec<usize>> {
        let tokens = self.0.encode_with_offsets(text, false).ok()?;
        let characters: Vec<usize> = text.char_indices().map(|(byte, _)| byte).chain([text.len()]).collect();
        let mut ends: Vec<usize> = tokens.iter().filter_map(|token| characters.get(token.stop).copied()).collect();
        // Tokens of one character end together.
        ends.dedup();
        Some(ends)
    }
}

/// Whoever counts.
pub enum Counter<'a> {
    /// A tokenizer file.
    Local(Local),
    /// The server's `/tokenize`.
    Remote(Remote<'a>),
    /// The server's reports of prompts, or nobody.
    Usage(Usage<'a>),
}

/// The server's `/tokenize`.
pub struct Remote<'a> {
    questions: &'a mut Questions,
    form: TokenizeForm,
    model: &'a str,
}

/// Guesses, and what the server reports of prompts that it is sent.
pub struct Usage<'a> {
    questions: &'a mut Questions,
    client: &'a Client,
    /// Whether it reports anything.
    reports: bool,
    bytes_per_token: f64,
}

impl<'a> Counter<'a> {
    /// The best there is: the tokenizer named, else the server's `/tokenize`, else what it `reported` of [`SAMPLE`].
    pub async fn choose(
        tokenizer: Option<&Path>,
        questions: &'a mut Questions,
        found: &'a Found,
        client: &'a Client,
        reported: Option<u32>,
    ) -> Result<Self, BenchError> {
        if let Some(path) = tokenizer {
            return Ok(Counter::Local(Local::load(path)?));
        }
        Ok(match questions.tokenize_form(found).await? {
            Some(form) => Counter::Remote(Remote { questions, form, model: &found.model }),
            None => Counter::Usage(Usage {
                questions,
                client,
                reports: reported.is_some(),
                bytes_per_token: BYTES_PER_TOKEN,
            }),
        })
    }

    /// What it is.
    pub fn source(&self) -> TokenSource {
        match self {
            Counter::Local(_) => TokenSource::Tokenizer,
            Counter::Remote(_) => TokenSource::Server,
            Counter::Usage(Usage { reports: true, .. }) => TokenSource::Usage,
            Counter::Usage(_) => TokenSource::Guess,
        }
    }

    /// Whether texts can be counted, rather than estimated from their length.
    pub fn is_exact(&self) -> bool {
        !matches!(self, Counter::Usage(_))
    }

    /// Where only whole requests are counted: learns how long tokens are in texts like these, by at most [`MAX_SAMPLES`] requests.
    pub async fn learn(&mut self, texts: impl Iterator<Item = &str>, overhead: i64) -> Result<(), BenchError> {
        let Counter::Usage(usage) = self else { return Ok(()) };
        if !usage.reports {
            return Ok(());
        }
        let (mut bytes, mut tokens) = (0, 0);
        for text in texts.filter(|text| !text.is_empty()).take(MAX_SAMPLES) {
            let text = &text[..text.floor_char_boundary(MAX_SAMPLE_BYTES)];
            if let Some(reported) = usage.questions.prompt_tokens(usage.client, text).await? {
                bytes += text.len();
                tokens += (i64::from(reported) - overhead).max(1);
            }
        }
        if tokens > 0 {
            usage.bytes_per_token = bytes as f64 / tokens as f64;
        }
        Ok(())
    }
}

impl Count for Counter<'_> {
    async fn count(&mut self, text: &str) -> Result<usize, BenchError> {
        match self {
            Counter::Local(local) => local.count(text).await,
            Counter::Remote(remote) => remote.questions.count(text, remote.form, remote.model).await,
            Counter::Usage(usage) => Ok((text.len() as f64 / usage.bytes_per_token).ceil() as usize),
        }
    }

    fn ends(&self, text: &str) -> Option<Vec<usize>> {
        match self {
            Counter::Local(local) => local.ends(text),
            Counter::Remote(_) | Counter::Usage(_) => None,
        }
    }
}

impl Usage<'_> {
    /// Whether the server reports how many tokens a prompt had.
    pub fn reports(&self) -> bool {
        self.reports
    }

    /// Tokens of a prompt as the server reports them.
    pub async fn prompt(&mut self, text: &str) -> Result<u32, BenchError> {
        let reported = self.questions.prompt_tokens(self.client, text).await?;
        reported.ok_or_else(|| BenchError::Server("prompt tokens were reported, and then no longer".to_owned()))
    }
}
