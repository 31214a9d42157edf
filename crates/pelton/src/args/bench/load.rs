//! Flags that say when requests start, and what ends a run.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, ValueEnum};
use pelton_bench::{Arrival, Case, Limits, Load, MAX_REQUESTS, OpenBounds, Stage, Starts, Users, Warmup};

use crate::args::duration::duration;

/// Bound in time of a run that is limited by its number of requests.
const DURATION_WITH_REQUESTS: Duration = Duration::from_secs(3600);

/// Length of a run that is not limited at all.
const DEFAULT_DURATION: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
#[command(next_help_heading = "Load", group = ArgGroup::new("open loop").args(["rate", "replay", "search"]).multiple(true))]
pub struct LoadArgs {
    /// Users of the closed loop. Several numbers (1,8,32) are several runs, one after another, with a table at the end.
    /// A user whose request failed waits 10 ms, doubling up to 1 s. With --stages the number to begin with, which may be 0.
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["rate", "replay"], default_value = "1")]
    pub users: Vec<usize>,

    /// Requests per second of the open loop. Several numbers are several runs. With --stages the rate to begin with.
    #[arg(long, value_delimiter = ',', conflicts_with = "replay")]
    pub rate: Vec<f64>,

    /// Lets users or rate change while it runs: comma-separated DURATION:TARGET. From where it stands it goes to each target in turn,
    /// linearly; 0s jumps. `--users 0 --stages 30s:50,2m:50,10s:0` adds 50 users in half a minute, holds them, lets them go. Users
    /// that are too many end after the request they have under way. Without --duration the run ends with the last stage.
    #[arg(long, value_name = "STAGES", value_delimiter = ',', value_parser = stage, conflicts_with = "replay")]
    pub stages: Vec<Stage>,

    /// Requests of each user; with --requests, whichever is reached first. Users that are done leave the others alone at the end, so
    /// the load falls there.
    #[arg(long, value_name = "N", conflicts_with_all = ["rate", "replay"])]
    pub requests_per_user: Option<u64>,

    /// How the start times of the open loop are spread around the rate: constant (equal gaps), poisson (random, as from many
    /// independent clients), gamma (random, burstier or smoother by --burstiness), burst (--burst requests at once).
    /// Default: what --burstiness or --burst mean, else poisson.
    #[arg(long, value_enum, requires = "open loop")]
    pub arrival: Option<ArrivalArg>,

    /// Shape of gamma arrivals, as vLLM's bench has it: 1 is poisson, 0.25 has gaps that spread twice as far, 4 half as far.
    #[arg(
        long,
        value_name = "SHAPE",
        requires = "open loop",
        required_if_eq("arrival", "gamma"),
        conflicts_with = "burst"
    )]
    pub burstiness: Option<f64>,

    /// Requests of a burst: 10 at --rate 5 are 10 at once every 2 s.
    #[arg(long, value_name = "N", requires = "open loop", required_if_eq("arrival", "burst"))]
    pub burst: Option<u32>,

    /// Starts requests at the times of a recorded trace: JSON lines with timestamp (ms), input_length, output_length, hash_ids
    /// (Mooncake), or CSV with columns for time, prompt tokens and answer tokens. Unless prompts come from elsewhere, they get the
    /// recorded lengths, and equal blocks where the trace has equal ids.
    #[arg(long, value_name = "FILE")]
    pub replay: Option<PathBuf>,

    /// Plays the trace so many times faster than it was recorded.
    #[arg(long, value_name = "FACTOR", requires = "replay", default_value_t = 1.0)]
    pub replay_speed: f64,

    /// Requests that may run at once in the open loop; of conversations, conversations, pauses between their messages included. A start
    /// that finds as many running is dropped and counted; it bounds connections and memory when the server cannot keep up.
    #[arg(long, requires = "open loop", default_value_t = 1024)]
    pub max_in_flight: usize,

    /// A request of the open loop that starts later than this after its time is counted as late.
    #[arg(long, requires = "open loop", default_value = "10ms", value_parser = duration)]
    pub late_after: Duration,

    /// How long requests are started. Default: 30s; with stages, as long as they take; with a number of requests or a trace alone, as
    /// long as they need, at most 1h.
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
        let bounds = OpenBounds { max_in_flight: self.max_in_flight, late_after: self.late_after };
        let arrival = self.arrival();
        if let Some(path) = self.replay.clone() {
            return Case::Open { starts: Starts::Trace { path, speed: self.replay_speed }, bounds }.into();
        }
        let stages = &self.stages;
        let users = |&from: &usize| match stages.is_empty() {
            true => Case::Closed { users: Users::Constant(from), each: self.requests_per_user },
            false => {
                let users = Users::Ramping { from, stages: stages.clone() };
                Case::Closed { users, each: self.requests_per_user }
            }
        };
        let rate = |&from: &f64| match stages.is_empty() {
            true => Case::rate(from, arrival, bounds),
            false => Case::Open { starts: Starts::Ramping { from, stages: stages.clone(), arrival }, bounds },
        };
        let cases = if self.rate.is_empty() {
            self.users.iter().map(users).collect()
        } else {
            self.rate.iter().map(rate).collect()
        };
        Load { cases }
    }

    /// What a search for the highest rate varies.
    pub fn rate_of_search(&self, from: f64) -> Load {
        let bounds = OpenBounds { max_in_flight: self.max_in_flight, late_after: self.late_after };
        Case::rate(from, self.arrival(), bounds).into()
    }

    /// Refuses flags that contradict each other by their values.
    pub fn check(&self) -> Result<(), String> {
        for (flag, is_given, wanted) in [
            ("--burstiness", self.burstiness.is_some(), ArrivalArg::Gamma),
            ("--burst", self.burst.is_some(), ArrivalArg::Burst),
        ] {
            if let Some(arrival) = self.arrival.filter(|&arrival| is_given && arrival != wanted) {
                return Err(format!(
                    "{flag} says something of --arrival {wanted}, not of --arrival {arrival}: leave one of them out"
                ));
            }
        }
        Ok(())
    }

    fn arrival(&self) -> Arrival {
        match (self.arrival, self.burstiness, self.burst) {
            (Some(ArrivalArg::Constant), ..) => Arrival::Constant,
            // The parser requires the values.
            (Some(ArrivalArg::Gamma), shape, _) => Arrival::Gamma { shape: shape.unwrap_or(1.0) },
            (Some(ArrivalArg::Burst), _, size) => Arrival::Burst { size: size.unwrap_or(1) },
            (None, Some(shape), _) => Arrival::Gamma { shape },
            (None, _, Some(size)) => Arrival::Burst { size },
            (Some(ArrivalArg::Poisson) | None, ..) => Arrival::Poisson,
        }
    }

    pub fn limits(&self) -> Limits {
        let is_counted = self.requests.is_some() || self.requests_per_user.is_some() || self.replay.is_some();
        // What is too long is refused with the plan.
        let stages = self.stages.iter().fold(Duration::ZERO, |sum, stage| sum.saturating_add(stage.duration));
        let default_duration = match stages {
            Duration::ZERO if is_counted => DURATION_WITH_REQUESTS,
            Duration::ZERO => DEFAULT_DURATION,
            stages => stages,
        };
        Limits {
            duration: self.duration.unwrap_or(default_duration),
            requests: self.requests.unwrap_or(MAX_REQUESTS),
            grace: self.grace,
            at_least: Duration::ZERO,
        }
    }
}

