//! `pelton bench`: from flags to a plan, from a report to the terminal and a file.

mod batches;
mod engine;
mod interrupts;
mod live;
mod merge;
mod recipe;
mod report;
mod series;

use std::io::Write;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use pelton_bench::Outcome;
use pelton_bench::results::Results;
use pelton_bench::watch::Control;
use pelton_report::console::Console;

use crate::args::bench::engine::EngineArgs;
use crate::args::bench::{BenchArgs, BenchCommand, TestArgs};
use crate::commands::output::OutputFile;

/// Flags whose values are not written to any file; `llm-bench` has `-k` too.
const SECRETS: [&str; 3] = ["--api-key", "--header", "--hf-token"];

/// Measures, prints, writes.
pub fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Some(BenchCommand::Engine(args)) => engine::run(*args),
        Some(BenchCommand::Merge(args)) => merge::run(&args),
        Some(BenchCommand::Recipe(recipe)) => recipe::run(*recipe),
        Some(BenchCommand::Report(args)) => report::report(&args),
        Some(BenchCommand::Compare(args)) => report::compare(&args),
        Some(BenchCommand::Explain(args)) => report::explain(&args),
        None => load_test(args.test),
    }
}

/// `text-generation-benchmark`: `pelton bench engine` for batches, with that program's environment variables.
pub fn benchmark() -> anyhow::Result<ExitCode> {
    engine::run(EngineArgs::of_benchmark())
}

/// Measures a server. The exit code tells how it went.
fn load_test(args: TestArgs) -> anyhow::Result<ExitCode> {
    args.check().map_err(anyhow::Error::msg)?;
    if let Some(address) = args.output.web.clone() {
        return live::page(&address, args);
    }
    // Opened before the run: a wrong path shall not cost a measurement.
    let output = args.output.output.as_deref().map(OutputFile::create).transpose()?;
    let page = match &args.output.html {
        Some(path) => Some((path.clone(), OutputFile::create(path)?)),
        None => None,
    };
    let allow_client_limit = args.goals.allow_client_limit;
    let (quiet, ui) = (args.output.quiet, args.output.ui);
    let plan = args.plan();
    let control = Control::default();
    interrupts::stop_at_interrupt(&control, 2)?;
    let mut watch = live::watcher(quiet, ui, &plan, &control);
    let results = pelton_bench::run(&plan, command(std::env::args()), watch.as_mut(), &control);
    // Gives the terminal back before anything is printed.
    drop(watch);
    let results = results?;
    // A reader that has seen enough (`| head`) is no error.
    let _ = write!(std::io::stdout().lock(), "{}", Console(&results));
    if let Some(file) = output {
        file.write_json(&results)?;
    }
    let code = exit_code(&results, allow_client_limit);
    if let Some((path, file)) = page {
        file.write_text(&report::page(report::name_of(&path), results))?;
    }
    Ok(code)
}

/// What the results say to the program that called; with `allow_client_limit` a client that was the limit is only warned of.
fn exit_code(results: &Results, allow_client_limit: bool) -> ExitCode {
    let is_share = results.plan.scale.shard.is_some();
    let outcome = match results.outcome() {
        // A share says nothing of the whole: merge does.
        Outcome::ClientLimited | Outcome::TargetsMissed if is_share => Outcome::Met,
        Outcome::ClientLimited if allow_client_limit => results.outcome_of_server(),
        outcome => outcome,
    };
    if outcome == Outcome::ClientLimited {
        eprintln!("warning: the client, not the server, was the limit (see the notes); the exit code is 4");
    }
    ExitCode::from(outcome.exit_code())
}

/// Seconds since 1970-01-01 UTC.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The command as typed, without the values that may be secret.
pub fn command(typed: impl Iterator<Item = String>) -> Vec<String> {
    let mut hide_next = false;
    typed
        .map(|word| {
            if std::mem::take(&mut hide_next) {
                return "***".to_owned();
            }
            // Flags without values may stand before it in one word: -qk KEY, -qkKEY.
            let short = word.strip_prefix('-').filter(|word| !word.starts_with('-'));
            let key = short.and_then(|flags| flags.trim_start_matches('q').strip_prefix('k'));
            hide_next = SECRETS.contains(&word.as_str()) || key == Some("");
            match (word.split_once('='), key) {
                (_, Some(key)) if !key.is_empty() => format!("{}***", &word[..word.len() - key.len()]),
                (Some((flag, _)), _) if SECRETS.contains(&flag) => format!("{flag}=***"),
                _ => word,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_part_of_the_stored_command() {
        let typed = ["pelton", "bench", "--api-key", "k1", "--users", "2", "--header=x: k2", "--hf-token", "k3"];
        let stored = command(typed.into_iter().map(str::to_owned));
        assert_eq!(stored.join(" "), "pelton bench --api-key *** --users 2 --header=*** --hf-token ***");
        let typed = ["-k", "k1", "-kk2", "-qk", "k3", "-qkk4", "-u", "kk", "-k=k5"];
        let stored = command(typed.into_iter().map(str::to_owned));
        assert_eq!(stored.join(" "), "-k *** -k*** -qk *** -qk*** -u kk -k***");
    }
}
