//! What a load test shall do: target, workload, load, limits. Printable, and stored with every result.

mod goals;
mod lengths;
mod load;
mod metrics;
mod scale;
mod target;
mod workload;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::BenchError;
pub use goals::{Goals, SearchAxis, SearchPlan};
pub use lengths::{Lengths, MAX_TOKENS, Shape};
pub use load::{Case, Load, OpenBounds, Stage, Starts, Users, Waves};
pub use metrics::{MIN_METRICS_INTERVAL, MetricsPlan, MetricsSource};
pub use scale::{KeepRows, Scale, Shard};
pub use target::{Api, Provider, TargetPlan, TensorRole};
pub use workload::{
    DEFAULT_INPUT_TOKENS, DEFAULT_OUTPUT_TOKENS, DatasetPlan, FilesPlan, Fim, MAX_PREFIX_GROUPS, MAX_TURNS, PromptMix,
    Source, ThinkTime, WorkloadPlan,
};

/// Most requests of one run: the start times and rows of a run are kept in memory.
pub const MAX_REQUESTS: u64 = 1_000_000;

/// Longest time in which a run may start requests. With it every instant of a run fits in a `u32` of milliseconds.
pub const MAX_DURATION: Duration = Duration::from_secs(24 * 3600);

/// Most virtual users, and most requests in flight: each may hold a connection.
pub const MAX_USERS: usize = 20_000;

/// What bounds one run. Both limits always hold; the first one reached ends it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// No request starts after this time.
    #[serde(with = "seconds", rename = "duration_s")]
    pub duration: Duration,
    /// Number of requests, shared by all users, warm-up included.
    pub requests: u64,
    /// The number of requests ends no closed loop before this time; [`MAX_REQUESTS`] does.
    #[serde(with = "seconds", rename = "at_least_s", default)]
    pub at_least: Duration,
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
    /// What the server tells of itself.
    #[serde(default)]
    pub metrics: MetricsPlan,
    /// When requests start.
    pub load: Load,
    /// What ends a run.
    pub limits: Limits,
    /// Requests that are recorded but kept out of the summary, at the beginning.
    pub warmup: Warmup,
    /// The same at the end: requests intended to start in the last part of the load.
    #[serde(with = "seconds", rename = "cooldown_s")]
    pub cooldown: Duration,
    /// Targets, repetitions, search.
    pub goals: Goals,
    /// This process's part of it, and what is kept.
    pub scale: Scale,
}

impl BenchPlan {
    /// Refuses values that no run can have.
    pub fn check(&self) -> Result<(), BenchError> {
        let refuse = |text: String| Err(BenchError::Plan(text));
        self.target.check()?;
        let limits = &self.limits;
        if limits.requests == 0 || limits.requests > MAX_REQUESTS {
            return refuse(format!("requests must be in 1..={MAX_REQUESTS}, given {}", limits.requests));
        }
        if limits.duration.is_zero() || limits.duration > MAX_DURATION {
            return refuse(format!("duration must be in 1 ns..={MAX_DURATION:?}, given {:?}", limits.duration));
        }
        if limits.grace > MAX_DURATION {
            return refuse(format!("grace must be at most {MAX_DURATION:?}, given {:?}", limits.grace));
        }
        self.workload.check().map_err(BenchError::Plan)?;
        self.metrics.check().map_err(BenchError::Plan)?;
        let excluded = match self.warmup {
            Warmup::Time(time) => time.saturating_add(self.cooldown),
            Warmup::Requests(n) if n >= limits.requests => {
                return refuse(format!("warm-up of {n} requests leaves none of {}", limits.requests));
            }
            Warmup::Requests(_) => self.cooldown,
        };
        if excluded >= limits.duration {
            return refuse(format!("warm-up and cool-down of {excluded:?} leave nothing of {:?}", limits.duration));
        }
        if self.load.cases.is_empty() {
            return refuse("the load must have at least one case".to_owned());
        }
        if self.scale.shard.is_some() {
            if self.goals.search.is_some() {
                return refuse("a search cannot be shared: each process would follow levels of its own".to_owned());
            }
            if self.load.cases.iter().any(|case| matches!(case, Case::Waves(_))) {
                return refuse("waves cannot be shared: each begins when the one before has ended".to_owned());
            }
        }
        let checks = self.load.cases.iter().map(Case::check).chain([self.goals.check(), self.scale.check()]);
        checks.collect::<Result<(), String>>().or_else(refuse)
    }
}

impl BenchPlan {
    /// Most requests of this process that can run at once.
    pub(crate) fn max_in_flight(&self) -> usize {
        let searched = self.goals.search.as_ref().map_or(0, |search| match search.axis {
            SearchAxis::Users => search.to as usize,
            SearchAxis::Rate => 0, // Bounded by the case.
        });
        let whole = self.load.cases.iter().map(Case::max_in_flight).fold(searched, usize::max);
        whole.div_ceil(self.scale.shard.unwrap_or(Shard::WHOLE).of as usize)
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
