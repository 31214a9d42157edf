//! Flags and environment variables of `pelton serve`, which are also those of `text-generation-launcher`.

pub mod adapters;
pub mod batching;
pub mod elsewhere;
pub mod fake;
pub mod grammar;
pub mod limits;
pub mod listen;
pub mod log;
pub mod model;

use anyhow::{Result, bail};
use clap::{Args, Command, FromArgMatches};

use super::compute::{ComputeArgs, PrecisionArgs};
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

    #[command(flatten)]
    pub adapters: adapters::AdapterArgs,

    #[command(flatten)]
    pub model: model::ModelArgs,

    #[command(flatten)]
    pub listen: listen::ListenArgs,

    #[command(flatten)]
    pub limits: limits::LimitArgs,

    #[command(flatten)]
    pub batching: batching::BatchArgs,

    #[command(flatten)]
    pub grammar: grammar::GrammarArgs,

    #[command(flatten)]
    pub log: log::LogArgs,

    /// Where to send a trace of each ended request: an OpenTelemetry collector's gRPC address, such as http://localhost:4317.
    /// When the collector is away traces are dropped; requests never wait for it.
    #[cfg(feature = "otlp")]
    #[arg(long, env = "OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,

    /// Name of this server in traces.
    #[cfg(feature = "otlp")]
    #[arg(long, env = "OTLP_SERVICE_NAME", default_value = "text-generation-inference.router", value_name = "NAME")]
    pub otlp_service_name: String,

    #[command(flatten)]
    pub compute: ComputeArgs,

    #[command(flatten)]
    pub fake: fake::FakeArgs,

    #[command(flatten)]
    pub elsewhere: elsewhere::ElsewhereArgs,
}

/// Defaults of text-generation-inference where `pelton serve` has others. The address to listen on is the launcher's too.
const LAUNCHER_DEFAULTS: [(&str, &str); 3] =
    [("max_best_of", "2"), ("max_stop_sequences", "4"), ("max_top_n_tokens", "5")];

