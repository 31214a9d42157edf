//! What is asked for: where prompts come from, how long they are, how they resemble each other, and what follows on an answer.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::lengths::Lengths;
use super::seconds;

/// Length of prompts where nothing else says it.
pub const DEFAULT_INPUT_TOKENS: u32 = 512;

/// Length of answers where nothing else says it.
pub const DEFAULT_OUTPUT_TOKENS: u32 = 128;

/// Most messages of the user in one conversation.
pub const MAX_TURNS: u32 = 1000;

/// Most different prefixes.
pub const MAX_PREFIX_GROUPS: u32 = 1_000_000;

/// How prompts of a run resemble each other, which decides whether the server's prefix cache can help.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromptMix {
    /// All differ from their beginning.
    Distinct,
    /// Each begins with `tokens` tokens that are the same in its group, as a system prompt is; the rest differs. Each request belongs to
    /// one of `groups`, drawn by seed.
    SharedPrefix {
        /// Tokens shared.
        tokens: u32,
        /// Different prefixes.
        groups: u32,
    },
    /// The first `rate` of each prompt's own tokens are the same in its group, so that a prefix cache that has seen the groups finds this
    /// share of all prompt tokens, however long the prompts are.
    HitRate {
        /// Share, 0 to 1.
        rate: f64,
        /// Different prefixes.
        groups: u32,
    },
    /// All are the same text.
    Same,
}

/// Time between an answer and the next message.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ThinkTime {
    /// Always so long.
    Fixed(#[serde(with = "seconds")] Duration),
    /// Exponentially distributed with this mean.
    Exponential(#[serde(with = "seconds")] Duration),
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkloadPlan {
    /// Where prompts come from.
    pub source: Source,
    /// Tokens of each prompt as the server counts them; in a conversation, of each message of the user. `None`: as the source has them,
    /// or [`DEFAULT_INPUT_TOKENS`] where it has none.
    pub input_tokens: Option<Lengths>,
    /// Tokens of each answer. `None`: as the source has them, or [`DEFAULT_OUTPUT_TOKENS`].
    pub output_tokens: Option<Lengths>,
    /// How prompts resemble each other.
    pub prompts: PromptMix,
    /// Messages of the user in each conversation; 1 for single requests.
    pub turns: Lengths,
    /// Time between an answer and the next message of its conversation.
    pub think: ThinkTime,
    /// Seed of prompts and of random arrivals: equal seeds give equal load.
    pub seed: u64,
    /// A `tokenizer.json`, or the directory that holds it. `None` asks the server to count.
    pub tokenizer: Option<PathBuf>,
}

/// Where prompts come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// Random words.
    Synthetic,
    /// Pieces of source files, as an editor sends them to be completed.
    Files(FilesPlan),
    /// Prompts or conversations of a file.
    Dataset(DatasetPlan),
    /// The lengths, and the blocks of equal text, of a trace: see `docs/bench/workloads.md`.
    Trace(PathBuf),
}

/// Source files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FilesPlan {
    /// Where they are, at any depth.
    pub dir: PathBuf,
    /// Endings of their names, lower-case, without the dot.
    pub extensions: Vec<String>,
    /// Asks for the text of a gap instead of what follows.
    pub fim: Option<Fim>,
}

impl FilesPlan {
    /// Endings of source files in common languages.
    pub const EXTENSIONS: [&str; 26] = [
        "c", "cc", "cpp", "cs", "css", "go", "h", "hpp", "html", "java", "jl", "js", "jsx", "kt", "lua", "md", "php",
        "py", "rb", "rs", "scala", "sh", "sql", "swift", "ts", "tsx",
    ];
}

/// Special tokens of fill-in-the-middle prompts: `PREFIX before SUFFIX after MIDDLE`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fim {
    /// Stands before the text before the gap.
    pub prefix: String,
    /// Stands before the text after the gap.
    pub suffix: String,
    /// Stands at the end: the text of the gap is to follow.
    pub middle: String,
}

/// A file of prompts or conversations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetPlan {
    /// JSON lines, or one JSON array.
    pub file: PathBuf,
    /// Shorter prompts are left out. Tokens, as the server counts them.
    pub min_tokens: Option<u32>,
    /// Longer ones too.
    pub max_tokens: Option<u32>,
}

impl Default for WorkloadPlan {
    /// Single distinct synthetic requests of the default lengths.
    fn default() -> Self {
        Self {
            source: Source::Synthetic,
            input_tokens: None,
            output_tokens: None,
            prompts: PromptMix::Distinct,
            turns: Lengths::from(1),
            think: ThinkTime::Fixed(Duration::ZERO),
            seed: 0,
            tokenizer: None,
        }
    }
}

impl WorkloadPlan {
    /// Single distinct synthetic requests.
    pub fn synthetic(input_tokens: u32, output_tokens: u32, seed: u64) -> Self {
        Self {
            input_tokens: Some(input_tokens.into()),
            output_tokens: Some(output_tokens.into()),
            seed,
            ..Self::default()
        }
    }

