//! The highest load that meets the targets: growth until they are missed, bisection, confirmation.

use serde::{Deserialize, Serialize};

use crate::plan::SearchAxis;

/// What a search tried and found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Search {
    /// What was varied.
    pub axis: SearchAxis,
    /// The runs, in order.
    pub trials: Vec<Trial>,
    /// The levels, ascending, with what the majority of their runs says.
    pub levels: Vec<Level>,
    /// The highest level that was confirmed; `None` if there is none.
    pub answer: Option<f64>,
    /// Why it ended.
    pub end: SearchEnd,
}

/// One run of a search.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Users, or requests per second.
    pub level: f64,
    /// Index into [`Results::runs`](crate::results::Results::runs).
    pub run: usize,
    /// Why it was made.
    pub step: SearchStep,
    /// Whether all targets were met.
    pub ok: bool,
}

/// Why a run of a search was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SearchStep {
    /// Twice the level before, which met the targets.
    Growth,
    /// Between a level that met them and one that did not.
    Bisection,
    /// A level that was tried before, again.
    Confirmation,
}

/// What the runs of one level say together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Level {
    /// Users, or requests per second.
    pub level: f64,
    /// Runs that met all targets.
    pub met: u32,
    /// Runs that did not.
    pub missed: u32,
}

impl Level {
    /// Whether most runs met the targets.
    pub fn holds(&self) -> bool {
        self.met > self.missed
    }

    /// Whether the runs disagree: the answer lies within the noise.
    pub fn is_split(&self) -> bool {
        self.met > 0 && self.missed > 0
    }
}

/// Why a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SearchEnd {
    /// The answer is confirmed, and the next level that the wished precision tells apart misses the targets.
    Found,
    /// The highest level allowed meets them: the true answer may be higher.
    UpperBound,
    /// Not even the lowest level meets them.
    NoneMeets,
    /// So many runs were made as were allowed.
    Runs,
    /// The allowed time is over.
    Time,
    /// It was interrupted.
    Interrupted,
}
