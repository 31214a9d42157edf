//! What a whole test says to the program that called it.

use crate::results::{Results, RunResult};

/// How a test ended, worst first. Each has its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A case has no complete answer.
    NothingMeasured,
    /// The client, not the server, was the limit: neither good nor bad verdicts can be trusted.
    ClientLimited,
    /// A target was missed, or a search found no level that meets all.
    TargetsMissed,
    /// Everything was measured, and every target was met.
    Met,
}

impl Outcome {
    /// For the system: 0 if all is well. 2 is left to wrong flags.
    pub fn exit_code(self) -> u8 {
        match self {
            Outcome::Met => 0,
            Outcome::NothingMeasured => 1,
            Outcome::TargetsMissed => 3,
            Outcome::ClientLimited => 4,
        }
    }
}

impl Results {
    /// How the test ended.
    pub fn outcome(&self) -> Outcome {
        let outcome = self.outcome_of_server();
        let is_limited = self.telling_runs().iter().any(|run| !run.summary.client_limits.is_empty());
        if is_limited && outcome != Outcome::NothingMeasured { Outcome::ClientLimited } else { outcome }
    }

    /// How the test ended, if the client's own limits are left out of account.
    ///
    /// Repetitions of a case miss the targets if at least half of them do.
    pub fn outcome_of_server(&self) -> Outcome {
        let telling = self.telling_runs();
        let has_answers = |run: &&RunResult| run.summary.requests.complete > 0;
        let is_measured = match &self.search {
            Some(_) => telling.iter().any(has_answers),
            None => self.has_results(),
        };
        if !is_measured {
            return Outcome::NothingMeasured;
        }
        let is_missed = match &self.search {
            Some(search) => search.answer.is_none(),
            None => telling.iter().any(|run| {
                let repeats = telling.iter().filter(|other| other.case == run.case);
                let met = repeats.clone().filter(|run| run.verdicts.iter().all(|verdict| verdict.ok)).count();
                2 * met <= repeats.count()
            }),
        };
        if is_missed { Outcome::TargetsMissed } else { Outcome::Met }
    }

    /// All runs; of a search only those of the answer's level and of the lowest one that misses the targets: between them lies what
    /// was found.
    fn telling_runs(&self) -> Vec<&RunResult> {
        let Some(search) = &self.search else { return self.runs.iter().collect() };
        let upper = search.levels.iter().find(|level| !level.holds()).map(|level| level.level);
        let tells = |level: f64| Some(level) == search.answer || Some(level) == upper;
        search.trials.iter().filter(|trial| tells(trial.level)).filter_map(|trial| self.runs.get(trial.run)).collect()
    }
}
