//! Runs one case: starts requests when they are due, within the limits, and gathers their rows.
//!
//! Everything happens on one thread. A second thread, in the open loop, sleeps until each start time: the timer of the asynchronous
//! runtime counts whole milliseconds, which is too coarse for what is measured here.

mod session;
mod starts;
mod users;
mod waves;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::BenchError;
use crate::client::Client;
use crate::machine::CpuTime;
use crate::plan::{Case, Limits, Shard, Waves};
use crate::recorder::Row;
use crate::scrape::{Latest, ServerSample};
use crate::watch::{Control, Moment, Sight, Watch};
use crate::workload::Workload;

/// Time between two looks at a run: slow enough to cost nothing.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// What one case gave, before anything is computed.
#[derive(Debug)]
pub struct Run {
    /// One per started request, in order of index.
    pub rows: Vec<Row>,
    /// Intended starts, in microseconds after the beginning, that found too many requests running.
    pub dropped_us: Vec<u64>,
    /// Time at which starting stopped because the duration was over or the user interrupted; `None` if all requests were started.
    pub stopped_us: Option<u64>,
    /// When it began: times of rows count from here.
    pub began: Instant,
    /// Length of the whole run.
    pub wall: Duration,
    /// Processor time of the client; `None` where the system does not tell.
    pub client: Option<CpuTime>,
    /// Whether the user ended the run early.
    pub interrupted: bool,
    /// Whether a hand changed the number of users that the load has.
    pub is_steered: bool,
}

/// What one case needs.
#[derive(Clone, Debug)]
pub struct Job {
    /// The load.
    pub case: Case,
    /// What ends it.
    pub limits: Limits,
    /// The only shard does all.
    pub shard: Shard,
    /// Of random arrivals.
    pub seed: u64,
    /// Longest time of one request.
    pub timeout: Duration,
    /// Who sends.
    pub client: Rc<Client>,
    /// What is sent.
    pub workload: Rc<Workload>,
    /// What the server tells of itself meanwhile, if anyone reads it.
    pub metrics: Option<Latest>,
}

/// Where a run is; only ever moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Phase {
    Running,
    /// Nothing more is started.
    Ending,
    /// What still runs is cut.
    Cut,
}

/// What all tasks of a run share.
struct Shared {
    job: Job,
    began: Instant,
    phase: tokio::sync::watch::Receiver<Phase>,
    rows: RefCell<Vec<Row>>,
    live: Live,
}

/// Numbers for those who look on.
#[derive(Debug, Default)]
struct Live {
    /// Users wished; `None` in the open loop.
    users: Cell<Option<usize>>,
    started: Cell<u64>,
    done: Cell<u64>,
    failed: Cell<u64>,
    /// Tokens that arrived; requests under way count into it.
    tokens: Rc<Cell<u64>>,
    dropped: Cell<u64>,
    /// Whether a hand changed the number of users that the load has.
    is_steered: Cell<bool>,
}

/// Adds 1.
fn count(cell: &Cell<u64>) {
    cell.set(cell.get() + 1);
}

/// How the starting of requests ended.
struct Started {
    /// Starts that were dropped.
    dropped_us: Vec<u64>,
    /// Whether there was nothing left to start.
    all: bool,
}

impl Shared {
    fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Waits until the run is at least in this phase.
    async fn reaches(&self, phase: Phase) {
        // The sender outlives all tasks.
        let _ = self.phase.clone().wait_for(|now| *now >= phase).await;
    }

