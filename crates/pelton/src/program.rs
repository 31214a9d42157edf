//! Which program this is: one binary answers to several names, by which scripts of text-generation-inference call it.

use std::ffi::OsStr;
use std::path::Path;

/// A name this binary is called by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `pelton` and whatever is not known: subcommands.
    Pelton,
    /// `text-generation-launcher`: `pelton serve` with the defaults and the habits of text-generation-inference.
    Launcher,
    /// `text-generation-benchmark`: `pelton bench engine` for batches.
    Benchmark,
}

/// Names beside `pelton`.
pub const NAMES: [(&str, Program); 2] =
    [("text-generation-launcher", Program::Launcher), ("text-generation-benchmark", Program::Benchmark)];

impl Program {
    /// What the first word of the command line asks for, be it a path or a link.
    pub fn called(first_word: Option<&OsStr>) -> Self {
        let name = first_word.and_then(|path| Path::new(path).file_name()).unwrap_or_default();
        NAMES.iter().find(|(known, _)| *known == name).map_or(Self::Pelton, |(_, program)| *program)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_name_decides() {
        let called = |word: &str| Program::called(Some(OsStr::new(word)));
        assert_eq!(called("/usr/local/bin/text-generation-launcher"), Program::Launcher);
        assert_eq!(called("text-generation-launcher"), Program::Launcher);
        assert_eq!(called("bin/text-generation-benchmark"), Program::Benchmark);
        assert_eq!(called("./pelton"), Program::Pelton);
        assert_eq!(called("/opt/text-generation-launcher/pelton"), Program::Pelton);
        assert_eq!(Program::called(None), Program::Pelton);
    }
}
