//! Start times of the open loop, as data: known before the run, computed from the request's index, so that they cannot drift.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::plan::Limits;

/// How start times are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arrival {
    /// Request `n` starts at `n / rate`.
    Constant,
    /// Gaps are exponentially distributed with mean `1 / rate`, as from many independent clients.
    Poisson,
}

impl Arrival {
    /// The name typed for it.
    pub fn name(self) -> &'static str {
        match self {
            Arrival::Constant => "constant",
            Arrival::Poisson => "poisson",
        }
    }
}

/// Start times after the beginning of the run: ascending, at most `limits.requests`, all before `limits.duration`.
///
/// `rate`: requests per second, above 0. Equal seeds give equal times.
pub fn start_times(arrival: Arrival, rate: f64, seed: u64, limits: &Limits) -> Vec<Duration> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut sum = 0.0; // Of gaps with mean 1: dividing by the rate afterwards keeps the sum's rounding independent of it.
    (0..limits.requests)
        .map(|n| {
            let at = match arrival {
                Arrival::Constant => n as f64 / rate,
                Arrival::Poisson => sum / rate,
            };
            sum -= (1.0 - random.f64()).ln(); // `1 - f64()` is in (0, 1].
            at
        })
        .take_while(|&at| at < limits.duration.as_secs_f64())
        .map(Duration::from_secs_f64)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(duration_s: u64, requests: u64) -> Limits {
        Limits { duration: Duration::from_secs(duration_s), requests, grace: Duration::ZERO }
    }

    #[test]
    fn constant_starts_do_not_drift() {
        let times = start_times(Arrival::Constant, 300.0, 0, &limits(3600, 1_000_000));
        assert_eq!(times.len(), 1_000_000);
        for n in [1usize, 2, 299, 300, 299_999, 999_999] {
            let exact = Duration::from_nanos((n as u64 * 1_000_000_000).div_euclid(300));
            assert!(times[n].abs_diff(exact) < Duration::from_nanos(2), "start {n} is {:?}", times[n]);
        }
    }

    #[test]
    fn starts_end_with_the_time() {
        assert_eq!(start_times(Arrival::Constant, 10.0, 0, &limits(2, 1000)).len(), 20);
        assert!(start_times(Arrival::Poisson, 10.0, 0, &limits(2, 1000)).iter().all(|t| *t < Duration::from_secs(2)));
    }

    /// Exponential gaps have equal mean and deviation, and a share of `exp(-1)` is longer than the mean. Bounds are five standard errors.
    #[test]
    fn poisson_gaps_are_exponential() {
        let (rate, n) = (50.0, 200_000);
        let times = start_times(Arrival::Poisson, rate, 7, &limits(80_000, n + 1));
        let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64() * rate).collect();
        let n = gaps.len() as f64;
        let mean = gaps.iter().sum::<f64>() / n;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / n;
        let long = gaps.iter().filter(|&&gap| gap > 1.0).count() as f64 / n;
        assert!((mean - 1.0).abs() < 5.0 / n.sqrt(), "mean {mean}");
        assert!((variance - 1.0).abs() < 5.0 * (8.0 / n).sqrt(), "variance {variance}");
        let share = (-1.0f64).exp();
        assert!((long - share).abs() < 5.0 * (share * (1.0 - share) / n).sqrt(), "share above the mean {long}");
    }

    #[test]
    fn equal_seeds_give_equal_times() {
        let times = |seed| start_times(Arrival::Poisson, 5.0, seed, &limits(100, 100));
        assert_eq!(times(3), times(3));
        assert_ne!(times(3), times(4));
    }
}
