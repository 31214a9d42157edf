//! `pelton bench merge`: results of processes that shared one test, joined.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use pelton_bench::results::Results;
use pelton_report::console::Console;

use crate::args::bench::scale::MergeArgs;

/// Reads all, joins, writes, prints.
pub fn run(args: &MergeArgs) -> anyhow::Result<ExitCode> {
    let read = |path: &PathBuf| {
        let file = File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
        Results::read_json(BufReader::new(file)).with_context(|| path.display().to_string())
    };
    let parts = args.parts.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
    let merged = pelton_bench::merge::merge(parts)?;
    let path = args.output.display();
    let file = File::create(&args.output).with_context(|| format!("{path} cannot be written"))?;
    merged.write_json(BufWriter::new(file)).with_context(|| format!("{path} cannot be written"))?;
    // A reader that has seen enough (`| head`) is no error.
    let _ = write!(std::io::stdout().lock(), "{}", Console(&merged));
    Ok(super::exit_code(&merged, false))
}
