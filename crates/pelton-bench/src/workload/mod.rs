//! What is asked, request by request: lengths, texts, conversations, all seeded.

pub mod count;
pub mod synthetic;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use synthetic::Prompts;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// What the model reads.
    pub prompt: Prompt,
    /// Tokens that the prompt was made to have, as the server counts them; 0 if nobody counted.
    pub prompt_tokens: u32,
    /// Tokens asked for.
    pub output_tokens: u32,
}

/// What a model reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// To be continued.
    Text(String),
    /// To be answered.
    Messages(Vec<Message>),
}

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: Cow<'static, str>,
    /// The words.
    pub content: String,
}

impl Prompt {
    /// For dialects without messages: their contents, an empty line between them.
    pub fn as_text(&self) -> Cow<'_, str> {
        match self {
            Prompt::Text(text) => Cow::Borrowed(text),
            Prompt::Messages(messages) => {
                let contents: Vec<&str> = messages.iter().map(|message| message.content.as_str()).collect();
                Cow::Owned(contents.join("\n\n"))
            }
        }
    }
}

/// Everything that one run asks. Equal plans, seeds included, ask the same.
#[derive(Clone, Debug)]
pub struct Workload {
    prompts: Prompts,
    output_tokens: u32,
}

impl Workload {
    /// Single requests with synthetic prompts.
    pub fn synthetic(prompts: Prompts, output_tokens: u32) -> Self {
        Self { prompts, output_tokens }
    }

    /// What start number `index` of the run asks.
    pub fn session(&self, index: u64) -> Session {
        let ask = Ask {
            prompt: Prompt::Text(self.prompts.prompt(index)),
            prompt_tokens: self.prompts.wished_tokens(),
            output_tokens: self.output_tokens,
        };
        Session { next: Some(ask) }
    }
}

/// What one start asks: one request after another, each after the answer to the one before.
#[derive(Clone, Debug)]
pub struct Session {
    next: Option<Ask>,
}

impl Session {
    /// The next request; `None` when all is said.
    pub fn next(&mut self) -> Option<Ask> {
        self.next.take()
    }
}
