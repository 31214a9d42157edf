//! The highest load that meets the targets: growth until they are missed, bisection, confirmation.
//!
//! It assumes that a higher load is not easier to serve. Levels double from the lowest until one misses the targets; then the middle
//! (geometric) between the highest level that meets them and the lowest that does not is tried until both are as close as wished. What
//! bounds the answer must hold again: the highest level that met the targets is run until it met them `confirm` times; a single miss of
//! the level above is tried again too. Where runs of one level disagree, more than half of them decide, a tie being broken by one more
//! run; a level that falls by its confirmation becomes the new upper bound, and the search goes on below it.
//!
//! The next step is a pure function of what was tried, so that a search can be replayed.

use serde::{Deserialize, Serialize};

use crate::plan::{Case, SearchAxis, SearchPlan, Starts, Users};

/// What a search tried and found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Search {
    /// What was varied.
    pub axis: SearchAxis,
    /// The runs, in order.
    pub trials: Vec<Trial>,
    /// The levels, ascending, with what the majority of their runs says.
    pub levels: Vec<Level>,
    /// The highest level that was confirmed; `None` if there is none.
    pub answer: Option<f64>,
    /// Why it ended.
    pub end: SearchEnd,
}

/// One run of a search.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Users, or requests per second.
    pub level: f64,
    /// Index into [`Results::runs`](crate::results::Results::runs).
    pub run: usize,
    /// Why it was made.
    pub step: SearchStep,
    /// Whether all targets were met.
    pub ok: bool,
}

/// Why a run of a search was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SearchStep {
    /// Twice the level before, which met the targets.
    Growth,
    /// Between a level that met them and one that did not.
    Bisection,
    /// A level that was tried before, again.
    Confirmation,
}

/// What the runs of one level say together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Level {
    /// Users, or requests per second.
    pub level: f64,
    /// Runs that met all targets.
    pub met: u32,
    /// Runs that did not.
    pub missed: u32,
}

impl Level {
    /// Whether most runs met the targets.
    pub fn holds(&self) -> bool {
        self.met > self.missed
    }

    /// Whether the runs disagree: the answer lies within the noise.
    pub fn is_split(&self) -> bool {
        self.met > 0 && self.missed > 0
    }
}

/// Why a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SearchEnd {
    /// The answer is confirmed, and the next level that the wished precision tells apart misses the targets.
    Found,
    /// The highest level allowed meets them: the true answer may be higher.
    UpperBound,
    /// Not even the lowest level meets them.
    NoneMeets,
    /// So many runs were made as were allowed.
    Runs,
    /// The allowed time is over.
    Time,
    /// It was interrupted.
    Interrupted,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Next {
    /// A run at this level.
    Try(f64, SearchStep),
    /// Nothing: the search is over.
    End(SearchEnd),
}

/// A search under way.
#[derive(Clone, Debug)]
pub struct Searching<'a> {
    plan: &'a SearchPlan,
    trials: Vec<Trial>,
    levels: Vec<Level>,
}

impl<'a> Searching<'a> {
    /// Nothing is tried yet.
    pub fn new(plan: &'a SearchPlan) -> Self {
        Self { plan, trials: Vec::new(), levels: Vec::new() }
    }

    /// Notes a run.
    pub fn add(&mut self, trial: Trial) {
        self.trials.push(trial);
        let at = self.levels.partition_point(|level| level.level < trial.level);
        if self.levels.get(at).is_none_or(|level| level.level != trial.level) {
            self.levels.insert(at, Level { level: trial.level, met: 0, missed: 0 });
        }
        let level = &mut self.levels[at];
        *(if trial.ok { &mut level.met } else { &mut level.missed }) += 1;
    }

    /// What it found, if it ends so.
    pub fn result(self, end: SearchEnd) -> Search {
        let answer =
            self.lower().filter(|level| level.met >= self.plan.confirm && level.holds()).map(|level| level.level);
        Search { axis: self.plan.axis, answer, trials: self.trials, levels: self.levels, end }
    }

    /// The highest level that holds, below every level that does not.
    fn lower(&self) -> Option<Level> {
        self.levels.iter().take_while(|level| level.holds()).last().copied()
    }

    /// The lowest level that does not hold.
    fn upper(&self) -> Option<Level> {
        self.levels.iter().find(|level| !level.holds()).copied()
    }

