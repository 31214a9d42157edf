//! The report as one HTML page that needs nothing from outside: text, tables, and charts that answer to the mouse.

use std::collections::BTreeMap;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use pelton_bench::Metric;

use crate::charts::{Chart, Charts, Figure};
use crate::compare::Comparison;
use crate::facts;
use crate::numbers::{number, percent};
use crate::report::{Report, Told};
use crate::tables::{self, Table};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
const PLOT_STYLE: &str = include_str!("../../assets/uplot/uPlot.min.css");
const PLOT_SCRIPT: &str = include_str!("../../assets/uplot/uPlot.iife.min.js");

/// Most runs of which the page says more than their line in the tables.
const MAX_RUNS: usize = 64;

/// Writes the page.
pub fn html(report: &Report) -> String {
    let charts = Charts::of(report);
    let mut figures = Figures::default();
    let name = title(report);
    let body = html! {
        header {
            h1 { (name) }
            p.soft { (under_title(report)) }
            nav {
                a href="#runs" { "Runs" }
                @if report.tests().len() > 1 { a href="#comparison" { "Comparison" } }
                @if !charts.loads.is_empty() { a href="#load" { "Against the load" } }
                @if !charts.distributions.is_empty() { a href="#distributions" { "Distributions" } }
                a href="#single" { "Run by run" }
                a href="#how" { "How it was measured" }
                a href="#formulas" { "Formulas" }
            }
        }
        main {
            (tiles(report))
            (warnings(report))
            h2 id="runs" { "Runs" }
            (table(&tables::overview(report)))
            @for more in [tables::intervals(report), tables::targets(report), tables::errors(report)] {
                @if !more.rows.is_empty() { h3 { (more.title) } (table(&more)) }
            }
            @for test in report.tests() {
                @let search = tables::search(&test.results);
                @if !search.rows.is_empty() { h3 { (search.title) ": " (test.name) } (table(&search)) }
            }
            @if report.tests().len() > 1 { (comparison(report)) }
            @if !charts.loads.is_empty() {
                h2 id="load" { "Against the load" }
                p.note { "Drag to zoom, double-click to go back, click a name to hide it." }
                @for chart in &charts.loads { (pair(chart, &mut figures)) }
            }
            @if !charts.distributions.is_empty() {
                h2 id="distributions" { "Distributions" }
                p.note { "Read upwards: at 50 % stands the median. Drag to zoom, double-click to go back, click a name to hide it." }
                div.pair { @for chart in &charts.distributions { (chart_of(chart, &mut figures)) } }
            }
            h2 id="single" { "Run by run" }
            (single_runs(report, &charts, &mut figures))
            h2 id="how" { "How it was measured" }
            @for test in report.tests() {
                @if report.tests().len() > 1 { h3 { (test.name) } }
                dl {
                    @for (name, text) in facts::all(test) {
                        dt { (name) }
                        dd { @if name == "command" { code { (text) } } @else { (text) } }
                    }
                }
            }
            h2 id="formulas" { "Formulas" }
            (formulas(&tables::metrics_shown(report)))
        }
        footer { "Made by pelton " (env!("CARGO_PKG_VERSION")) ". This page loads nothing from anywhere. Charts: uPlot 1.6.32 (MIT licence)." }
    };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (name) }
                style { (PreEscaped(PLOT_STYLE)) (PreEscaped(STYLE)) }
            }
            body {
                (body)
                noscript { p { "The charts of this page need JavaScript; its numbers do not." } }
                script type="application/json" id="figures" { (PreEscaped(figures.json())) }
                script { (PreEscaped(PLOT_SCRIPT)) }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    page.into_string()
}

/// The figures of the page, by the name that its places ask for.
#[derive(Default)]
struct Figures(BTreeMap<String, Figure>);

impl Figures {
    fn put(&mut self, figure: &Figure) -> String {
        let name = format!("f{}", self.0.len());
        self.0.insert(name.clone(), figure.clone());
        name
    }

    /// JSON that can stand inside of a script element: no tag can begin in it.
    fn json(&self) -> String {
        // Maps of names to figures are always written.
        serde_json::to_string(&self.0).unwrap_or_default().replace('<', "\\u003c")
    }
}

fn title(report: &Report) -> String {
    match report.tests() {
        [test] => {
            let model = test.model();
            let url = &test.results.plan.target.url;
            if model.is_empty() { format!("Load test of {url}") } else { format!("Load test of {model} at {url}") }
        }
        tests => {
            let names: Vec<&str> = tests.iter().map(|test| test.name.as_str()).collect();
            format!("Comparison of load tests: {}", names.join(", "))
        }
    }
}

fn under_title(report: &Report) -> String {
    let began: Vec<String> = report.tests().iter().map(|test| crate::numbers::utc(test.results.began_unix_s)).collect();
    let runs = report.runs().count();
    let runs = if runs == 1 { "1 run".to_owned() } else { format!("{runs} runs") };
    format!("{}; {runs}", began.join(", "))
}

