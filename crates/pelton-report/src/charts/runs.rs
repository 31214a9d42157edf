//! The charts of a report: from its runs to figures.

use pelton_bench::results::RunResult;
use pelton_bench::slo::Aggregate;
use pelton_bench::{Distribution, Metric, Row, ServerSample};

use super::figure::{Axis, Colour, Figure, Point, Series, Side, Span};
use crate::report::{Level, LoadKind, Report, Told};

/// Most runs in one chart of distributions: more lines cannot be told apart.
const MAX_LINES: usize = 8;
/// Most runs that get charts of their own.
pub const MAX_DETAILED: usize = 16;
/// Most points of a distribution.
const MAX_STEPS: usize = 400;
/// Most requests drawn one by one.
const MAX_REQUESTS: usize = 120;
/// Most points of a course of time.
const MAX_MOMENTS: usize = 120;
/// Shorter waits in the client cannot be seen.
const MIN_WAIT_US: u64 = 1000;
/// Axes become logarithmic when the largest value is this many times the smallest.
const WIDE: f64 = 20.0;

/// A chart: figures that belong below each other, most often one.
#[derive(Clone, Debug)]
pub struct Chart {
    /// The name of its file, without its end.
    pub name: String,
    /// What it shows.
    pub title: String,
    /// From top to bottom.
    pub figures: Vec<Figure>,
}

/// Everything there is to draw.
#[derive(Clone, Debug, Default)]
pub struct Charts {
    /// Against the load, where there are several loads.
    pub loads: Vec<Chart>,
    /// How the values of each metric are distributed.
    pub distributions: Vec<Chart>,
    /// Of single runs, in the order of the runs; at most [`MAX_DETAILED`].
    pub runs: Vec<RunCharts>,
    /// Runs beyond that.
    pub runs_left_out: usize,
}

/// The charts of one run.
#[derive(Clone, Debug)]
pub struct RunCharts {
    /// The run's name.
    pub name: String,
    /// The course of time: rates, requests, the server's own numbers.
    pub time: Chart,
    /// Its requests one by one.
    pub requests: Option<Chart>,
}

