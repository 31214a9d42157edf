//! The tables of a report, the same in every form.

use pelton_bench::results::{Results, RunResult};
use pelton_bench::slo::Aggregate;
use pelton_bench::{CaseEstimates, Distribution, Estimate, Interval, Metric};

use crate::numbers::{number, percent, plain};
use crate::report::{Report, in_order, run_name};

/// A table of texts.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// Names of the columns, units included.
    pub head: Vec<String>,
    /// As long as the head, each.
    pub rows: Vec<Vec<String>>,
    /// How many columns from the left are words; the others are numbers.
    pub words: usize,
}

impl Table {
    fn new(title: impl Into<String>, words: usize, head: &[&str]) -> Self {
        let head = head.iter().map(|&name| name.to_owned()).collect();
        Self { title: title.into(), head, rows: Vec::new(), words }
    }

    /// As lines of aligned text.
    pub fn text(&self) -> String {
        let columns = || std::iter::once(&self.head).chain(&self.rows);
        let width = |n: usize| columns().map(|row| row[n].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).enumerate().map(|(n, (cell, &width))| {
                if n < self.words { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        columns().map(|row| line(row) + "\n").collect()
    }
}

/// One line for each run.
pub fn overview(report: &Report) -> Table {
    let head = [
        "run",
        "requests/s",
        "output tokens/s",
        "input tokens/s",
        "running",
        "TTFT p50 (ms)",
        "TTFT p99 (ms)",
        "ITL p50 (ms)",
        "ITL p99 (ms)",
        "E2E p50 (ms)",
        "E2E p99 (ms)",
        "complete",
        "failed",
    ];
    let mut table = Table::new("Runs", 1, &head);
    for told in report.runs() {
        let summary = &told.run.summary;
        let rates = &summary.rates;
        let mut row = vec![told.name()];
        row.extend(
            [rates.requests_per_s, rates.output_tokens_per_s, rates.input_tokens_per_s, rates.concurrency].map(number),
        );
        for values in [&summary.ttft_ms, &summary.itl_ms, &summary.e2e_ms] {
            row.extend([pick(values, |v| v.p50), pick(values, |v| v.p99)]);
        }
        row.extend([summary.requests.complete.to_string(), summary.requests.failed.to_string()]);
        table.rows.push(row);
    }
    table
}

/// The same for a terminal, in milliseconds.
pub fn short(runs: &[RunResult]) -> Table {
    let head =
        ["run", "req/s", "out tok/s", "TTFT p50", "TTFT p99", "ITL p50", "ITL p99", "E2E p50", "E2E p99", "failed"];
    let mut table = Table::new("Runs", 1, &head);
    for run in in_order(runs) {
        let summary = &run.summary;
        let rates = [summary.rates.requests_per_s, summary.rates.output_tokens_per_s];
        let mut row = vec![run_name(run)];
        row.extend(rates.map(number));
        for values in [&summary.ttft_ms, &summary.itl_ms, &summary.e2e_ms] {
            row.extend([pick(values, |v| v.p50), pick(values, |v| v.p99)]);
        }
        row.push(summary.requests.failed.to_string());
        table.rows.push(row);
    }
    table
}

fn pick(values: &Option<Distribution>, which: fn(&Distribution) -> f64) -> String {
    values.as_ref().map_or_else(|| "-".to_owned(), |values| number(which(values)))
}

/// One line for each metric of a run that has one value for each request or gap.
pub fn distributions(run: &RunResult) -> Table {
    let mut table = Table::new(
        "Distributions",
        1,
        &["metric", "unit", "p50", "p90", "p95", "p99", "p99.9", "max", "mean", "values"],
    );
    for metric in Metric::ALL {
        let Some(values) = metric.distribution(&run.summary) else { continue };
        let mut row = vec![metric.title().to_owned(), metric.unit().to_owned()];
        row.extend([values.p50, values.p90, values.p95, values.p99, values.p999, values.max, values.mean].map(number));
        row.push(values.count.to_string());
        table.rows.push(row);
    }
    table.words = 2;
    table
}

/// Failed requests by kind; without rows if there are none.
pub fn errors(report: &Report) -> Table {
    let mut table = Table::new("Errors", 4, &["run", "kind", "first message", "requests"]);
    table.words = 3;
    for told in report.runs() {
        for (kind, errors) in &told.run.summary.errors {
            table.rows.push(vec![told.name(), kind.clone(), errors.example.clone(), errors.count.to_string()]);
        }
    }
    table
}

/// How each run stands to the targets of its plan; without rows if there are none.
pub fn targets(report: &Report) -> Table {
    let mut table = targets_head();
    for told in report.runs() {
        targets_rows(&mut table, &told.name(), told.run);
    }
    table
}

/// The same for one test.
pub fn targets_of(results: &Results) -> Table {
    let mut table = targets_head();
    for run in in_order(&results.runs) {
        targets_rows(&mut table, &run_name(run), run);
    }
    table
}

fn targets_head() -> Table {
    Table::new("Targets", 2, &["run", "target", "measured", "met", "requests that met it"])
}

fn targets_rows(table: &mut Table, name: &str, run: &RunResult) {
    for verdict in &run.verdicts {
        let goodput = run.summary.goodput.as_ref();
        let attained = goodput.and_then(|goodput| goodput.by_slo.iter().find(|one| one.slo == verdict.slo));
        table.rows.push(vec![
            name.to_owned(),
            verdict.slo.to_string(),
            verdict.value.map_or_else(|| "-".to_owned(), |value| with_unit(value, verdict.slo.metric)),
            if verdict.ok { "yes" } else { "no" }.to_owned(),
            attained.map_or_else(|| "-".to_owned(), |one| percent(one.share)),
        ]);
    }
}

/// What a search for the highest load tried; without rows if there was none.
pub fn search(results: &Results) -> Table {
    let mut table =
        Table::new("Search for the highest load", 1, &["load", "runs that met the targets", "runs that missed them"]);
    for level in results.search.iter().flat_map(|search| &search.levels) {
        let is_answer = results.search.as_ref().is_some_and(|search| search.answer == Some(level.level));
        let load = format!("{}{}", plain(level.level), if is_answer { " (the answer)" } else { "" });
        table.rows.push(vec![load, level.met.to_string(), level.missed.to_string()]);
    }
    table
}

/// Where the numbers of repeated loads lie, a line for each; without rows if nothing was repeated.
pub fn repeats(results: &Results) -> Table {
    let mut table = Table::new("With a confidence of 95 %", 2, &["load", "metric", "repeats", "value", "from", "to"]);
    for case in results.estimates.iter().filter(|case| case.runs.len() > 1) {
        for (metric, aggregate, name) in ESTIMATED {
            let Some(found) = estimate(case, metric, aggregate) else { continue };
            let end = |which: fn(&Interval) -> f64| {
                found.interval.as_ref().map_or_else(|| "-".to_owned(), |interval| number(which(interval)))
            };
            let ends = [end(|interval| interval.low), end(|interval| interval.high)];
            let mut row =
                vec![case.case.to_string(), name.to_owned(), case.runs.len().to_string(), number(found.value)];
            row.extend(ends);
            table.rows.push(row);
        }
    }
    table
}

/// The numbers whose intervals are told.
const ESTIMATED: [(Metric, Aggregate, &str); 6] = [
    (Metric::OutputTokensPerSecond, Aggregate::Value, "output tokens/s"),
    (Metric::Ttft, Aggregate::P50, "TTFT p50 (ms)"),
    (Metric::Ttft, Aggregate::P99, "TTFT p99 (ms)"),
    (Metric::Itl, Aggregate::P50, "ITL p50 (ms)"),
    (Metric::Itl, Aggregate::P99, "ITL p99 (ms)"),
    (Metric::E2e, Aggregate::P50, "E2E p50 (ms)"),
];

fn estimate(case: &CaseEstimates, metric: Metric, aggregate: Aggregate) -> Option<&Estimate> {
    case.estimates.iter().find(|one| one.metric == metric && one.aggregate == aggregate)
}

/// Where the numbers of each load lie with a confidence of 95 %; without rows if no interval is known.
pub fn intervals(report: &Report) -> Table {
    let head: Vec<&str> = ["load", "repeats"].into_iter().chain(ESTIMATED.iter().map(|(_, _, name)| *name)).collect();
    let mut table = Table::new("With a confidence of 95 %", 1, &head);
    let is_one = report.tests().len() == 1;
    for test in report.tests() {
        for case in test.results.estimates.iter().filter(|case| case.estimates.iter().any(|one| one.interval.is_some()))
        {
            let name = if is_one { case.case.to_string() } else { format!("{}: {}", test.name, case.case) };
            let mut row = vec![name, case.runs.len().to_string()];
            for (metric, aggregate, _) in ESTIMATED {
                row.push(match estimate(case, metric, aggregate) {
                    Some(Estimate { value, interval: Some(interval), .. }) => {
                        format!("{} [{}, {}]", number(*value), number(interval.low), number(interval.high))
                    }
                    Some(estimate) => number(estimate.value),
                    None => "-".to_owned(),
                });
            }
            table.rows.push(row);
        }
    }
    table
}

/// A value as its metric is written.
fn with_unit(value: f64, metric: Metric) -> String {
    match metric.unit() {
        "" => percent(value),
        unit => format!("{} {unit}", number(value)),
    }
}

/// Numbers and words of a whole run: rates, requests, what measuring cost.
pub fn whole_run(run: &RunResult) -> Vec<(&'static str, String)> {
    let (summary, requests) = (&run.summary, &run.summary.requests);
    let mut lines = Vec::new();
    let share = |part: u64, whole: u64| percent(part as f64 / whole.max(1) as f64);
    let mut text = format!(
        "{} measured: {} complete, {} failed ({})",
        requests.measured,
        requests.complete,
        requests.failed,
        share(requests.failed, requests.measured)
    );
    let others = [
        (requests.warmup, "warm-up"),
        (requests.cooldown, "cool-down"),
        (requests.late, "late"),
        (requests.dropped, "dropped"),
    ];
    for (n, what) in others.into_iter().filter(|(n, _)| *n > 0) {
        text.push_str(&format!(", {n} {what}"));
    }
    lines.push(("requests", text));
    // The whole run says something of its own only where a part of it was left out.
    let left_out = summary.rates.to_s - summary.rates.from_s < 0.99 * (summary.whole.to_s - summary.whole.from_s);
    for (name, rates) in [("rates", Some(&summary.rates)), ("whole run", Some(&summary.whole).filter(|_| left_out))] {
        let Some(rates) = rates else { continue };
        lines.push((
            name,
            format!(
                "{:.2} requests/s, {:.1} output tokens/s, {:.1} input tokens/s, {:.2} running on average ({:.1} to {:.1} s)",
                rates.requests_per_s,
                rates.output_tokens_per_s,
                rates.input_tokens_per_s,
                rates.concurrency,
                rates.from_s,
                rates.to_s
            ),
        ));
    }
    if let Some(goodput) = &summary.goodput {
        lines.push((
            "goodput",
            format!(
                "{:.2} requests/s; {} of the requests met all targets",
                goodput.requests_per_s,
                percent(goodput.attainment)
            ),
        ));
    }
    if let Some(client) = &summary.client {
        let mut text = format!("{:.1} % of a core, waited for it {:.1} %", 100.0 * client.busy, 100.0 * client.waiting);
        if let Some(us) = client.us_per_event {
            text.push_str(&format!(", {us:.1} us per event"));
        }
        lines.push(("client", text));
    }
    if let Some(text) = server_line(run) {
        lines.push(("server", text));
    }
    lines
}

/// The server's own numbers in one line: largest values, and growth of its counters.
fn server_line(run: &RunResult) -> Option<String> {
    let samples = &run.server_metrics.as_ref()?.samples;
    let (first, last) = (samples.first()?, samples.last()?);
    let seconds = last.at_us.saturating_sub(first.at_us) as f64 / 1e6;
    let most = |value: fn(&pelton_bench::ServerSample) -> Option<f64>| {
        samples
            .iter()
            .filter_map(value)
            .fold(None, |most: Option<f64>, value| Some(most.map_or(value, |m| m.max(value))))
    };
    let growth = |from: Option<f64>, to: Option<f64>| {
        let grown = to? - from?;
        (grown >= 0.0 && seconds > 0.0).then(|| grown / seconds)
    };
    let mut parts = Vec::new();
    if let Some(rate) = growth(first.generated_tokens, last.generated_tokens) {
        parts.push(format!("{rate:.1} output tokens/s"));
    }
    if let Some(rate) = growth(first.prompt_tokens, last.prompt_tokens) {
        parts.push(format!("{rate:.1} prompt tokens/s"));
    }
    let tops = [("running", most(|s| s.running)), ("waiting", most(|s| s.waiting))];
    parts.extend(tops.into_iter().filter_map(|(name, most)| Some(format!("at most {:.0} {name}", most?))));
    if let Some(most) = most(|s| s.kv_usage) {
        parts.push(format!("KV cache at most {}", percent(most)));
    }
    (!parts.is_empty()).then(|| format!("{} (its own metrics, {} readings)", parts.join(", "), samples.len()))
}

/// The metrics that any run of the report shows.
pub fn metrics_shown(report: &Report) -> Vec<Metric> {
    let shown = |metric: &Metric| {
        report
            .runs()
            .any(|told| metric.distribution(&told.run.summary).is_some() || metric.value(&told.run.summary).is_some())
    };
    Metric::ALL.into_iter().filter(shown).collect()
}
