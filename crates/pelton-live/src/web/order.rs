//! What the page asks for: the load of a run, checked field by field.

use std::time::Duration;

use pelton_bench::{Arrival, BenchPlan, Case, Load, MAX_DURATION, MAX_USERS, Users};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::ramp::Ramp;

/// Most requests per second.
const MAX_RATE: f64 = 1e6;

/// What the form begins with.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Form {
    /// Users of the closed loop; `None` if the plan is an open loop.
    pub users: Option<usize>,
    /// Requests per second of the open loop.
    pub rate: Option<f64>,
    /// Length of a run; `None` goes on until it is stopped.
    pub duration_s: Option<f64>,
}

/// Body of `POST /api/start`: either users, or a rate.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Start {
    users: Option<usize>,
    /// Users more per second until all are there; without it they come at once.
    spawn_rate: Option<f64>,
    rate: Option<f64>,
    arrival: Option<Arrival>,
    duration_s: Option<f64>,
}

/// Body of `POST /api/users`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Change {
    pub users: usize,
    pub spawn_rate: Option<f64>,
}

/// Why a body is refused: the field, and what is wrong with it.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Refusal {
    /// Empty if the body as a whole is meant.
    pub field: String,
    pub error: String,
}

impl Refusal {
    pub fn new(field: &str, error: impl Into<String>) -> Self {
        Self { field: field.to_owned(), error: error.into() }
    }
}

/// A checked load.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Order {
    load: Wanted,
    duration: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Wanted {
    Users { users: usize, spawn_rate: Option<f64> },
    Rate { rate: f64, arrival: Arrival },
}

/// Reads a body; what is wrong with it names its field.
pub(crate) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let field = error.path().to_string();
        let field = if field == "." { "" } else { &field };
        Refusal::new(field, error.inner().to_string())
    })?;
    json.end().map_err(|error| Refusal::new("", error.to_string()))?;
    Ok(value)
}

impl Start {
    /// Checks it.
    pub fn order(&self) -> Result<Order, Refusal> {
        let load = match (self.users, self.rate) {
            (Some(users), None) => {
                if self.arrival.is_some() {
                    return Err(Refusal::new(
                        "arrival",
                        "belongs to a rate: users start when their answer is complete",
                    ));
                }
                check_users(users, self.spawn_rate)?;
                Wanted::Users { users, spawn_rate: self.spawn_rate }
            }
            (None, Some(rate)) => {
                if self.spawn_rate.is_some() {
                    return Err(Refusal::new("spawn_rate", "belongs to users: a rate has none to spawn"));
                }
                if !(rate > 0.0 && rate <= MAX_RATE) {
                    return Err(Refusal::new("rate", format!("must be above 0 and at most {MAX_RATE}, given {rate}")));
                }
                Wanted::Rate { rate, arrival: self.arrival.unwrap_or(Arrival::Poisson) }
            }
            (Some(_), Some(_)) => return Err(Refusal::new("rate", "cannot be given together with users: choose one")),
            (None, None) => return Err(Refusal::new("users", "is missing: give users, or a rate")),
        };
        let duration = match self.duration_s {
            None => MAX_DURATION,
            Some(seconds) => Duration::try_from_secs_f64(seconds)
                .ok()
                .filter(|duration| !duration.is_zero() && *duration <= MAX_DURATION)
                .ok_or_else(|| {
                    let most = MAX_DURATION.as_secs();
                    Refusal::new("duration_s", format!("must be above 0 and at most {most}, given {seconds}"))
                })?,
        };
        Ok(Order { load, duration })
    }
}

impl Change {
    /// Checks it.
    pub fn check(&self) -> Result<(), Refusal> {
        check_users(self.users, self.spawn_rate)
    }
}

fn check_users(users: usize, spawn_rate: Option<f64>) -> Result<(), Refusal> {
    if users == 0 || users > MAX_USERS {
        return Err(Refusal::new("users", format!("must be in 1..={MAX_USERS}, given {users}")));
    }
    match spawn_rate {
        Some(rate) if !(rate > 0.0 && rate <= MAX_USERS as f64) => {
            Err(Refusal::new("spawn_rate", format!("must be above 0 and at most {MAX_USERS}, given {rate}")))
        }
        _ => Ok(()),
    }
}

