//! How sure a number is: percentile bootstrap (Efron and Tibshirani 1993, chapter 13), seeded, so that equal results give equal intervals.
//!
//! What is drawn again, with replacement:
//! - of one run, its measured complete requests, each with all its gaps (tokens of one answer are not independent of each other);
//! - for rates, slices of its measured window, each at least twice as long as the median request, at least [`MIN_SLICES`] of them;
//! - of several runs, first the runs, then within each drawn run its requests or slices;
//! - runs without rows, and metrics of the whole run that are no rates: runs alone, so that one run has no interval.
//!
//! An interval from one run says how far the number would move with other requests of the same kind in the same minutes. Whether the
//! server is as fast tomorrow, only repetitions tell.

use serde::{Deserialize, Serialize};

use super::values::of_requests;
use crate::metric::Metric;
use crate::plan::Case;
use crate::results::RunResult;
use crate::slo::Aggregate;

/// Confidence of every interval.
pub const LEVEL: f64 = 0.95;

/// Fewest slices of a window.
pub const MIN_SLICES: usize = 5;

/// Most slices of a window.
const MAX_SLICES: usize = 50;

/// Draws for small samples. Large ones get fewer, down to [`MIN_DRAWS`], so that the work stays near [`MAX_WORK`].
const MAX_DRAWS: usize = 1000;

/// Fewest draws.
const MIN_DRAWS: usize = 100;

/// Units and values looked at for one interval.
const MAX_WORK: usize = 200_000_000;

/// Above so many values no interval is computed from requests: it would be narrower than anything that matters.
const MAX_VALUES: usize = 10_000_000;

/// Where a number lies with a confidence of `level`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// 0.95 for 95 %.
    pub level: f64,
    /// What was drawn again.
    pub resampled: Resampled,
}

/// What the bootstrap drew again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resampled {
    /// Requests of one run.
    Requests,
    /// Slices of one run's window.
    Slices,
    /// Runs.
    Runs,
    /// Runs, and requests within them.
    RunsAndRequests,
    /// Runs, and slices within them.
    RunsAndSlices,
}

impl std::fmt::Display for Resampled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Resampled::Requests => "requests of one run",
            Resampled::Slices => "slices of one run",
            Resampled::Runs => "runs",
            Resampled::RunsAndRequests => "runs, and requests within them",
            Resampled::RunsAndSlices => "runs, and slices within them",
        })
    }
}

/// A number and how sure it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// What.
    pub metric: Metric,
    /// Which number of it.
    pub aggregate: Aggregate,
    /// Of all repetitions together; of runs without rows, the mean of their values.
    pub value: f64,
    /// `None` where there is too little to draw from: for a quantile `q`, fewer than `1 / (1 - q)` values; for a metric of the whole run,
    /// values that are all the same.
    pub interval: Option<Interval>,
}

/// What the repetitions of a case say together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseEstimates {
    /// The case.
    pub case: Case,
    /// Its runs, as indexes into `Results::runs`.
    pub runs: Vec<usize>,
    /// The median and the 99th percentile of each metric with values, and each metric of the whole run.
    pub estimates: Vec<Estimate>,
}

/// The estimates of every case, in the order of their first runs.
pub fn estimate_cases(runs: &[RunResult]) -> Vec<CaseEstimates> {
    let mut cases: Vec<CaseEstimates> = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        match cases.iter_mut().find(|case| case.case == run.case) {
            Some(case) => case.runs.push(index),
            None => cases.push(CaseEstimates { case: run.case.clone(), runs: vec![index], estimates: Vec::new() }),
        }
    }
    for case in &mut cases {
        let of_case: Vec<&RunResult> = case.runs.iter().map(|&index| &runs[index]).collect();
        case.estimates = estimate(&of_case);
    }
    cases
}

