//! The report as text for a terminal.

use std::fmt;

use pelton_bench::results::{Results, RunResult};

use crate::compare::Comparison;
use crate::numbers::number;
use crate::report::{Report, in_order};
use crate::{facts, tables};

/// Prints results.
#[derive(Debug)]
pub struct Console<'a>(pub &'a Results);

impl fmt::Display for Console<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(report) = self;
        head(f, report)?;
        for run in in_order(&report.runs) {
            writeln!(f)?;
            one_run(f, run)?;
        }
        if report.runs.len() > 1 {
            write!(f, "\n{}", tables::short(&report.runs).text())?;
        }
        for table in [tables::repeats(report), tables::targets_of(report), tables::search(report)] {
            if !table.rows.is_empty() {
                write!(f, "\n{}\n{}", table.title, table.text())?;
            }
        }
        f.write_str(FORMULAS)
    }
}

/// Where the formula of each number stands.
const FORMULAS: &str = "\nformulas of all numbers: pelton bench explain\n";

/// Prints load tests side by side.
#[derive(Debug)]
pub struct Side<'a>(pub &'a Report);

impl fmt::Display for Side<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let comparison = Comparison::of(self.0);
        for test in self.0.tests() {
            writeln!(f, "{}: {} at {}", test.name, test.model(), test.results.plan.target.url)?;
        }
        writeln!(f, "{}", comparison.note())?;
        for table in comparison.tables() {
            write!(f, "\n{}\n{}", table.title, table.text())?;
        }
        for (note, runs) in self.0.notes() {
            writeln!(f, "note: {note} ({runs})")?;
        }
        f.write_str(FORMULAS)
    }
}

fn head(f: &mut fmt::Formatter<'_>, report: &Results) -> fmt::Result {
    for (name, text) in facts::setup(report) {
        writeln!(f, "{name:<9}{text}")?;
    }
    Ok(())
}

fn one_run(f: &mut fmt::Formatter<'_>, run: &RunResult) -> fmt::Result {
    let (summary, requests) = (&run.summary, &run.summary.requests);
    let title = format!("-- {}, {:.1} s ", run.case, run.wall_s);
    writeln!(f, "{title:-<94}")?;
    if requests.measured == 0 {
        return writeln!(f, "requests    none measured of {} started", requests.started);
    }
    for (name, text) in tables::whole_run(run) {
        writeln!(f, "{name:<11} {text}")?;
    }
    for (kind, errors) in &summary.errors {
        writeln!(f, "error       {kind}: {} (first: {})", errors.count, errors.example)?;
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
