//! Targets that a run shall meet (service level objectives), and how they were met.
//!
//! A target judges a run by an aggregate of a metric: `ttft:p95<500ms`. It also judges each request, by the request's own value:
//!
//! - metrics with one value for each request (ttft, tpot, e2e, service-*, lateness, output-tokens): that value, whatever the aggregate;
//! - metrics with one value for each gap (itl, chunk-gap): the target's aggregate over the gaps of this request alone. An answer without
//!   gaps meets it;
//! - metrics of the whole run (rates, shares) judge no request.
//!
//! A request is *good* if its answer is complete and it meets every target that judges requests.

use serde::{Deserialize, Serialize};

use crate::metric::Metric;
use crate::stats::{Distribution, Summary};

/// Which number of a metric is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aggregate {
    /// Smallest.
    Min,
    /// Median.
    P50,
    /// 90 % are not above.
    P90,
    /// 95 % are not above.
    P95,
    /// 99 % are not above.
    P99,
    /// 99.9 % are not above.
    P999,
    /// Largest.
    Max,
    /// Arithmetic mean.
    Mean,
    /// The one value of a metric of the whole run.
    Value,
}

impl Aggregate {
    /// All of them.
    pub const ALL: [Aggregate; 9] = [
        Aggregate::Min,
        Aggregate::P50,
        Aggregate::P90,
        Aggregate::P95,
        Aggregate::P99,
        Aggregate::P999,
        Aggregate::Max,
        Aggregate::Mean,
        Aggregate::Value,
    ];

    /// The name typed for it.
    pub fn name(self) -> &'static str {
        match self {
            Aggregate::Min => "min",
            Aggregate::P50 => "p50",
            Aggregate::P90 => "p90",
            Aggregate::P95 => "p95",
            Aggregate::P99 => "p99",
            Aggregate::P999 => "p99.9",
            Aggregate::Max => "max",
            Aggregate::Mean => "mean",
            Aggregate::Value => "value",
        }
    }

    /// The quantile it is, if it is one.
    pub fn quantile(self) -> Option<f64> {
        match self {
            Aggregate::Min => Some(0.0),
            Aggregate::P50 => Some(0.5),
            Aggregate::P90 => Some(0.9),
            Aggregate::P95 => Some(0.95),
            Aggregate::P99 => Some(0.99),
            Aggregate::P999 => Some(0.999),
            Aggregate::Max => Some(1.0),
            Aggregate::Mean | Aggregate::Value => None,
        }
    }

    /// Its value in a distribution; `None` for [`Aggregate::Value`].
    pub fn of(self, values: &Distribution) -> Option<f64> {
        match self {
            Aggregate::Min => Some(values.min),
            Aggregate::P50 => Some(values.p50),
            Aggregate::P90 => Some(values.p90),
            Aggregate::P95 => Some(values.p95),
            Aggregate::P99 => Some(values.p99),
            Aggregate::P999 => Some(values.p999),
            Aggregate::Max => Some(values.max),
            Aggregate::Mean => Some(values.mean),
            Aggregate::Value => None,
        }
    }

    /// Its value of a metric in a run.
    pub fn in_run(self, metric: Metric, summary: &Summary) -> Option<f64> {
        match self {
            Aggregate::Value => metric.value(summary),
            _ => self.of(metric.distribution(summary)?),
        }
    }
}

impl std::str::FromStr for Aggregate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let alias = if text == "median" { "p50" } else { text };
        Aggregate::ALL.into_iter().find(|aggregate| aggregate.name() == alias).ok_or_else(|| {
            let names: Vec<&str> = Aggregate::ALL.iter().map(|aggregate| aggregate.name()).collect();
            format!("{text:?} is no aggregate; there are {}", names.join(", "))
        })
    }
}