/// The median and the 99th percentile of each metric with values, and each metric of the whole run. `runs` are repetitions of one case.
pub fn estimate(runs: &[&RunResult]) -> Vec<Estimate> {
    let samples: Vec<(Metric, Sample)> =
        Metric::ALL.into_iter().filter_map(|metric| Some((metric, Sample::of(runs, metric)?))).collect();
    let mut estimates = Vec::new();
    for (n, (metric, sample)) in samples.iter().enumerate() {
        let aggregates: &[Aggregate] =
            if metric.has_distribution() { &[Aggregate::P50, Aggregate::P99] } else { &[Aggregate::Value] };
        for &aggregate in aggregates {
            let Some(value) = sample.value(aggregate) else { continue };
            estimates.push((n, Estimate { metric: *metric, aggregate, value, interval: None }));
        }
    }
    // What is drawn are requests, slices or runs: numbers of the same ones share their draws.
    let mut open: Vec<usize> = (0..estimates.len()).collect();
    while let Some(&first) = open.first() {
        let of = |at: usize| &samples[estimates[at].0].1;
        let (together, others): (Vec<usize>, Vec<usize>) =
            open.iter().copied().partition(|&at| of(at).units_of(of(first)));
        let asked: Vec<(&Sample, Aggregate)> = together.iter().map(|&at| (of(at), estimates[at].1.aggregate)).collect();
        let intervals: Vec<Option<Interval>> = draws(&asked, 0)
            .into_iter()
            .zip(&asked)
            .map(|(draws, (sample, _))| Some(interval(draws?, sample.resampled)))
            .collect();
        for (at, interval) in together.into_iter().zip(intervals) {
            estimates[at].1.interval = interval;
        }
        open = others;
    }
    estimates.into_iter().map(|(_, estimate)| estimate).collect()
}

/// How `b` differs from `a`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// What.
    pub metric: Metric,
    /// Which number of it.
    pub aggregate: Aggregate,
    /// Value of the first.
    pub a: f64,
    /// Value of the second.
    pub b: f64,
    /// Of `b - a`; `None` where there is too little to draw from.
    pub interval: Option<Interval>,
}

impl Difference {
    /// `b - a`.
    pub fn absolute(&self) -> f64 {
        self.b - self.a
    }

    /// `b / a - 1`; `None` if `a` is 0.
    pub fn relative(&self) -> Option<f64> {
        (self.a != 0.0).then(|| self.b / self.a - 1.0)
    }

    /// Whether the interval leaves out zero; `None` without an interval.
    pub fn is_significant(&self) -> Option<bool> {
        self.interval.map(|interval| interval.low > 0.0 || interval.high < 0.0)
    }

    /// In words: `lower`, `higher`, `no significant difference`, or `too few values to tell`.
    pub fn words(&self) -> &'static str {
        match self.is_significant() {
            None => "too few values to tell",
            Some(false) => "no significant difference",
            Some(true) if self.b > self.a => "higher",
            Some(true) => "lower",
        }
    }
}

/// Compares two servers or settings by their runs (repetitions of one case each). `None` if one of them has no such value.
pub fn compare(a: &[&RunResult], b: &[&RunResult], metric: Metric, aggregate: Aggregate) -> Option<Difference> {
    let (left, right) = (Sample::of(a, metric)?, Sample::of(b, metric)?);
    let (left_value, right_value) = (left.value(aggregate)?, right.value(aggregate)?);
    // Two seeds: the sides are independent of each other.
    let interval = left.draws(aggregate, 0).zip(right.draws(aggregate, 1)).map(|(left_draws, right_draws)| {
        let draws = left_draws.into_iter().zip(right_draws).map(|(a, b)| b - a).collect();
        interval(draws, if a.len() > 1 { left.resampled } else { right.resampled })
    });
    Some(Difference { metric, aggregate, a: left_value, b: right_value, interval })
}

/// The middle [`LEVEL`] of the draws.
fn interval(mut draws: Vec<f64>, resampled: Resampled) -> Interval {
    draws.sort_unstable_by(f64::total_cmp);
    let tail = (1.0 - LEVEL) / 2.0;
    Interval { low: super::quantile(&draws, tail), high: super::quantile(&draws, 1.0 - tail), level: LEVEL, resampled }
}

