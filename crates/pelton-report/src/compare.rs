//! Load tests side by side: at each load that they share, every number of each, and how it differs from the first test's.

use pelton_bench::results::RunResult;
use pelton_bench::{Distribution, Metric};

use crate::numbers::number;
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
            Some(_) => format!("Changes are against {}.", self.tests[0].name),
        }
    }

    /// One table for each shared load.
    pub fn tables(&self) -> Vec<Table> {
        self.places.iter().map(|place| self.table(place)).collect()
    }

    fn table(&self, place: &Place<'_>) -> Table {
        let mut head = vec!["metric".to_owned(), "unit".to_owned()];
        for (n, test) in self.tests.iter().enumerate() {
            head.push(test.name.clone());
            if n > 0 {
                head.push(format!("change: {}", test.name));
            }
        }
        let mut table = Table { title: place.title.clone(), head, rows: Vec::new(), words: 2 };
        for (metric, aggregate, which) in numbers() {
            let values: Vec<Option<f64>> = place.runs.iter().map(|runs| value(runs, metric, which)).collect();
            let is_silent = |value: &Option<f64>| value.is_none_or(|value| metric == Metric::DropRate && value == 0.0);
            if values.iter().all(is_silent) {
                continue;
            }
            let name = if aggregate.is_empty() {
                metric.title().to_owned()
            } else {
                format!("{}, {aggregate}", metric.title())
            };
            let mut row = vec![name, metric.unit().to_owned()];
            for (n, value) in values.iter().enumerate() {
                row.push(value.map_or_else(|| "-".to_owned(), number));
                if n > 0 {
                    row.push(change(metric, values[0], *value));
                }
            }
            table.rows.push(row);
        }
        table
    }
}

type Which = fn(&Distribution) -> f64;

/// The numbers that are compared.
fn numbers() -> Vec<(Metric, &'static str, Which)> {
    let mut numbers: Vec<(Metric, &'static str, Which)> = Vec::new();
    for metric in [Metric::RequestsPerSecond, Metric::OutputTokensPerSecond, Metric::InputTokensPerSecond] {
        numbers.push((metric, "", |v| v.mean));
    }
    for metric in [Metric::Ttft, Metric::Itl, Metric::Tpot, Metric::E2e] {
        numbers.push((metric, "p50", |v| v.p50));
        numbers.push((metric, "p99", |v| v.p99));
    }
    numbers.extend([Metric::ErrorRate, Metric::DropRate].map(|metric| (metric, "", (|v| v.mean) as Which)));
    numbers
}

/// Median of the repeats.
fn value(runs: &[&RunResult], metric: Metric, which: Which) -> Option<f64> {
    let value = |run: &&RunResult| metric.value(&run.summary).or_else(|| metric.distribution(&run.summary).map(which));
    Some(Distribution::of(runs.iter().filter_map(value).collect())?.p50)
}

fn change(metric: Metric, from: Option<f64>, to: Option<f64>) -> String {
    let (Some(from), Some(to)) = (from, to) else { return "-".to_owned() };
    if from == to {
        return "equal".to_owned();
    }
    if from == 0.0 {
        return if to > from { "was 0".to_owned() } else { "-".to_owned() };
    }
    let change = to / from - 1.0;
    let is_better = (change > 0.0) == more_is_better(metric);
    format!("{:+.1} % {}", 100.0 * change, if is_better { "better" } else { "worse" })
}

fn more_is_better(metric: Metric) -> bool {
    matches!(metric, Metric::RequestsPerSecond | Metric::OutputTokensPerSecond | Metric::InputTokensPerSecond)
}