/// How a value stands to its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operator {
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>`
    Greater,
    /// `>=`
    AtLeast,
}

impl Operator {
    /// As typed.
    pub fn sign(self) -> &'static str {
        match self {
            Operator::Less => "<",
            Operator::AtMost => "<=",
            Operator::Greater => ">",
            Operator::AtLeast => ">=",
        }
    }

    /// Whether `value` stands so to `limit`.
    pub fn holds(self, value: f64, limit: f64) -> bool {
        match self {
            Operator::Less => value < limit,
            Operator::AtMost => value <= limit,
            Operator::Greater => value > limit,
            Operator::AtLeast => value >= limit,
        }
    }
}

/// One target. Written and stored as `ttft:p95<500ms`, `itl:p99<=60ms`, `error-rate<1%`, `requests-per-second>10`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Slo {
    /// What is judged.
    pub metric: Metric,
    /// Which number of it.
    pub aggregate: Aggregate,
    /// How it shall stand to the limit.
    pub operator: Operator,
    /// In the metric's unit; shares are 0 to 1.
    pub limit: f64,
}

impl Slo {
    /// Whether it judges each request, see the module.
    pub fn judges_requests(&self) -> bool {
        self.metric.has_distribution()
    }

    /// Judges a run. A run without the value does not meet it.
    pub fn judge(&self, summary: &Summary) -> Verdict {
        let value = self.aggregate.in_run(self.metric, summary);
        Verdict { slo: *self, value, ok: value.is_some_and(|value| self.operator.holds(value, self.limit)) }
    }
}

impl std::fmt::Display for Slo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.metric.name())?;
        if self.aggregate != Aggregate::Value {
            write!(f, ":{}", self.aggregate.name())?;
        }
        f.write_str(self.operator.sign())?;
        match self.metric.unit() {
            "ms" => write!(f, "{}ms", self.limit),
            // Through a rounding, since 0.07 * 100 is not 7.
            "" => write!(f, "{}%", (self.limit * 1e8).round() / 1e6),
            _ => write!(f, "{}", self.limit),
        }
    }
}

impl std::str::FromStr for Slo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = |why: String| format!("target {text:?}: {why}; write for example ttft:p95<500ms or error-rate<1%");
        let at = text.find(['<', '>']).ok_or_else(|| refuse("there is neither < nor >".to_owned()))?;
        let (left, right) = text.split_at(at);
        let (operator, limit) = match right.as_bytes() {
            [b'<', b'=', ..] => (Operator::AtMost, &right[2..]),
            [b'>', b'=', ..] => (Operator::AtLeast, &right[2..]),
            [b'<', ..] => (Operator::Less, &right[1..]),
            _ => (Operator::Greater, &right[1..]),
        };
        let (metric, aggregate) = match left.split_once(':') {
            Some((metric, aggregate)) => (metric.trim(), Some(aggregate.trim())),
            None => (left.trim(), None),
        };
        let metric: Metric = metric.parse().map_err(&refuse)?;
        let aggregate = match aggregate {
            Some(aggregate) => aggregate.parse().map_err(&refuse)?,
            None if metric.has_distribution() => {
                return Err(refuse(format!("{} needs an aggregate, such as :p95", metric.name())));
            }
            None => Aggregate::Value,
        };
        if metric.has_distribution() == (aggregate == Aggregate::Value) {
            return Err(refuse(format!("{} has no {}", metric.name(), aggregate.name())));
        }
        let limit = parse_limit(limit.trim(), metric.unit()).map_err(refuse)?;
        Ok(Self { metric, aggregate, operator, limit })
    }
}

/// A number with a unit that fits; without one it is in the metric's own.
fn parse_limit(text: &str, unit: &str) -> Result<f64, String> {
    let at = text.find(|c: char| c == '%' || c.is_ascii_alphabetic() && c != 'e').unwrap_or(text.len());
    let (number, typed) = text.split_at(at);
    let number: f64 = number.trim().parse().map_err(|_| format!("limit {text:?} is not a number"))?;
    let factor = match (unit, typed.trim()) {
        (_, "") => 1.0,
        ("ms", "us") => 1e-3,
        ("ms", "ms") => 1.0,
        ("ms", "s") => 1e3,
        ("", "%") => 1e-2,
        (_, typed) => {
            return Err(format!(
                "unit {typed:?} does not fit a metric in {}",
                if unit.is_empty() { "%" } else { unit }
            ));
        }
    };
    if !number.is_finite() {
        return Err(format!("limit {text:?} is not a finite number"));
    }
    Ok(number * factor)
}

impl From<Slo> for String {
    fn from(slo: Slo) -> Self {
        slo.to_string()
    }
}

impl TryFrom<String> for Slo {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// How a run stands to one target.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The target.
    pub slo: Slo,
    /// What was measured; `None` if nothing was, which does not meet the target.
    pub value: Option<f64>,
    /// Whether the target is met.
    pub ok: bool,
}

/// What a server gave within the targets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Goodput {
    /// Good answers that became complete inside the measured window / its length.
    pub requests_per_s: f64,
    /// Good measured requests / (measured requests + starts dropped inside the window), 0 to 1. Failed requests are not good.
    pub attainment: f64,
    /// The same for each target that judges requests, taken alone.
    pub by_slo: Vec<Attained>,
}

/// How many requests met one target.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attained {
    /// The target.
    pub slo: Slo,
    /// Measured requests that met it / (measured requests + starts dropped inside the window), 0 to 1.
    pub share: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_and_written() {
        let read = [
            ("ttft:p95<500ms", Metric::Ttft, Aggregate::P95, Operator::Less, 500.0),
            ("itl:p99.9 <= 0.06s", Metric::Itl, Aggregate::P999, Operator::AtMost, 60.0),
            ("e2e:mean<2000", Metric::E2e, Aggregate::Mean, Operator::Less, 2000.0),
            ("lateness:median<250us", Metric::Lateness, Aggregate::P50, Operator::Less, 0.25),
            ("error-rate<1%", Metric::ErrorRate, Aggregate::Value, Operator::Less, 0.01),
            ("error-rate<=0", Metric::ErrorRate, Aggregate::Value, Operator::AtMost, 0.0),
            ("requests-per-second>1e2", Metric::RequestsPerSecond, Aggregate::Value, Operator::Greater, 100.0),
            ("attainment>=99.9%", Metric::Attainment, Aggregate::Value, Operator::AtLeast, 0.999),
        ];
        for (text, metric, aggregate, operator, limit) in read {
            let slo: Slo = text.parse().expect(text);
            assert_eq!((slo.metric, slo.aggregate, slo.operator), (metric, aggregate, operator), "{text}");
            assert!((slo.limit - limit).abs() < 1e-9, "{text}");
            assert_eq!(slo.to_string().parse::<Slo>().as_ref(), Ok(&slo), "{slo}");
        }
        assert_eq!("error-rate<7%".parse::<Slo>().map(|slo| slo.to_string()), Ok("error-rate<7%".to_owned()));
    }

    #[test]
    fn what_is_no_target_is_refused_with_an_example() {
        let refused = [
            ("ttft:p95", "neither < nor >"),
            ("ttft<500ms", "ttft needs an aggregate"),
            ("ttft:p12<500ms", "\"p12\" is no aggregate"),
            ("speed:p95<5", "\"speed\" is no metric"),
            ("error-rate:p95<1%", "error-rate has no p95"),
            ("ttft:p95<5%", "unit \"%\" does not fit a metric in ms"),
            ("error-rate<5ms", "unit \"ms\" does not fit a metric in %"),
            ("ttft:p95<fast", "is not a number"),
            ("ttft:p95<inf", "is not a"),
        ];
        for (text, words) in refused {
            let error = text.parse::<Slo>().expect_err(text);
            assert!(error.contains(words) && error.contains("ttft:p95<500ms"), "{text}: {error}");
        }
    }
}