/// Values of one metric, grouped twice: units (requests, slices, or runs) hold values and are held by runs.
struct Sample {
    /// Ascending, each with its unit.
    values: Vec<(f64, u32)>,
    /// Units of each run: `runs[r]..runs[r + 1]`.
    runs: Vec<u32>,
    /// Number and sum of each unit's values.
    units: Vec<(u32, f64)>,
    ladder: Ladder,
    resampled: Resampled,
    /// Whether the values are of the whole run (or slices of it): their mean is the number wanted.
    is_whole: bool,
}

/// Where to begin the walk to a quantile. Answers have hundreds of gaps, and a draw weighs answers: counting those below a few places once
/// spares each draw the way there.
struct Ladder {
    /// Values between two rungs.
    step: usize,
    units: usize,
    /// `[rungs, units]`: values of the unit before the rung.
    before: Vec<u32>,
}

impl Ladder {
    /// Rungs pay while values are many for each unit.
    const MAX_RUNGS: usize = 64;

    fn of(values: &[(f64, u32)], units: usize) -> Self {
        let rungs = (values.len() / units.max(1)).clamp(1, Self::MAX_RUNGS);
        let step = values.len().div_ceil(rungs).max(1);
        let mut before = Vec::with_capacity(rungs * units);
        let mut counts = vec![0; units];
        for values in values.chunks(step) {
            before.extend_from_slice(&counts);
            values.iter().for_each(|&(_, unit)| counts[unit as usize] += 1);
        }
        Self { step, units, before }
    }

    /// Of the rungs with at most `weight` before them the last: its place among the values and the weight before it.
    fn climb(&self, weights: &[u32], weight: u64) -> (usize, u64) {
        let before = |rung: usize| -> u64 {
            let counts = &self.before[rung * self.units..][..self.units];
            counts.iter().zip(weights).map(|(&count, &weight)| u64::from(count) * u64::from(weight)).sum()
        };
        let (mut low, mut found) = (0, 0);
        let mut high = self.before.len() / self.units.max(1);
        while high - low > 1 {
            let middle = low.midpoint(high);
            match before(middle) {
                at if at <= weight => (low, found) = (middle, at),
                _ => high = middle,
            }
        }
        (low * self.step, found)
    }
}

impl Sample {
    fn of(runs: &[&RunResult], metric: Metric) -> Option<Self> {
        let has_rows = runs.iter().all(|run| run.histograms.is_none());
        let several = runs.len() > 1;
        let by_requests = has_rows && (metric.has_distribution() || metric == Metric::ErrorRate);
        let (units, resampled) = if by_requests {
            let units = runs.iter().map(|run| of_requests(run, metric)).collect();
            (units, if several { Resampled::RunsAndRequests } else { Resampled::Requests })
        } else if let Some(slices) = of_slices(runs, metric).filter(|_| has_rows) {
            (slices, if several { Resampled::RunsAndSlices } else { Resampled::Slices })
        } else {
            let whole = |run: &&RunResult| Some(vec![vec![metric.value(&run.summary)?]]);
            (runs.iter().map(whole).collect::<Option<_>>()?, Resampled::Runs)
        };
        Self::from_units(units, resampled, !metric.has_distribution())
    }

    /// `units[run][unit]` holds values.
    fn from_units(units: Vec<Vec<Vec<f64>>>, resampled: Resampled, is_whole: bool) -> Option<Self> {
        let (mut values, mut runs, mut n) = (Vec::new(), vec![0], 0);
        for unit in units.into_iter().map(|run| {
            let before = n;
            n += run.len() as u32;
            runs.push(n);
            (before, run)
        }) {
            let (before, run) = unit;
            for (number, unit) in (before..).zip(run) {
                values.extend(unit.into_iter().map(|value| (value, number)));
            }
        }
        if values.is_empty() || values.len() > MAX_VALUES {
            return None;
        }
        values.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let mut units = vec![(0, 0.0); n as usize];
        for &(value, unit) in &values {
            let (count, sum) = &mut units[unit as usize];
            *count += 1;
            *sum += value;
        }
        let ladder = Ladder::of(&values, units.len());
        Some(Self { values, runs, units, ladder, resampled, is_whole })
    }