impl ServeArgs {
    /// Reads the command line of `text-generation-launcher`; ends the program when it makes no sense, or asks for help.
    pub fn of_launcher() -> Self {
        let matches = Self::launcher().get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// Where traces go; an empty variable is none.
    #[cfg(feature = "otlp")]
    pub fn collector(&self) -> Option<&str> {
        self.otlp_endpoint.as_deref().filter(|endpoint| !endpoint.is_empty())
    }

    /// Refuses flags that contradict each other, and those that ask for what is not built.
    pub fn check(&self) -> Result<()> {
        if self.limits.max_input_tokens.is_some() && self.limits.max_input_length.is_some() {
            bail!(
                "--max-input-tokens and --max-input-length (or their variables) are two names of one limit: give one of them"
            );
        }
        let input = ("--max-input-tokens", self.limits.longest_prompt());
        let total = ("--max-total-tokens", self.limits.max_total_tokens);
        let cache = ("--max-batch-total-tokens", self.batching.max_batch_total_tokens);
        let step = ("--max-batch-prefill-tokens", self.batching.max_batch_prefill_tokens);
        for ((small, value), (large, most), may_be_equal) in
            [(input, total, false), (total, cache, true), (step, cache, true)]
        {
            let (Some(value), Some(most)) = (value, most) else { continue };
            if value > most || value == most && !may_be_equal {
                let bound = if may_be_equal { "at most" } else { "less than" };
                bail!("{small} is {value}, expected {bound} {large}, which is {most}");
            }
        }
        if self.model.rope_factor.is_some() && self.model.rope_scaling.is_none() {
            bail!("--rope-factor needs --rope-scaling linear or dynamic");
        }
        self.elsewhere.check(self.listen.port)
    }

    /// The same flags with text-generation-inference's defaults.
    pub fn launcher() -> Command {
        let command = Command::new("text-generation-launcher")
            .version(env!("CARGO_PKG_VERSION"))
            .about("Serves a text-generation model over HTTP: pelton under the flags and defaults of text-generation-inference")
            .max_term_width(110);
        let command = Self::augment_args(command);
        LAUNCHER_DEFAULTS
            .iter()
            .fold(command, |command, (id, value)| command.mut_arg(id, |arg| arg.default_value(*value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every flag of text-generation-inference 3.3's launcher, and those that only 2.2.1 had.
    const THEIRS: &str = "--model-id --revision --validation-workers --sharded --num-shard --quantize --dtype --kv-cache-dtype \
        --trust-remote-code --max-concurrent-requests --max-best-of --max-stop-sequences --max-top-n-tokens --max-input-tokens \
        --max-input-length --max-total-tokens --waiting-served-ratio --max-batch-prefill-tokens --max-batch-total-tokens --max-waiting-tokens \
        --max-batch-size --cuda-graphs --hostname --port --prometheus-port --shard-uds-path --master-addr --master-port \
        --huggingface-hub-cache --weights-cache-override --disable-custom-kernels --cuda-memory-fraction --rope-scaling --rope-factor \
        --json-output --cors-allow-origin --api-key --watermark-gamma --watermark-delta --ngrok \
        --ngrok-authtoken --ngrok-edge --tokenizer-config-path --disable-grammar-support --env --max-client-batch-size --lora-adapters \
        --speculate --otlp-endpoint --otlp-service-name \
        --usage-stats --disable-usage-stats --disable-crash-reports --payload-limit --enable-prefill-logprobs \
        --graceful-termination-timeout";

    /// Flags of theirs whose variable is not their name in capitals.
    const WITHOUT_VARIABLE: [&str; 2] = ["--env", "--hostname"];

    /// Flags of `command`, and those of parts that this build leaves out.
    fn knows(command: &Command, flag: &str) -> bool {
        command.get_arguments().any(|arg| arg.get_long() == Some(flag))
            || !cfg!(feature = "otlp") && flag.starts_with("otlp-")
    }

    /// The part of the page that this module must keep true.
    fn page() -> &'static str {
        let page = include_str!("../../../../docs/tgi.md");
        let section = page.split("\n## ").find(|section| section.starts_with("Command line")).expect("the section");
        section.split("\n### ").next().expect("what stands before the first part")
    }

    #[test]
    fn the_command_line_makes_sense() {
        ServeArgs::launcher().debug_assert();
    }

    #[test]
    fn every_flag_of_text_generation_inference_is_known_with_its_variable() {
        let command = ServeArgs::launcher();
        for flag in THEIRS.split_whitespace() {
            assert!(knows(&command, &flag[2..]), "{flag} is not known");
            let arg = command.get_arguments().find(|arg| arg.get_long() == flag.strip_prefix("--"));
            let Some(arg) = arg else { continue };
            let variable = arg.get_env().map(|name| name.to_string_lossy().into_owned());
            let expected = flag[2..].to_uppercase().replace('-', "_");
            assert_eq!(variable, (!WITHOUT_VARIABLE.contains(&flag)).then_some(expected), "{flag}");
        }
        for (short, long) in [('p', "port"), ('e', "env"), ('g', "graceful-termination-timeout")] {
            let arg = command.get_arguments().find(|arg| arg.get_short() == Some(short)).expect("the short flag");
            assert_eq!(arg.get_long(), Some(long));
        }
    }

    #[test]
    fn the_page_tells_of_every_flag_and_of_no_other() {
        let rows: Vec<&str> = page().lines().filter_map(|line| line.strip_prefix("| `--")).collect();
        let told: String =
            rows.iter().filter_map(|row| row.split_once(" | ")).map(|(flags, _)| format!("`--{flags} ")).collect();
        for flag in THEIRS.split_whitespace() {
            assert!(told.contains(&format!("`{flag}`")), "{flag} has no row");
        }
        let command = ServeArgs::launcher();
        for flag in page().split("`--").skip(1).filter_map(|rest| rest.split(['`', ' ']).next()) {
            assert!(knows(&command, flag), "--{flag} is told of and not known");
        }
    }
}
