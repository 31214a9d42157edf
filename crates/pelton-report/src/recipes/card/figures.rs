//! The numbers of the card: ingestion speed by regression, speeds by parallel requests, tokens that fit the KV cache, thresholds.

use pelton_bench::results::RunResult;

use super::query::{Query, mean, median, quantile};
use crate::charts::{Fit, Point, least_squares};

/// Points further than this from the first line are left out of the second.
const MAX_DISTANCE: f64 = 0.05;

/// Share of the KV cache above which a load no longer fits.
const FULL_CACHE: f64 = 0.95;

/// Time to first token against prompt length, as a line.
#[derive(Clone, Debug, PartialEq)]
pub struct Ingestion {
    /// Seconds for a token, and for an empty prompt.
    pub fit: Fit,
    /// Points near the first line: tokens, seconds.
    pub kept: Vec<Point>,
    /// Every point.
    pub all: Vec<Point>,
}

impl Ingestion {
    /// Least squares over all points, then over those within 5 % of the first line. `None` if no line can be drawn.
    pub fn of(all: Vec<Point>) -> Option<Self> {
        let first = least_squares(&all)?;
        let near = |point: &&Point| ((first.slope * point.x + first.offset - point.y) / point.y).abs() < MAX_DISTANCE;
        let kept: Vec<Point> = all.iter().filter(near).copied().collect();
        match least_squares(&kept) {
            Some(fit) => Some(Self { fit, kept, all }),
            // So scattered that nothing is near: the first line is all there is.
            None => Some(Self { fit: first, kept: all.clone(), all }),
        }
    }

    /// Whole tokens per second; `None` if longer prompts did not take longer.
    pub fn tokens_per_second(&self) -> Option<u64> {
        (self.fit.slope > 0.0).then(|| (1.0 / self.fit.slope) as u64)
    }
}

/// Median, and how far the quartiles are from it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Median minus first quartile.
    pub below: f64,
    /// The median.
    pub median: f64,
    /// Third quartile minus median.
    pub above: f64,
}

impl Spread {
    /// Of some values.
    pub fn of(values: &[f64]) -> Self {
        let median = median(values);
        Self { below: median - quantile(values, 0.25), median, above: quantile(values, 0.75) - median }
    }
}

/// One number of parallel requests of one couple of lengths.
#[derive(Clone, Debug, PartialEq)]
pub struct Speed {
    /// Parallel requests.
    pub parallel: usize,
    /// Complete answers.
    pub answers: usize,
    /// Tokens per second of one request, time to first token included.
    pub speed: Spread,
    /// Seconds.
    pub time_to_first_token: Spread,
    /// Highest share of the KV cache in use; `None` if the server does not tell.
    pub max_kv_cache: Option<f64>,
    /// Tokens of all answers.
    pub generated: f64,
    /// Length of the run in seconds.
    pub wall_s: f64,
    /// Sum of the answers' times in seconds.
    pub answers_s: f64,
}

impl Speed {
    /// `None` if nothing was answered.
    pub fn of(parallel: usize, run: &RunResult) -> Option<Self> {
        let queries: Vec<Query> = run.rows.iter().filter_map(Query::of).collect();
        if queries.is_empty() {
            return None;
        }
        let column = |value: fn(&Query) -> f64| queries.iter().map(value).collect::<Vec<f64>>();
        Some(Self {
            parallel,
            answers: queries.len(),
            speed: Spread::of(&column(Query::speed_from_beginning)),
            time_to_first_token: Spread::of(&column(|query| query.time_to_first_token)),
            max_kv_cache: max_kv_usage(run),
            generated: column(|query| query.response_length).iter().sum(),
            wall_s: run.wall_s,
            answers_s: column(|query| query.total_time).iter().sum(),
        })
    }
}

fn max_kv_usage(run: &RunResult) -> Option<f64> {
    run.server_metrics.as_ref()?.samples.iter().filter_map(|sample| sample.kv_usage).reduce(f64::max)
}

