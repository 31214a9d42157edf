//! The report as text for a terminal.

use std::fmt;
use std::time::Duration;

use pelton_bench::results::{Results, RunResult, TokenSource};
use pelton_bench::{Distribution, Warmup};

use crate::numbers::number;

/// Prints results.
#[derive(Debug)]
pub struct Console<'a>(pub &'a Results);

impl fmt::Display for Console<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(report) = self;
        head(f, report)?;
        for run in &report.runs {
            writeln!(f)?;
            one_run(f, run)?;
        }
        if report.runs.len() > 1 {
            writeln!(f)?;
            comparison(f, &report.runs)?;
        }
        Ok(())
    }
}

fn head(f: &mut fmt::Formatter<'_>, report: &Results) -> fmt::Result {
    let (plan, server) = (&report.plan, &report.server);
    let model = server.info.get("model_id").and_then(|id| id.as_str()).unwrap_or(&server.model);
    let way = if plan.target.stream { "streamed" } else { "not streamed" };
    writeln!(f, "server   {} ({}, {way}), model {model}", plan.target.url, server.api.name())?;
    let counted = match report.prompts.counted_by {
        TokenSource::Tokenizer => "counted by the tokenizer given",
        TokenSource::Server => "counted by the server",
        TokenSource::Guess => "guessed as one per word: no tokenizer given and none to ask",
    };
    let workload = &plan.workload;
    let (input, output) = (workload.input(), workload.output());
    writeln!(f, "prompts  {input} tokens, {}, {counted}; seed {}", workload.prompts, workload.seed)?;
    let length = if server.ignores_end_of_text { "end of text ignored" } else { "may end earlier" };
    writeln!(f, "answers  {output} tokens, {length}")?;
    let warmup = match plan.warmup {
        Warmup::Time(Duration::ZERO) | Warmup::Requests(0) => "no warm-up".to_owned(),
        Warmup::Time(time) => format!("{time:?} warm-up"),
        Warmup::Requests(n) => format!("{n} requests warm-up"),
    };
    let cooldown = match plan.cooldown {
        Duration::ZERO => "no cool-down".to_owned(),
        time => format!("{time:?} cool-down"),
    };
    writeln!(f, "left out {warmup}, {cooldown}")
}

fn one_run(f: &mut fmt::Formatter<'_>, run: &RunResult) -> fmt::Result {
    let (summary, requests) = (&run.summary, &run.summary.requests);
    let title = format!("-- {}, {:.1} s ", run.case, run.wall_s);
    writeln!(f, "{title:-<94}")?;
    let Some(failed_share) = (requests.measured > 0).then(|| 100.0 * requests.failed as f64 / requests.measured as f64)
    else {
        return writeln!(f, "requests    none measured of {} started", requests.started);
    };
    write!(
        f,
        "requests    {} measured: {} complete, {} failed ({failed_share:.1} %)",
        requests.measured, requests.complete, requests.failed
    )?;
    let excluded = [
        (requests.warmup, "warm-up"),
        (requests.cooldown, "cool-down"),
        (requests.late, "late"),
        (requests.dropped, "dropped"),
    ];
    for (n, what) in excluded.into_iter().filter(|(n, _)| *n > 0) {
        write!(f, ", {n} {what}")?;
    }
    writeln!(f)?;
    // The whole run says something of its own only where a part of it was left out.
    let left_out = summary.rates.to_s - summary.rates.from_s < 0.99 * (summary.whole.to_s - summary.whole.from_s);
    for (name, rates) in [("rates", Some(&summary.rates)), ("whole run", Some(&summary.whole).filter(|_| left_out))] {
        let Some(rates) = rates else { continue };
        writeln!(
            f,
            "{name:<11} {:.2} requests/s, {:.1} output tokens/s, {:.1} input tokens/s, {:.2} running on average ({:.1} to {:.1} s)",
            rates.requests_per_s,
            rates.output_tokens_per_s,
            rates.input_tokens_per_s,
            rates.concurrency,
            rates.from_s,
            rates.to_s
        )?;
    }
    for (kind, errors) in &summary.errors {
        writeln!(f, "error       {kind}: {} (first: {})", errors.count, errors.example)?;
    }
    if let Some(client) = &summary.client {
        write!(f, "client      {:.1} % of a core, waited for it {:.1} %", 100.0 * client.busy, 100.0 * client.waiting)?;
        if let Some(us) = client.us_per_event {
            write!(f, ", {us:.1} us per event")?;
        }
        writeln!(f)?;
    }
    let lines = [
        ("time to first token", &summary.ttft_ms),
        ("inter-token latency", &summary.itl_ms),
        ("chunk gap", &summary.chunk_gap_ms),
        ("time per output token", &summary.tpot_ms),
        ("end to end", &summary.e2e_ms),
        ("service: first token", &summary.service_ttft_ms),
        ("service: end to end", &summary.service_e2e_ms),
        ("lateness of starts", &summary.lateness_ms),
    ];
    writeln!(
        f,
        "{:<22}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}{:>12}",
        "milliseconds", "p50", "p90", "p95", "p99", "max", "mean", "values"
    )?;
    for (name, values) in lines {
        let Some(values) = values else { continue };
        writeln!(
            f,
            "{name:<22}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}{:>12}",
            number(values.p50),
            number(values.p90),
            number(values.p95),
            number(values.p99),
            number(values.max),
            number(values.mean),
            values.count
        )?;
    }
    for note in &summary.notes {
        writeln!(f, "note: {note}")?;
    }
    Ok(())
}

/// One line for each run.
fn comparison(f: &mut fmt::Formatter<'_>, runs: &[RunResult]) -> fmt::Result {
    writeln!(
        f,
        "{:<22}{:>9}{:>11}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}{:>8}",
        "", "req/s", "out tok/s", "TTFT p50", "TTFT p99", "ITL p50", "ITL p99", "E2E p50", "E2E p99", "failed"
    )?;
    for run in runs {
        let summary = &run.summary;
        let pick = |values: &Option<Distribution>, which: fn(&Distribution) -> f64| {
            values.as_ref().map_or_else(|| "-".to_owned(), |values| number(which(values)))
        };
        writeln!(
            f,
            "{:<22}{:>9.2}{:>11.1}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}{:>8}",
            run.case.to_string(),
            summary.rates.requests_per_s,
            summary.rates.output_tokens_per_s,
            pick(&summary.ttft_ms, |v| v.p50),
            pick(&summary.ttft_ms, |v| v.p99),
            pick(&summary.itl_ms, |v| v.p50),
            pick(&summary.itl_ms, |v| v.p99),
            pick(&summary.e2e_ms, |v| v.p50),
            pick(&summary.e2e_ms, |v| v.p99),
            summary.requests.failed
        )?;
    }
    Ok(())
}
