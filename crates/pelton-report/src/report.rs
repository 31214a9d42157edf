//! Load tests told together: their names, their runs, and the runs ordered by load.

use pelton_bench::results::{Results, RunResult};
use pelton_bench::slo::Aggregate;
use pelton_bench::{Case, Estimate, Interval, Metric};

/// Load tests told together, in the order given.
#[derive(Clone, Debug)]
pub struct Report {
    tests: Vec<Test>,
}

/// A load test and the name under which it is told.
#[derive(Clone, Debug)]
pub struct Test {
    /// Different from that of every other test of a report.
    pub name: String,
    /// What it left behind.
    pub results: Results,
}

/// A run as part of a report.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// The test it belongs to.
    pub test: &'a Test,
    /// Which test that is.
    pub test_index: usize,
    /// The run itself.
    pub run: &'a RunResult,
    /// Whether names need the test's name, because there are several.
    is_one_of_many: bool,
}

/// What the levels of loads are levels of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LoadKind {
    /// Users of a closed loop.
    Users,
    /// Requests per second of an open loop.
    Rate,
}

/// The runs of one test with one load: repetitions of each other.
#[derive(Clone, Debug)]
pub struct Level<'a> {
    /// Users, or requests per second.
    pub level: f64,
    /// At least one.
    pub runs: Vec<&'a RunResult>,
    /// What the runs say together, with intervals; empty if it was not stored.
    pub estimates: &'a [Estimate],
}

impl Level<'_> {
    /// The interval of a number, if there is one.
    pub fn interval(&self, metric: Metric, aggregate: Aggregate) -> Option<Interval> {
        self.estimates.iter().find(|one| one.metric == metric && one.aggregate == aggregate)?.interval
    }
}

impl Report {
    /// Tests with their names, such as the names of their files; equal names are numbered.
    pub fn new(named: impl IntoIterator<Item = (String, Results)>) -> Self {
        let mut tests: Vec<Test> = Vec::new();
        for (name, results) in named {
            let same =
                tests.iter().filter(|test| test.name == name || test.name.starts_with(&format!("{name} ("))).count();
            let name = if same == 0 { name } else { format!("{name} ({})", same + 1) };
            tests.push(Test { name, results });
        }
        Self { tests }
    }

    /// The tests.
    pub fn tests(&self) -> &[Test] {
        &self.tests
    }

    /// All runs of all tests, repetitions of a load one after another.
    pub fn runs(&self) -> impl Iterator<Item = Told<'_>> {
        let is_one_of_many = self.tests.len() > 1;
        self.tests.iter().enumerate().flat_map(move |(test_index, test)| {
            in_order(&test.results.runs).into_iter().map(move |run| Told { test, test_index, run, is_one_of_many })
        })
    }

    /// What the reader should know before trusting the numbers: each note once, with the names of the runs it is from; without names if
    /// it is from the only run.
    pub fn notes(&self) -> Vec<(String, String)> {
        let mut notes: Vec<(String, Vec<String>)> = Vec::new();
        for told in self.runs() {
            for note in &told.run.summary.notes {
                match notes.iter_mut().find(|(known, _)| known == note) {
                    Some((_, runs)) => runs.push(told.name()),
                    None => notes.push((note.clone(), vec![told.name()])),
                }
            }
        }
        let is_one = self.runs().count() == 1;
        let named = |(note, runs): (String, Vec<String>)| (note, if is_one { String::new() } else { runs.join("; ") });
        notes.into_iter().map(named).collect()
    }

    /// Forgets what happened to single requests; every number of the summaries stays.
    pub(crate) fn drop_rows(&mut self) {
        for run in self.tests.iter_mut().flat_map(|test| &mut test.results.runs) {
            (run.rows, run.dropped_us) = (Vec::new(), Vec::new());
        }
    }

    /// The kinds of load that occur.
    pub fn kinds(&self) -> Vec<LoadKind> {
        let mut kinds: Vec<LoadKind> = self.runs().filter_map(|told| Some(level(&told.run.case)?.0)).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    }
}

impl Test {
    /// The runs with a load of this kind, by ascending level.
    pub fn levels(&self, kind: LoadKind) -> Vec<Level<'_>> {
        let mut levels: Vec<Level<'_>> = Vec::new();
        for run in &self.results.runs {
            let Some((_, level)) = level(&run.case).filter(|(of, _)| *of == kind) else { continue };
            match levels.iter_mut().find(|known| known.level == level) {
                Some(known) => known.runs.push(run),
                None => {
                    let estimates = self.results.estimates.iter().find(|estimates| estimates.case == run.case);
                    let estimates = estimates.map_or(&[][..], |estimates| &estimates.estimates);
                    levels.push(Level { level, runs: vec![run], estimates });
                }
            }
        }
        levels.sort_by(|a, b| a.level.total_cmp(&b.level));
        levels
    }

    /// The model as the server names it.
    pub fn model(&self) -> &str {
        let server = &self.results.server;
        server.info.get("model_id").and_then(|id| id.as_str()).unwrap_or(&server.model)
    }
}

impl LoadKind {
    /// Name of the axis.
    pub fn name(self) -> &'static str {
        match self {
            LoadKind::Users => "users",
            LoadKind::Rate => "rate",
        }
    }

    /// Unit of the axis.
    pub fn unit(self) -> &'static str {
        match self {
            LoadKind::Users => "",
            LoadKind::Rate => "requests/s",
        }
    }
}

impl Told<'_> {
    /// Its load, and its test's name where there are several.
    pub fn name(&self) -> String {
        let mut name = if self.is_one_of_many { format!("{}: ", self.test.name) } else { String::new() };
        name.push_str(&run_name(self.run));
        name
    }

    /// The name as part of a file's name: letters, digits and dashes.
    pub fn slug(&self) -> String {
        let dashed: String = self
            .name()
            .chars()
            .map(|char| if char.is_ascii_alphanumeric() || char == '.' { char } else { '-' })
            .collect();
        dashed.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-")
    }
}

/// Runs in the order of their loads' first runs, repetitions one after another: they were measured in turns.
pub(crate) fn in_order(runs: &[RunResult]) -> Vec<&RunResult> {
    let mut ordered: Vec<&RunResult> = runs.iter().collect();
    ordered.sort_by_key(|run| runs.iter().position(|first| first.case == run.case));
    ordered
}

/// A run's load, and which repetition it is if it is not the first.
pub(crate) fn run_name(run: &RunResult) -> String {
    if run.repeat == 0 { run.case.to_string() } else { format!("{}, repeat {}", run.case, run.repeat + 1) }
}

/// Where a load stands among others; `None` if it changes in the run.
pub(crate) fn level(case: &Case) -> Option<(LoadKind, f64)> {
    let (_, level) = case.level()?;
    match case {
        Case::Closed { .. } => Some((LoadKind::Users, level)),
        Case::Open { .. } => Some((LoadKind::Rate, level)),
        Case::Waves(_) => None,
    }
}