impl Charts {
    /// Draws up the charts of a report.
    pub fn of(report: &Report) -> Self {
        let kinds = report.kinds();
        let runs: Vec<Told<'_>> = report.runs().collect();
        Self {
            loads: kinds.into_iter().flat_map(|kind| against_load(report, kind)).collect(),
            distributions: [Metric::Ttft, Metric::Itl, Metric::Tpot, Metric::E2e, Metric::Lateness]
                .into_iter()
                .filter_map(|metric| distribution(&runs, metric))
                .collect(),
            runs_left_out: runs.len().saturating_sub(MAX_DETAILED),
            runs: runs.iter().take(MAX_DETAILED).filter_map(RunCharts::of).collect(),
        }
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Chart> {
        let of_runs = self.runs.iter().flat_map(|run| std::iter::once(&run.time).chain(&run.requests));
        self.loads.iter().chain(&self.distributions).chain(of_runs)
    }
}

impl RunCharts {
    /// `None` for a run of which neither requests nor the server's metrics were kept.
    fn of(told: &Told<'_>) -> Option<Self> {
        let time = course(told);
        (!time.figures.is_empty()).then(|| Self { name: told.name(), time, requests: waterfall(told) })
    }
}

/// Throughput and latencies against users or rate.
fn against_load(report: &Report, kind: LoadKind) -> Vec<Chart> {
    let mut levels: Vec<f64> =
        report.tests().iter().flat_map(|test| test.levels(kind)).map(|level| level.level).collect();
    levels.sort_by(f64::total_cmp);
    levels.dedup();
    let (Some(&first), Some(&last)) = (levels.first(), levels.last()) else { return Vec::new() };
    if first == last {
        return Vec::new();
    }
    let mut x = Axis::new(kind.name()).unit(kind.unit()).marks(levels);
    if last / first >= WIDE {
        x = x.log();
    } else if first <= 0.25 * last {
        x = x.from_zero();
    }
    let is_one = report.tests().len() == 1;
    let title = |what: &str| format!("{what} against {}", kind.name());
    // Only what is drawn is explained.
    let noted = |figure: Figure| {
        let has_bars = figure.series.iter().flat_map(Series::points).any(|point| point.bar.is_some());
        if has_bars { figure.note("Bars: where the value lies with a confidence of 95 %.") } else { figure }
    };
    let chart = |name: String, title: String, figures: Vec<Figure>| {
        let figures: Vec<Figure> = figures.into_iter().filter(|figure| !figure.is_empty()).collect();
        (!figures.is_empty()).then_some(Chart { name, title, figures })
    };

    let mut throughput =
        noted(Figure::new(title("Throughput"), x.clone(), Axis::new("output tokens").unit("tokens/s").from_zero()));
    for test in report.tests() {
        let points = points_of(&test.levels(kind), Metric::OutputTokensPerSecond, Aggregate::Value);
        throughput = throughput.with(Series::dotted_line(&test.name, points));
    }
    let aggregates: &[Aggregate] =
        if is_one { &[Aggregate::P50, Aggregate::P95, Aggregate::P99] } else { &[Aggregate::P50, Aggregate::P99] };
    let mut latencies = Vec::new();
    for metric in [Metric::Ttft, Metric::Itl, Metric::E2e] {
        let y = Axis::new(metric.title()).unit(metric.unit());
        let mut figure = Figure::new(title(&capital(metric.title())), x.clone(), y.clone()).size(800, 300);
        for (n, test) in report.tests().iter().enumerate() {
            for (nth, &aggregate) in aggregates.iter().enumerate() {
                let points = points_of(&test.levels(kind), metric, aggregate);
                let series = if is_one {
                    Series::dotted_line(aggregate.name(), points)
                } else {
                    let name = format!("{} {}", test.name, aggregate.name());
                    let series = Series::dotted_line(name, points).colour(Colour::Nth(n));
                    if nth > 0 { series.dashed() } else { series }
                };
                figure = figure.with(series);
            }
        }
        let is_wide = figure.extent(Side::Left).is_some_and(|(low, high)| low > 0.0 && high / low >= WIDE);
        figure = figure.axis(Side::Left, if is_wide { y.log() } else { y.from_zero() });
        latencies.push(noted(figure));
    }
    let name = |what: &str| format!("{what}-{}", kind.name());
    [
        chart(name("throughput"), title("Throughput"), vec![noted(throughput)]),
        chart(name("latency"), title("Latency"), latencies),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// One point for each level: the median of the repeats, with its interval.
fn points_of(levels: &[Level<'_>], metric: Metric, aggregate: Aggregate) -> Vec<Point> {
    let point = |level: &Level<'_>| {
        let values = level.runs.iter().filter_map(|run| aggregate.in_run(metric, &run.summary));
        let point = Point::new(level.level, Distribution::of(values.collect())?.p50);
        let interval = level.interval(metric, aggregate);
        Some(interval.map_or(point, |interval| point.between(interval.low, interval.high)))
    };
    levels.iter().filter_map(point).collect()
}

/// Which share of the values is not above which value.
fn distribution(runs: &[Told<'_>], metric: Metric) -> Option<Chart> {
    let lines: Vec<(&Told<'_>, Vec<Point>)> =
        runs.iter().map(|told| (told, shares_of(told.run, metric))).filter(|(_, points)| !points.is_empty()).collect();
    let total = lines.len();
    let chosen: Vec<_> = evenly(total, MAX_LINES).into_iter().map(|n| &lines[n]).collect();
    let shares = Axis::new("share of values not above").shares().marks([0.0, 0.25, 0.5, 0.75, 0.9, 0.99]);
    let title = format!("Distribution of {}", metric.title());
    let axis = Axis::new(metric.title()).unit(metric.unit());
    let mut figure = Figure::new(&title, axis.clone(), shares);
    // The runs of one test differ in their load, which has an order; several tests have none.
    let is_ordered = runs.iter().all(|told| told.test_index == 0) && chosen.len() > 2;
    for (n, (told, points)) in chosen.iter().enumerate() {
        let mut series = Series::steps(told.name(), points.clone());
        if is_ordered {
            series = series.colour(Colour::Shade(n as f64 / (chosen.len() - 1) as f64));
        }
        figure = figure.with(series);
    }
    let (low, high) = figure.extent_x()?;
    if low > 0.0 && high / low >= WIDE / 2.0 {
        figure.x = axis.log();
    }
    if total > MAX_LINES {
        figure = figure.note(format!("{MAX_LINES} of {total} runs, evenly chosen."));
    }
    Some(Chart { name: format!("distribution-{}", metric.name()), title, figures: vec![figure] })
}

/// Points of the empirical distribution function, at most about [`MAX_STEPS`]; the largest 50 values are all there. Of a run without
/// rows, the quantiles of its summary.
fn shares_of(run: &RunResult, metric: Metric) -> Vec<Point> {
    let mut sorted = metric.values(run);
    if sorted.is_empty() {
        let Some(values) = metric.distribution(&run.summary) else { return Vec::new() };
        let known = Aggregate::ALL
            .iter()
            .filter_map(|aggregate| Some(Point::new(aggregate.of(values)?, aggregate.quantile()?)));
        return known.collect();
    }
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    let tail = n.saturating_sub(50);
    let body = evenly(tail, MAX_STEPS);
    let point = |index: usize| Point::new(sorted[index], (index + 1) as f64 / n as f64);
    let start = sorted.first().map(|&least| Point::new(least, 0.0));
    start.into_iter().chain(body.into_iter().chain(tail..n).map(point)).collect()
}

/// At most `limit` of the numbers below `n`, first and last among them.
fn evenly(n: usize, limit: usize) -> Vec<usize> {
    if n <= limit {
        return (0..n).collect();
    }
    (0..limit).map(|k| k * (n - 1) / (limit - 1)).collect()
}

/// Rates and requests over time, as the client saw them and as the server tells.
fn course(told: &Told<'_>) -> Chart {
    let run = told.run;
    // With rows left out, those that are there say nothing of rates.
    let has_rows = run.histograms.is_none() && !run.rows.is_empty();
    let bins = Bins::of(run);
    let client = |points: Vec<Point>| if has_rows { points } else { Vec::new() };
    let seconds = || Axis::new("time in the run").unit("s").span(0.0, run.wall_s);
    let window = &run.summary.rates;
    let link = told.slug();
    let figure = |title: String, y: Axis| {
        Figure::new(title, seconds(), y)
            .size(800, 240)
            .link(&link)
            .greyed(0.0, window.from_s)
            .greyed(window.to_s, run.wall_s)
    };
    let samples: Vec<ServerSample> = run.server_metrics.as_ref().map_or_else(Vec::new, |metrics| {
        evenly(metrics.samples.len(), 4 * MAX_MOMENTS).into_iter().map(|n| metrics.samples[n]).collect()
    });
    let level = |value: fn(&ServerSample) -> Option<f64>| -> Vec<Point> {
        samples.iter().filter_map(|sample| Some(Point::new(sample.at_us as f64 / 1e6, value(sample)?))).collect()
    };

    let every = crate::numbers::plain(bins.width_s);
    let mut note = format!("Means of {every} s.");
    if window.from_s > 0.01 * run.wall_s || window.to_s < 0.99 * run.wall_s {
        note.push_str(" Grey: not in the summary.");
    }
    let tokens = figure(format!("Tokens over time, {}", told.name()), Axis::new("tokens").unit("tokens/s").from_zero())
        .note(note)
        .with(Series::line("output, seen by the client", client(bins.rate(&bins.tokens))))
        .with(
            Series::line("output, told by the server", growth(&samples, |s| s.generated_tokens))
                .dashed()
                .colour(Colour::Nth(5)),
        )
        .with(
            Series::line("prompt, told by the server", growth(&samples, |s| s.prompt_tokens))
                .dashed()
                .colour(Colour::Nth(4)),
        );
    let requests = figure("Requests over time".to_owned(), Axis::new("requests").from_zero())
        .with(Series::line("under way, client", client(bins.mean(&bins.busy_us))))
        .with(Series::line("running, server", level(|s| s.running)).dashed().colour(Colour::Nth(5)))
        .with(Series::line("waiting, server", level(|s| s.waiting)).dashed().colour(Colour::Nth(1)))
        .with(Series::dots(format!("failed in {every} s"), bins.counts(&bins.failed)).colour(Colour::Failure))
        .with(Series::dots(format!("dropped in {every} s"), bins.counts(&bins.dropped)).colour(Colour::Quiet));
    // The next of a few tops, so that runs can be compared and little use is seen too.
    let most = samples.iter().filter_map(|sample| sample.kv_usage).fold(0.0, f64::max);
    let top = [0.01, 0.05, 0.1, 0.25, 0.5].into_iter().find(|top| most <= *top).unwrap_or(1.0);
    let cache = figure("KV cache over time".to_owned(), Axis::new("KV cache in use").shares().span(0.0, top))
        .size(800, 180)
        .with(Series::line("KV cache in use, server", level(|s| s.kv_usage)).colour(Colour::Nth(2)));
    let figures = [tokens, requests, cache].into_iter().filter(|figure| !figure.is_empty()).collect();
    Chart { name: format!("time-{}", told.slug()), title: format!("Over time: {}", told.name()), figures }
}

/// A run cut into equal spans of time.
struct Bins {
    width_s: f64,
    wall_s: f64,
    tokens: Vec<f64>,
    busy_us: Vec<f64>,
    failed: Vec<f64>,
    dropped: Vec<f64>,
}

impl Bins {
    fn of(run: &RunResult) -> Self {
        let widths = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0];
        let width_s = widths.into_iter().find(|width| run.wall_s / width <= MAX_MOMENTS as f64).unwrap_or(3600.0);
        let n = ((run.wall_s / width_s).ceil() as usize).clamp(1, 10 * MAX_MOMENTS);
        let none = vec![0.0; n];
        let mut bins = Self {
            width_s,
            wall_s: run.wall_s,
            tokens: none.clone(),
            busy_us: none.clone(),
            failed: none.clone(),
            dropped: none,
        };
        let bin = |us: u64| ((us as f64 / 1e6 / width_s) as usize).min(n - 1);
        for row in &run.rows {
            for arrival in &row.arrivals {
                bins.tokens[bin(row.start_us + u64::from(arrival.at_us))] += f64::from(arrival.tokens);
            }
            let (start, end) = (row.start_us, row.start_us + u64::from(row.end_us));
            if row.failure.is_some() {
                bins.failed[bin(end)] += 1.0;
            }
            for (k, busy) in bins.busy_us.iter_mut().enumerate().take(bin(end) + 1).skip(bin(start)) {
                let (from, to) = (k as f64 * width_s * 1e6, (k + 1) as f64 * width_s * 1e6);
                *busy += ((end as f64).min(to) - (start as f64).max(from)).max(0.0);
            }
        }
        for &us in &run.dropped_us {
            bins.dropped[bin(us)] += 1.0;
        }
        bins
    }

    /// Middle and length of each span; the last may be shorter.
    fn spans(&self) -> impl Iterator<Item = (f64, f64)> {
        (0..self.tokens.len()).map(|n| {
            let from = n as f64 * self.width_s;
            let to = (from + self.width_s).min(self.wall_s.max(from + 1e-3 * self.width_s));
            (f64::midpoint(from, to), to - from)
        })
    }

    fn rate(&self, values: &[f64]) -> Vec<Point> {
        // A rest shorter than half a span says little and jumps much.
        let spans = self.spans().zip(values).filter(|((_, length), _)| *length >= 0.5 * self.width_s);
        spans.map(|((middle, length), value)| Point::new(middle, value / length)).collect()
    }

    fn mean(&self, us: &[f64]) -> Vec<Point> {
        let mut points = self.rate(us);
        points.iter_mut().for_each(|point| point.y /= 1e6);
        points
    }

    fn counts(&self, values: &[f64]) -> Vec<Point> {
        let spans = self.spans().zip(values).filter(|(_, value)| **value > 0.0);
        spans.map(|((middle, _), value)| Point::new(middle, *value)).collect()
    }
}

/// Growth per second of a counter between readings. One that falls began anew: nothing is known of that moment.
fn growth(samples: &[ServerSample], value: fn(&ServerSample) -> Option<f64>) -> Vec<Point> {
    let known: Vec<(f64, f64)> =
        samples.iter().filter_map(|sample| Some((sample.at_us as f64 / 1e6, value(sample)?))).collect();
    let pairs = known.windows(2).filter(|pair| pair[1].0 > pair[0].0 && pair[1].1 >= pair[0].1);
    pairs
        .map(|pair| {
            let seconds = pair[1].0 - pair[0].0;
            Point::new(f64::midpoint(pair[0].0, pair[1].0), (pair[1].1 - pair[0].1) / seconds)
        })
        .collect()
}

/// Each request as a bar: waiting, until the first token, answering.
fn waterfall(told: &Told<'_>) -> Option<Chart> {
    let mut rows: Vec<&Row> = told.run.rows.iter().collect();
    rows.sort_by_key(|row| (row.intended_us, row.index, row.turn));
    let total = rows.len();
    let chosen: Vec<&Row> = evenly(total, MAX_REQUESTS).into_iter().map(|n| rows[n]).collect();
    let s = |us: u64| us as f64 / 1e6;
    let (mut late, mut queued, mut first, mut answer, mut failed) = (vec![], vec![], vec![], vec![], vec![]);
    for (place, row) in chosen.iter().enumerate() {
        let place = place as u32; // At most MAX_REQUESTS.
        let span = |from: u64, to: u64| Span { from: s(from), to: s(to), place };
        if row.start_us > row.intended_us + MIN_WAIT_US {
            late.push(span(row.intended_us, row.start_us));
        }
        let end = row.start_us + u64::from(row.end_us);
        let first_token = row.arrivals.first().map_or(end, |arrival| row.start_us + u64::from(arrival.at_us));
        if row.failure.is_some() {
            failed.push(span(row.start_us, end));
            continue;
        }
        let queue_us = row.server_ms.and_then(|times| times.queue).map_or(0, |ms| (ms * 1e3).max(0.0) as u64);
        let computing = (row.start_us + queue_us).min(first_token);
        if computing > row.start_us {
            queued.push(span(row.start_us, computing));
        }
        first.push(span(computing, first_token));
        answer.push(span(first_token, end));
    }
    let title = format!("Requests one by one, {}", told.name());
    let height = (110.0 + 4.5 * chosen.len() as f64).clamp(220.0, 650.0) as u32;
    let mut figure = Figure::new(
        &title,
        Axis::new("time in the run").unit("s"),
        Axis::new("requests by intended start").span(-0.7, chosen.len() as f64 - 0.3).bare(),
    )
    .size(800, height)
    .link(told.slug())
    .with(Series::spans("waiting in the client", late).colour(Colour::Quiet))
    .with(Series::spans("queued in the server", queued).colour(Colour::Nth(3)))
    .with(Series::spans("until the first token", first).colour(Colour::Nth(4)))
    .with(Series::spans("answering", answer).colour(Colour::Nth(0)))
    .with(Series::spans("failed", failed).colour(Colour::Failure));
    let mut note = String::new();
    if total > chosen.len() {
        note = format!("{} of {total} requests, evenly chosen.", chosen.len());
    }
    if told.run.histograms.is_some() {
        note.push_str(" Requests that ended well were not kept.");
    }
    if !note.is_empty() {
        figure = figure.note(note.trim_start());
    }
    (!figure.is_empty()).then(|| Chart { name: format!("requests-{}", told.slug()), title, figures: vec![figure] })
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
