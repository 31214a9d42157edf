//! Which sequences are computed together, and how many tokens of them.

use clap::Args;
use pelton_engine::MAX_SPECULATE;

/// Tokens of a step, unless told otherwise: near where a larger step stops making prompts faster on CPUs.
const STEP_TOKENS: u32 = 256;

#[derive(Debug, Args)]
#[command(next_help_heading = "Batching")]
pub struct BatchArgs {
    /// Tokens computed in one step, of all sequences together; long prompts are computed in pieces of this size. More computes long prompts
    /// faster; less keeps the gaps between the tokens of running answers short while a prompt is computed. Default: 256, or
    /// --max-batch-total-tokens if that is less.
    #[arg(long, env = "MAX_BATCH_PREFILL_TOKENS", value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub max_batch_prefill_tokens: Option<u32>,

    /// Tokens in the KV cache, of all sequences together, rounded up to blocks of 16. Default: what --max-batch-size sequences of full
    /// length need, or what half of the available memory holds if that is less. Less saves memory; too little preempts sequences
    /// under load.
    #[arg(long, env = "MAX_BATCH_TOTAL_TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_batch_total_tokens: Option<u32>,

    /// Sequences computed in one step. More gives more tokens per second in total and fewer to each user.
    #[arg(long, env = "MAX_BATCH_SIZE", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub max_batch_size: u32,

    /// Newcomers wait until they are this many for each sequence that runs (rounded down over all), or until --max-waiting-tokens. A step with
    /// a newcomer's prompt is longer for everyone: 0.3 to 1.2 gives running answers steadier tokens, and newcomers a later first
    /// token. 0 lets them in as soon as there is room.
    #[arg(long, env = "WAITING_SERVED_RATIO", default_value_t = 0.0, value_parser = ratio)]
    pub waiting_served_ratio: f32,

    /// Steps after which newcomers are let in, however few they are. Matters only with a --waiting-served-ratio above 0.
    #[arg(long, env = "MAX_WAITING_TOKENS", default_value_t = 20)]
    pub max_waiting_tokens: u32,

    /// Forget computed prompts instead of finding them again when another prompt begins the same. PREFIX_CACHING=0 does that too.
    #[arg(long, env = "DISABLE_PREFIX_CACHING", value_parser = clap::builder::BoolishValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub disable_prefix_caching: bool,

    /// Tokens guessed for each sequence and verified in one step, where what it says repeats the prompt or itself; 0 guesses none.
    /// Answers stay the same, bit for bit. More makes such texts faster, with few users above all; it costs memory for logits.
    #[arg(long, env = "SPECULATE", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_SPECULATE)))]
    pub speculate: u32,
}

impl BatchArgs {
    /// Tokens one step may compute.
    pub fn step_tokens(&self) -> u32 {
        let total = self.max_batch_total_tokens.unwrap_or(u32::MAX);
        self.max_batch_prefill_tokens.unwrap_or(STEP_TOKENS.min(total))
    }

    /// Rows of a step whose logits can be asked for: one for each sequence and one for each guess.
    pub fn max_logit_rows(&self) -> usize {
        let rows = u64::from(self.max_batch_size) * u64::from(1 + self.speculate);
        rows.min(self.step_tokens().into()) as usize
    }
}

fn ratio(text: &str) -> Result<f32, String> {
    let ratio: f32 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.0..=1e6).contains(&ratio) { Ok(ratio) } else { Err("expected a number from 0 to 1000000".to_owned()) }
}
