//! When requests start.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{MAX_DURATION, MAX_USERS, seconds};
use crate::arrival::Arrival;

/// Most stages of one load.
pub const MAX_STAGES: usize = 1000;

/// Most waves of one load.
pub const MAX_WAVES: usize = 100_000;

/// Most requests per second.
pub const MAX_RATE: f64 = 1e6;

/// When requests start: one run for each case, one after another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Load {
    /// At least one.
    pub cases: Vec<Case>,
}

impl Load {
    /// Closed loop: a run for each number of users.
    pub fn users(numbers: impl IntoIterator<Item = usize>) -> Self {
        Self { cases: numbers.into_iter().map(Case::users).collect() }
    }

    /// Open loop: a run for each rate, in requests per second.
    pub fn rates(rates: impl IntoIterator<Item = f64>, arrival: Arrival, bounds: OpenBounds) -> Self {
        Self { cases: rates.into_iter().map(|rate| Case::rate(rate, arrival, bounds)).collect() }
    }

    /// The file whose times are replayed, if one is.
    pub fn trace(&self) -> Option<&Path> {
        self.cases.iter().find_map(|case| match case {
            Case::Open { starts: Starts::Trace { path, .. }, .. } => Some(path.as_path()),
            _ => None,
        })
    }
}

impl From<Case> for Load {
    fn from(case: Case) -> Self {
        Self { cases: vec![case] }
    }
}

/// The load of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Case {
    /// Virtual users that send their next request when the answer is complete.
    Closed {
        /// How many there are.
        users: Users,
        /// Requests of each user; `None` leaves only the number that all share (`Limits::requests`).
        each: Option<u64>,
    },
    /// Start times that do not depend on the server.
    Open {
        /// When.
        starts: Starts,
        /// What is dropped and what is late.
        bounds: OpenBounds,
    },
    /// So many requests at once; when all have ended, the next so many.
    Waves(Waves),
}

/// Requests that start together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Waves {
    /// Requests of each wave, in order.
    pub sizes: Vec<usize>,
    /// Between the end of a wave and the next.
    #[serde(with = "seconds", rename = "pause_s")]
    pub pause: Duration,
}

/// Bounds of an open loop.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenBounds {
    /// A start that finds this many requests running is dropped and counted.
    pub max_in_flight: usize,
    /// A request that starts later than this after its intended time is counted as late.
    #[serde(with = "seconds", rename = "late_after_s")]
    pub late_after: Duration,
}

impl Default for OpenBounds {
    fn default() -> Self {
        Self { max_in_flight: 1024, late_after: Duration::from_millis(10) }
    }
}

/// How many virtual users there are. Users beyond a falling number end after the request they have under way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Users {
    /// Always as many, unless a hand changes it ([`Control::set_users`](crate::watch::Control::set_users)), which is noted.
    Constant(usize),
    /// From `from` to the target of each stage in turn; after the last one its target holds.
    Ramping {
        /// Before the first stage.
        from: usize,
        /// In order.
        stages: Vec<Stage>,
    },
    /// As many as [`Control::set_users`](crate::watch::Control::set_users) says.
    Steered {
        /// Until it says something.
        from: usize,
    },
}

/// When requests of an open loop start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Starts {
    /// At one rate.
    Rate {
        /// Requests per second.
        rate: f64,
        /// How the start times are spread.
        arrival: Arrival,
    },
    /// At a rate that goes from `from` to the target of each stage in turn; after the last one its target holds.
    Ramping {
        /// Requests per second before the first stage.
        from: f64,
        /// In order; targets are requests per second.
        stages: Vec<Stage>,
        /// How the start times are spread.
        arrival: Arrival,
    },
    /// At the times of a recorded trace.
    Trace {
        /// JSON lines or CSV, as for [`Source::Trace`](crate::Source::Trace), which makes prompts of the recorded lengths.
        path: PathBuf,
        /// How many times faster than recorded.
        speed: f64,
    },
}

/// A part of a ramp: linear from where the one before ended. Without duration it jumps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// How long it takes.
    #[serde(with = "seconds", rename = "duration_s")]
    pub duration: Duration,
    /// Where it ends: users, or requests per second.
    pub target: f64,
}

impl Case {
    /// A closed loop of constantly many users.
    pub fn users(n: usize) -> Self {
        Case::Closed { users: Users::Constant(n), each: None }
    }

    /// An open loop of one rate, in requests per second.
    pub fn rate(rate: f64, arrival: Arrival, bounds: OpenBounds) -> Self {
        Case::Open { starts: Starts::Rate { rate, arrival }, bounds }
    }

    /// The one number that tells cases of a sweep apart, and its axis: `users` or `requests/s`. `None` where it changes in the run.
    pub fn level(&self) -> Option<(&'static str, f64)> {
        match self {
            Case::Closed { users: Users::Constant(n), .. } => Some(("users", *n as f64)),
            Case::Open { starts: Starts::Rate { rate, .. }, .. } => Some(("requests/s", *rate)),
            Case::Waves(waves) => waves.size().map(|size| ("requests at once", size as f64)),
            _ => None,
        }
    }

