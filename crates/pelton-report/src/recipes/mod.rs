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

use std::time::Duration;

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
