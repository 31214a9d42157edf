//! The reports that people of this field know, made again: each file plans the load tests of one, and prints its tables.
//!
//! A recipe measures nothing and knows no server: its plans are run like any other, and its tables are computed from stored results.
//! Where the original's formula differs from ours, both are printed, each by its name. Figures that the originals published stand beside,
//! with the machine they were taken on.

pub mod card;
pub mod engine;
pub mod lengths;
pub mod llm_bench;
mod table;
pub mod vus;

use std::collections::BTreeMap;
use std::time::Duration;

use pelton_bench::results::Results;
use pelton_bench::{
    BenchPlan, Goals, Limits, Load, MAX_REQUESTS, MetricsPlan, Scale, TargetPlan, Warmup, WorkloadPlan,
};

pub use table::Table;

/// How long requests that run at the end of a run may go on.
const GRACE: Duration = Duration::from_secs(30);

/// A load test of so long, nothing left out.
fn test(target: TargetPlan, workload: WorkloadPlan, load: Load, duration: Duration) -> BenchPlan {
    BenchPlan {
        target,
        workload,
        metrics: MetricsPlan::default(),
        load,
        limits: Limits { duration, requests: MAX_REQUESTS, grace: GRACE, at_least: Duration::ZERO },
        warmup: Warmup::Requests(0),
        cooldown: Duration::ZERO,
        goals: Goals::default(),
        scale: Scale::default(),
    }
}

/// What the reader should know of these runs: each note once, of the first run that has it, with the number of others that have it too.
pub fn notes<'a>(measured: impl IntoIterator<Item = &'a Results>) -> Vec<String> {
    // Equal but for their numbers: the same note.
    let kind = |note: &str| note.chars().filter(|c| !c.is_ascii_digit() && *c != '.').collect::<String>();
    let mut found: Vec<(String, String)> = Vec::new();
    let mut others: BTreeMap<String, usize> = BTreeMap::new();
    for run in measured.into_iter().flat_map(|results| &results.runs) {
        for note in &run.summary.notes {
            let kind = kind(note);
            match others.get_mut(&kind) {
                Some(others) => *others += 1,
                None => {
                    found.push((format!("{}: {note}", run.case), kind.clone()));
                    others.insert(kind, 0);
                }
            }
        }
    }
    let told = |(note, kind): (String, String)| match others.get(&kind) {
        None | Some(0) => note,
        Some(1) => format!("{note} (and so in another run)"),
        Some(others) => format!("{note} (and so in {others} other runs)"),
    };
    found.into_iter().map(told).collect()
}
