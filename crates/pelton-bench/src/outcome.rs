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
    ///
    /// Repetitions of a case miss the targets if at least half of them do. Of a search only the answer's level and the lowest one that
    /// misses the targets count: between them lies what was found.
    pub fn outcome(&self) -> Outcome {
        let telling: Vec<&RunResult> = match &self.search {
            Some(search) => {
                let upper = search.levels.iter().find(|level| !level.holds()).map(|level| level.level);
                let tells = |level: f64| Some(level) == search.answer || Some(level) == upper;
                search
                    .trials
                    .iter()
                    .filter(|trial| tells(trial.level))
                    .filter_map(|trial| self.runs.get(trial.run))
                    .collect()
            }
            None => self.runs.iter().collect(),
        };
        if telling.is_empty() || telling.iter().all(|run| run.summary.requests.complete == 0) {
            return Outcome::NothingMeasured;
        }
        if self.search.is_none() && !self.has_results() {
            return Outcome::NothingMeasured;
        }
        if telling.iter().any(|run| !run.summary.client_limits.is_empty()) {
            return Outcome::ClientLimited;
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
}
