//! What the page shows and the order it gave: shared by the thread of the runs, that of the numbers, and that of the page.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pelton_bench::Distribution;
use pelton_bench::results::Results;
use pelton_bench::watch::Control;
use serde::Serialize;
use tokio::sync::watch;

use super::order::{Form, Order, Refusal};
use super::ramp::Ramp;
use crate::looks::{Done, Look};
use crate::tally::{About, Bar, Error, Latency, Point, Quantiles, Running, Tally};

/// Lines of the log that are kept.
const MAX_LOG: usize = 200;

/// Bars of the histogram.
const BARS: usize = 24;

/// Where the page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    /// Waits for an order.
    Ready,
    /// Has one; the server is asked and prompts are made.
    Preparing,
    Running,
    /// Nothing more starts.
    Stopping,
}

/// Shared by all threads.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Counts changes, for those who send them on.
    pub changes: watch::Sender<u64>,
    /// Wakes the thread that waits for an order.
    ordered: Condvar,
}

/// Everything, under one lock.
#[derive(Debug)]
pub(crate) struct State {
    pub form: Form,
    pub tally: Tally,
    pub phase: Phase,
    /// Given, and not begun.
    order: Option<Order>,
    /// How the number of users changes, and since when.
    ramp: Option<(Ramp, Option<Instant>)>,
    users: Option<usize>,
    pub control: Control,
    /// Of the last run that gave some.
    pub results: Option<Arc<Results>>,
    /// Runs ordered.
    number: u64,
    log: VecDeque<Logged>,
    /// Lines logged in all.
    num_logged: u64,
    /// The process shall end.
    is_leaving: bool,
}

#[derive(Clone, Debug, Serialize)]
struct Logged {
    unix_s: u64,
    text: String,
}

/// What a listener has already.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    begun: u64,
    points: u64,
    logged: u64,
    done: Option<usize>,
}

/// What is new. Lists that have not changed are absent.
#[derive(Debug, Serialize)]
pub(crate) struct Update {
    about: About,
    form: Form,
    phase: Phase,
    /// Runs ordered so far.
    number: u64,
    /// Runs begun so far; points of another one are to be forgotten.
    begun: u64,
    has_results: bool,
    run: Option<Run>,
    /// New ones.
    points: Vec<Point>,
    /// All.
    done: Option<Vec<Done>>,
    /// New lines.
    log: Vec<Logged>,
    preparing: Option<String>,
    is_leaving: bool,
}

/// The run that goes on, or the last one.
#[derive(Debug, Serialize)]
struct Run {
    label: String,
    at_s: f64,
    /// `None` if it goes on until it is stopped.
    duration_s: Option<f64>,
    is_over: bool,
    is_steered: bool,
    has_timed_starts: bool,
    users: Option<usize>,
    users_wanted: Option<usize>,
    started: u64,
    done: u64,
    failed: u64,
    dropped: u64,
    late: u64,
    running: u64,
    tokens: u64,
    warmup: u64,
    missed_looks: u64,
    statistics: Vec<Statistic>,
    errors: Vec<KindOfError>,
    histogram: Vec<Bar>,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Statistic {
    metric: &'static str,
    title: &'static str,
    /// Of the whole run so far; of the measured window, exact, when it is over.
    all: Option<Quantiles>,
    /// Of the last seconds.
    recent: Option<Quantiles>,
    /// Values per second now; `None` when the run is over.
    per_s: Option<f64>,
}

#[derive(Debug, Serialize)]
struct KindOfError {
    kind: String,
    #[serde(flatten)]
    error: Error,
}

impl Shared {
    pub fn new(about: About, form: Form) -> Self {
        let state = State {
            form,
            tally: Tally::new(about),
            phase: Phase::Ready,
            order: None,
            ramp: None,
            users: None,
            control: Control::default(),
            results: None,
            number: 0,
            log: VecDeque::new(),
            num_logged: 0,
            is_leaving: false,
        };
        Self { state: Mutex::new(state), changes: watch::Sender::new(0), ordered: Condvar::new() }
    }

