//! A run so far, in numbers: what both views show. Fed by looks, on a thread that measures nothing.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use hdrhistogram::Histogram;
use pelton_bench::watch::Moment;
use pelton_bench::{BenchPlan, Distribution, ErrorKind, ServerSample, TokenArrival, Warmup};
use serde::Serialize;

use crate::looks::{Begins, Done, Ended, Look, MAX_ERROR_KINDS, Request};

/// Seconds over which recent percentiles are taken.
pub(crate) const RECENT_S: usize = 10;

/// Points kept of a run: one a second, four hours. Older ones go.
pub(crate) const MAX_POINTS: usize = 4 * 3600;

/// Runs kept in the list of those that are over.
pub(crate) const MAX_DONE: usize = 1000;

/// Longest latency that is told apart, in microseconds: a day.
const MAX_US: u64 = 24 * 3600 * 1_000_000;

/// What is known before the first run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct About {
    pub url: String,
    pub model: Option<String>,
    pub api: Option<&'static str>,
    pub streams: bool,
    #[serde(skip)]
    pub warmup: Warmup,
    /// Whether a hand may change the number of users: neither that of a step of a search, nor that of a share.
    #[serde(skip)]
    pub may_steer: bool,
}

impl About {
    pub fn of(plan: &BenchPlan) -> Self {
        Self {
            url: plan.target.url.clone(),
            model: plan.target.model.clone(),
            api: plan.target.api.map(|api| api.name()),
            streams: plan.target.stream,
            warmup: plan.warmup,
            may_steer: plan.goals.search.is_none() && plan.scale.shard.is_none(),
        }
    }
}

/// Everything that is shown.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    pub about: About,
    /// What is done before a run, while it is.
    pub preparing: Option<String>,
    /// The run that goes on, or the last one.
    pub run: Option<Running>,
    /// Runs begun.
    pub num_begun: u64,
    /// Runs that are over, oldest first.
    pub done: VecDeque<Done>,
}

/// A run so far.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub begins: Begins,
    pub now: Moment,
    pub is_over: bool,
    pub ttft: Latency,
    pub itl: Latency,
    pub e2e: Latency,
    /// At most [`MAX_POINTS`], the newest last.
    pub points: VecDeque<Point>,
    /// Points made, those that went too.
    pub num_points: u64,
    pub errors: BTreeMap<ErrorKind, Error>,
    pub server: Option<ServerSample>,
    /// Starts later than the plan allows.
    pub late: u64,
    /// Ended requests that are in no percentile because they belong to the warm-up.
    pub num_warmup: u64,
    /// Looks that found no room: their requests are in no percentile here, and in all results.
    pub missed_looks: u64,
    /// The moment of the last point.
    base: Moment,
}

/// Failures of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Error {
    pub count: u64,
    /// The words of the first.
    pub example: String,
}

/// One second of a run. Rates are per second; latencies are milliseconds, of the last [`RECENT_S`] seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Point {
    pub at_s: f64,
    pub requests: f64,
    pub failures: f64,
    pub tokens: f64,
    pub running: u64,
    pub users: Option<usize>,
    pub ttft_p50: Option<f64>,
    pub ttft_p95: Option<f64>,
    pub itl_p50: Option<f64>,
    pub itl_p95: Option<f64>,
    pub e2e_p50: Option<f64>,
    pub e2e_p95: Option<f64>,
    pub server_running: Option<f64>,
    pub server_waiting: Option<f64>,
    pub server_kv: Option<f64>,
}

/// Values of one kind of latency, each within 0.1 %: of the whole run, and of its last seconds.
#[derive(Clone, Debug)]
pub(crate) struct Latency {
    whole: Histogram<u64>,
    /// One for each second, the newest last.
    recent: VecDeque<Histogram<u32>>,
}

/// Some values, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Quantiles {
    pub count: u64,
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub mean: f64,
    pub min: f64,
    pub max: f64,
}

/// One bar of a histogram: values from `from_ms` on, and below `to_ms`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Bar {
    pub from_ms: f64,
    pub to_ms: f64,
    pub count: u64,
}

impl Tally {
    pub fn new(about: About) -> Self {
        Self { about, preparing: None, run: None, num_begun: 0, done: VecDeque::new() }
    }

    /// The run that goes on, if its number of users may be changed.
    pub fn steered(&self) -> Option<&Running> {
        self.run.as_ref().filter(|run| run.begins.is_steered && !run.is_over && self.about.may_steer)
    }