    fn value(&self, aggregate: Aggregate) -> Option<f64> {
        self.weighted(aggregate, &vec![1; self.units.len()])
    }

    /// The number if unit `u` were there `weights[u]` times.
    fn weighted(&self, aggregate: Aggregate, weights: &[u32]) -> Option<f64> {
        if aggregate == Aggregate::Mean || aggregate == Aggregate::Value {
            let add = |(sum, n): (f64, f64), (&weight, unit): (&u32, &(u32, f64))| {
                let weight = f64::from(weight);
                (sum + weight * unit.1, n + weight * f64::from(unit.0))
            };
            let (sum, n) = weights.iter().zip(&self.units).fold((0.0, 0.0), add);
            return (n > 0.0).then(|| sum / n).filter(|_| self.is_whole == (aggregate == Aggregate::Value));
        }
        if self.is_whole {
            return None;
        }
        let n: u64 = weights.iter().zip(&self.units).map(|(&weight, unit)| u64::from(weight) * u64::from(unit.0)).sum();
        if n == 0 {
            return None;
        }
        // As `quantile`, on the values as often as they are there.
        let at = aggregate.quantile()? * (n - 1) as f64;
        let (low, rest) = (at.floor() as u64, at.fract());
        let (start, mut seen) = self.ladder.climb(weights, low);
        let mut below = None;
        for &(value, unit) in &self.values[start..] {
            seen += u64::from(weights[unit as usize]);
            if seen > low && below.is_none() {
                below = Some(value);
            }
            if let Some(below) = below
                && (rest == 0.0 || seen > low + 1)
            {
                return Some(below + (value - below) * rest);
            }
        }
        below
    }

    /// The number in each draw; `None` if there is too little to draw from.
    fn draws(&self, aggregate: Aggregate, seed: u64) -> Option<Vec<f64>> {
        draws(&[(self, aggregate)], seed).pop().flatten()
    }

    /// Whether both are drawn from the same units.
    fn units_of(&self, other: &Self) -> bool {
        (self.resampled, self.units.len(), &self.runs) == (other.resampled, other.units.len(), &other.runs)
    }

    fn is_enough(&self, aggregate: Aggregate) -> bool {
        if self.units.len() < 2 {
            return false;
        }
        // No failure among n says that failures are rare, not that they cannot happen.
        if self.is_whole && self.values.first().map(|first| first.0) == self.values.last().map(|last| last.0) {
            return false;
        }
        aggregate.quantile().is_none_or(|q| (self.values.len() as f64) * (1.0 - q) >= 1.0)
    }
}

/// The numbers in each draw; `None` for one that has too little to draw from. All are drawn from the same units.
fn draws(asked: &[(&Sample, Aggregate)], seed: u64) -> Vec<Option<Vec<f64>>> {
    let mut drawn: Vec<Option<Vec<f64>>> =
        asked.iter().map(|(sample, aggregate)| sample.is_enough(*aggregate).then(Vec::new)).collect();
    let Some((Sample { units, runs, resampled, .. }, _)) = asked.first() else { return drawn };
    let mut random = fastrand::Rng::with_seed(seed);
    let mut weights = vec![0u32; units.len()];
    let work = asked.iter().map(|(sample, _)| units.len() + sample.ladder.step).max().unwrap_or(1);
    let num_runs = runs.len() - 1;
    for _ in 0..(MAX_WORK / work).clamp(MIN_DRAWS, MAX_DRAWS) {
        weights.fill(0);
        for _ in 0..num_runs {
            let run = if num_runs > 1 { random.usize(..num_runs) } else { 0 };
            let units = runs[run]..runs[run + 1];
            if *resampled == Resampled::Runs {
                weights[units.start as usize] += 1;
                continue;
            }
            for _ in units.clone() {
                weights[random.u32(units.clone()) as usize] += 1;
            }
        }
        for ((sample, aggregate), drawn) in asked.iter().zip(&mut drawn) {
            // A draw that happens to hold no value says nothing.
            drawn.iter_mut().for_each(|drawn| drawn.extend(sample.weighted(*aggregate, &weights)));
        }
    }
    drawn
}

