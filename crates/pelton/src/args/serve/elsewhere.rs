//! Flags of text-generation-inference for what is not here: shards, GPUs, tunnels, reports. What they ask for is refused where answers would
//! differ, and explained in the log where they would not: see [`ElsewhereArgs::check`] and [`ElsewhereArgs::notes`].

use anyhow::{Result, bail};
use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};

#[derive(Debug, Args)]
#[command(next_help_heading = "For the command lines of text-generation-inference")]
pub struct ElsewhereArgs {
    /// Only `false`: one process computes with all cores it may use.
    #[arg(long, env = "SHARDED", value_parser = BoolishValueParser::new())]
    pub sharded: Option<bool>,

    /// Only 1: one process computes with all cores it may use. For more machines, start a server on each behind a balancer.
    #[arg(long, env = "NUM_SHARD")]
    pub num_shard: Option<u32>,

    /// Changes nothing: there are no shard processes to talk to.
    #[arg(long, env = "SHARD_UDS_PATH")]
    pub shard_uds_path: Option<String>,

    /// Changes nothing: there are no shard processes to find each other.
    #[arg(long, env = "MASTER_ADDR")]
    pub master_addr: Option<String>,

    /// Changes nothing: there are no shard processes to find each other.
    #[arg(long, env = "MASTER_PORT")]
    pub master_port: Option<u32>,

    /// Changes nothing: no GPU is used.
    #[arg(long, env = "CUDA_GRAPHS", value_delimiter = ',')]
    pub cuda_graphs: Vec<u32>,

    /// Changes nothing: no GPU is used. --max-batch-total-tokens says how much memory the KV cache takes.
    #[arg(long, env = "CUDA_MEMORY_FRACTION")]
    pub cuda_memory_fraction: Option<f32>,

    /// Changes nothing: no GPU is used. --isa scalar computes with the plain kernels.
    #[arg(long, env = "DISABLE_CUSTOM_KERNELS", value_parser = BoolishValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub disable_custom_kernels: bool,

    /// Changes nothing: no code of a model's repository is ever run. Its architecture must be one that is built in.
    #[arg(long, env = "TRUST_REMOTE_CODE", value_parser = BoolishValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub trust_remote_code: bool,

    /// Changes nothing: the log-probabilities of prompts are told to whoever asks (`decoder_input_details`) and cost others nothing.
    #[arg(long, env = "ENABLE_PREFILL_LOGPROBS", value_parser = BoolishValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub enable_prefill_logprobs: bool,

    /// Changes nothing: no statistics are ever sent anywhere.
    #[arg(long, env = "USAGE_STATS", value_enum)]
    pub usage_stats: Option<UsageStatsArg>,

    /// Changes nothing: no statistics are ever sent anywhere.
    #[arg(long, env = "DISABLE_USAGE_STATS", value_parser = BoolishValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub disable_usage_stats: bool,

    /// Changes nothing: no reports are ever sent anywhere.
    #[arg(long, env = "DISABLE_CRASH_REPORTS", value_parser = BoolishValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub disable_crash_reports: bool,

    /// Not built in: run `ngrok http PORT` beside the server.
    #[arg(long, env = "NGROK", value_parser = BoolishValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub ngrok: bool,

    /// Belongs to --ngrok.
    #[arg(long, env = "NGROK_AUTHTOKEN", hide_env_values = true)]
    pub ngrok_authtoken: Option<String>,

    /// Belongs to --ngrok.
    #[arg(long, env = "NGROK_EDGE")]
    pub ngrok_edge: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum UsageStatsArg {
    On,
    Off,
    NoStack,
}

impl ElsewhereArgs {
    /// Refuses what would have to be built.
    pub fn check(&self, port: u16) -> Result<()> {
        if let Some(num_shard) = self.num_shard.filter(|&num_shard| num_shard != 1) {
            bail!(
                "--num-shard is {num_shard}, but a model is computed by one process, with all cores it may use: leave the flag out or say 1; for \
                 more machines start a server on each behind a balancer"
            );
        }
        if self.sharded == Some(true) {
            bail!(
                "--sharded true asks for several processes, but a model is computed by one: leave the flag out or say false"
            );
        }
        if self.ngrok {
            bail!("--ngrok: no tunnel is built in; leave the flag out and run `ngrok http {port}` beside the server");
        }
        Ok(())
    }

    /// One line for each flag given that asks for something else than what happens.
    pub fn notes(&self) -> Vec<String> {
        let graphs = self.cuda_graphs.iter().any(|&size| size != 0);
        let reports = matches!(self.usage_stats, Some(UsageStatsArg::On | UsageStatsArg::NoStack));
        let no_shards = "changes nothing: a model is computed by one process";
        let no_gpu = "changes nothing: no GPU is used";
        [
            ("--shard-uds-path", self.shard_uds_path.is_some(), no_shards),
            ("--master-addr", self.master_addr.is_some(), no_shards),
            ("--master-port", self.master_port.is_some(), no_shards),
            ("--cuda-graphs", graphs, no_gpu),
            (
                "--cuda-memory-fraction",
                self.cuda_memory_fraction.is_some(),
                "changes nothing: no GPU is used; --max-batch-total-tokens bounds the KV cache",
            ),
            (
                "--disable-custom-kernels",
                self.disable_custom_kernels,
                "changes nothing: no GPU is used; --isa scalar computes with the plain kernels",
            ),
            ("--trust-remote-code", self.trust_remote_code, "changes nothing: no code of a model's repository is run"),
            ("--usage-stats", reports, "changes nothing: no statistics are sent"),
            ("--ngrok-authtoken", self.ngrok_authtoken.is_some(), "changes nothing: no tunnel is built in"),
            ("--ngrok-edge", self.ngrok_edge.is_some(), "changes nothing: no tunnel is built in"),
        ]
        .into_iter()
        .filter(|(_, given, _)| *given)
        .map(|(flag, _, what)| format!("{flag} {what}"))
        .collect()
    }
}
