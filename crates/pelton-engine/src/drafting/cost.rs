//! What a row more costs in a step, learnt from the steps that were computed.

use std::time::Duration;

/// Rows that cost as much as a step without rows, before anything was measured.
const FIRST_OVERHEAD_ROWS: f64 = 8.0;

/// Beyond this, rows count as free.
const MAX_OVERHEAD_ROWS: f64 = 256.0;

/// How much one step changes the estimate: the last hundred count.
const LEARNING_RATE: f64 = 0.01;

/// Variance of rows that the first guess counts for, in each step: where all steps have equally many rows, the slope returns to it.
const FIRST_VARIANCE: f64 = 0.1;

/// A step may seem that many times as long as expected; what is beyond was something else on the machine.
const MAX_SURPRISE: f64 = 2.0;

/// The line `seconds = fixed + slope * rows` through recent steps, by moving means (weighted least squares).
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepCost {
    mean_rows: f64,
    /// Zero before the first step.
    mean_seconds: f64,
    /// Of rows.
    variance: f64,
    /// Of rows and seconds.
    covariance: f64,
}

impl StepCost {
    pub(crate) fn new() -> Self {
        Self { mean_rows: 1.0, mean_seconds: 0.0, variance: FIRST_VARIANCE, covariance: 0.0 }
    }

    /// Learns from a step.
    pub(crate) fn observe(&mut self, num_rows: u32, took: Duration) {
        let (rows, mut seconds) = (f64::from(num_rows), took.as_secs_f64());
        if self.mean_seconds == 0.0 {
            self.mean_rows = rows;
            self.mean_seconds = seconds;
            self.covariance = self.first_slope() * self.variance;
            return;
        }
        let expected = self.mean_seconds + (rows - self.mean_rows) * self.covariance / self.variance;
        seconds = seconds.min(expected.max(self.mean_seconds) * MAX_SURPRISE);
        let (more_rows, more_seconds) = (rows - self.mean_rows, seconds - self.mean_seconds);
        self.mean_rows += LEARNING_RATE * more_rows;
        self.mean_seconds += LEARNING_RATE * more_seconds;
        let keep = 1.0 - LEARNING_RATE;
        self.variance = keep * (self.variance + LEARNING_RATE * more_rows * more_rows) + LEARNING_RATE * FIRST_VARIANCE;
        self.covariance = keep * (self.covariance + LEARNING_RATE * more_rows * more_seconds)
            + LEARNING_RATE * FIRST_VARIANCE * self.first_slope();
    }

    /// Rows that cost as much as a step costs beside its rows; not negative.
    pub(crate) fn overhead_rows(&self) -> f64 {
        if self.mean_seconds == 0.0 {
            return FIRST_OVERHEAD_ROWS;
        }
        let slope = self.covariance / self.variance;
        let least_slope = self.mean_seconds / (self.mean_rows + MAX_OVERHEAD_ROWS);
        (self.mean_seconds / slope.max(least_slope) - self.mean_rows).max(0.0)
    }

    /// What the first guess says of the steps as they are.
    fn first_slope(&self) -> f64 {
        self.mean_seconds / (FIRST_OVERHEAD_ROWS + self.mean_rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn the_line_is_found_and_followed() {
        let mut cost = StepCost::new();
        assert_eq!(cost.overhead_rows(), FIRST_OVERHEAD_ROWS);
        for (fixed, slope) in [(0.02, 0.0005), (0.001, 0.001), (0.0, 0.001)] {
            for step in 0..2000 {
                let rows = 1 + step % 7;
                cost.observe(rows, seconds(fixed + slope * f64::from(rows)));
            }
            let found = cost.overhead_rows();
            // The guess of the beginning still counts for a fortieth of this variance.
            let (low, high) = (0.85 * fixed / slope, 1.15 * fixed / slope + 0.3);
            assert!((low..high).contains(&found), "{found} for {}", fixed / slope);
        }
    }

    #[test]
    fn equal_steps_tell_nothing_and_the_first_guess_stays() {
        let mut cost = StepCost::new();
        for _ in 0..1000 {
            cost.observe(4, seconds(0.003));
        }
        assert!((cost.overhead_rows() - FIRST_OVERHEAD_ROWS).abs() < 0.01, "{}", cost.overhead_rows());
    }

    #[test]
    fn steps_of_no_time_and_steps_that_were_held_up_do_no_harm() {
        let mut cost = StepCost::new();
        cost.observe(3, Duration::ZERO);
        assert_eq!(cost.overhead_rows(), FIRST_OVERHEAD_ROWS);
        for step in 0..1000 {
            let rows = 1 + step % 7;
            let held_up = if step % 50 == 0 { 1.0 } else { 0.0 };
            cost.observe(rows, seconds(0.01 + 0.001 * f64::from(rows) + held_up));
        }
        assert!((4.0..25.0).contains(&cost.overhead_rows()), "{}", cost.overhead_rows());
    }
}
