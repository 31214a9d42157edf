//! `pelton bench`: from flags to a plan, from a report to the terminal and a file.

mod engine;

use std::io::{BufWriter, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use pelton_bench::report::console::Console;
use pelton_bench::{BenchPlan, Limits, Load, MAX_REQUESTS, PromptMix, TargetPlan, WorkloadPlan};

use crate::args::bench::{BenchArgs, BenchCommand, LoadArgs};

/// Bound in time of a run that is limited by its number of requests.
const DURATION_WITH_REQUESTS: Duration = Duration::from_secs(3600);

/// Flags whose values are not written to any file.
const SECRETS: [&str; 3] = ["--api-key", "--header", "--hf-token"];

/// Length of a run that is not limited at all.
const DEFAULT_DURATION: Duration = Duration::from_secs(30);

/// Measures, prints, writes.
pub fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Some(BenchCommand::Engine(args)) => engine::run(&args),
        None => load_test(args.load),
    }
}

/// Measures a server. The exit code is a failure if there is nothing to show.
fn load_test(args: LoadArgs) -> anyhow::Result<ExitCode> {
    // Opened before the run: a wrong path shall not cost a measurement.
    let output = match &args.output {
        Some(path) => {
            let file = std::fs::File::create(path).with_context(|| format!("{} cannot be written", path.display()))?;
            Some((path.clone(), BufWriter::new(file)))
        }
        None => None,
    };
    let show_progress = !args.quiet;
    let plan = plan(args);
    let report = pelton_bench::run(&plan, command(std::env::args()), show_progress)?;
    // A reader that has seen enough (`| head`) is no error.
    let _ = write!(std::io::stdout().lock(), "{}", Console(&report));
    if let Some((path, mut file)) = output {
        report.write_json(&mut file).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(if report.has_results() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn plan(args: LoadArgs) -> BenchPlan {
    let default_duration = if args.requests.is_some() { DURATION_WITH_REQUESTS } else { DEFAULT_DURATION };
    let load = if args.rate.is_empty() {
        Load::Closed { users: args.users }
    } else {
        Load::Open {
            rates: args.rate,
            arrival: args.arrival.into(),
            max_in_flight: args.max_in_flight,
            late_after: args.late_after,
        }
    };
    let prompts = match (args.same_prompt, args.shared_prefix) {
        (true, _) => PromptMix::Same,
        (false, Some(tokens)) => PromptMix::SharedPrefix(tokens),
        (false, None) => PromptMix::Distinct,
    };
    BenchPlan {
        target: TargetPlan {
            url: args.url,
            api: args.api.map(Into::into),
            model: args.model,
            stream: !args.no_stream,
            api_key: args.api_key,
            headers: args.header.into_iter().collect(),
            extra_body: args.extra_body.unwrap_or_default(),
            timeout: args.timeout,
        },
        workload: WorkloadPlan {
            input_tokens: args.input_tokens,
            output_tokens: args.output_tokens,
            prompts,
            seed: args.seed.unwrap_or_else(new_seed),
            tokenizer: args.tokenizer,
        },
        load,
        limits: Limits {
            duration: args.duration.unwrap_or(default_duration),
            requests: args.requests.unwrap_or(MAX_REQUESTS),
            grace: args.grace,
        },
        warmup: args.warmup,
        cooldown: args.cooldown,
    }
}

/// Short enough to be typed again.
fn new_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) ^ (now.as_secs() & 0xffff_ffff)
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
            hide_next = SECRETS.contains(&word.as_str());
            match word.split_once('=') {
                Some((flag, _)) if SECRETS.contains(&flag) => format!("{flag}=***"),
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
    }
}
