//! What one start asks: one request, or a conversation whose history is sent again each time.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

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

impl Message {
    fn new(role: &'static str, content: String) -> Self {
        Self { role: Cow::Borrowed(role), content }
    }
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

/// One message of the user, ready to be sent.
#[derive(Clone, Debug)]
pub struct Turn {
    /// What the user says.
    pub text: String,
    /// As the server counts the whole prompt, if this is the first.
    pub tokens: u32,
    /// Wished of the answer.
    pub output_tokens: u32,
    /// Before it is sent.
    pub pause: Duration,
}

/// What one start asks: one request after another, each after the answer to the one before. All texts of the user are made beforehand.
#[derive(Clone, Debug)]
pub struct Session {
    turns: std::vec::IntoIter<Turn>,
    /// What was said so far; `None` for a single request, whose prompt is a text.
    history: Option<Vec<Message>>,
}

impl Session {
    /// A session of at least one turn, after a system message if there is one.
    pub fn new(system: Option<String>, turns: Vec<Turn>) -> Self {
        let is_single = system.is_none() && turns.len() < 2;
        let history = system.map(|text| Message::new("system", text)).into_iter().collect();
        Self { turns: turns.into_iter(), history: (!is_single).then_some(history) }
    }

    /// The next request; `None` when all is said.
    pub fn next(&mut self) -> Option<Ask> {
        let turn = self.turns.next()?;
        let prompt = match &mut self.history {
            None => Prompt::Text(turn.text),
            Some(history) => {
                history.push(Message::new("user", turn.text));
                Prompt::Messages(history.clone())
            }
        };
        Some(Ask { prompt, prompt_tokens: turn.tokens, output_tokens: turn.output_tokens })
    }

    /// Whether the answer to the last request is part of the next one.
    pub fn wants_answer(&self) -> bool {
        self.turns.len() > 0
    }

    /// The answer to the last request.
    pub fn answered(&mut self, text: String) {
        self.history.iter_mut().for_each(|history| history.push(Message::new("assistant", text.clone())));
    }

    /// Time before the next request.
    pub fn pause(&self) -> Duration {
        self.turns.as_slice().first().map_or(Duration::ZERO, |turn| turn.pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(text: &str, tokens: u32, pause_s: u64) -> Turn {
        Turn { text: text.to_owned(), tokens, output_tokens: 5, pause: Duration::from_secs(pause_s) }
    }

    #[test]
    fn a_conversation_sends_its_history_again() {
        let mut session = Session::new(Some("s".to_owned()), vec![turn("one", 0, 0), turn("two", 0, 3)]);
        let first = session.next().expect("two turns");
        assert_eq!(first.prompt.as_text(), "s\n\none");
        assert!(session.wants_answer());
        assert_eq!(session.pause(), Duration::from_secs(3));
        session.answered("yes".to_owned());
        let second = session.next().expect("two turns");
        let Prompt::Messages(messages) = &second.prompt else { panic!("a conversation has messages") };
        assert_eq!(
            messages.iter().map(|message| (&*message.role, &*message.content)).collect::<Vec<_>>(),
            [("system", "s"), ("user", "one"), ("assistant", "yes"), ("user", "two")]
        );
        // A text that grows: what a completion server has read is found again.
        assert!(second.prompt.as_text().starts_with(&*first.prompt.as_text()));
        assert!(!session.wants_answer() && session.next().is_none());
    }

    #[test]
    fn a_single_request_is_a_text() {
        let mut session = Session::new(None, vec![turn("one", 9, 0)]);
        let expected = Ask { prompt: Prompt::Text("one".to_owned()), prompt_tokens: 9, output_tokens: 5 };
        assert_eq!(session.next(), Some(expected));
        assert!(!session.wants_answer());
        assert_eq!(session.next(), None);
    }
}