    /// A panic of another thread leaves numbers, which are shown.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who send changes on.
    pub fn changed(&self) {
        self.changes.send_modify(|n| *n += 1);
    }

    /// Waits for an order. `None` if the process shall end.
    pub fn wait_for_order(&self) -> Option<(Order, Control)> {
        let mut state = self.lock();
        loop {
            if state.is_leaving {
                return None;
            }
            if let Some(order) = state.order.take() {
                return Some((order, state.control.clone()));
            }
            state = self.ordered.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes an order.
    pub fn start(&self, order: Order, words: String) -> Result<u64, String> {
        let mut state = self.lock();
        if state.is_leaving {
            return Err("the process ends".to_owned());
        }
        if state.phase != Phase::Ready {
            return Err(format!("run {} goes on: stop it first", state.number));
        }
        state.phase = Phase::Preparing;
        state.control = Control::default();
        state.ramp = order.ramp().map(|ramp| (ramp, None));
        state.users = None;
        state.order = Some(order);
        state.number += 1;
        let number = state.number;
        state.log(format!("run {number}: {words}"));
        drop(state);
        self.ordered.notify_all();
        self.changed();
        Ok(number)
    }

    /// Ends the run; the second time cuts it.
    pub fn stop(&self) -> Result<(), String> {
        let mut state = self.lock();
        if state.phase == Phase::Ready {
            return Err("no run goes on".to_owned());
        }
        let words = if state.phase == Phase::Stopping { "cut" } else { "stopped" };
        let line = format!("run {}: {words}", state.number);
        state.log(line);
        state.phase = Phase::Stopping;
        state.control.stop();
        drop(state);
        self.changed();
        Ok(())
    }

    /// Changes the number of users.
    pub fn change_users(&self, users: usize, spawn_rate: Option<f64>) -> Result<(), Refusal> {
        let mut state = self.lock();
        let Some((ramp, since)) = state.ramp.filter(|_| state.phase == Phase::Running) else {
            return Err(Refusal::new("", "no run with users goes on"));
        };
        let now = Instant::now();
        let from = ramp.at(since.map_or(Duration::ZERO, |since| now - since));
        state.ramp = Some((Ramp::change(from, users, spawn_rate), Some(now)));
        let line = format!("run {}: {users} users wanted", state.number);
        state.log(line);
        drop(state);
        self.changed();
        Ok(())
    }

    /// The process shall end: what runs is ended as by [`stop`](Self::stop).
    pub fn leave(&self) {
        let mut state = self.lock();
        state.is_leaving = true;
        if state.phase != Phase::Ready {
            state.phase = Phase::Stopping;
            state.control.stop();
        }
        drop(state);
        self.ordered.notify_all();
        self.changed();
    }

    /// The run that was ordered is over.
    pub fn over(&self, result: Result<Arc<Results>, String>) {
        let mut state = self.lock();
        let number = state.number;
        match result {
            Ok(results) => {
                let ended: u64 = results.runs.iter().map(|run| run.summary.requests.started).sum();
                state.log(format!("run {number}: over, {ended} requests"));
                state.results = Some(results);
            }
            Err(error) => state.log(format!("run {number}: {error}")),
        }
        state.phase = Phase::Ready;
        state.ramp = None;
        state.tally.preparing = None;
        drop(state);
        self.changed();
    }

    /// Takes in a look, and sets the users of this moment.
    pub fn look(&self, look: Option<Look>) {
        let mut state = self.lock();
        let begins = matches!(look, Some(Look::Begins(_)));
        let is_news = look.is_some_and(|look| state.tally.take(look));
        if begins {
            if state.phase == Phase::Preparing {
                state.phase = Phase::Running;
            }
            if let Some((_, since)) = &mut state.ramp {
                *since = Some(Instant::now());
            }
        }
        if let Some((ramp, Some(since))) = state.ramp {
            let users = ramp.at(since.elapsed());
            if state.users.replace(users) != Some(users) {
                state.control.set_users(users);
            }
        }
        drop(state);
        if is_news {
            self.changed();
        }
    }
}

impl State {
    fn log(&mut self, text: String) {
        if self.log.len() == MAX_LOG {
            self.log.pop_front();
        }
        let unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.log.push_back(Logged { unix_s, text });
        self.num_logged += 1;
    }

    /// What is new to a listener, who then has seen it.
    pub fn update(&self, seen: &mut Seen) -> Update {
        // An order is not yet a run: until it begins, the points are of the one before.
        if seen.begun != self.tally.num_begun {
            (seen.begun, seen.points) = (self.tally.num_begun, 0);
        }
        // Until the run begins, the one before is shown.
        let run = self.tally.run.as_ref();
        let made = run.map_or(0, |run| run.num_points);
        let points = run.map_or_else(Vec::new, |run| {
            let new = (made - seen.points).min(run.points.len() as u64) as usize;
            run.points.range(run.points.len() - new..).copied().collect()
        });
        seen.points = made;
        let new_lines = (self.num_logged - seen.logged).min(self.log.len() as u64) as usize;
        seen.logged = self.num_logged;
        let done = &self.tally.done;
        let done = (seen.done.replace(done.len()) != Some(done.len())).then(|| done.iter().cloned().collect());
        Update {
            about: self.tally.about.clone(),
            form: self.form.clone(),
            phase: self.phase,
            number: self.number,
            begun: self.tally.num_begun,
            has_results: self.results.is_some(),
            run: run.map(|run| self.run(run)),
            points,
            done,
            log: self.log.range(self.log.len() - new_lines..).cloned().collect(),
            preparing: self.tally.preparing.clone(),
            is_leaving: self.is_leaving,
        }
    }

    fn run(&self, run: &Running) -> Run {
        let now = &run.now;
        let last = run.points.back().copied().unwrap_or_default();
        let exact = self.tally.done.back().filter(|_| run.is_over);
        let statistic = |metric, title, latency: &Latency, per_s, exact: Option<&Option<Distribution>>| Statistic {
            metric,
            title,
            all: match exact {
                Some(values) => values.as_ref().map(Quantiles::exact),
                None => latency.whole(),
            },
            recent: latency.recent().filter(|_| !run.is_over),
            per_s: Some(per_s).filter(|_| !run.is_over),
        };
        let histogram = if run.ttft.whole().is_some() { &run.ttft } else { &run.e2e };
        Run {
            label: run.begins.label.clone(),
            at_s: now.at.as_secs_f64(),
            duration_s: Some(run.begins.limits.duration)
                .filter(|duration| *duration < pelton_bench::MAX_DURATION)
                .map(|duration| duration.as_secs_f64()),
            is_over: run.is_over,
            is_steered: self.ramp.is_some() && !run.is_over,
            has_timed_starts: run.begins.late_after_us.is_some(),
            users: now.users,
            users_wanted: self.ramp.map(|(ramp, _)| ramp.to()),
            started: now.started,
            done: now.done,
            failed: now.failed,
            dropped: now.dropped,
            late: run.late,
            running: now.running(),
            tokens: now.tokens,
            warmup: run.num_warmup,
            missed_looks: run.missed_looks,
            statistics: vec![
                statistic("ttft", "time to first token", &run.ttft, last.requests, exact.map(|done| &done.ttft)),
                statistic("itl", "between tokens", &run.itl, last.tokens, exact.map(|done| &done.itl)),
                statistic("e2e", "end to end", &run.e2e, last.requests, exact.map(|done| &done.e2e)),
            ],
            errors: run
                .errors
                .iter()
                .map(|(kind, error)| KindOfError { kind: kind.to_string(), error: error.clone() })
                .collect(),
            histogram: histogram.bars(BARS),
            notes: exact.map(|done| done.notes.clone()).unwrap_or_default(),
        }
    }
}