    /// What to do next. The bound in runs is the caller's.
    pub fn next(&self) -> Next {
        let (lower, upper) = (self.lower(), self.upper());
        // Of two runs that disagree nobody knows which one was the exception.
        if let Some(tied) = self.levels.iter().find(|level| level.met > 0 && level.met == level.missed) {
            return Next::Try(tied.level, SearchStep::Confirmation);
        }
        let again = |level: Level| Next::Try(level.level, SearchStep::Confirmation);
        match (lower, upper) {
            (None, None) => Next::Try(self.plan.from, SearchStep::Growth),
            (None, Some(upper)) if upper.missed < 2 && upper.met == 0 => again(upper),
            (None, Some(_)) => Next::End(SearchEnd::NoneMeets),
            (Some(lower), None) if lower.level < self.plan.to => {
                // The bound itself is not rounded: a level beside it would never reach it.
                let doubled = self.rounded(2.0 * lower.level);
                let level = if doubled < self.plan.to { doubled } else { self.plan.to };
                Next::Try(level, SearchStep::Growth)
            }
            (Some(lower), None) if lower.met < self.plan.confirm => again(lower),
            (Some(_), None) => Next::End(SearchEnd::UpperBound),
            (Some(lower), Some(upper)) => {
                // The first miss ends the growth: a moment's noise there would cost the most.
                if upper.missed < 2 && upper.met == 0 && self.is_edge_of_growth(upper) {
                    return again(upper);
                }
                let middle = self.rounded((lower.level * upper.level).sqrt());
                if !self.is_close(lower.level, upper.level) && middle > lower.level && middle < upper.level {
                    return Next::Try(middle, SearchStep::Bisection);
                }
                if lower.met < self.plan.confirm {
                    return again(lower);
                }
                if upper.missed < 2 && upper.met == 0 {
                    return again(upper);
                }
                Next::End(SearchEnd::Found)
            }
        }
    }

    /// How many runs of this level were made.
    pub fn runs_of(&self, level: f64) -> u32 {
        self.levels.iter().find(|tried| tried.level == level).map_or(0, |tried| tried.met + tried.missed)
    }

    /// How it stands, in words.
    pub fn state(&self) -> String {
        let unit = match self.plan.axis {
            SearchAxis::Users => "users",
            SearchAxis::Rate => "requests/s",
        };
        let part = |level: Option<Level>, what: &str| level.map(|level| format!("{} {unit} {what}", level.level));
        let parts = [part(self.lower(), "meet the targets"), part(self.upper(), "miss them")];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if parts.is_empty() { "nothing tried yet".to_owned() } else { parts.join(", ") }
    }

    /// Most runs that are still to come, if nothing surprising happens; for those who look on.
    pub fn remaining(&self) -> usize {
        let doublings = |from: f64, to: f64| (to / from).log2().max(0.0).ceil();
        let halvings = |low: f64, high: f64| {
            let fine = match self.plan.axis {
                SearchAxis::Users => (1.0 / low).max(self.plan.precision),
                SearchAxis::Rate => self.plan.precision,
            };
            ((high / low).ln() / fine.ln_1p()).max(1.0).log2().ceil()
        };
        let confirming = f64::from(self.plan.confirm) + 1.0;
        let runs = match (self.lower(), self.upper()) {
            (None, None) => doublings(self.plan.from, self.plan.to) + halvings(1.0, 2.0) + confirming,
            (None, Some(_)) => 1.0,
            (Some(lower), None) => doublings(lower.level, self.plan.to) + halvings(1.0, 2.0) + confirming,
            (Some(lower), Some(upper)) => halvings(lower.level, upper.level) + confirming - 1.0,
        };
        (runs as usize).clamp(1, (self.plan.max_runs as usize).saturating_sub(self.trials.len()).max(1))
    }

    fn is_edge_of_growth(&self, level: Level) -> bool {
        let step = self.trials.iter().find(|trial| trial.level == level.level).map(|trial| trial.step);
        step == Some(SearchStep::Growth)
    }

    fn is_close(&self, low: f64, high: f64) -> bool {
        high / low - 1.0 <= self.plan.precision || self.plan.axis == SearchAxis::Users && high - low <= 1.0
    }

    fn rounded(&self, level: f64) -> f64 {
        match self.plan.axis {
            SearchAxis::Users => level.round(),
            // Ten times finer than the precision asks for, so that levels can be typed.
            SearchAxis::Rate => {
                let places = 1 - (level * self.plan.precision).log10().floor() as i32;
                let (up, down) = (10f64.powi(places.max(0)), 10f64.powi((-places).max(0)));
                (level * up / down).round() * down / up
            }
        }
    }
}