    /// Whether start times depend on the server.
    pub fn is_closed(&self) -> bool {
        matches!(self, Case::Closed { .. } | Case::Waves(_))
    }

    /// The bounds of an open loop.
    pub fn bounds(&self) -> Option<&OpenBounds> {
        match self {
            Case::Open { bounds, .. } => Some(bounds),
            Case::Closed { .. } | Case::Waves(_) => None,
        }
    }

    /// Most requests that can run at once.
    pub fn max_in_flight(&self) -> usize {
        match self {
            Case::Closed { users: Users::Constant(n), .. } => *n,
            Case::Closed { users: Users::Ramping { from, stages }, .. } => {
                stages.iter().map(|stage| stage.target as usize).fold(*from, usize::max)
            }
            // Nobody knows yet: what the hand may ask for is bounded by the system, and shows as failed connections.
            Case::Closed { users: Users::Steered { from }, .. } => *from,
            Case::Open { bounds, .. } => bounds.max_in_flight,
            Case::Waves(waves) => waves.sizes.iter().copied().max().unwrap_or(0),
        }
    }

    /// Time after which the load says nothing new: the end of its stages.
    pub fn stages_end(&self) -> Option<Duration> {
        match self {
            Case::Closed { users: Users::Ramping { stages, .. }, .. }
            | Case::Open { starts: Starts::Ramping { stages, .. }, .. } => {
                Some(stages.iter().map(|stage| stage.duration).sum())
            }
            _ => None,
        }
    }

    /// Says what no run can have.
    pub(super) fn check(&self) -> Result<(), String> {
        match self {
            Case::Closed { users, each } => {
                check_users(users)?;
                if *each == Some(0) {
                    return Err("requests of each user must be at least 1, given 0".to_owned());
                }
            }
            Case::Open { starts, bounds } => {
                check_starts(starts)?;
                if bounds.max_in_flight == 0 || bounds.max_in_flight > MAX_USERS {
                    return Err(format!("max in flight must be in 1..={MAX_USERS}, given {}", bounds.max_in_flight));
                }
            }
            Case::Waves(waves) => waves.check()?,
        }
        Ok(())
    }
}

impl Waves {
    /// The size that all waves have, if they have one.
    fn size(&self) -> Option<usize> {
        self.sizes.first().copied().filter(|first| self.sizes.iter().all(|size| size == first))
    }

    fn check(&self) -> Result<(), String> {
        if self.sizes.is_empty() || self.sizes.len() > MAX_WAVES {
            return Err(format!("waves must be 1..={MAX_WAVES}, given {}", self.sizes.len()));
        }
        if let Some(bad) = self.sizes.iter().find(|&&size| size == 0 || size > MAX_USERS) {
            return Err(format!("requests of a wave must be in 1..={MAX_USERS}, given {bad}"));
        }
        if self.pause > MAX_DURATION {
            return Err(format!("pause between waves must be at most {MAX_DURATION:?}, given {:?}", self.pause));
        }
        Ok(())
    }
}

fn check_users(users: &Users) -> Result<(), String> {
    let too_many = |n: usize| format!("users must be at most {MAX_USERS}, given {n}");
    match users {
        Users::Constant(0) => Err(format!("users must be in 1..={MAX_USERS}, given 0")),
        &Users::Constant(n) | &Users::Steered { from: n } if n > MAX_USERS => Err(too_many(n)),
        Users::Constant(_) | Users::Steered { .. } => Ok(()),
        &Users::Ramping { from, ref stages } => {
            check_stages(stages)?;
            if from > MAX_USERS {
                return Err(too_many(from));
            }
            let bad = stages.iter().find(|stage| stage.target.fract() != 0.0 || stage.target > MAX_USERS as f64);
            match bad {
                Some(stage) => {
                    let target = stage.target;
                    Err(format!(
                        "target of a stage must be a whole number of users, at most {MAX_USERS}, given {target}"
                    ))
                }
                None if from == 0 && stages.iter().all(|stage| stage.target == 0.0) => {
                    Err("stages never reach a single user".to_owned())
                }
                None => Ok(()),
            }
        }
    }
}

fn check_starts(starts: &Starts) -> Result<(), String> {
    match starts {
        &Starts::Rate { rate, arrival } => {
            if !(rate > 0.0 && rate <= MAX_RATE) {
                return Err(format!("rate must be above 0 and at most {MAX_RATE} per second, given {rate}"));
            }
            arrival.check()
        }
        &Starts::Ramping { from, ref stages, arrival } => {
            check_stages(stages)?;
            let mut rates = std::iter::once(from).chain(stages.iter().map(|stage| stage.target));
            if let Some(bad) = rates.clone().find(|rate| !(0.0..=MAX_RATE).contains(rate)) {
                return Err(format!("rate must be at most {MAX_RATE} per second, given {bad}"));
            }
            if rates.all(|rate| rate == 0.0) {
                return Err("stages never reach a rate above 0".to_owned());
            }
            arrival.check()
        }
        Starts::Trace { speed, .. } if !(*speed >= 1e-6 && *speed <= 1e6) => {
            Err(format!("speed of a trace must be in 0.000001..=1000000, given {speed}"))
        }
        Starts::Trace { .. } => Ok(()),
    }
}