impl Order {
    /// The plan with this load instead of its own.
    pub fn plan(&self, base: &BenchPlan) -> BenchPlan {
        let mut plan = base.clone();
        plan.limits.duration = self.duration;
        // Each start is one run.
        plan.goals.repeats = 1;
        plan.load = match self.load {
            Wanted::Users { users, spawn_rate } => steered(Ramp::first(users, spawn_rate)),
            Wanted::Rate { rate, arrival } => timed(base, rate, arrival),
        };
        plan
    }

    /// The way of the number of users; `None` where there are none.
    pub fn ramp(&self) -> Option<Ramp> {
        match self.load {
            Wanted::Users { users, spawn_rate } => Some(Ramp::start(users, spawn_rate)),
            Wanted::Rate { .. } => None,
        }
    }
}

/// Users whose number changes while they run.
fn steered(from: usize) -> Load {
    Load::from(Case::Closed { users: Users::Steered { from }, each: None })
}

/// Starts at a rate, bounded as in the plan.
fn timed(base: &BenchPlan, rate: f64, arrival: Arrival) -> Load {
    let bounds = base.load.cases.iter().find_map(|case| match case {
        Case::Open { bounds, .. } => Some(*bounds),
        Case::Closed { .. } | Case::Waves(_) => None,
    });
    Load::rates([rate], arrival, bounds.unwrap_or_default())
}

impl std::fmt::Display for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.load {
            Wanted::Users { users, spawn_rate: None } => write!(f, "{users} users")?,
            Wanted::Users { users, spawn_rate: Some(rate) } => write!(f, "{users} users, {rate} more each second")?,
            Wanted::Rate { rate, arrival } => write!(f, "{rate} requests/s {}", arrival.name())?,
        }
        match self.duration {
            MAX_DURATION => f.write_str(" until stopped"),
            duration => write!(f, " for {} s", duration.as_secs_f64()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str) -> Refusal {
        match read::<Start>(body.as_bytes()).and_then(|start| start.order()) {
            Err(refusal) => refusal,
            Ok(order) => panic!("{body}: {order:?}"),
        }
    }

    #[test]
    fn each_refusal_names_its_field() {
        for (body, field, word) in [
            ("{}", "users", "is missing"),
            ("[]", "", "struct Start"),
            ("nonsense", "", "expected"),
            (r#"{"users": 5} {}"#, "", "trailing"),
            (r#"{"users": "five"}"#, "users", "usize"),
            (r#"{"users": -5}"#, "users", "-5"),
            (r#"{"users": 0}"#, "users", "1..=20000"),
            (r#"{"users": 20001}"#, "users", "given 20001"),
            (r#"{"users": 1, "spawn_rate": 0}"#, "spawn_rate", "above 0"),
            (r#"{"users": 1, "rate": 2}"#, "rate", "choose one"),
            (r#"{"rate": 0}"#, "rate", "above 0"),
            (r#"{"rate": 1e9}"#, "rate", "at most"),
            (r#"{"rate": 1, "spawn_rate": 1}"#, "spawn_rate", "belongs to users"),
            (r#"{"users": 1, "arrival": "poisson"}"#, "arrival", "belongs to a rate"),
            (r#"{"rate": 1, "arrival": "often"}"#, "arrival", "often"),
            (r#"{"users": 1, "duration_s": 0}"#, "duration_s", "above 0"),
            (r#"{"users": 1, "duration_s": 1e300}"#, "duration_s", "86400"),
            (r#"{"users": 1, "host": "x"}"#, "host", "unknown field"),
        ] {
            let refusal = refused(body);
            assert_eq!(refusal.field, field, "{body}: {}", refusal.error);
            assert!(refusal.error.contains(word), "{body}: {}", refusal.error);
        }
    }

    #[test]
    fn without_a_duration_a_run_goes_on() {
        let order = read::<Start>(br#"{"users": 4}"#).expect("a body").order().expect("an order");
        assert_eq!(order.duration, MAX_DURATION);
    }
}