/// See [`Arrival`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ArrivalArg {
    /// Equal gaps
    Constant,
    /// Random gaps
    Poisson,
    /// Random gaps of another spread
    Gamma,
    /// Several at once
    Burst,
}

impl std::fmt::Display for ArrivalArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // None of them is hidden.
        self.to_possible_value().map_or(Ok(()), |value| f.write_str(value.get_name()))
    }
}

/// `30s:100`.
fn stage(text: &str) -> Result<Stage, String> {
    let (length, target) =
        text.split_once(':').ok_or_else(|| format!("{text:?} is not DURATION:TARGET, such as 30s:100"))?;
    let target = target.trim().parse().map_err(|_| format!("{target:?} is not a number"))?;
    let duration = if length.trim() == "0" { Duration::ZERO } else { duration(length.trim())? };
    Ok(Stage { duration, target })
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

    #[test]
    fn stages_are_durations_and_targets() {
        let stages = ["30s:100", "0:5", "500ms:2.5"].map(|text| stage(text).expect(text));
        let seconds = stages.map(|stage| (stage.duration.as_secs_f64(), stage.target));
        assert_eq!(seconds, [(30.0, 100.0), (0.0, 5.0), (0.5, 2.5)]);
        for bad in ["30s", "30:5", "30s:many"] {
            assert!(stage(bad).is_err(), "{bad}");
        }
    }
}