fn tiles(report: &Report) -> Markup {
    let runs: Vec<Told<'_>> = report.runs().collect();
    let is_one = runs.len() == 1;
    let best = runs
        .iter()
        .max_by(|a, b| a.run.summary.rates.output_tokens_per_s.total_cmp(&b.run.summary.rates.output_tokens_per_s));
    let count =
        |of: fn(&pelton_bench::Counts) -> u64| runs.iter().map(|told| of(&told.run.summary.requests)).sum::<u64>();
    let (measured, failed) = (count(|requests| requests.measured), count(|requests| requests.failed));
    // From the smallest to the largest of the runs.
    let span = |metric: Metric, which: fn(&pelton_bench::Distribution) -> f64| {
        let values = runs.iter().filter_map(|told| metric.distribution(&told.run.summary)).map(which);
        let values = pelton_bench::Distribution::of(values.collect())?;
        Some(if number(values.min) == number(values.max) {
            number(values.min)
        } else {
            format!("{} – {}", number(values.min), number(values.max))
        })
    };
    let latencies = [
        ("time to first token, p50", span(Metric::Ttft, |v| v.p50)),
        ("time to first token, p99", span(Metric::Ttft, |v| v.p99)),
        ("inter-token latency, p50", span(Metric::Itl, |v| v.p50)),
        ("end to end, p50", span(Metric::E2e, |v| v.p50)),
    ];
    html! {
        div.tiles {
            @if let Some(best) = best {
                div.tile {
                    b { (number(best.run.summary.rates.output_tokens_per_s)) small { " tokens/s" } }
                    span { @if is_one { "output" } @else { "most output: " (best.name()) } }
                }
            }
            @for (name, value) in latencies {
                @if let Some(value) = value { div.tile { b { (value) small { " ms" } } span { (name) } } }
            }
            div.tile.bad[failed > 0] {
                b { (percent(failed as f64 / measured.max(1) as f64)) small { " failed" } }
                span { (failed) " of " (measured) " measured requests" }
            }
        }
    }
}

/// Notes of all runs; equal ones once, with the runs they belong to.
fn warnings(report: &Report) -> Markup {
    let notes = report.notes();
    html! {
        @if !notes.is_empty() {
            div.warn {
                b { "Before trusting the numbers" }
                ul { @for (note, runs) in &notes { li { (note) @if !runs.is_empty() { span.soft { " (" (runs) ")" } } } } }
            }
        }
    }
}

fn comparison(report: &Report) -> Markup {
    let comparison = Comparison::of(report);
    html! {
        h2 id="comparison" { "Comparison" }
        p.note { (comparison.note()) }
        @for table_of in comparison.tables() { h3 { (table_of.title) } (table(&table_of)) }
    }
}

fn pair(chart: &Chart, figures: &mut Figures) -> Markup {
    html! { div.pair[chart.figures.len() > 1] { (chart_of(chart, figures)) } }
}

fn chart_of(chart: &Chart, figures: &mut Figures) -> Markup {
    html! {
        @for (n, figure) in chart.figures.iter().enumerate() {
            @let is_named = figure.link.is_none() || n + 1 == chart.figures.len();
            div.figure {
                h3 { (figure.title) }
                @if let Some(note) = &figure.note { p.note { (note) } }
                div.plot data-figure=(figures.put(figure)) data-last[is_named] {}
            }
        }
    }
}

fn single_runs(report: &Report, charts: &Charts, figures: &mut Figures) -> Markup {
    let total = report.runs().count();
    html! {
        @for (n, told) in report.runs().take(MAX_RUNS).enumerate() {
            @let rates = &told.run.summary.rates;
            details open[n == 0] {
                summary {
                    (told.name())
                    span.soft { (number(rates.output_tokens_per_s)) " output tokens/s, " (format!("{:.1}", told.run.wall_s)) " s" }
                }
                dl { @for (name, text) in tables::whole_run(told.run) { dt { (name) } dd { (text) } } }
                @let distributions = tables::distributions(told.run);
                @if !distributions.rows.is_empty() { (table(&distributions)) }
                @for note in &told.run.summary.notes { p.note { "Note: " (note) } }
                @if let Some(of_run) = charts.runs.iter().find(|of_run| of_run.name == told.name()) {
                    (chart_of(&of_run.time, figures))
                    @if let Some(requests) = &of_run.requests { (chart_of(requests, figures)) }
                }
            }
        }
        @if total > MAX_RUNS { p.note { (format!("{} further runs stand in the tables only.", total - MAX_RUNS)) } }
        @if charts.runs_left_out > 0 {
            p.note { (format!("The first {} runs have charts of their own; {} have none.", charts.runs.len(), charts.runs_left_out)) }
        }
    }
}

fn formulas(metrics: &[Metric]) -> Markup {
    html! {
        details {
            summary { "How each number is computed" }
            dl {
                @for metric in metrics {
                    dt { (metric.title()) " " code { (metric.name()) } @if !metric.unit().is_empty() { " (" (metric.unit()) ")" } }
                    dd { (metric.formula()) }
                }
            }
        }
    }
}

fn table(table: &Table) -> Markup {
    let class = |n: usize, cell: &str| match (n < table.words, cell.len() > 60) {
        (true, true) => "w long",
        (true, false) => "w",
        (false, _) if cell.contains("better") => "better",
        (false, _) if cell.contains("worse") => "worse",
        (false, _) => "",
    };
    html! {
        div.wide {
            table {
                thead { tr { @for (n, cell) in table.head.iter().enumerate() { th class=(class(n, "")) { (cell) } } } }
                tbody {
                    @for row in &table.rows {
                        tr { @for (n, cell) in row.iter().enumerate() { td class=(class(n, cell)) { (interval_below(cell)) } } }
                    }
                }
            }
        }
    }
}

/// A value with its interval on a line of its own: tables of them are wide.
fn interval_below(cell: &str) -> Markup {
    match cell.split_once(" [") {
        Some((value, interval)) if interval.ends_with(']') => html! { (value) br; span.note { "[" (interval) } },
        _ => html! { (cell) },
    }
}
