//! What is told at start and while serving, and how.

use clap::Args;

#[derive(Debug, Args)]
#[command(next_help_heading = "Logs")]
pub struct LogArgs {
    /// Log as JSON lines instead of text. What is logged is set by RUST_LOG or LOG_LEVEL, for example RUST_LOG=debug; LOG_COLORIZE=0
    /// switches colours off and 1 on.
    #[arg(long, env = "JSON_OUTPUT", value_parser = clap::builder::BoolishValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub json_output: bool,

    /// Print what the server runs on (version, compiler, CPU, memory, environment variables) before it starts: for bug reports.
    #[arg(long = "env", short = 'e')]
    pub show_environment: bool,
}
