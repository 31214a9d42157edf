//! What is asked for: lengths, and how prompts resemble each other.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How prompts of a run resemble each other, which decides whether the server's prefix cache can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromptMix {
    /// All differ from their beginning.
    Distinct,
    /// The first `n` tokens are the same, the rest differs.
    SharedPrefix(u32),
    /// All are the same text.
    Same,
}

/// What is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkloadPlan {
    /// Tokens of each prompt, as the server counts them.
    pub input_tokens: u32,
    /// Tokens of each answer.
    pub output_tokens: u32,
    /// How prompts resemble each other.
    pub prompts: PromptMix,
    /// Seed of prompts and of random arrivals: equal seeds give equal load.
    pub seed: u64,
    /// A `tokenizer.json`, or the directory that holds it. `None` asks the server to count.
    pub tokenizer: Option<PathBuf>,
}
