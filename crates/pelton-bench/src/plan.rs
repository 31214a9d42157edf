//! What a load test shall do: target, workload, load, limits. Printable, and stored with every result.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::BenchError;
use crate::arrival::Arrival;

/// Most requests of one run: the start times and rows of a run are kept in memory.
pub const MAX_REQUESTS: u64 = 1_000_000;

/// Longest time in which a run may start requests. With it every instant of a run fits in a `u32` of milliseconds.
pub const MAX_DURATION: Duration = Duration::from_secs(24 * 3600);

/// Most virtual users, and most requests in flight: each may hold a connection.
pub const MAX_USERS: usize = 20_000;

/// The wire on which a server is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Api {
    /// Text Generation Inference: `/generate_stream` and `/generate`.
    Tgi,
    /// OpenAI `/v1/completions`.
    Openai,
    /// OpenAI `/v1/chat/completions`: the prompt is one user message.
    OpenaiChat,
}

impl Api {
    /// The name typed for it.
    pub fn name(self) -> &'static str {
        match self {
            Api::Tgi => "tgi",
            Api::Openai => "openai",
            Api::OpenaiChat => "openai-chat",
        }
    }
}

/// Where the server is and how it is spoken to.
#[derive(Clone, Debug, Serialize)]
pub struct TargetPlan {
    /// Base address, `http://host[:port][/prefix]`.
    pub url: String,
    /// `None` asks the server.
    pub api: Option<Api>,
    /// Model name of OpenAI requests; `None` takes the first that the server lists.
    pub model: Option<String>,
    /// Whether answers are asked for token by token. Without it there is no time to first token.
    pub stream: bool,
    /// Sent as `Authorization: Bearer`. Never stored.
    #[serde(skip)]
    pub api_key: Option<String>,
    /// Further request headers. Only their names are stored: values may be secrets.
    #[serde(serialize_with = "names_only")]
    pub headers: BTreeMap<String, String>,
    /// Merged into every request body, objects member by member.
    pub extra_body: serde_json::Map<String, serde_json::Value>,
    /// Longest time of one request, connecting included.
    #[serde(serialize_with = "seconds", rename = "timeout_s")]
    pub timeout: Duration,
}

/// How prompts of a run resemble each other, which decides whether the server's prefix cache can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromptMix {
    /// All differ from their beginning.
    Distinct,
    /// The first `n` tokens are the same, the rest differs.
    SharedPrefix(u32),
    /// All are the same text.
    Same,
}

/// What is asked for.
#[derive(Clone, Debug, Serialize)]
pub struct WorkloadPlan {
    /// Tokens of each prompt, as the server counts them.
    pub input_tokens: u32,
    /// Tokens of each answer.
    pub output_tokens: u32,
    /// How prompts resemble each other.
    pub prompts: PromptMix,
    /// Seed of prompts and of random arrivals: equal seeds give equal load.
    pub seed: u64,
    /// A `tokenizer.json`, or the directory that holds it. `None` asks the server to count.
    pub tokenizer: Option<PathBuf>,
}

/// When requests start.
#[derive(Clone, Debug, Serialize)]
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
        #[serde(serialize_with = "seconds", rename = "late_after_s")]
        late_after: Duration,
    },
}

/// What bounds one run. Both limits always hold; the first one reached ends it.
#[derive(Clone, Debug, Serialize)]
pub struct Limits {
    /// No request starts after this time.
    #[serde(serialize_with = "seconds", rename = "duration_s")]
    pub duration: Duration,
    /// Number of requests, shared by all users, warm-up included.
    pub requests: u64,
    /// How long requests that still run at the end may go on before they are cut.
    #[serde(serialize_with = "seconds", rename = "grace_s")]
    pub grace: Duration,
}

/// A part of a run, at its beginning or its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Warmup {
    /// Requests intended to start within this time after the first.
    Time(#[serde(serialize_with = "seconds")] Duration),
    /// The first `n` requests.
    Requests(u64),
}

/// A whole load test.
#[derive(Clone, Debug, Serialize)]
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
    #[serde(serialize_with = "seconds", rename = "cooldown_s")]
    pub cooldown: Duration,
}

impl BenchPlan {
    /// Refuses values that no run can have.
    pub fn check(&self) -> Result<(), BenchError> {
        let refuse = |text: String| Err(BenchError::Plan(text));
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
        if self.target.timeout.is_zero() || self.target.timeout > MAX_DURATION {
            return refuse(format!("timeout must be in 1 ns..={MAX_DURATION:?}, given {:?}", self.target.timeout));
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

/// The load of one run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
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
        #[serde(serialize_with = "seconds", rename = "late_after_s")]
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

pub(crate) fn seconds<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(value.as_secs_f64())
}

fn names_only<S: Serializer>(headers: &BTreeMap<String, String>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(headers.keys())
}
