//! Flags of `pelton bench recipe`: one subcommand for each report.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::target::TargetArgs;
use crate::args::duration::duration;

#[derive(Debug, Subcommand)]
pub enum Recipe {
    /// Virtual users x time per token x queue time: the k6 load test of text-generation-inference.
    ///
    /// A closed loop of 1 to 140 users asks for 60 tokens each; times are the server's own, from the headers of its answers, as the
    /// original reads them. A server that tells none (--api openai) is measured by streams instead, and the columns say so.
    Vus(VusArgs),

    /// The model card of the happy_vllm suite: a folder with the card, its graphs, their data, and every run.
    ///
    /// Prompt ingestion speed by regression, the speed of 1 to 38 parallel requests for several lengths, tokens that fit the KV cache,
    /// thresholds. The full suite takes hours, --quick a few minutes.
    Card(CardArgs),

    /// Output lengths 8, 32, 128, 512 x requests per second x response time x batch factor: the load test of a code model on Triton.
    ///
    /// Batch factor and the shares of pre- and postprocessing come from the server's own counters, read before and after each run.
    Lengths(LengthsArgs),

    /// The options and the summary of llm_bench, by the formulas of its time and by honest ones.
    LlmBench(LlmBenchArgs),
}

/// Where the measurements go.
#[derive(Debug, Args)]
pub struct RecipeOutput {
    /// File for the results as JSON: `pelton bench report` makes other reports of it.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// No progress line.
    #[arg(long, short)]
    pub quiet: bool,

    /// Only warn when the client, not the server, was the limit of a run. Without it that gives exit code 4.
    #[arg(long)]
    pub allow_client_limit: bool,
}

#[derive(Debug, Args)]
pub struct VusArgs {
    #[command(flatten)]
    pub target: TargetArgs,

    /// Numbers of virtual users, one run each.
    #[arg(long, value_delimiter = ',', default_value = "1,5,10,20,40,60,80,100,120,140")]
    pub users: Vec<usize>,

    /// Length of each run.
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub duration: Duration,

    #[command(flatten)]
    pub output: RecipeOutput,
}

#[derive(Debug, Args)]
pub struct CardArgs {
    #[command(flatten)]
    pub target: TargetArgs,

    /// Folder for the card.
    #[arg(long, short, value_name = "DIR", default_value = "results")]
    pub output: PathBuf,

    /// A few minutes instead of hours: shorter runs, fewer numbers of parallel requests, two repetitions of the prompt ingestion.
    #[arg(long)]
    pub quick: bool,

    /// Longest prompt and answer together that the server takes; longer couples of lengths are left out and named.
    #[arg(long, default_value_t = 5120)]
    pub max_tokens: u32,

    /// The machine's name in the card's title. Default: this machine's processor.
    #[arg(long, default_value = "")]
    pub gpu_name: String,

    /// Tokens per second that each request shall have, for thresholds.csv.
    #[arg(long, default_value_t = 20.0)]
    pub speed_threshold: f64,

    /// Seconds between two readings of the server's metrics.
    #[arg(long, default_value_t = 0.1)]
    pub step_live_metrics: f64,

    /// No progress line.
    #[arg(long, short)]
    pub quiet: bool,

    /// Only warn when the client, not the server, was the limit of a run. Without it that gives exit code 4.
    #[arg(long)]
    pub allow_client_limit: bool,
}

#[derive(Debug, Args)]
pub struct LengthsArgs {
    #[command(flatten)]
    pub target: TargetArgs,

    /// Tokens of the answers, one run each.
    #[arg(long, value_delimiter = ',', default_value = "8,32,128,512")]
    pub lengths: Vec<u32>,

    /// Tokens of the prompt; the original's is `def helloworld():`.
    #[arg(long, default_value_t = 6)]
    pub input_tokens: u32,

    /// Virtual users.
    #[arg(long, default_value_t = 64)]
    pub users: usize,

    /// Length of each run.
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub duration: Duration,