/// The case of a level: users of a closed loop, or a rate with all else as in `like`.
pub fn case(axis: SearchAxis, level: f64, like: &Case) -> Case {
    match axis {
        SearchAxis::Users => {
            let each = if let Case::Closed { each, .. } = like { *each } else { None };
            Case::Closed { users: Users::Constant(level as usize), each }
        }
        SearchAxis::Rate => {
            let arrival = match like {
                Case::Open { starts: Starts::Rate { arrival, .. } | Starts::Ramping { arrival, .. }, .. } => *arrival,
                _ => crate::Arrival::Poisson,
            };
            let bounds = like.bounds().copied().unwrap_or_default();
            Case::rate(level, arrival, bounds)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn plan(axis: SearchAxis, from: f64, to: f64) -> SearchPlan {
        SearchPlan { axis, from, to, precision: 0.05, confirm: 2, max_runs: 100, max_time: Duration::from_secs(1) }
    }

    /// Searches where `meets` says whether run `n` at a level meets the targets.
    fn search(plan: &SearchPlan, meets: impl Fn(f64, usize) -> bool) -> Search {
        let mut searching = Searching::new(plan);
        for run in 0.. {
            assert!(run < 100, "endless: {searching:?}");
            assert!(searching.remaining() >= 1);
            match searching.next() {
                Next::Try(level, step) => searching.add(Trial { level, run, step, ok: meets(level, run) }),
                Next::End(end) => return searching.result(end),
            }
        }
        unreachable!("the loop ends by its assertion")
    }

    #[test]
    fn the_exact_number_of_users_is_found_and_confirmed() {
        for truth in 1..=64usize {
            let mut plan = plan(SearchAxis::Users, 1.0, 1000.0);
            plan.precision = 1e-6;
            let found = search(&plan, |level, _| level <= truth as f64);
            assert_eq!((found.answer, found.end), (Some(truth as f64), SearchEnd::Found));
            let level = |users: usize| found.levels.iter().find(|level| level.level == users as f64).expect("tried");
            assert!(level(truth).met >= 2 && level(truth + 1).missed >= 2, "{found:?}");
        }
    }

    #[test]
    fn rates_are_found_within_the_precision() {
        for truth in [0.7, 3.3, 17.0, 940.0] {
            let found = search(&plan(SearchAxis::Rate, 0.5, 10_000.0), |level, _| level <= truth);
            let answer = found.answer.expect("there is one");
            assert!(answer <= truth && truth <= answer * 1.051, "{answer} for {truth}");
            assert!(found.trials.len() < 30, "{} runs", found.trials.len());
        }
    }

    #[test]
    fn bounds_are_answers_of_their_own() {
        let users = plan(SearchAxis::Users, 4.0, 100.0);
        let all = search(&users, |_, _| true);
        assert_eq!((all.answer, all.end), (Some(100.0), SearchEnd::UpperBound));
        let none = search(&users, |_, _| false);
        assert_eq!((none.answer, none.end, none.trials.len()), (None, SearchEnd::NoneMeets, 2));
    }

    #[test]
    fn a_bound_that_rounding_would_miss_is_reached() {
        for to in [33.33, 2048.0, 1020.7] {
            let mut plan = plan(SearchAxis::Rate, 1.0, to);
            plan.precision = 0.1;
            let all = search(&plan, |_, _| true);
            assert_eq!((all.answer, all.end), (Some(to), SearchEnd::UpperBound));
            assert!(all.trials.len() < 16, "{} runs", all.trials.len());
        }
    }

    /// One bad moment at a level that meets the targets: two good runs outvote it.
    #[test]
    fn a_single_exception_is_outvoted() {
        for exception in 0..12 {
            let found = search(&plan(SearchAxis::Users, 1.0, 64.0), |level, run| level <= 20.0 && run != exception);
            assert_eq!(found.answer, Some(20.0), "exception in run {exception}: {found:?}");
        }
    }

    #[test]
    fn a_level_that_met_the_targets_by_luck_falls_when_it_is_confirmed() {
        let found =
            search(&plan(SearchAxis::Users, 1.0, 64.0), |level, run| level <= 16.0 || run == 5 && level <= 32.0);
        assert_eq!(found.answer, Some(16.0), "{found:?}");
    }
}
