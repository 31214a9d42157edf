//! What a test shall find out beside its numbers: targets met, the highest load that meets them, how much repetition.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{MAX_DURATION, MAX_USERS, load::MAX_RATE, seconds};
use crate::slo::Slo;

/// Most repetitions of each case.
pub const MAX_REPEATS: u32 = 1000;

/// Most runs of a search.
pub const MAX_SEARCH_RUNS: u32 = 1000;

/// What a test shall find out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Goals {
    /// Targets; each run is judged by them.
    pub slos: Vec<Slo>,
    /// Runs of each case. The first repetition of all cases comes before the second of any, so that drift hits all alike.
    pub repeats: u32,
    /// The highest load that meets the targets, instead of the plan's cases.
    pub search: Option<SearchPlan>,
}

impl Default for Goals {
    fn default() -> Self {
        Self { slos: Vec::new(), repeats: 1, search: None }
    }
}

/// What a search varies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SearchAxis {
    /// Virtual users of a closed loop; whole numbers.
    Users,
    /// Requests per second of an open loop, with the arrival and the bounds of the plan's first case.
    Rate,
}

/// Bounds of a search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SearchPlan {
    /// What is varied.
    pub axis: SearchAxis,
    /// The first level tried.
    pub from: f64,
    /// The highest level tried.
    pub to: f64,
    /// The answer and the next level that misses the targets lie at most this share apart (whole users: at least 1).
    pub precision: f64,
    /// Runs of a level that must meet the targets before it is believed. More than half of its runs decide where they disagree.
    pub confirm: u32,
    /// Most runs.
    pub max_runs: u32,
    /// No run begins after this time.
    #[serde(with = "seconds", rename = "max_time_s")]
    pub max_time: Duration,
}

impl Goals {
    /// Says what no test can have.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.repeats == 0 || self.repeats > MAX_REPEATS {
            return Err(format!("repeats must be in 1..={MAX_REPEATS}, given {}", self.repeats));
        }
        let Some(search) = &self.search else { return Ok(()) };
        if self.slos.is_empty() {
            return Err("a search needs a target: add for example --slo 'ttft:p95<500ms'".to_owned());
        }
        if self.repeats != 1 {
            return Err(format!("a search repeats levels itself: leave repeats at 1, given {}", self.repeats));
        }
        let highest = match search.axis {
            SearchAxis::Users => MAX_USERS as f64,
            SearchAxis::Rate => MAX_RATE,
        };
        if !(search.from > 0.0 && search.from <= search.to && search.to <= highest) {
            return Err(format!(
                "bounds of a search must be above 0, ascending and at most {highest}, given {} to {}",
                search.from, search.to
            ));
        }
        if search.axis == SearchAxis::Users && (search.from.fract() != 0.0 || search.to.fract() != 0.0) {
            return Err(format!("bounds of users must be whole numbers, given {} to {}", search.from, search.to));
        }
        if !(search.precision > 0.0 && search.precision <= 1.0) {
            return Err(format!("precision of a search must be above 0 and at most 1, given {}", search.precision));
        }
        if search.confirm == 0 || search.confirm > 100 {
            return Err(format!("confirming runs must be in 1..=100, given {}", search.confirm));
        }
        if search.max_runs == 0 || search.max_runs > MAX_SEARCH_RUNS {
            return Err(format!("runs of a search must be in 1..={MAX_SEARCH_RUNS}, given {}", search.max_runs));
        }
        if search.max_time.is_zero() || search.max_time > MAX_DURATION {
            return Err(format!("time of a search must be in 1 ns..={MAX_DURATION:?}, given {:?}", search.max_time));
        }
        Ok(())
    }
}