/// Tokens per second of all requests together. The idle time of the client, known from the run with one request, is taken off each run, as
/// the suite does. `None` without such a run.
pub fn total_speeds(speeds: &[Speed]) -> Option<Vec<(usize, f64)>> {
    let alone = speeds.iter().find(|speed| speed.parallel == 1)?;
    let idle = (alone.wall_s - alone.answers_s).max(0.0);
    let busy = |speed: &Speed| speed.wall_s - idle;
    Some(speeds.iter().filter(|s| busy(s) > 0.0).map(|speed| (speed.parallel, speed.generated / busy(speed))).collect())
}

/// The largest loads that a couple of lengths bears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Most parallel requests whose median speed is fast enough.
    pub speed: Option<usize>,
    /// Most parallel requests that leave room in the KV cache.
    pub kv_cache: Option<usize>,
}

impl Thresholds {
    /// `least`: tokens per second that each request shall have.
    pub fn of(speeds: &[Speed], least: f64) -> Self {
        let most = |fits: &dyn Fn(&Speed) -> bool| speeds.iter().filter(|s| fits(s)).map(|s| s.parallel).max();
        Self {
            speed: most(&|speed| speed.speed.median >= least),
            kv_cache: most(&|speed| speed.max_kv_cache.is_some_and(|usage| usage < FULL_CACHE)),
        }
    }
}

/// How many tokens fit the KV cache, from a run with more and more requests: mean tokens of a request, times requests running at the
/// fullest moment, over the share in use then. `None` if the server tells no shares.
pub fn kv_tokens(run: &RunResult) -> Option<f64> {
    let queries: Vec<Query> = run.rows.iter().filter_map(Query::of).collect();
    let tokens = mean(&queries.iter().map(|query| query.prompt_length + query.response_length).collect::<Vec<f64>>());
    let samples = run.server_metrics.as_ref()?.samples.iter();
    let (usage, running) = samples
        .filter_map(|sample| Some((sample.kv_usage.filter(|usage| *usage > 0.0)?, sample.running?)))
        .max_by(|one, other| one.0.total_cmp(&other.0))?;
    (running > 0.0 && tokens > 0.0).then(|| (tokens * running / usage).floor())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_drawn_again_without_what_was_far() {
        let mut points: Vec<Point> = (1..200).map(f64::from).map(|n| Point::new(n, 0.0101 * n + 0.5)).collect();
        points.push(Point::new(100.0, 3.0));
        let ingestion = Ingestion::of(points).expect("a line");
        assert_eq!((ingestion.all.len(), ingestion.kept.len()), (200, 199));
        let fit = ingestion.fit;
        assert!((fit.slope - 0.0101).abs() < 1e-9 && (fit.offset - 0.5).abs() < 1e-9, "{fit:?}");
        assert_eq!(ingestion.tokens_per_second(), Some(99));
        assert_eq!(Ingestion::of(vec![Point::new(5.0, 1.0), Point::new(5.0, 2.0)]), None);
    }

    fn speed(parallel: usize, median: f64, kv: Option<f64>, generated: f64, wall_s: f64) -> Speed {
        let spread = Spread { below: 0.0, median, above: 0.0 };
        Speed {
            parallel,
            answers: 1,
            speed: spread,
            time_to_first_token: spread,
            max_kv_cache: kv,
            generated,
            wall_s,
            answers_s: 9.0,
        }
    }

    #[test]
    fn thresholds_are_the_largest_loads_that_hold() {
        let speeds = [
            speed(1, 40.0, Some(0.1), 1.0, 1.0),
            speed(8, 21.0, Some(0.94), 1.0, 1.0),
            speed(10, 19.0, Some(0.95), 1.0, 1.0),
        ];
        assert_eq!(Thresholds::of(&speeds, 20.0), Thresholds { speed: Some(8), kv_cache: Some(8) });
        assert_eq!(Thresholds::of(&speeds[2..], 20.0), Thresholds { speed: None, kv_cache: None });
    }

    #[test]
    fn the_idle_time_of_one_request_is_taken_off_all() {
        let speeds = [speed(1, 1.0, None, 90.0, 10.0), speed(4, 1.0, None, 360.0, 11.0)];
        assert_eq!(total_speeds(&speeds), Some(vec![(1, 10.0), (4, 36.0)]));
        assert_eq!(total_speeds(&speeds[1..]), None);
    }
}
