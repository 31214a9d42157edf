//! Flags that say when requests start, and what ends a run.

use std::time::Duration;

use clap::{Args, ValueEnum};
use pelton_bench::{Arrival, Limits, Load, MAX_REQUESTS, OpenBounds, Warmup};

use crate::args::duration::duration;

/// Bound in time of a run that is limited by its number of requests.
const DURATION_WITH_REQUESTS: Duration = Duration::from_secs(3600);

/// Length of a run that is not limited at all.
const DEFAULT_DURATION: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
#[command(next_help_heading = "Load")]
pub struct LoadArgs {
    /// Users of the closed loop. Several numbers (1,8,32) are several runs, one after another, with a table at the end.
    /// A user whose request failed waits 10 ms, doubling up to 1 s.
    #[arg(long, value_delimiter = ',', conflicts_with = "rate", default_value = "1")]
    pub users: Vec<usize>,

    /// Requests per second of the open loop. Several numbers are several runs.
    #[arg(long, value_delimiter = ',')]
    pub rate: Vec<f64>,

    /// How the start times of the open loop are spread: constant gaps, or poisson (random, as from many independent clients).
    #[arg(long, value_enum, requires = "rate", default_value = "poisson")]
    pub arrival: ArrivalArg,

    /// Requests that may run at once in the open loop. A start that finds as many running is dropped and counted; it bounds
    /// connections and memory when the server cannot keep up.
    #[arg(long, requires = "rate", default_value_t = 1024)]
    pub max_in_flight: usize,

    /// A request of the open loop that starts later than this after its time is counted as late.
    #[arg(long, requires = "rate", default_value = "10ms", value_parser = duration)]
    pub late_after: Duration,

    /// How long requests are started. Default: 30s; with --requests alone, as long as they need, at most 1h.
    #[arg(long, value_parser = duration)]
    pub duration: Option<Duration>,

    /// How many requests are started in all, warm-up included. With --duration, the limit that is reached first ends the run.
    #[arg(long)]
    pub requests: Option<u64>,

    /// How long requests that still run at the end may go on; then they are cut and counted.
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub grace: Duration,

    /// What at the beginning is kept out of the summary: a time (5s), or a number of requests (20). It stays in the rows.
    #[arg(long, default_value = "0", value_parser = warmup)]
    pub warmup: Warmup,

    /// What at the end of the load is kept out of the summary: requests due in this last time.
    #[arg(long, default_value = "0s", value_parser = duration)]
    pub cooldown: Duration,
}

impl LoadArgs {
    pub fn load(&self) -> Load {
        if self.rate.is_empty() {
            return Load::users(self.users.iter().copied());
        }
        let bounds = OpenBounds { max_in_flight: self.max_in_flight, late_after: self.late_after };
        Load::rates(self.rate.iter().copied(), self.arrival.into(), bounds)
    }

    pub fn limits(&self) -> Limits {
        let default_duration = if self.requests.is_some() { DURATION_WITH_REQUESTS } else { DEFAULT_DURATION };
        Limits {
            duration: self.duration.unwrap_or(default_duration),
            requests: self.requests.unwrap_or(MAX_REQUESTS),
            grace: self.grace,
            at_least: Duration::ZERO,
        }
    }
}

/// See [`Arrival`].
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ArrivalArg {
    /// Equal gaps
    Constant,
    /// Random gaps
    Poisson,
}

impl From<ArrivalArg> for Arrival {
    fn from(arrival: ArrivalArg) -> Self {
        match arrival {
            ArrivalArg::Constant => Arrival::Constant,
            ArrivalArg::Poisson => Arrival::Poisson,
        }
    }
}

/// A time, or a number of requests.
fn warmup(text: &str) -> Result<Warmup, String> {
    match text.parse() {
        Ok(requests) => Ok(Warmup::Requests(requests)),
        Err(_) => duration(text).map(Warmup::Time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_is_a_time_or_a_number_of_requests() {
        assert_eq!(warmup("5s"), Ok(Warmup::Time(Duration::from_secs(5))));
        assert_eq!(warmup("20"), Ok(Warmup::Requests(20)));
        assert!(warmup("some").is_err());
    }
}
