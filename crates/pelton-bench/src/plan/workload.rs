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
    /// The lengths, and the blocks of equal text, of a trace: see `docs/bench/workloads.md`.
    Trace(PathBuf),
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
