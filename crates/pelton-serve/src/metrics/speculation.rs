//! What guessing brought, as the engine counts it: how many tokens each sequence got in each step.

use std::sync::atomic::Ordering::Relaxed;

use pelton_engine::EngineGauges;

/// Rounds of sampling (a sequence in a step) by the guessed tokens that were accepted in them.
pub(crate) struct Accepted {
    by_tokens: Vec<u64>,
}

impl Accepted {
    pub(crate) fn read(gauges: &EngineGauges) -> Self {
        Self { by_tokens: gauges.samples_by_accepted.iter().map(|count| count.load(Relaxed)).collect() }
    }

    /// Rounds.
    pub(crate) fn count(&self) -> u64 {
        self.by_tokens.iter().sum()
    }

    /// Accepted tokens.
    pub(crate) fn sum(&self) -> u64 {
        (0..).zip(&self.by_tokens).map(|(tokens, rounds)| tokens * rounds).sum()
    }

    /// Rounds in which the guess at `position`, counted from 0, was accepted, and so all before it.
    pub(crate) fn at(&self, position: usize) -> u64 {
        self.by_tokens.iter().skip(position + 1).sum()
    }

    /// The least number of tokens that a share `quantile` of the rounds does not exceed; zero without rounds.
    pub(crate) fn quantile(&self, quantile: f64) -> usize {
        let wanted = (quantile * self.count() as f64).ceil() as u64;
        let mut seen = 0;
        let reaches = |rounds: &u64| {
            seen += rounds;
            seen >= wanted.max(1)
        };
        self.by_tokens.iter().position(reaches).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_positions_and_quantiles_follow_the_rounds() {
        let gauges = EngineGauges::default();
        for (tokens, rounds) in [(0, 6), (1, 1), (4, 3)] {
            gauges.samples_by_accepted[tokens].store(rounds, Relaxed);
        }
        let accepted = Accepted::read(&gauges);
        assert_eq!((accepted.count(), accepted.sum()), (10, 13));
        assert_eq!([0, 1, 3, 4].map(|position| accepted.at(position)), [4, 3, 3, 0]);
        assert_eq!([0.0, 0.5, 0.6, 0.7, 0.71, 1.0].map(|quantile| accepted.quantile(quantile)), [0, 0, 0, 1, 4, 4]);
        let nothing = Accepted::read(&EngineGauges::default());
        assert_eq!((nothing.count(), nothing.sum(), nothing.quantile(0.5)), (0, 0, 0));
    }
}