    /// Takes in one look. True if a new point was made or something other than numbers changed.
    pub fn take(&mut self, look: Look) -> bool {
        match look {
            Look::Preparing(what) => self.preparing = Some(what),
            Look::Found { api, model } => (self.about.api, self.about.model) = (Some(api), Some(model)),
            Look::Begins(begins) => {
                self.preparing = None;
                self.num_begun += 1;
                self.run = Some(Running::new(*begins));
            }
            Look::Moment(now, ended) => {
                let Some(run) = &mut self.run else { return false };
                return run.take(now, &ended, &self.about);
            }
            Look::Server(sample) => {
                if let Some(run) = &mut self.run {
                    run.server = Some(sample);
                }
                return false;
            }
            Look::Ends(done) => {
                if let Some(run) = &mut self.run {
                    run.end(&done);
                }
                if self.done.len() == MAX_DONE {
                    self.done.pop_front();
                }
                self.done.push_back(*done);
            }
            Look::Over(_) | Look::Leave => self.preparing = None,
        }
        true
    }
}

impl Running {
    fn new(begins: Begins) -> Self {
        Self {
            begins,
            now: Moment::default(),
            is_over: false,
            ttft: Latency::new(),
            itl: Latency::new(),
            e2e: Latency::new(),
            points: VecDeque::new(),
            num_points: 0,
            errors: BTreeMap::new(),
            server: None,
            late: 0,
            num_warmup: 0,
            missed_looks: 0,
            base: Moment::default(),
        }
    }

    /// Share of the run that is over, by whichever limit is nearer.
    pub fn progress(&self) -> f64 {
        if self.is_over {
            return 1.0;
        }
        let passed = self.now.at.as_secs_f64() / self.begins.limits.duration.as_secs_f64();
        let started = self.now.started as f64 / self.begins.limits.requests as f64;
        passed.max(started).clamp(0.0, 1.0)
    }

    /// Time until the run's limit; with a limit of requests that is nearer, as long as it takes at the present pace.
    pub fn remaining(&self) -> Duration {
        let by_time = self.begins.limits.duration.saturating_sub(self.now.at);
        let left = self.begins.limits.requests.saturating_sub(self.now.started) as f64;
        let pace = self.now.started as f64 / self.now.at.as_secs_f64().max(1e-3);
        let by_count = if pace > 0.0 { left / pace } else { f64::MAX };
        Duration::try_from_secs_f64(by_count).map_or(by_time, |by_count| by_count.min(by_time))
    }

    fn take(&mut self, now: Moment, ended: &Ended, about: &About) -> bool {
        self.now = now;
        self.missed_looks = ended.missed_looks;
        let mut arrivals = ended.arrivals.as_slice();
        for request in &ended.requests {
            let (own, rest) = arrivals.split_at(request.num_arrivals.min(arrivals.len()));
            arrivals = rest;
            self.request(request, own, about);
        }
        for (kind, words) in &ended.words {
            if let Some(error) = self.errors.get_mut(kind)
                && error.example.is_empty()
            {
                error.example.clone_from(words);
            }
        }
        let is_due = now.at.saturating_sub(self.base.at) >= Duration::from_secs(1);
        if is_due {
            self.point();
        }
        is_due
    }

    fn request(&mut self, request: &Request, arrivals: &[TokenArrival], about: &About) {
        if let Some(kind) = request.failure {
            if self.errors.len() < MAX_ERROR_KINDS || self.errors.contains_key(&kind) {
                self.errors.entry(kind).or_default().count += 1;
            }
            return;
        }
        let is_warmup = match about.warmup {
            Warmup::Time(time) => u128::from(request.intended_us) < time.as_micros(),
            Warmup::Requests(n) => request.index < n,
        };
        if is_warmup {
            self.num_warmup += 1;
            return;
        }
        let late_us = request.start_us.saturating_sub(request.intended_us);
        if self.begins.late_after_us.is_some_and(|after| late_us > after) {
            self.late += 1;
        }
        if about.streams
            && let Some(first) = arrivals.first()
        {
            self.ttft.record(late_us + u64::from(first.at_us), 1);
        }
        self.e2e.record(late_us + u64::from(request.end_us), 1);
        let mut last_us = None;
        for arrival in arrivals.iter().filter(|arrival| arrival.tokens > 0) {
            if let Some(last) = last_us.replace(arrival.at_us) {
                let gap = arrival.at_us.saturating_sub(last) / arrival.tokens;
                self.itl.record(gap.into(), arrival.tokens.into());
            }
        }
    }