fn check_stages(stages: &[Stage]) -> Result<(), String> {
    if stages.is_empty() || stages.len() > MAX_STAGES {
        return Err(format!("stages must be 1..={MAX_STAGES}, given {}", stages.len()));
    }
    if let Some(stage) = stages.iter().find(|stage| !(stage.target >= 0.0 && stage.target.is_finite())) {
        return Err(format!("target of a stage must be a number of at least 0, given {}", stage.target));
    }
    match stages.iter().find(|stage| stage.duration > MAX_DURATION) {
        Some(stage) => Err(format!("duration of a stage must be at most {MAX_DURATION:?}, given {:?}", stage.duration)),
        None => Ok(()),
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Case::Closed { users, each } => {
                match users {
                    Users::Constant(1) => f.write_str("1 user"),
                    Users::Constant(users) => write!(f, "{users} users"),
                    Users::Ramping { from, stages } => {
                        write!(f, "{from}")?;
                        ramp(f, stages)?;
                        f.write_str(" users")
                    }
                    Users::Steered { .. } => f.write_str("steered users"),
                }?;
                each.map_or(Ok(()), |each| write!(f, ", {each} requests each"))
            }
            Case::Open { starts, .. } => match starts {
                Starts::Rate { rate, arrival } => write!(f, "{rate} req/s {arrival}"),
                Starts::Ramping { from, stages, arrival } => {
                    write!(f, "{from}")?;
                    ramp(f, stages)?;
                    write!(f, " req/s {arrival}")
                }
                Starts::Trace { path, speed } => {
                    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
                    write!(f, "trace {name}")?;
                    if *speed == 1.0 { Ok(()) } else { write!(f, " {speed} times faster") }
                }
            },
            Case::Waves(waves) => match (waves.size(), &*waves.sizes) {
                (Some(size), sizes) => write!(f, "{} waves of {size}", sizes.len()),
                (None, [first, .., last]) => write!(f, "waves of {first} to {last}"),
                (None, _) => f.write_str("no waves"),
            },
        }
    }
}

/// Stages that fit in a heading.
const SHOWN_STAGES: usize = 4;

fn ramp(f: &mut std::fmt::Formatter<'_>, stages: &[Stage]) -> std::fmt::Result {
    for stage in stages.iter().take(SHOWN_STAGES) {
        write!(f, ">{}", stage.target)?;
    }
    if stages.len() > SHOWN_STAGES { f.write_str(">...") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(seconds: u64, target: f64) -> Stage {
        Stage { duration: Duration::from_secs(seconds), target }
    }

    #[test]
    fn cases_name_themselves() {
        let bounds = OpenBounds::default();
        let ramp = vec![stage(1, 10.0), stage(0, 3.0)];
        let texts = [
            Case::users(1),
            Case::Closed { users: Users::Constant(8), each: Some(5) },
            Case::Closed { users: Users::Ramping { from: 0, stages: ramp.clone() }, each: None },
            Case::rate(2.5, Arrival::Gamma { shape: 0.5 }, bounds),
            Case::Open { starts: Starts::Ramping { from: 1.0, stages: ramp, arrival: Arrival::Poisson }, bounds },
            Case::Open { starts: Starts::Trace { path: "/a/b.jsonl".into(), speed: 2.0 }, bounds },
        ]
        .map(|case| case.to_string());
        let expected = [
            "1 user",
            "8 users, 5 requests each",
            "0>10>3 users",
            "2.5 req/s gamma 0.5",
            "1>10>3 req/s poisson",
            "trace b.jsonl 2 times faster",
        ];
        assert_eq!(texts, expected);
    }

    #[test]
    fn impossible_cases_are_refused_with_limit_and_value() {
        let ramping =
            |from, target| Case::Closed { users: Users::Ramping { from, stages: vec![stage(1, target)] }, each: None };
        let rate = |rate| Case::rate(rate, Arrival::Poisson, OpenBounds::default());
        let refused = [
            (Case::users(0), "users must be in 1..=20000, given 0"),
            (Case::users(20_001), "users must be at most 20000, given 20001"),
            (ramping(1, 2.5), "whole number of users, at most 20000, given 2.5"),
            (ramping(0, 0.0), "never reach a single user"),
            (ramping(0, f64::NAN), "at least 0, given NaN"),
            (Case::Closed { users: Users::Constant(1), each: Some(0) }, "at least 1, given 0"),
            (rate(f64::NAN), "given NaN"),
            (rate(0.0), "given 0"),
            (Case::rate(1.0, Arrival::Gamma { shape: 0.0 }, OpenBounds::default()), "given 0"),
            (Case::rate(1.0, Arrival::Burst { size: 0 }, OpenBounds::default()), "given 0"),
        ];
        for (case, words) in refused {
            let text = case.check().expect_err("refused");
            assert!(text.contains(words), "{case}: {text}");
        }
        assert_eq!(ramping(0, 7.0).check(), Ok(()));
    }
}
