//! The tables of a report, the same in every form.

use pelton_bench::results::RunResult;
use pelton_bench::{Distribution, Metric};

use crate::numbers::{number, percent};
use crate::report::Report;

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

fn pick(values: &Option<Distribution>, which: fn(&Distribution) -> f64) -> String {
    values.as_ref().map_or_else(|| "-".to_owned(), |values| number(which(values)))
}

/// One line for each metric of a run that has one value for each request or gap.
pub fn distributions(run: &RunResult) -> Table {
    let mut table =
        Table::new("Distributions", 1, &["metric", "unit", "p50", "p90", "p95", "p99", "max", "mean", "values"]);
    for metric in Metric::ALL {
        let Some(values) = metric.distribution(&run.summary) else { continue };
        let mut row = vec![metric.title().to_owned(), metric.unit().to_owned()];
        row.extend([values.p50, values.p90, values.p95, values.p99, values.max, values.mean].map(number));
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