    /// Closes the present second.
    fn point(&mut self) {
        let span = self.now.at.saturating_sub(self.base.at).as_secs_f64();
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / span;
        let [ttft, itl, e2e] = [&self.ttft, &self.itl, &self.e2e].map(Latency::recent);
        let middle = |values: &Option<Quantiles>| values.map(|values| values.p50);
        let high = |values: &Option<Quantiles>| values.map(|values| values.p95);
        let point = Point {
            at_s: self.now.at.as_secs_f64(),
            requests: rate(self.now.done, self.base.done),
            failures: rate(self.now.failed, self.base.failed),
            tokens: rate(self.now.tokens, self.base.tokens),
            running: self.now.running(),
            users: self.now.users,
            ttft_p50: middle(&ttft),
            ttft_p95: high(&ttft),
            itl_p50: middle(&itl),
            itl_p95: high(&itl),
            e2e_p50: middle(&e2e),
            e2e_p95: high(&e2e),
            server_running: self.server.and_then(|server| server.running),
            server_waiting: self.server.and_then(|server| server.waiting),
            server_kv: self.server.and_then(|server| server.kv_usage),
        };
        if self.points.len() == MAX_POINTS {
            self.points.pop_front();
        }
        self.points.push_back(point);
        self.num_points += 1;
        self.base = self.now;
        for latency in [&mut self.ttft, &mut self.itl, &mut self.e2e] {
            latency.next_second();
        }
    }

    /// Counts of the end replace those of the last look.
    fn end(&mut self, done: &Done) {
        self.is_over = true;
        self.now.at = Duration::try_from_secs_f64(done.wall_s).unwrap_or(self.now.at);
        self.now.started = done.started;
        self.now.failed = done.ended_badly;
        self.now.done = done.started.saturating_sub(done.ended_badly);
        self.now.dropped = done.dropped;
        self.late = done.late;
    }
}

impl Latency {
    fn new() -> Self {
        Self { whole: histogram(), recent: VecDeque::from([histogram()]) }
    }

    fn record(&mut self, us: u64, count: u64) {
        let us = us.clamp(1, MAX_US);
        // Histograms grow as needed.
        let _ = self.whole.record_n(us, count);
        if let Some(now) = self.recent.back_mut() {
            let _ = now.record_n(us, u32::try_from(count).unwrap_or(u32::MAX));
        }
    }

    fn next_second(&mut self) {
        // The oldest is used again.
        let next = if self.recent.len() < RECENT_S { None } else { self.recent.pop_front() };
        let mut next = next.unwrap_or_else(histogram);
        next.reset();
        self.recent.push_back(next);
    }

    /// Of the whole run.
    pub fn whole(&self) -> Option<Quantiles> {
        Quantiles::of(&self.whole)
    }

    /// Of the last seconds.
    pub fn recent(&self) -> Option<Quantiles> {
        let mut sum: Histogram<u32> = histogram();
        for second in &self.recent {
            // It grows as needed.
            let _ = sum.add(second);
        }
        Quantiles::of(&sum)
    }

    /// The whole run in at most `num` bars, each as many times wider than the one before. What lies above the 99.9th percentile is in
    /// the last bar.
    pub fn bars(&self, num: usize) -> Vec<Bar> {
        if self.whole.is_empty() || num == 0 {
            return Vec::new();
        }
        let low = self.whole.min().max(1) as f64;
        let high = (self.whole.value_at_quantile(0.999) as f64 + 1.0).max(low * 1.05);
        let step = (high / low).powf(1.0 / num as f64);
        let edge = |n: usize| low * step.powi(n as i32);
        let mut bars: Vec<Bar> =
            (0..num).map(|n| Bar { from_ms: edge(n) / 1e3, to_ms: edge(n + 1) / 1e3, count: 0 }).collect();
        for value in self.whole.iter_recorded() {
            let at = value.value_iterated_to() as f64;
            let n = ((at / low).ln() / step.ln()).max(0.0) as usize;
            bars[n.min(num - 1)].count += value.count_at_value();
        }
        bars
    }
}

/// Three digits; grows with its values.
fn histogram<C: hdrhistogram::Counter>() -> Histogram<C> {
    Histogram::new(3).expect("three digits are among those that there are")
}

impl Quantiles {
    /// Of a run that is over.
    pub fn exact(values: &Distribution) -> Self {
        Self {
            count: values.count as u64,
            p50: values.p50,
            p95: values.p95,
            p99: values.p99,
            mean: values.mean,
            min: values.min,
            max: values.max,
        }
    }

    fn of<C: hdrhistogram::Counter>(values: &Histogram<C>) -> Option<Self> {
        let ms = |us: u64| us as f64 / 1e3;
        (!values.is_empty()).then(|| Self {
            count: values.len(),
            p50: ms(values.value_at_quantile(0.5)),
            p95: ms(values.value_at_quantile(0.95)),
            p99: ms(values.value_at_quantile(0.99)),
            mean: values.mean() / 1e3,
            min: ms(values.min()),
            max: ms(values.max()),
        })
    }
}

#[cfg(test)]
mod tests {
    use pelton_bench::watch::{Sight, Watch};

    use super::*;
    use crate::sample;

    fn take_all(tally: &mut Tally, looks: &std::sync::mpsc::Receiver<Look>) {
        looks.try_iter().for_each(|look| {
            tally.take(look);
        });
    }

