//! What measuring cost, and whether the client rather than the server was the limit.

use serde::{Deserialize, Serialize};

use crate::executor::Run;

/// What measuring cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientCost {
    /// Share of one processor that the measuring thread used.
    pub busy: f64,
    /// Share of the time in which it could have run but waited for a processor.
    pub waiting: f64,
    /// Processors that all threads of the process used together, on average.
    pub process: f64,
    /// Processor time of the process for each event read, in microseconds.
    pub us_per_event: Option<f64>,
    /// Processor time of the process for each request, in microseconds.
    pub us_per_request: Option<f64>,
    /// Processor time of the process for each token that arrived, in microseconds.
    pub us_per_token: Option<f64>,
}

/// A way in which the client was the limit: the numbers say less about the server than they should.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientLimit {
    /// The measuring thread was busy for this share of the time, above 80 %.
    Busy(f64),
    /// The measuring thread waited for a processor for this share of the time, above 5 %.
    Waiting(f64),
    /// This share of the measured starts came later than the plan allows, above 1 %.
    Late(f64),
}

/// Above this share of a processor the client's own queue shows in the latencies: at 80 % a single server queues four of its own
/// service times on average.
const BUSY_LIMIT: f64 = 0.8;

/// Above this share of waiting the machine has too few processors for client and server together.
const WAITING_LIMIT: f64 = 0.05;

/// Above this share of late starts the 99th percentile is the client's.
const LATE_LIMIT: f64 = 0.01;

impl ClientLimit {
    /// How bad it is, 0 to 1.
    pub fn share(self) -> f64 {
        match self {
            ClientLimit::Busy(share) | ClientLimit::Waiting(share) | ClientLimit::Late(share) => share,
        }
    }
}

impl std::fmt::Display for ClientLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ClientLimit::Busy(share) => {
                write!(f, "the client was the limit: its thread was busy {:.0} % of the time; ", 100.0 * share)?;
                f.write_str("share the load among several processes (--shard)")
            }
            ClientLimit::Waiting(share) => {
                write!(f, "the client waited for a processor {:.0} % of the time, ", 100.0 * share)?;
                f.write_str("which adds to the latencies: give it a core of its own")
            }
            ClientLimit::Late(share) => {
                write!(f, "the client was the limit: {:.1} % of the requests started late; ", 100.0 * share)?;
                f.write_str("share the load among several processes (--shard), or lower the rate")
            }
        }
    }
}

/// What the run cost; `None` where the system does not tell.
pub(super) fn cost(run: &Run) -> Option<ClientCost> {
    let time = run.client?;
    let wall = run.wall.as_secs_f64();
    let arrivals = || run.rows.iter().flat_map(|row| &row.arrivals);
    let events: u64 = arrivals().map(|arrival| u64::from(arrival.events)).sum();
    let tokens: u64 = arrivals().map(|arrival| u64::from(arrival.tokens)).sum();
    let us_per = |n: u64| (n > 0).then(|| time.process.as_secs_f64() * 1e6 / n as f64);
    Some(ClientCost {
        busy: time.ran.as_secs_f64() / wall,
        waiting: time.waited.as_secs_f64() / wall,
        process: time.process.as_secs_f64() / wall,
        us_per_event: us_per(events),
        us_per_request: us_per(run.rows.len() as u64),
        us_per_token: us_per(tokens),
    })
}

/// In which ways the client was the limit, `late` of `due` measured starts having been late.
pub(super) fn limits(cost: Option<&ClientCost>, late: u64, due: usize) -> Vec<ClientLimit> {
    let late = late as f64 / due.max(1) as f64;
    let busy = cost.map_or(0.0, |cost| cost.busy);
    let waiting = cost.map_or(0.0, |cost| cost.waiting);
    let found = [
        (busy > BUSY_LIMIT).then_some(ClientLimit::Busy(busy)),
        (waiting > WAITING_LIMIT).then_some(ClientLimit::Waiting(waiting)),
        (late > LATE_LIMIT).then_some(ClientLimit::Late(late)),
    ];
    found.into_iter().flatten().collect()
}