    #[command(flatten)]
    pub output: RecipeOutput,
}

/// How output lengths are spread in llm_bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Spread {
    /// Always the mean
    Constant,
    /// From mean - range to mean + range
    Uniform,
    /// Mean, and many short ones
    Exponential,
    /// Deviation of range
    Normal,
}

#[derive(Debug, Args)]
pub struct LlmBenchArgs {
    /// Address of the server
    #[arg(long, short = 'H', default_value = "http://localhost:80")]
    pub host: String,

    /// Users
    #[arg(long, short, default_value_t = 1)]
    pub users: usize,

    /// Users that begin per second
    #[arg(long, short = 'r', default_value_t = 1.0)]
    pub spawn_rate: f64,

    /// Length of the run: 30s, 5m, 1min, 1m30s
    #[arg(long, short = 't', default_value = "1m", value_parser = duration)]
    pub run_time: Duration,

    /// openai, vllm, tgi, triton-infer or triton-generate. Without it OpenAI's API is spoken, as the original does
    #[arg(long)]
    pub provider: Option<String>,

    /// Model name in requests. Without it the first that the server lists.
    #[arg(long, short, env = "MODEL")]
    pub model: Option<String>,

    /// Use the chat endpoint
    #[arg(long, overrides_with = "no_chat")]
    pub chat: bool,

    /// Use the completion endpoint (default)
    #[arg(long)]
    pub no_chat: bool,

    /// Tokens of the prompt, as the server counts them. (The original's chat prompts are longer by the template.)
    #[arg(long, short = 'p', default_value_t = 512)]
    pub prompt_tokens: u32,

    /// Let every prompt differ from its beginning, so that prefix caches miss. Without it all prompts are one text.
    #[arg(long)]
    pub prompt_randomize: bool,

    /// Mean number of tokens of the answers
    #[arg(long, short = 'o', default_value_t = 64)]
    pub max_tokens: u32,

    /// How the numbers of tokens of the answers are spread
    #[arg(long, value_enum, default_value = "constant")]
    pub max_tokens_distribution: Spread,

    /// Half-width (uniform) or deviation (normal), as a share of the mean
    #[arg(long, default_value_t = 0.3)]
    pub max_tokens_range: f64,

    /// Most tokens of an answer
    #[arg(long)]
    pub max_tokens_cap: Option<u32>,

    /// Stream answers
    #[arg(long, overrides_with = "no_stream")]
    pub stream: bool,

    /// Wait for whole answers (default)
    #[arg(long)]
    pub no_stream: bool,

    /// Sent as `Authorization: Bearer`
    #[arg(long, short = 'k', env = "PELTON_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,

    /// Sampling temperature
    #[arg(long, default_value_t = 1.0)]
    pub temperature: f64,

    /// Log-probabilities to ask for
    #[arg(long)]
    pub logprobs: Option<u32>,

    /// Open loop: requests per second of all users together. A start that finds --users requests running is dropped and counted, where
    /// the original is silently late.
    #[arg(long)]
    pub qps: Option<f64>,

    /// How the start times of --qps are spread. (The original's uniform gaps are refused: they have no counterpart.)
    #[arg(long, value_enum, default_value = "constant", requires = "qps")]
    pub qps_distribution: QpsSpread,

    /// A tokenizer.json, or the directory that holds it, to make prompts of exact length and to count answers
    #[arg(long)]
    pub tokenizer: Option<PathBuf>,

    /// Append the summary as a row of CSV; a header is written into an empty file only
    #[arg(long, value_name = "FILE")]
    pub summary_file: Option<PathBuf>,

    /// File for the results as JSON
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// No progress line
    #[arg(long, short)]
    pub quiet: bool,

    /// Only warn when the client, not the server, was the limit of a run. Without it that gives exit code 4
    #[arg(long)]
    pub allow_client_limit: bool,
}

/// How start times of --qps are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum QpsSpread {
    /// Equal gaps
    Constant,
    /// Random gaps
    Exponential,
}
