//! Flags and environment variables of `pelton serve`, which are also those of `text-generation-launcher`.

pub mod adapters;
pub mod batching;
pub mod fake;
pub mod grammar;
pub mod limits;
pub mod listen;

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
    pub listen: listen::ListenArgs,

    #[command(flatten)]
    pub limits: limits::LimitArgs,

    #[command(flatten)]
    pub batching: batching::BatchArgs,

    #[command(flatten)]
    pub grammar: grammar::GrammarArgs,

    /// Log as JSON lines instead of text. What is logged is set by RUST_LOG, for example RUST_LOG=debug.
    #[arg(long, env = "JSON_OUTPUT")]
    pub json_output: bool,

    #[command(flatten)]
    pub compute: ComputeArgs,

    #[command(flatten)]
    pub fake: fake::FakeArgs,
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

    /// The same flags with text-generation-inference's defaults.
    fn launcher() -> Command {
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
