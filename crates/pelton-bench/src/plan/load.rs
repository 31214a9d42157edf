//! When requests start.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::seconds;
use crate::arrival::Arrival;

/// When requests start.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// Virtual users that send their next request when the answer is complete. Several numbers are several runs, one after another.
    Closed {
        /// Virtual users of each run.
        users: Vec<usize>,
    },
    /// Start times that do not depend on the server.
    Open {
        /// Requests per second. Several numbers are several runs, one after another.
        rates: Vec<f64>,
        /// How the start times are spread.
        arrival: Arrival,
        /// A start that finds this many requests running is dropped and counted.
        max_in_flight: usize,
        /// A request that starts later than this after its intended time is counted as late.
        #[serde(with = "seconds", rename = "late_after_s")]
        late_after: Duration,
    },
}

/// The load of one run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Case {
    /// See [`Load::Closed`].
    Closed {
        /// Virtual users.
        users: usize,
    },
    /// See [`Load::Open`].
    Open {
        /// Requests per second.
        rate: f64,
        /// How the start times are spread.
        arrival: Arrival,
        /// A start that finds this many requests running is dropped.
        max_in_flight: usize,
        /// A start later than this is counted as late.
        #[serde(with = "seconds", rename = "late_after_s")]
        late_after: Duration,
    },
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Case::Closed { users: 1 } => write!(f, "1 user"),
            Case::Closed { users } => write!(f, "{users} users"),
            Case::Open { rate, arrival, .. } => write!(f, "{rate} req/s {}", arrival.name()),
        }
    }
}