/// One unit for each slice of each run's window: its rate. `None` if the metric is no rate or a window is too short.
fn of_slices(runs: &[&RunResult], metric: Metric) -> Option<Vec<Vec<Vec<f64>>>> {
    runs.iter().map(|run| slices_of(run, metric)).collect()
}

fn slices_of(run: &RunResult, metric: Metric) -> Option<Vec<Vec<f64>>> {
    let summary = &run.summary;
    let (from_s, to_s) = (summary.rates.from_s, summary.rates.to_s);
    let slice_s = 2.0 * summary.e2e_ms.as_ref()?.p50 / 1e3;
    let slices = (((to_s - from_s) / slice_s) as usize).min(MAX_SLICES);
    if slices < MIN_SLICES {
        return None;
    }
    let length_s = (to_s - from_s) / slices as f64;
    let mut sums = vec![0.0; slices];
    let mut add = |at_us: u64, what: f64| {
        let at = (at_us as f64 / 1e6 - from_s) / length_s;
        if at >= 0.0
            && let Some(sum) = sums.get_mut(at as usize)
        {
            *sum += what;
        }
    };
    for row in &run.rows {
        match metric {
            Metric::RequestsPerSecond if row.failure.is_none() => add(row.end_at_us(), 1.0),
            Metric::RequestsPerSecond => {}
            Metric::OutputTokensPerSecond => {
                row.arrivals.iter().for_each(|a| add(row.start_us + u64::from(a.at_us), f64::from(a.tokens)));
            }
            Metric::InputTokensPerSecond => {
                if let Some(first) = row.arrivals.first() {
                    let tokens = row.prompt_tokens_reported.unwrap_or(row.prompt_tokens);
                    add(row.start_us + u64::from(first.at_us), f64::from(tokens));
                }
            }
            _ => return None,
        }
    }
    Some(sums.into_iter().map(|sum| vec![sum / length_s]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs of requests with one value each, exponentially distributed around `mean`.
    fn sample(random: &mut fastrand::Rng, runs: usize, requests: usize, mean: f64) -> Sample {
        let mut value = || vec![-mean * (1.0 - random.f64()).ln()];
        let units = (0..runs).map(|_| (0..requests).map(|_| value()).collect()).collect();
        let resampled = if runs > 1 { Resampled::RunsAndRequests } else { Resampled::Requests };
        Sample::from_units(units, resampled, false).expect("there are values")
    }

    #[test]
    fn a_weight_of_two_is_a_value_twice() {
        let units = vec![vec![vec![1.0, 5.0], vec![2.0], vec![9.0]]];
        let sample = Sample::from_units(units, Resampled::Requests, false).expect("there are values");
        let weighted = |aggregate, weights: &[u32]| sample.weighted(aggregate, weights).expect("a value");
        // 1 5 1 5 2, ascending 1 1 2 5 5.
        assert_eq!(weighted(Aggregate::P50, &[2, 1, 0]), 2.0);
        assert_eq!(weighted(Aggregate::Mean, &[2, 1, 0]), 14.0 / 5.0);
        assert_eq!((weighted(Aggregate::Min, &[0, 1, 1]), weighted(Aggregate::Max, &[0, 1, 1])), (2.0, 9.0));
        assert_eq!(weighted(Aggregate::P50, &[0, 1, 1]), 5.5);
        assert_eq!(sample.weighted(Aggregate::P50, &[0, 0, 0]), None);
        let plain: Vec<f64> = sample.values.iter().map(|value| value.0).collect();
        for aggregate in [Aggregate::P50, Aggregate::P90, Aggregate::P99] {
            let expected = super::super::quantile(&plain, aggregate.quantile().expect("a quantile"));
            assert_eq!(sample.value(aggregate), Some(expected));
        }
    }

    #[test]
    fn rungs_change_no_quantile() {
        let mut random = fastrand::Rng::with_seed(7);
        let units = (0..20).map(|_| (0..random.usize(..120)).map(|_| f64::from(random.u32(..50))).collect()).collect();
        let sample = Sample::from_units(vec![units], Resampled::Requests, false).expect("there are values");
        assert!(sample.ladder.before.len() > 20 * 20, "there are rungs to climb");
        for _ in 0..200 {
            let weights: Vec<u32> = (0..20).map(|_| random.u32(..3)).collect();
            let times = |&(value, unit): &(f64, u32)| std::iter::repeat_n(value, weights[unit as usize] as usize);
            let plain: Vec<f64> = sample.values.iter().flat_map(times).collect();
            for aggregate in [Aggregate::Min, Aggregate::P50, Aggregate::P90, Aggregate::P99, Aggregate::Max] {
                let expected = super::super::quantile(&plain, aggregate.quantile().expect("a quantile"));
                assert_eq!(sample.weighted(aggregate, &weights), Some(expected));
            }
        }
    }

    /// The claim of a 95 % interval: it holds the true median in about 95 of 100 samples. Five standard errors of 100 trials below.
    #[test]
    fn intervals_hold_the_truth_as_often_as_they_say() {
        let mut random = fastrand::Rng::with_seed(5);
        let (trials, truth) = (100, 10.0 * 2f64.ln());
        let holds = |sample: Sample| {
            let draws = sample.draws(Aggregate::P50, 1).expect("enough values");
            let interval = interval(draws, sample.resampled);
            interval.low <= truth && truth <= interval.high
        };
        let held = (0..trials).filter(|_| holds(sample(&mut random, 1, 100, 10.0))).count() as f64 / trials as f64;
        assert!((held - LEVEL).abs() < 5.0 * (LEVEL * (1.0 - LEVEL) / trials as f64).sqrt(), "{held}");
    }

    #[test]
    fn too_few_values_have_no_interval() {
        let mut random = fastrand::Rng::with_seed(5);
        assert!(sample(&mut random, 1, 99, 1.0).draws(Aggregate::P99, 0).is_none());
        assert!(sample(&mut random, 1, 100, 1.0).draws(Aggregate::P99, 0).is_some());
        assert!(sample(&mut random, 1, 1, 1.0).draws(Aggregate::P50, 0).is_none());
    }

    /// Runs that differ from each other widen the interval, which requests alone would not show.
    #[test]
    fn runs_that_disagree_make_the_interval_wide() {
        let run = |value: f64| (0..200).map(|n| vec![value + f64::from(n) / 1000.0]).collect::<Vec<_>>();
        let width = |units: Vec<Vec<Vec<f64>>>| {
            let sample = Sample::from_units(units, Resampled::RunsAndRequests, false).expect("values");
            let interval = interval(sample.draws(Aggregate::P50, 0).expect("enough"), sample.resampled);
            interval.high - interval.low
        };
        let agreeing = width(vec![run(10.0), run(10.0), run(10.0)]);
        let disagreeing = width(vec![run(10.0), run(11.0), run(12.0)]);
        assert!(agreeing < 0.1 && disagreeing > 1.0, "{agreeing} {disagreeing}");
    }

    #[test]
    fn differences_are_told_in_words() {
        let mut difference =
            Difference { metric: Metric::Ttft, aggregate: Aggregate::P50, a: 10.0, b: 12.0, interval: None };
        assert_eq!(difference.words(), "too few values to tell");
        let mut set = |low, high| {
            difference.interval = Some(Interval { low, high, level: LEVEL, resampled: Resampled::Requests });
            difference.words()
        };
        assert_eq!(set(-1.0, 5.0), "no significant difference");
        assert_eq!(set(1.0, 3.0), "higher");
        assert!((difference.relative().expect("a is not 0") - 0.2).abs() < 1e-12);
    }
}
