//! Start times of the open loop, as data: known before the run, computed from the request's index, so that they cannot drift.
//!
//! One rule for all: start `n` happens when the integral of the rate reaches `s(n)`. The rate, constant or ramping, says how fast the
//! integral grows; the arrival says what `s` is, with one start per unit on average.

use std::time::Duration;

use rand_distr::{Distribution, Gamma};
use rand_pcg::Pcg64;
use rand_pcg::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use crate::plan::{Limits, Stage};

/// How start times are spread. `s(n)` is where start `n` lies, in units of one start.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arrival {
    /// `s(n) = n`: equal gaps.
    Constant,
    /// Gaps of `s` are exponential with mean 1, as from many independent clients.
    Poisson,
    /// Gaps of `s` have a gamma distribution with mean 1. Their deviation is `1 / sqrt(shape)`: 1 is Poisson, less is burstier, more is
    /// smoother. The same as burstiness of vLLM's bench.
    Gamma {
        /// Above 0.
        shape: f64,
    },
    /// `size` requests at once: `s(n) = n - n % size`.
    Burst {
        /// At least 1.
        size: u32,
    },
}

impl Arrival {
    /// The name typed for it.
    pub fn name(self) -> &'static str {
        match self {
            Arrival::Constant => "constant",
            Arrival::Poisson => "poisson",
            Arrival::Gamma { .. } => "gamma",
            Arrival::Burst { .. } => "burst",
        }
    }

    /// Says what no arrival can have.
    pub(crate) fn check(self) -> Result<(), String> {
        match self {
            // Below, nearly all gaps are 0 in floating point.
            Arrival::Gamma { shape } if !(1e-3..=1e6).contains(&shape) => {
                Err(format!("shape of gamma arrivals must be in 0.001..=1000000, given {shape}"))
            }
            Arrival::Burst { size: 0 } => Err("requests of a burst must be at least 1, given 0".to_owned()),
            _ => Ok(()),
        }
    }

    /// `s(0)`, `s(1)`, ... Equal seeds give equal numbers. `s(0)` is 0.
    fn units(self, seed: u64) -> impl Iterator<Item = f64> {
        let shape = match self {
            Arrival::Gamma { shape } => shape,
            _ => 1.0, // A gamma distribution of shape 1 is the exponential one.
        };
        // Plans are checked: the shape is positive and finite.
        let gaps = Gamma::new(shape, 1.0 / shape).ok();
        let mut random = Pcg64::seed_from_u64(seed);
        let mut sum = 0.0;
        (0u64..).map(move |n| match self {
            Arrival::Constant => n as f64,
            Arrival::Burst { size } => (n - n % u64::from(size.max(1))) as f64,
            Arrival::Poisson | Arrival::Gamma { .. } => {
                let at = sum;
                sum += gaps.map_or(1.0, |gaps| gaps.sample(&mut random));
                at
            }
        })
    }
}

impl std::fmt::Display for Arrival {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())?;
        match self {
            Arrival::Constant | Arrival::Poisson => Ok(()),
            Arrival::Gamma { shape } => write!(f, " {shape}"),
            Arrival::Burst { size } => write!(f, " of {size}"),
        }
    }
}

/// Start times after the beginning of the run: ascending, at most `limits.requests`, all before `limits.duration`.
///
/// `from`: requests per second, which hold until the end of the run unless `stages` change them. Equal seeds give equal times.
pub fn start_times(arrival: Arrival, from: f64, stages: &[Stage], seed: u64, limits: &Limits) -> Vec<Duration> {
    let mut ramp = Ramp::new(from, stages);
    arrival
        .units(seed)
        .take(limits.requests as usize) // At most `MAX_REQUESTS`.
        .map_while(|units| ramp.reaches(units))
        .take_while(|&at| at < limits.duration.as_secs_f64())
        .map(Duration::from_secs_f64)
        .collect()
}

/// Finds when the integral of a piecewise linear rate reaches ascending values.
struct Ramp<'a> {
    stages: &'a [Stage],
    /// Where the current piece begins: time in seconds, integral, rate.
    began_s: f64,
    sum: f64,
    rate: f64,
}

impl<'a> Ramp<'a> {
    fn new(rate: f64, stages: &'a [Stage]) -> Self {
        Self { stages, began_s: 0.0, sum: 0.0, rate }
    }

