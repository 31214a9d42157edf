//! What a load test shall do: target, workload, load, limits. Printable, and stored with every result.

mod load;
mod target;
mod workload;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::BenchError;
pub use load::{Case, Load};
pub use target::{Api, Provider, TargetPlan, TensorRole};
pub use workload::{PromptMix, WorkloadPlan};

/// Most requests of one run: the start times and rows of a run are kept in memory.
pub const MAX_REQUESTS: u64 = 1_000_000;

/// Longest time in which a run may start requests. With it every instant of a run fits in a `u32` of milliseconds.
pub const MAX_DURATION: Duration = Duration::from_secs(24 * 3600);

/// Most virtual users, and most requests in flight: each may hold a connection.
pub const MAX_USERS: usize = 20_000;

/// What bounds one run. Both limits always hold; the first one reached ends it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Limits {
    /// No request starts after this time.
    #[serde(with = "seconds", rename = "duration_s")]
    pub duration: Duration,
    /// Number of requests, shared by all users, warm-up included.
    pub requests: u64,
    /// How long requests that still run at the end may go on before they are cut.
    #[serde(with = "seconds", rename = "grace_s")]
    pub grace: Duration,
}

/// A part of a run, at its beginning or its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Warmup {
    /// Requests intended to start within this time after the first.
    Time(#[serde(with = "seconds")] Duration),
    /// The first `n` requests.
    Requests(u64),
}

/// A whole load test.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BenchPlan {
    /// The server.
    pub target: TargetPlan,
    /// Prompts and answers.
    pub workload: WorkloadPlan,
    /// When requests start.
    pub load: Load,
    /// What ends a run.
    pub limits: Limits,
    /// Requests that are recorded but kept out of the summary, at the beginning.
    pub warmup: Warmup,
    /// The same at the end: requests intended to start in the last part of the load.
    #[serde(with = "seconds", rename = "cooldown_s")]
    pub cooldown: Duration,
}

impl BenchPlan {
    /// Refuses values that no run can have.
    pub fn check(&self) -> Result<(), BenchError> {
        let refuse = |text: String| Err(BenchError::Plan(text));
        self.target.check()?;
        let (limits, workload) = (&self.limits, &self.workload);
        if limits.requests == 0 || limits.requests > MAX_REQUESTS {
            return refuse(format!("requests must be in 1..={MAX_REQUESTS}, given {}", limits.requests));
        }
        if limits.duration.is_zero() || limits.duration > MAX_DURATION {
            return refuse(format!("duration must be in 1 ns..={MAX_DURATION:?}, given {:?}", limits.duration));
        }
        if limits.grace > MAX_DURATION {
            return refuse(format!("grace must be at most {MAX_DURATION:?}, given {:?}", limits.grace));
        }
        if workload.input_tokens == 0 || workload.output_tokens == 0 {
            return refuse("input tokens and output tokens must be at least 1, given 0".to_owned());
        }
        if let PromptMix::SharedPrefix(shared) = workload.prompts
            && shared >= workload.input_tokens
        {
            return refuse(format!(
                "shared prefix must be shorter than the prompt of {} tokens, given {shared}",
                workload.input_tokens
            ));
        }
        let excluded = match self.warmup {
            Warmup::Time(time) => time + self.cooldown,
            Warmup::Requests(n) if n >= limits.requests => {
                return refuse(format!("warm-up of {n} requests leaves none of {}", limits.requests));
            }
            Warmup::Requests(_) => self.cooldown,
        };
        if excluded >= limits.duration {
            return refuse(format!("warm-up and cool-down of {excluded:?} leave nothing of {:?}", limits.duration));
        }
        match &self.load {
            Load::Closed { users } => {
                if users.is_empty() {
                    return refuse("users must name at least one number".to_owned());
                }
                if let Some(bad) = users.iter().find(|&&n| n == 0 || n > MAX_USERS) {
                    return refuse(format!("users must be in 1..={MAX_USERS}, given {bad}"));
                }
            }
            Load::Open { rates, max_in_flight, .. } => {
                if rates.is_empty() {
                    return refuse("rate must name at least one number".to_owned());
                }
                if let Some(bad) = rates.iter().find(|&&rate| !(rate > 0.0 && rate <= 1e6)) {
                    return refuse(format!("rate must be above 0 and at most 1000000 per second, given {bad}"));
                }
                if *max_in_flight == 0 || *max_in_flight > MAX_USERS {
                    return refuse(format!("max in flight must be in 1..={MAX_USERS}, given {max_in_flight}"));
                }
            }
        }
        Ok(())
    }

    /// The single runs of the plan, in order.
    pub fn cases(&self) -> Vec<Case> {
        match &self.load {
            Load::Closed { users } => users.iter().map(|&users| Case::Closed { users }).collect(),
            &Load::Open { ref rates, arrival, max_in_flight, late_after } => {
                rates.iter().map(|&rate| Case::Open { rate, arrival, max_in_flight, late_after }).collect()
            }
        }
    }
}

/// Durations as seconds.
pub(crate) mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(value.as_secs_f64())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}
