//! The way from one number of users to another.

use std::time::Duration;

/// Changes evenly, from a number to a number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ramp {
    from: usize,
    to: usize,
    /// Users per second; `None` changes at once.
    per_second: Option<f64>,
}

impl Ramp {
    /// Of a run that begins.
    pub fn start(to: usize, per_second: Option<f64>) -> Self {
        Self { from: Self::first(to, per_second), to, per_second }
    }

    /// Of a run that goes on.
    pub fn change(from: usize, to: usize, per_second: Option<f64>) -> Self {
        Self { from, to, per_second }
    }

    /// Users that a run begins with: those of its first second, as a run needs at least one.
    pub fn first(to: usize, per_second: Option<f64>) -> usize {
        per_second.map_or(to, |rate| (rate.ceil() as usize).clamp(1, to.max(1)))
    }

    /// Users after a time.
    pub fn at(&self, passed: Duration) -> usize {
        let Some(rate) = self.per_second else { return self.to };
        let changed = (rate * passed.as_secs_f64()) as usize;
        if self.to >= self.from {
            self.from.saturating_add(changed).min(self.to)
        } else {
            self.from.saturating_sub(changed).max(self.to)
        }
    }

    /// Where it ends.
    pub fn to(&self) -> usize {
        self.to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_change_evenly_both_ways_and_stay() {
        let at = |ramp: Ramp| [0, 1000, 2500, 60_000].map(|ms| ramp.at(Duration::from_millis(ms)));
        assert_eq!(at(Ramp::start(10, Some(2.0))), [2, 4, 7, 10]);
        assert_eq!(at(Ramp::change(10, 4, Some(2.0))), [10, 8, 5, 4]);
        assert_eq!(at(Ramp::start(10, None)), [10, 10, 10, 10]);
        assert_eq!(at(Ramp::start(3, Some(0.1))), [1, 1, 1, 3]);
        assert_eq!(Ramp::first(5, Some(100.0)), 5);
    }
}
