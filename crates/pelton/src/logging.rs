//! Where log lines go and how much of them.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::env;
use crate::program::Program;

/// What text-generation-inference calls the parts that log, and what they are called here.
const TARGETS: [(&str, &str); 2] = [("text_generation_router", "pelton_serve"), ("text_generation_launcher", "pelton")];

/// Logs what `RUST_LOG`, else `LOG_LEVEL`, else `info` asks for: to standard error, or as the launcher to standard output, where scripts look
/// for its lines.
pub fn start(json: bool, program: Program) {
    let filter = env::log_filter().and_then(|filter| EnvFilter::try_new(translated(&filter)).ok());
    let (writer, is_terminal) = match program {
        Program::Launcher => (BoxMakeWriter::new(io::stdout), io::stdout().is_terminal()),
        _ => (BoxMakeWriter::new(io::stderr), io::stderr().is_terminal()),
    };
    let builder = fmt()
        .with_env_filter(filter.unwrap_or_else(|| EnvFilter::new("info")))
        .with_writer(writer)
        .with_target(false)
        .with_ansi(env::log_colorize().unwrap_or(is_terminal));
    if json { builder.json().init() } else { builder.init() }
}

/// `filter` with the names of this program's parts: `info,text_generation_router=debug` is `info,pelton_serve=debug`.
fn translated(filter: &str) -> String {
    TARGETS.iter().fold(filter.to_owned(), |filter, (theirs, ours)| filter.replace(theirs, ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_of_the_launcher_are_understood() {
        assert_eq!(translated("info,text_generation_router=debug"), "info,pelton_serve=debug");
        assert_eq!(translated("debug"), "debug");
    }
}
