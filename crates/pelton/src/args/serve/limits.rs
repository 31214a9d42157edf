//! What one request may ask for, and how many there may be.

use clap::Args;

#[derive(Debug, Args)]
#[command(next_help_heading = "Limits of requests")]
pub struct LimitArgs {
    /// Requests inside the server at once, running and queued; each choice and each prompt of a list counts. More are told to come
    /// back later (429, Retry-After).
    #[arg(long, env = "MAX_CONCURRENT_REQUESTS", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_concurrent_requests: u32,

    /// Longest prompt in tokens; less than --max-total-tokens. Default: one less.
    #[arg(long, env = "MAX_INPUT_TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_input_tokens: Option<u32>,

    /// The older name of --max-input-tokens.
    #[arg(long, env = "MAX_INPUT_LENGTH", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_input_length: Option<u32>,

    /// Longest prompt plus answer in tokens. Default: what the model was made for, or what the
    /// KV cache holds if that is less. Less lets more requests share the memory.
    #[arg(long, env = "MAX_TOTAL_TOKENS", value_parser = clap::value_parser!(u32).range(2..))]
    pub max_total_tokens: Option<u32>,

    /// Greatest `best_of` (and `n`) that a request may ask for.
    #[arg(long, env = "MAX_BEST_OF", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=128))]
    pub max_best_of: u16,

    /// Most stop strings in a request.
    #[arg(long, env = "MAX_STOP_SEQUENCES", default_value_t = 16)]
    pub max_stop_sequences: u32,

    /// Most alternatives listed for each token (`top_n_tokens`, `logprobs`, `top_logprobs`).
    #[arg(long, env = "MAX_TOP_N_TOKENS", default_value_t = 20, value_parser = clap::value_parser!(u8).range(0..=200))]
    pub max_top_n_tokens: u8,

    /// Most prompts in one /v1/completions request.
    #[arg(long, env = "MAX_CLIENT_BATCH_SIZE", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub max_client_batch_size: u32,

    /// Threads that turn text into tokens.
    #[arg(long, env = "VALIDATION_WORKERS", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub validation_workers: u16,
}

impl LimitArgs {
    /// Longest prompt, under either name.
    pub fn longest_prompt(&self) -> Option<u32> {
        self.max_input_tokens.or(self.max_input_length)
    }
}