    /// Seconds after the beginning; `None` if it never gets there. Values must not descend.
    fn reaches(&mut self, value: f64) -> Option<f64> {
        while let Some((stage, rest)) = self.stages.split_first() {
            let length = stage.duration.as_secs_f64();
            let sum = self.sum + length * (self.rate + stage.target) / 2.0;
            if value < sum {
                let slope = (stage.target - self.rate) / length;
                let missing = value - self.sum;
                // The root of `rate t + slope t^2 / 2 = missing` in the form that does not cancel.
                let root = (self.rate * self.rate + 2.0 * slope * missing).max(0.0).sqrt();
                let after = if missing > 0.0 { 2.0 * missing / (self.rate + root) } else { 0.0 };
                return Some(self.began_s + after.min(length));
            }
            (self.began_s, self.sum, self.rate, self.stages) = (self.began_s + length, sum, stage.target, rest);
        }
        (self.rate > 0.0).then(|| self.began_s + (value - self.sum) / self.rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(duration_s: u64, requests: u64) -> Limits {
        Limits { duration: Duration::from_secs(duration_s), requests, grace: Duration::ZERO, at_least: Duration::ZERO }
    }

    fn stage(seconds: f64, target: f64) -> Stage {
        Stage { duration: Duration::from_secs_f64(seconds), target }
    }

    #[test]
    fn constant_starts_do_not_drift() {
        let times = start_times(Arrival::Constant, 300.0, &[], 0, &limits(3600, 1_000_000));
        assert_eq!(times.len(), 1_000_000);
        for n in [1usize, 2, 299, 300, 299_999, 999_999] {
            let exact = Duration::from_nanos((n as u64 * 1_000_000_000).div_euclid(300));
            assert!(times[n].abs_diff(exact) < Duration::from_nanos(2), "start {n} is {:?}", times[n]);
        }
    }

    #[test]
    fn starts_end_with_the_time() {
        assert_eq!(start_times(Arrival::Constant, 10.0, &[], 0, &limits(2, 1000)).len(), 20);
        let random = start_times(Arrival::Poisson, 10.0, &[], 0, &limits(2, 1000));
        assert!(random.iter().all(|t| *t < Duration::from_secs(2)));
    }

    #[test]
    fn bursts_start_together() {
        let times = start_times(Arrival::Burst { size: 3 }, 6.0, &[], 0, &limits(2, 7));
        let expected = [0, 0, 0, 500, 500, 500, 1000].map(Duration::from_millis);
        assert_eq!(times, expected);
    }

    /// From 0 to 10 per second in 10 s: the integral is `t^2 / 2`. Then a jump to 5 per second, held for 2 s, and nothing more.
    #[test]
    fn a_ramp_starts_as_many_as_its_integral() {
        let stages = [stage(10.0, 10.0), stage(0.0, 5.0), stage(2.0, 5.0), stage(0.0, 0.0)];
        let times = start_times(Arrival::Constant, 0.0, &stages, 0, &limits(100, 1000));
        assert_eq!(times.len(), 60);
        for (n, time) in times.iter().enumerate() {
            let n = n as f64;
            let expected = if n < 50.0 { (2.0 * n).sqrt() } else { 10.0 + (n - 50.0) / 5.0 };
            assert!((time.as_secs_f64() - expected).abs() < 1e-8, "start {n} at {time:?}, expected {expected}");
        }
    }

    #[test]
    fn a_falling_ramp_is_the_rising_one_turned_round() {
        let falling = start_times(Arrival::Constant, 10.0, &[stage(10.0, 0.0)], 0, &limits(100, 1000));
        assert_eq!(falling.len(), 50);
        for (n, time) in falling.iter().enumerate() {
            let expected = 10.0 - (2.0 * (50.0 - n as f64)).sqrt();
            assert!((time.as_secs_f64() - expected).abs() < 1e-7, "start {n} at {time:?}, expected {expected}");
        }
    }

    /// Gamma gaps of mean 1 have variance `1 / shape`. Bounds are five standard errors; the variance's own is estimated from the fourth
    /// moment, `3 + 6 / shape` for a gamma distribution.
    #[test]
    fn random_gaps_have_their_mean_and_variance() {
        let (rate, n) = (50.0, 100_000);
        for (arrival, shape) in
            [(Arrival::Poisson, 1.0), (Arrival::Gamma { shape: 0.25 }, 0.25), (Arrival::Gamma { shape: 4.0 }, 4.0)]
        {
            let times = start_times(arrival, rate, &[], 7, &limits(80_000, n + 1));
            let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64() * rate).collect();
            let n = gaps.len() as f64;
            let mean = gaps.iter().sum::<f64>() / n;
            let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / n;
            assert!((mean - 1.0).abs() < 5.0 / (shape * n).sqrt(), "{arrival}: mean {mean}");
            let error = ((2.0 + 6.0 / shape) / n).sqrt() / shape;
            assert!((variance - 1.0 / shape).abs() < 5.0 * error, "{arrival}: variance {variance}");
        }
    }

    /// A share of `exp(-1)` of exponential gaps is longer than their mean.
    #[test]
    fn poisson_gaps_are_exponential() {
        let times = start_times(Arrival::Poisson, 1.0, &[], 3, &limits(80_000, 50_001));
        let n = (times.len() - 1) as f64;
        let long = times.windows(2).filter(|pair| pair[1] - pair[0] > Duration::from_secs(1)).count() as f64 / n;
        let share = (-1.0f64).exp();
        assert!((long - share).abs() < 5.0 * (share * (1.0 - share) / n).sqrt(), "share above the mean {long}");
    }

    #[test]
    fn equal_seeds_give_equal_times() {
        let times = |seed| start_times(Arrival::Poisson, 5.0, &[], seed, &limits(100, 100));
        assert_eq!(times(3), times(3));
        assert_ne!(times(3), times(4));
    }
}
