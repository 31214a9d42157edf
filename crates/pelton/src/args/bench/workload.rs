//! Flags that say what is asked for.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use pelton_bench::{Lengths, PromptMix, WorkloadPlan};

#[derive(Debug, Args)]
#[command(next_help_heading = "Requests")]
pub struct WorkloadArgs {
    /// Tokens of each prompt, as the server counts them, chat template included.
    #[arg(long, default_value = "512")]
    pub input_tokens: Lengths,

    /// Tokens of each answer. OpenAI servers that know ignore_eos are asked to go on after the end of text; TGI has no such
    /// field, so its answers may end earlier, and the report says how many did.
    #[arg(long, default_value = "128")]
    pub output_tokens: Lengths,

    /// Send one and the same prompt: the server's prefix cache will answer for most of the prefill.
    #[arg(long, conflicts_with = "shared_prefix")]
    pub same_prompt: bool,

    /// Let prompts share their first N tokens, as a system prompt does. Without it they differ from the first token on.
    #[arg(long, value_name = "TOKENS")]
    pub shared_prefix: Option<u32>,

    /// A tokenizer.json, or the directory that holds it, to make prompts of exact length. Without it the server's /tokenize is
    /// asked; without that, one word is taken for one token. The server's own count is compared afterwards in each case.
    #[arg(long, value_name = "PATH")]
    pub tokenizer: Option<PathBuf>,

    /// Seed of prompts and random arrivals. Default: a new one each time, since prompts of an earlier run may be in the
    /// server's prefix cache; it is printed and stored.
    #[arg(long)]
    pub seed: Option<u64>,
}

impl WorkloadArgs {
    pub fn plan(self) -> WorkloadPlan {
        let prompts = match (self.same_prompt, self.shared_prefix) {
            (true, _) => PromptMix::Same,
            (false, Some(tokens)) => PromptMix::SharedPrefix { tokens, groups: 1 },
            (false, None) => PromptMix::Distinct,
        };
        WorkloadPlan {
            input_tokens: Some(self.input_tokens),
            output_tokens: Some(self.output_tokens),
            prompts,
            seed: self.seed.unwrap_or_else(new_seed),
            tokenizer: self.tokenizer,
            ..WorkloadPlan::default()
        }
    }
}

/// Short enough to be typed again.
pub fn new_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) ^ (now.as_secs() & 0xffff_ffff)
}