    /// A run of which `rows` ended in its first second.
    fn after(warmup: Warmup, rows: &[pelton_bench::Row]) -> Running {
        let (mut looker, looks) = crate::looks::channel();
        let mut tally = Tally::new(About { warmup, ..sample::about() });
        sample::begin(&mut looker);
        let failed = rows.iter().filter(|row| row.failure.is_some()).count() as u64;
        let done = rows.len() as u64 - failed;
        let now = Moment { at: Duration::from_secs(1), started: rows.len() as u64, done, failed, ..Moment::default() };
        looker.see(Sight::Moment(&now, rows));
        take_all(&mut tally, &looks);
        tally.run.expect("a run begun")
    }

    #[test]
    fn latencies_count_from_the_intended_start_and_gaps_by_tokens() {
        // Intended at 0, started 5 ms later; one token at 10 ms, two more at 30 ms.
        let run = after(Warmup::Requests(0), &[sample::row(0, 0, 5_000, &[(10_000, 1), (30_000, 2)])]);
        let near = |value: Quantiles, wished: f64| assert!((value.p50 / wished - 1.0).abs() < 2e-3, "{value:?}");
        near(run.ttft.whole().expect("one value"), 15.0);
        near(run.e2e.whole().expect("one value"), 35.0);
        let gaps = run.itl.whole().expect("two gaps");
        assert_eq!(gaps.count, 2);
        near(gaps, 10.0);
    }

    #[test]
    fn warm_up_and_failures_are_in_no_percentile() {
        let rows = [
            sample::row(0, 0, 0, &[(10, 1)]),
            sample::row(1, 2_000_000, 2_000_000, &[(20, 1)]),
            sample::failed(2, "gone"),
        ];
        for warmup in [Warmup::Requests(1), Warmup::Time(Duration::from_secs(2))] {
            let run = after(warmup, &rows);
            assert_eq!((run.e2e.whole().expect("one value").count, run.num_warmup), (1, 1), "{warmup:?}");
            let error = &run.errors[&ErrorKind::Broken];
            assert_eq!((error.count, error.example.as_str()), (1, "gone"));
        }
    }

    #[test]
    fn a_point_is_made_each_second_from_what_changed_since() {
        let mut run = after(Warmup::Requests(0), &[sample::row(0, 0, 0, &[(10, 1)])]);
        let about = sample::about();
        let at = |ms| Duration::from_millis(ms);
        let mut look = |ms, done, tokens| {
            let now = Moment { at: at(ms), started: done, done, tokens, ..Moment::default() };
            run.take(now, &Ended::default(), &about)
        };
        assert_eq!([look(1500, 3, 40), look(2000, 5, 100), look(4000, 9, 120)], [false, true, true]);
        let rates: Vec<_> = run.points.iter().map(|point| (point.at_s, point.requests, point.tokens)).collect();
        assert_eq!(rates, [(1.0, 1.0, 0.0), (2.0, 4.0, 100.0), (4.0, 2.0, 10.0)]);
    }

    #[test]
    fn recent_values_are_forgotten_and_the_whole_is_not() {
        let mut latency = Latency::new();
        latency.record(1000, 1);
        for _ in 0..RECENT_S - 1 {
            latency.next_second();
        }
        assert_eq!(latency.recent().map(|recent| recent.count), Some(1));
        latency.next_second();
        assert_eq!(latency.recent(), None);
        assert_eq!(latency.whole().map(|whole| whole.count), Some(1));
    }

    #[test]
    fn bars_hold_every_value() {
        let mut latency = Latency::new();
        assert_eq!(latency.bars(4), []);
        for ms in [1, 1, 2, 4, 8, 9000] {
            latency.record(ms * 1000, 1);
        }
        for num in [1, 2, 10] {
            let bars = latency.bars(num);
            assert_eq!((bars.len(), bars.iter().map(|bar| bar.count).sum::<u64>()), (num, 6));
        }
        let same = {
            let mut latency = Latency::new();
            latency.record(7, 3);
            latency
        };
        assert_eq!(same.bars(3).iter().map(|bar| bar.count).sum::<u64>(), 3);
    }

    #[test]
    fn what_remains_is_the_nearer_limit() {
        let mut run = after(Warmup::Requests(0), &[]);
        run.begins.limits.duration = Duration::from_secs(100);
        run.begins.limits.requests = 50;
        run.now = Moment { at: Duration::from_secs(10), started: 25, ..Moment::default() };
        assert_eq!((run.progress(), run.remaining()), (0.5, Duration::from_secs(10)));
        run.begins.limits.requests = 1_000_000;
        assert_eq!((run.progress(), run.remaining()), (0.1, Duration::from_secs(90)));
    }
}