    /// How the run stands, for those who look on: about every [`LOOK_INTERVAL`], until this is dropped.
    async fn show(&self, watch: &mut dyn Watch) -> std::convert::Infallible {
        let mut ticks = tokio::time::interval(LOOK_INTERVAL);
        let mut seen = 0;
        let mut metrics = self.job.metrics.clone();
        loop {
            ticks.tick().await;
            let live = &self.live;
            let moment = Moment {
                at: self.began.elapsed(),
                users: live.users.get(),
                started: live.started.get(),
                done: live.done.get(),
                failed: live.failed.get(),
                dropped: live.dropped.get(),
                tokens: live.tokens.get(),
            };
            let rows = self.rows.borrow();
            watch.see(Sight::Moment(&moment, &rows[seen..]));
            seen = rows.len();
            // Changes end with their sender; the last one stays.
            if let Some(metrics) = metrics.as_mut().filter(|metrics| metrics.has_changed().unwrap_or(false))
                && let Some((at, sample)) = *metrics.borrow_and_update()
            {
                let at_us = at.saturating_duration_since(self.began).as_micros() as u64;
                watch.see(Sight::Server(&ServerSample { at_us, ..sample }));
            }
        }
    }
}

/// Runs one case to its end. Must be called inside a `LocalSet`.
pub async fn run(job: Job, watch: &mut dyn Watch, control: &Control) -> Result<Run, BenchError> {
    // What takes time is done before the clock begins.
    let prepared = match &job.case {
        Case::Closed { users, each } => Prepared::Users(users::Pool::prepare(&job, users, *each).await),
        Case::Open { starts, .. } => Prepared::Starts(starts::schedule(&job, starts)?),
        Case::Waves(waves) => Prepared::Waves(waves.clone()),
    };
    let limits = job.limits.clone();
    let (phase, phase_of_tasks) = tokio::sync::watch::channel(Phase::Running);
    let before = CpuTime::now();
    let began = Instant::now();
    let shared = Rc::new(Shared { job, began, phase: phase_of_tasks, rows: RefCell::default(), live: Live::default() });
    let load = async {
        match prepared {
            Prepared::Users(pool) => Ok(pool.run(&shared, control).await),
            Prepared::Starts(schedule) => starts::open_loop(&shared, schedule).await,
            Prepared::Waves(waves) => Ok(waves::run(&shared, &waves).await),
        }
    };
    let mut ending = Ending { stopped: None, interrupted: false };
    let started = tokio::select! {
        started = load => started?,
        never = keep_time(began, &limits, control, &phase, &mut ending) => match never {},
        never = shared.show(watch) => match never {},
    };
    let wall = began.elapsed();
    let client = before.zip(CpuTime::now()).map(|(before, after)| after.since(before));
    let mut rows = shared.rows.take();
    rows.sort_unstable_by_key(|row| (row.index, row.turn));
    // The schedule of an open loop may end before the duration does: the load then ends with the duration all the same.
    let stopped = ending.stopped.or(Some(limits.duration)).filter(|_| !started.all || ending.interrupted);
    Ok(Run {
        rows,
        dropped_us: started.dropped_us,
        stopped_us: stopped.map(|at| at.as_micros() as u64),
        began,
        wall,
        client,
        interrupted: ending.interrupted,
        is_steered: shared.live.is_steered.get(),
    })
}

enum Prepared {
    Users(users::Pool),
    Starts(starts::Schedule),
    Waves(Waves),
}

struct Ending {
    /// When starting stopped.
    stopped: Option<Duration>,
    interrupted: bool,
}

/// Moves the phase: at the end of the duration, after the grace period, and when `control` stops (the second time cuts at once).
async fn keep_time(
    began: Instant,
    limits: &Limits,
    control: &Control,
    phase: &tokio::sync::watch::Sender<Phase>,
    ending: &mut Ending,
) -> std::convert::Infallible {
    let interrupted = tokio::select! {
        () = tokio::time::sleep_until((began + limits.duration).into()) => false,
        () = control.stopped() => true,
    };
    ending.stopped = Some(began.elapsed());
    ending.interrupted = interrupted;
    phase.send_replace(Phase::Ending);
    tokio::select! {
        () = tokio::time::sleep(limits.grace) => {}
        // A run that ended by its time is cut by the first stop, one that was stopped by the second.
        () = control.stopped(), if !interrupted => ending.interrupted = true,
        () = control.cut() => ending.interrupted = true,
    }
    phase.send_replace(Phase::Cut);
    std::future::pending().await
}
