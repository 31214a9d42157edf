//! Load tests side by side: at each load that they share, every number of each, and how it differs from the first test's.

use pelton_bench::results::RunResult;
use pelton_bench::slo::Aggregate;
use pelton_bench::{Difference, Distribution, Metric, compare};

use crate::numbers::{number, percent};
use crate::report::{LoadKind, Report, Test};
use crate::tables::Table;

/// Tests at the loads they share.
#[derive(Clone, Debug)]
pub struct Comparison<'a> {
    tests: Vec<&'a Test>,
    places: Vec<Place<'a>>,
}

/// One load, and the repeats of each test at it; empty for a test that was not measured there.
#[derive(Clone, Debug)]
struct Place<'a> {
    title: String,
    runs: Vec<Vec<&'a RunResult>>,
}

impl<'a> Comparison<'a> {
    /// Finds the loads at which at least two tests were measured. Tests of one run each are compared at whatever load they have.
    pub fn of(report: &'a Report) -> Self {
        let tests: Vec<&Test> = report.tests().iter().collect();
        let mut places = Vec::new();
        for kind in report.kinds() {
            let mut levels: Vec<f64> =
                tests.iter().flat_map(|test| test.levels(kind)).map(|level| level.level).collect();
            levels.sort_by(f64::total_cmp);
            levels.dedup();
            for level in levels {
                let at = |test: &&'a Test| test.levels(kind).into_iter().find(|l| l.level == level).map(|l| l.runs);
                let runs: Vec<_> = tests.iter().map(|test| at(test).unwrap_or_default()).collect();
                let title = match (kind, level) {
                    (LoadKind::Users, 1.0) => "At 1 user".to_owned(),
                    (LoadKind::Users, level) => format!("At {level} users"),
                    (LoadKind::Rate, level) => format!("At {level} requests/s"),
                };
                if runs.iter().filter(|runs| !runs.is_empty()).count() > 1 {
                    places.push(Place { title, runs });
                }
            }
        }
        if places.is_empty() && tests.len() > 1 && tests.iter().all(|test| test.results.runs.len() == 1) {
            let runs: Vec<Vec<&RunResult>> = tests.iter().map(|test| test.results.runs.iter().collect()).collect();
            let loads: Vec<String> = runs.iter().flatten().map(|run| run.case.to_string()).collect();
            places.push(Place { title: format!("Different loads: {}", loads.join(", ")), runs });
        }
        Self { tests, places }
    }

    /// How the tables are to be read, or why there are none.
    pub fn note(&self) -> String {
        match self.places.first() {
            None => "The tests share no load: nothing to set side by side.".to_owned(),
            Some(_) => format!(
                "Changes are against {}; in brackets, where the change lies with a confidence of 95 % (bootstrap over requests or slices \
                 of a run, and over repeats where there are several).",
                self.tests[0].name
            ),
        }
    }

    /// One table for each shared load.
    pub fn tables(&self) -> Vec<Table> {
        self.places.iter().map(|place| self.table(place)).collect()
    }

    fn table(&self, place: &Place<'_>) -> Table {
        let mut head = vec!["metric".to_owned()];
        for (n, test) in self.tests.iter().enumerate() {
            head.push(test.name.clone());
            if n > 0 {
                head.push(format!("change: {}", test.name));
            }
        }
        let mut table = Table { title: place.title.clone(), head, rows: Vec::new(), words: 1 };
        for (metric, aggregate) in numbers() {
            let differences: Vec<Option<Difference>> =
                place.runs[1..].iter().map(|runs| compare(&place.runs[0], runs, metric, aggregate)).collect();
            let first = differences.iter().flatten().next().map(|difference| difference.a);
            let mut values = vec![first.or_else(|| median(&place.runs[0], metric, aggregate))];
            for (runs, difference) in place.runs[1..].iter().zip(&differences) {
                let value = difference.as_ref().map(|difference| difference.b);
                values.push(value.or_else(|| median(runs, metric, aggregate)));
            }
            let is_silent = |value: &Option<f64>| value.is_none_or(|value| metric == Metric::DropRate && value == 0.0);
            if values.iter().all(is_silent) {
                continue;
            }
            let mut row = vec![name(metric, aggregate)];
            for (n, value) in values.iter().enumerate() {
                let text = |value| if metric.unit().is_empty() { percent(value) } else { number(value) };
                row.push(value.map_or_else(|| "-".to_owned(), text));
                if n > 0 {
                    row.push(differences[n - 1].as_ref().map_or_else(|| "-".to_owned(), change));
                }
            }
            table.rows.push(row);
        }
        table
    }
}

/// The numbers that are compared.
fn numbers() -> Vec<(Metric, Aggregate)> {
    let whole = |metric| (metric, Aggregate::Value);
    let mut numbers =
        [Metric::RequestsPerSecond, Metric::Goodput, Metric::OutputTokensPerSecond, Metric::InputTokensPerSecond]
            .map(whole)
            .to_vec();
    for metric in [Metric::Ttft, Metric::Itl, Metric::Tpot, Metric::E2e] {
        numbers.extend([(metric, Aggregate::P50), (metric, Aggregate::P99)]);
    }
    numbers.extend([Metric::ErrorRate, Metric::DropRate].map(whole));
    numbers
}

/// Short enough for a terminal.
fn name(metric: Metric, aggregate: Aggregate) -> String {
    let title = if metric == Metric::Goodput { "goodput, requests per second" } else { metric.title() };
    match (aggregate, metric.unit()) {
        (Aggregate::Value, _) => title.to_owned(),
        (_, unit) => format!("{title} {} ({unit})", aggregate.name()),
    }
}

/// Of the repeats, where there is nothing to compare with.
fn median(runs: &[&RunResult], metric: Metric, aggregate: Aggregate) -> Option<f64> {
    let values = runs.iter().filter_map(|run| aggregate.in_run(metric, &run.summary));
    Some(Distribution::of(values.collect())?.p50)
}

/// The change in words: how much, in which direction, how sure.
fn change(difference: &Difference) -> String {
    if difference.a == difference.b {
        return "equal".to_owned();
    }
    let is_better = (difference.b > difference.a) == more_is_better(difference.metric);
    let verdict = match difference.is_significant() {
        Some(true) if is_better => "better",
        Some(true) => "worse",
        Some(false) | None => difference.words(),
    };
    let Some(relative) = difference.relative() else { return verdict.to_owned() };
    let interval = difference.interval.map_or_else(String::new, |interval| {
        format!(" [{:+.1}, {:+.1}]", 100.0 * interval.low / difference.a, 100.0 * interval.high / difference.a)
    });
    format!("{:+.1} %{interval} {verdict}", 100.0 * relative)
}

fn more_is_better(metric: Metric) -> bool {
    matches!(
        metric,
        Metric::RequestsPerSecond | Metric::Goodput | Metric::OutputTokensPerSecond | Metric::InputTokensPerSecond
    )
}
