//! Flags of `pelton bench`.

pub mod engine;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use pelton_bench::{Api, Arrival, Warmup};

use super::duration::duration;

/// Measure a text-generation server under load.
///
/// Closed loop (--users): each of N users sends a request, waits for the whole answer, sends the next. It shows what N people
/// see, and cannot overload the server. Open loop (--rate): requests start at their times whatever the server does, as in the real
/// world; latencies count from those times, so that a stall is not hidden.
///
/// `pelton bench engine` measures the model alone, without a server.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, after_long_help = EXAMPLES)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub command: Option<BenchCommand>,

    #[command(flatten)]
    pub load: LoadArgs,
}

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Measure the model alone, without a server: prefill and decode rates by batch size and length.
    Engine(Box<engine::EngineArgs>),
}

#[derive(Debug, Args)]
pub struct LoadArgs {
    /// The server, for example http://127.0.0.1:3000; a path behind it is put before every route
    #[arg(long, default_value = "http://127.0.0.1:3000")]
    pub url: String,

    /// The dialect to speak. Without it the server is asked: TGI if /info answers, else OpenAI completions.
    #[arg(long, value_enum)]
    pub api: Option<ApiArg>,

    /// Model name in OpenAI requests. Without it the first of /v1/models.
    #[arg(long)]
    pub model: Option<String>,

    /// Ask for whole answers instead of streams: no time to first token, no gaps.
    #[arg(long)]
    pub no_stream: bool,

    /// Sent as `Authorization: Bearer`. Never written to the output.
    #[arg(long, env = "PELTON_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,

    /// Further request header, `name: value`; may be repeated. Values are never written to the output.
    #[arg(long, value_name = "HEADER", value_parser = header)]
    pub header: Vec<(String, String)>,

    /// JSON object merged into every request body, member by member: sampling, vendor fields.
    #[arg(long, value_name = "JSON", value_parser = object)]
    pub extra_body: Option<serde_json::Map<String, serde_json::Value>>,

    /// Longest time of one request. What takes longer is counted as an error.
    #[arg(long, default_value = "300s", value_parser = duration)]
    pub timeout: Duration,

    /// Users of the closed loop. Several numbers (1,8,32) are several runs, one after another, with a table at the end.
    /// A user whose request failed waits 10 ms, doubling up to 1 s.
    #[arg(long, value_delimiter = ',', conflicts_with = "rate", default_value = "1")]
    pub users: Vec<usize>,

    /// Requests per second of the open loop. Several numbers are several runs.
    #[arg(long, value_delimiter = ',')]
    pub rate: Vec<f64>,

    /// How the start times of the open loop are spread: constant gaps, or poisson (random, as from many independent clients).
    #[arg(long, value_enum, requires = "rate", default_value = "poisson")]
    pub arrival: ArrivalArg,

    /// Requests that may run at once in the open loop. A start that finds as many running is dropped and counted; it bounds
    /// connections and memory when the server cannot keep up.
    #[arg(long, requires = "rate", default_value_t = 1024)]
    pub max_in_flight: usize,

    /// A request of the open loop that starts later than this after its time is counted as late.
    #[arg(long, requires = "rate", default_value = "10ms", value_parser = duration)]
    pub late_after: Duration,

    /// How long requests are started. Default: 30s; with --requests alone, as long as they need, at most 1h.
    #[arg(long, value_parser = duration)]
    pub duration: Option<Duration>,

    /// How many requests are started in all, warm-up included. With --duration, the limit that is reached first ends the run.
    #[arg(long)]
    pub requests: Option<u64>,

    /// How long requests that still run at the end may go on; then they are cut and counted.
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub grace: Duration,

    /// What at the beginning is kept out of the summary: a time (5s), or a number of requests (20). It stays in the rows.
    #[arg(long, default_value = "0", value_parser = warmup)]
    pub warmup: Warmup,

    /// What at the end of the load is kept out of the summary: requests due in this last time.
    #[arg(long, default_value = "0s", value_parser = duration)]
    pub cooldown: Duration,

    /// Tokens of each prompt, as the server counts them, chat template included.
    #[arg(long, default_value_t = 512)]
    pub input_tokens: u32,

    /// Tokens of each answer. OpenAI servers that know ignore_eos are asked to go on after the end of text; TGI has no such
    /// field, so its answers may end earlier, and the report says how many did.
    #[arg(long, default_value_t = 128)]
    pub output_tokens: u32,

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

    /// File for everything as JSON: plan, machine, server, summary, and one row for each request with the time of every arrival.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// No progress line.
    #[arg(long, short)]
    pub quiet: bool,
}

const EXAMPLES: &str = "\
Examples:
  pelton bench --url http://127.0.0.1:3000 --users 8 --duration 30s --input-tokens 512 --output-tokens 128 --output run.json
  pelton bench --url http://127.0.0.1:3000 --users 1,8,32 --duration 1m --warmup 5s
  pelton bench --url http://127.0.0.1:3000 --rate 20 --arrival poisson --requests 500

Exit code: 0 if each run has at least one complete answer, else 1. Failed requests alone do not change it.";

/// See [`Api`].
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ApiArg {
    /// Text Generation Inference: /generate_stream, /generate
    Tgi,
    /// /v1/completions
    Openai,
    /// /v1/chat/completions
    OpenaiChat,
}

impl From<ApiArg> for Api {
    fn from(api: ApiArg) -> Self {
        match api {
            ApiArg::Tgi => Api::Tgi,
            ApiArg::Openai => Api::Openai,
            ApiArg::OpenaiChat => Api::OpenaiChat,
        }
    }
}

/// See [`Arrival`].
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ArrivalArg {
    /// Equal gaps
    Constant,
    /// Random gaps
    Poisson,
}

impl From<ArrivalArg> for Arrival {
    fn from(arrival: ArrivalArg) -> Self {
        match arrival {
            ArrivalArg::Constant => Arrival::Constant,
            ArrivalArg::Poisson => Arrival::Poisson,
        }
    }
}

/// A time, or a number of requests.
fn warmup(text: &str) -> Result<Warmup, String> {
    match text.parse() {
        Ok(requests) => Ok(Warmup::Requests(requests)),
        Err(_) => duration(text).map(Warmup::Time),
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("a header is written as `name: value`")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn object(text: &str) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("not a JSON object: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_is_a_time_or_a_number_of_requests() {
        assert_eq!(warmup("5s"), Ok(Warmup::Time(Duration::from_secs(5))));
        assert_eq!(warmup("20"), Ok(Warmup::Requests(20)));
        assert!(warmup("some").is_err());
    }
}
