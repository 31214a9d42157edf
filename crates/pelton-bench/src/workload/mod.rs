//! What is asked, request by request: lengths, texts, conversations, all seeded.

pub mod count;
mod draw;
pub mod synthetic;
pub mod trace;

use std::borrow::Cow;
use std::rc::Rc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::BenchError;
use crate::plan::{PromptMix, Source, ThinkTime, WorkloadPlan};
use draw::{Purpose, Sampler, below, random};
use synthetic::{Prompts, Shared, Words};
use trace::TraceEntry;

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

/// Everything that one run asks. Equal plans, seeds included, ask the same.
#[derive(Clone, Debug)]
pub struct Workload {
    seed: u64,
    mix: PromptMix,
    think: ThinkTime,
    turns: Sampler,
    material: Material,
}

/// What requests are made of.
#[derive(Clone, Debug)]
enum Material {
    Synthetic { words: Words, prompts: Prompts, input: Sampler, output: Sampler, longest: u32 },
    Trace { words: Words, prompts: Prompts, entries: Rc<Vec<TraceEntry>>, longest: u32 },
}

impl Workload {
    /// Reads files and prepares texts. `words` are those of the server's tokenizer, which the plan named or the server answered for.
    ///
    /// # Errors
    /// Files that cannot be read; a fixed length that no sequence of words has.
    pub fn prepare(plan: &WorkloadPlan, words: &Words) -> Result<Self, BenchError> {
        let material = match &plan.source {
            Source::Synthetic => {
                let input = Sampler::new(&plan.input(), Purpose::Input)?;
                let longest = input.highest(&plan.input());
                let prompts = Prompts::new(words, plan.seed, longest);
                let shortest_fixed = plan.input().fixed();
                if let Some(wished) = shortest_fixed.filter(|&wished| prompts.possible(wished) != Some(wished)) {
                    return Err(impossible(words, wished));
                }
                if prompts.possible(longest).is_none() {
                    return Err(impossible(words, longest));
                }
                let output = Sampler::new(&plan.output(), Purpose::Output)?;
                Material::Synthetic { words: words.clone(), prompts, input, output, longest }
            }
            Source::Trace(path) => {
                let entries = trace::read(path)?;
                let longest = entries.iter().map(|entry| entry.input_tokens).max().unwrap_or(1);
                let prompts = Prompts::new(words, plan.seed, longest);
                if prompts.possible(longest).is_none() {
                    return Err(impossible(words, longest));
                }
                Material::Trace { words: words.clone(), prompts, entries: Rc::new(entries), longest }
            }
        };
        Ok(Self {
            seed: plan.seed,
            mix: plan.prompts,
            think: plan.think,
            turns: Sampler::new(&plan.turns, Purpose::Turns)?,
            material,
        })
    }

    /// The same kind of requests with other texts, for another run: those of this one may be in the server's prefix cache.
    pub fn reseeded(&self, seed: u64) -> Self {
        let mut workload = Self { seed, ..self.clone() };
        match &mut workload.material {
            Material::Synthetic { words, prompts, longest, .. } | Material::Trace { words, prompts, longest, .. } => {
                *prompts = Prompts::new(words, seed, *longest);
            }
        }
        workload
    }

    /// What start number `index` of the run asks.
    pub fn session(&self, index: u64) -> Session {
        // All the same: all that is drawn is drawn for the first.
        let index = if self.mix == PromptMix::Same { 0 } else { index };
        let num_turns = self.turns.at(self.seed, index, 0);
        let turns = (0..num_turns).map(|turn| self.turn(index, turn)).collect::<Vec<_>>();
        Session { history: (num_turns > 1).then(Vec::new), turns: turns.into_iter() }
    }

    fn turn(&self, index: u64, turn: u32) -> Turn {
        let pause = if turn == 0 { Duration::ZERO } else { draw::think_time(self.think, self.seed, index, turn) };
        match &self.material {
            Material::Synthetic { prompts, input, output, .. } => {
                let wished = input.at(self.seed, index, turn);
                let output_tokens = output.at(self.seed, index, turn);
                if turn > 0 {
                    let text = prompts.message(index, turn, wished);
                    return Turn { text, tokens: 0, output_tokens, pause };
                }
                let tokens = prompts.possible(wished).unwrap_or(wished);
                let (text, _) = prompts.prompt(index, tokens, self.shared(index, tokens));
                Turn { text, tokens, output_tokens, pause }
            }
            Material::Trace { prompts, entries, .. } => {
                let entry = &entries[(index % entries.len() as u64) as usize];
                let tokens = prompts.possible(entry.input_tokens).unwrap_or(entry.input_tokens);
                let text = prompts.blocks(index, tokens, &entry.hash_ids, trace::BLOCK_TOKENS);
                Turn { text, tokens, output_tokens: entry.output_tokens, pause }
            }
        }
    }

    /// What a first message of `tokens` tokens has in common with others.
    fn shared(&self, index: u64, tokens: u32) -> Option<Shared> {
        let (shared, groups) = match self.mix {
            PromptMix::Distinct | PromptMix::Same => return None,
            PromptMix::SharedPrefix { tokens, groups } => (tokens, groups),
            PromptMix::HitRate { rate, groups } => ((rate * f64::from(tokens)).round() as u32, groups),
        };
        let group = below(&mut random(self.seed, Purpose::Group, index, 0), groups.into());
        // The last token is its own, or there were nothing left to compute.
        Some(Shared { group, tokens: shared.min(tokens - 1) })
    }
}

fn impossible(words: &Words, tokens: u32) -> BenchError {
    let why = match words.overhead() {
        overhead if overhead >= i64::from(tokens) => format!("the server adds {overhead} tokens to each"),
        _ => "no sequence of words has that many".to_owned(),
    };
    BenchError::Prompts(format!("prompts of {tokens} tokens cannot be made: {why}"))
}

/// One message of the user, ready to be sent.
#[derive(Clone, Debug)]
struct Turn {
    text: String,
    /// As the server counts the whole prompt, if this is the first.
    tokens: u32,
    output_tokens: u32,
    /// Before it is sent.
    pause: Duration,
}

/// What one start asks: one request after another, each after the answer to the one before. All texts of the user are made beforehand.
#[derive(Clone, Debug)]
pub struct Session {
    turns: std::vec::IntoIter<Turn>,
    /// What was said so far; `None` for a single request, whose prompt is a text.
    history: Option<Vec<Message>>,
}

impl Session {
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
