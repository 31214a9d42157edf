//! Flags and environment variables of `pelton serve`.

use std::net::IpAddr;
use std::time::Duration;

use clap::Args;

use super::compute::{ComputeArgs, PrecisionArgs};
use super::duration::duration;
use super::hub::HubArgs;

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// What to serve: a directory with a Hugging Face checkpoint, a GGUF file, a hub id such as org/name or org/name/file.gguf, or
    /// `fake` (a scripted model that computes nothing, for measuring servers and load tools). Default: the demo model inside this
    /// binary.
    #[arg(long, env = "MODEL_ID")]
    pub model_id: Option<String>,

    #[command(flatten)]
    pub hub: HubArgs,

    #[command(flatten)]
    pub precision: PrecisionArgs,

    /// Address to listen on. 0.0.0.0 makes the server reachable from other machines. The environment variable HOSTNAME counts
    /// when it is an address (containers set it to a name). Default: 127.0.0.1.
    #[arg(long)]
    pub hostname: Option<IpAddr>,

    /// Port to listen on; 0 takes a free one and prints it.
    #[arg(long, short, env = "PORT", default_value_t = 3000)]
    pub port: u16,

    /// Requests inside the server at once, running and queued; each choice and each prompt of a list counts. More are told to come
    /// back later (429, Retry-After).
    #[arg(long, env = "MAX_CONCURRENT_REQUESTS", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_concurrent_requests: u32,

    /// Longest prompt in tokens. Default: one less than --max-total-tokens.
    #[arg(long, env = "MAX_INPUT_TOKENS", alias = "max-input-length", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_input_tokens: Option<u32>,

    /// Longest prompt plus answer in tokens. Default: what the model was made for. Less lets more requests share the memory.
    #[arg(long, env = "MAX_TOTAL_TOKENS", value_parser = clap::value_parser!(u32).range(2..))]
    pub max_total_tokens: Option<u32>,

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

    /// Largest request body in bytes.
    #[arg(long, env = "PAYLOAD_LIMIT", default_value_t = 2_000_000)]
    pub payload_limit: usize,

    /// Require `Authorization: Bearer KEY` for everything that generates.
    #[arg(long, env = "API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,

    /// Origins that browsers may call from; repeat the flag for several. Default: any.
    #[arg(long, env = "CORS_ALLOW_ORIGIN", value_delimiter = ',')]
    pub cors_allow_origin: Vec<String>,

    /// Seconds that running requests get to finish after SIGTERM or Ctrl-C.
    #[arg(long, short = 'g', env = "GRACEFUL_TERMINATION_TIMEOUT", default_value_t = 90)]
    pub graceful_termination_timeout: u64,

    /// Log as JSON lines instead of text. What is logged is set by RUST_LOG, for example RUST_LOG=debug.
    #[arg(long, env = "JSON_OUTPUT")]
    pub json_output: bool,

    /// Forget computed prompts instead of finding them again when another prompt begins the same.
    #[arg(long, env = "DISABLE_PREFIX_CACHING")]
    pub disable_prefix_caching: bool,

    #[command(flatten)]
    pub compute: ComputeArgs,

    /// With `--model-id fake`: time of each step.
    #[arg(long, value_parser = duration, default_value = "0ms", value_name = "DURATION")]
    pub fake_step_cost: Duration,

    /// With `--model-id fake`: time of each token in a step.
    #[arg(long, value_parser = duration, default_value = "0ms", value_name = "DURATION")]
    pub fake_token_cost: Duration,
}