    /// Lengths of prompts that are made.
    pub fn input(&self) -> Lengths {
        self.input_tokens.clone().unwrap_or_else(|| DEFAULT_INPUT_TOKENS.into())
    }

    /// Lengths of answers to prompts that are made.
    pub fn output(&self) -> Lengths {
        self.output_tokens.clone().unwrap_or_else(|| DEFAULT_OUTPUT_TOKENS.into())
    }

    /// Lengths of prompts in words.
    pub fn told_input(&self) -> String {
        let turns =
            if self.turns.fixed() == Some(1) { String::new() } else { format!(" in each of {} messages", self.turns) };
        format!("{}{turns}", self.told(self.input_tokens.is_some(), &self.input()))
    }

    /// Lengths of answers in words.
    pub fn told_output(&self) -> String {
        self.told(self.output_tokens.is_some(), &self.output())
    }

    fn told(&self, is_said: bool, lengths: &Lengths) -> String {
        match &self.source {
            Source::Dataset(_) if !is_said => "tokens as in the dataset".to_owned(),
            Source::Trace(_) => "tokens as in the trace".to_owned(),
            _ => format!("{lengths} tokens"),
        }
    }

    /// Refuses what cannot be meant.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.input().check("input tokens")?;
        self.output().check("output tokens")?;
        self.turns.check("turns")?;
        if self.turns.highest() > MAX_TURNS {
            return Err(format!(
                "turns must be at most {MAX_TURNS}, given {} (bounds may stand behind: 1..8)",
                self.turns
            ));
        }
        let (ThinkTime::Fixed(think) | ThinkTime::Exponential(think)) = self.think;
        if think > super::MAX_DURATION {
            return Err(format!("think time must be at most {:?}, given {think:?}", super::MAX_DURATION));
        }
        if !think.is_zero() && self.turns.fixed() == Some(1) {
            return Err("think time stands between the messages of conversations: say how many with turns".to_owned());
        }
        let (what, can_share, can_talk) = match &self.source {
            Source::Synthetic => ("synthetic prompts", true, true),
            Source::Files(_) => ("prompts from files", false, false),
            Source::Dataset(_) => ("a dataset", false, true),
            Source::Trace(_) => ("a trace", false, false),
        };
        if !can_share && matches!(self.prompts, PromptMix::SharedPrefix { .. } | PromptMix::HitRate { .. }) {
            return Err(format!("shared prefixes are made for synthetic prompts, not for {what}"));
        }
        if !can_talk && self.turns.fixed() != Some(1) {
            return Err(format!("turns of {what} cannot be more than 1, given {}", self.turns));
        }
        match &self.source {
            Source::Trace(_) if self.prompts == PromptMix::Same => {
                return Err("a trace says which prompts share what: all the same cannot be wished too".to_owned());
            }
            Source::Trace(_) if self.input_tokens.is_some() || self.output_tokens.is_some() => {
                return Err(
                    "a trace says how long prompts and answers are: leave input and output tokens away".to_owned()
                );
            }
            Source::Dataset(DatasetPlan { min_tokens: Some(min), max_tokens: Some(max), .. }) if min > max => {
                return Err(format!("dataset tokens must be in order, given at least {min} and at most {max}"));
            }
            Source::Files(files) if files.extensions.is_empty() => {
                return Err("file types must name at least one".to_owned());
            }
            _ => {}
        }
        let groups = match self.prompts {
            PromptMix::SharedPrefix { tokens, groups } => {
                if let Some(length) = self.input().fixed()
                    && tokens >= length
                {
                    return Err(format!(
                        "shared prefix must be shorter than the prompt of {length} tokens, given {tokens}"
                    ));
                }
                groups
            }
            PromptMix::HitRate { rate, groups } => {
                if !(0.0..1.0).contains(&rate) {
                    return Err(format!("prefix hit rate must be at least 0 and below 1, given {rate}"));
                }
                groups
            }
            PromptMix::Distinct | PromptMix::Same => 1,
        };
        if groups == 0 || groups > MAX_PREFIX_GROUPS {
            return Err(format!("prefix groups must be in 1..={MAX_PREFIX_GROUPS}, given {groups}"));
        }
        Ok(())
    }
}

impl fmt::Display for PromptMix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PromptMix::Distinct => write!(f, "all distinct"),
            PromptMix::SharedPrefix { tokens, groups: 1 } => write!(f, "the first {tokens} shared"),
            PromptMix::SharedPrefix { tokens, groups } => write!(f, "the first {tokens} one of {groups} prefixes"),
            PromptMix::HitRate { rate, groups: 1 } => write!(f, "the first {:.0} % shared", 100.0 * rate),
            PromptMix::HitRate { rate, groups } => {
                write!(f, "the first {:.0} % one of {groups} prefixes", 100.0 * rate)
            }
            PromptMix::Same => write!(f, "all the same"),
        }
    }
}
