//! Which sequences are computed together, and how many tokens of them.

use clap::Args;

#[derive(Debug, Args)]
#[command(next_help_heading = "Batching")]
pub struct BatchArgs {
    /// Tokens computed in one step, of all sequences together. More computes long prompts faster; less keeps the gaps between the
    /// tokens of running answers short while a prompt is computed.
    #[arg(long, env = "MAX_BATCH_PREFILL_TOKENS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_batch_prefill_tokens: u32,

    /// Tokens in the KV cache, of all sequences together. Default: what --max-batch-size sequences of full length need, or what
    /// half of the available memory holds if that is less. Less saves memory; too little preempts sequences under load.
    #[arg(long, env = "MAX_BATCH_TOTAL_TOKENS")]
    pub max_batch_total_tokens: Option<u32>,

    /// Sequences computed in one step. More gives more tokens per second in total and fewer to each user.
    #[arg(long, env = "MAX_BATCH_SIZE", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub max_batch_size: u32,

    /// Forget computed prompts instead of finding them again when another prompt begins the same.
    #[arg(long, env = "DISABLE_PREFIX_CACHING")]
    pub disable_prefix_caching: bool,
}
