//! Runs one case: starts requests when they are due, within the limits, and gathers their rows.
//!
//! Everything happens on one thread. A second thread, in the open loop, sleeps until each start time: the timer of the asynchronous
//! runtime counts whole milliseconds, which is too coarse for what is measured here.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::mpsc as sync_mpsc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::BenchError;
use crate::arrival;
use crate::client::{Client, Connection};
use crate::machine::ThreadTime;
use crate::plan::{Case, Limits};
use crate::recorder::{ErrorKind, Failure, Row, RowBuilder};
use crate::watch::{Control, Moment, Sight, Watch};
use crate::workload::{Session, Workload};

/// First wait of a virtual user after a failed request; doubles with each further failure.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// Longest such wait.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Idle connections kept for later starts of the open loop.
const MAX_IDLE_CONNECTIONS: usize = 1024;

/// Time between two looks at a run: slow enough to cost nothing.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Starts that may wait between the two threads. When it is full the clock waits, and the starts are late, which is recorded.
const MAX_DUE_STARTS: usize = 1024;

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
    /// Processor time of the measuring thread; `None` where the system does not tell.
    pub client: Option<ThreadTime>,
    /// Whether the user ended the run early.
    pub interrupted: bool,
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
    client: Rc<Client>,
    workload: Rc<Workload>,
    timeout: Duration,
    began: Instant,
    limits: Limits,
    phase: tokio::sync::watch::Receiver<Phase>,
    rows: RefCell<Vec<Row>>,
    live: Rc<Live>,
}

/// Numbers for those who look on.
#[derive(Debug, Default)]
pub struct Live {
    /// Requests started.
    pub started: Cell<u64>,
    /// Requests ended well.
    pub done: Cell<u64>,
    /// Requests failed.
    pub failed: Cell<u64>,
    /// Tokens of ended requests.
    pub tokens: Cell<u64>,
    /// Starts dropped.
    pub dropped: Cell<u64>,
}

impl Shared {
    fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// All requests of one start on `slot`'s connection, each ended by its own limit or by the run's. False if one failed, which ends
    /// the session.
    async fn perform(&self, slot: &mut Option<Connection>, index: u64, user: u32, intended: Option<Instant>) -> bool {
        let mut session: Session = self.workload.session(index);
        let mut turn = 0;
        while let Some(ask) = session.next() {
            // Made before the clock is read: composing is no part of a request's time.
            let body = self.client.body(&ask);
            let start = Instant::now();
            self.live.started.set(self.live.started.get() + 1);
            let mut row = RowBuilder::new(self.began, start)
                .numbered(index, turn, user)
                .asking(ask.prompt_tokens, ask.output_tokens);
            if session.wants_answer() {
                row = row.keeping_text();
            }
            if let Some(intended) = intended.filter(|_| turn == 0) {
                row = row.intended(intended.saturating_duration_since(self.began).as_micros() as u64);
            }
            let mut phase = self.phase.clone();
            let failure = tokio::select! {
                biased;
                result = self.client.exchange(slot, body, &mut row) => result.err(),
                () = tokio::time::sleep(self.timeout) => {
                    Some(Failure::new(ErrorKind::Timeout, format!("no complete answer within {:?}", self.timeout)))
                }
                _ = phase.wait_for(|phase| *phase == Phase::Cut) => {
                    Some(Failure::new(ErrorKind::Cut, format!("still running {:?} after the end", self.limits.grace)))
                }
            };
            let is_well = failure.is_none();
            let answer = row.take_pieces().concat();
            let row = row.finish(failure, Instant::now());
            let counter = if is_well { &self.live.done } else { &self.live.failed };
            counter.set(counter.get() + 1);
            self.live.tokens.set(self.live.tokens.get() + u64::from(row.output_tokens));
            self.rows.borrow_mut().push(row);
            if !is_well {
                return false;
            }
            if session.wants_answer() {
                session.answered(answer);
                let mut phase = self.phase.clone();
                let ends = phase.wait_for(|phase| *phase > Phase::Running);
                // Who still thinks when the run ends says nothing more.
                if tokio::time::timeout(session.pause(), ends).await.is_ok() {
                    return true;
                }
            }
            turn += 1;
        }
        true
    }

    /// How the run stands, for those who look on: about every [`LOOK_INTERVAL`], until this is dropped.
    async fn show(&self, users: Option<usize>, watch: &mut dyn Watch) -> std::convert::Infallible {
        let mut ticks = tokio::time::interval(LOOK_INTERVAL);
        let mut seen = 0;
        loop {
            ticks.tick().await;
            let live = &self.live;
            let moment = Moment {
                at: self.began.elapsed(),
                users,
                started: live.started.get(),
                done: live.done.get(),
                failed: live.failed.get(),
                dropped: live.dropped.get(),
                tokens: live.tokens.get(),
            };
            let rows = self.rows.borrow();
            watch.see(Sight::Moment(&moment, &rows[seen..]));
            seen = rows.len();
        }
    }
}

/// Runs one case to its end. Must be called inside a `LocalSet`.
pub async fn run(
    case: Case,
    client: Rc<Client>,
    workload: Rc<Workload>,
    seed: u64,
    timeout: Duration,
    limits: &Limits,
    watch: &mut dyn Watch,
    control: &Control,
) -> Result<Run, BenchError> {
    let connections = match case {
        Case::Closed { users } => open_connections(&client, users).await,
        Case::Open { .. } => Vec::new(),
    };
    let starts = match case {
        Case::Closed { .. } => Vec::new(),
        Case::Open { rate, arrival, .. } => arrival::start_times(arrival, rate, seed, limits),
    };
    let (phase, phase_of_tasks) = tokio::sync::watch::channel(Phase::Running);
    let before = ThreadTime::now();
    let began = Instant::now();
    let live = Rc::new(Live::default());
    let shared = Rc::new(Shared {
        client,
        workload,
        timeout,
        began,
        limits: limits.clone(),
        phase: phase_of_tasks,
        rows: RefCell::default(),
        live: Rc::clone(&live),
    });
    let users = match case {
        Case::Closed { users } => Some(users),
        Case::Open { .. } => None,
    };
    let load = async {
        match case {
            Case::Closed { users } => {
                closed_loop(&shared, users, connections).await;
                Ok(Vec::new())
            }
            Case::Open { max_in_flight, .. } => open_loop(&shared, starts, max_in_flight).await,
        }
    };
    let mut ending = Ending { stopped: None, interrupted: false };
    let dropped_us = tokio::select! {
        dropped = load => dropped?,
        never = keep_time(began, limits, control, &phase, &mut ending) => match never {},
        never = shared.show(users, watch) => match never {},
    };
    let wall = began.elapsed();
    let client_time = before.zip(ThreadTime::now()).map(|(before, after)| after.since(before));
    let mut rows = shared.rows.take();
    rows.sort_unstable_by_key(|row| (row.index, row.turn));
    // Further turns of a conversation are no starts.
    let num_started = rows.iter().filter(|row| row.turn == 0).count() as u64;
    let all_started = num_started + dropped_us.len() as u64 == limits.requests;
    let stopped = ending.stopped.filter(|_| !all_started || ending.interrupted);
    // The open loop's schedule may end before the duration does: the load then ends with the duration all the same.
    let stopped = stopped.or((!all_started).then_some(limits.duration));
    Ok(Run {
        rows,
        dropped_us,
        stopped_us: stopped.map(|at| at.as_micros() as u64),
        began,
        wall,
        client: client_time,
        interrupted: ending.interrupted,
    })
}

struct Ending {
    /// When starting stopped.
    stopped: Option<Duration>,
    interrupted: bool,
}

/// Moves the phase: at the end of the duration, after the grace period, and at an interrupt (the second one cuts at once).
async fn keep_time(
    began: Instant,
    limits: &Limits,
    control: &Control,
    phase: &tokio::sync::watch::Sender<Phase>,
    ending: &mut Ending,
) -> std::convert::Infallible {
    let interrupted = tokio::select! {
        () = tokio::time::sleep_until((began + limits.duration).into()) => false,
        // Without signals there is no interrupt to wait for.
        Ok(()) = tokio::signal::ctrl_c() => true,
        () = control.stopped() => true,
    };
    ending.stopped = Some(began.elapsed());
    ending.interrupted = interrupted;
    phase.send_replace(Phase::Ending);
    tokio::select! {
        () = tokio::time::sleep(limits.grace) => {}
        Ok(()) = tokio::signal::ctrl_c() => ending.interrupted = true,
    }
    phase.send_replace(Phase::Cut);
    std::future::pending().await
}

/// One connection per virtual user, made before the run begins. What fails here fails again, and is recorded, in the run.
async fn open_connections(client: &Rc<Client>, users: usize) -> Vec<Option<Connection>> {
    let mut opening = JoinSet::new();
    for _ in 0..users {
        let client = Rc::clone(client);
        opening.spawn_local(async move { client.target().connect().await.ok() });
    }
    opening.join_all().await
}

async fn closed_loop(shared: &Rc<Shared>, users: usize, connections: Vec<Option<Connection>>) {
    let next = Rc::new(Cell::new(0));
    let mut tasks = JoinSet::new();
    for (user, mut slot) in connections.into_iter().enumerate().take(users) {
        let (shared, next) = (Rc::clone(shared), Rc::clone(&next));
        tasks.spawn_local(async move {
            let mut pause = FIRST_PAUSE;
            while shared.phase() == Phase::Running && next.get() < shared.limits.requests {
                let index = next.replace(next.get() + 1);
                if shared.perform(&mut slot, index, user as u32, None).await {
                    pause = FIRST_PAUSE;
                } else {
                    let mut phase = shared.phase.clone();
                    let ends = phase.wait_for(|phase| *phase > Phase::Running);
                    let _ = tokio::time::timeout(pause, ends).await;
                    pause = (2 * pause).min(MAX_PAUSE);
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

/// Returns the starts that were dropped.
async fn open_loop(shared: &Rc<Shared>, starts: Vec<Duration>, max_in_flight: usize) -> Result<Vec<u64>, BenchError> {
    let (due_sender, mut due) = mpsc::channel(MAX_DUE_STARTS);
    let (_stop_clock, stop) = sync_mpsc::channel();
    let began = shared.began;
    let clock = move || tick(began, &starts, &due_sender, &stop);
    std::thread::Builder::new().name("bench-clock".to_owned()).spawn(clock).map_err(BenchError::Thread)?;

    let idle = Rc::new(RefCell::new(Vec::<Connection>::new()));
    let mut dropped = Vec::new();
    let mut tasks = JoinSet::new();
    let mut phase = shared.phase.clone();
    loop {
        let start = tokio::select! {
            biased;
            start = due.recv() => start,
            // Ended tasks are taken out here, so that their number is the number in flight.
            Some(_) = tasks.join_next() => continue,
            _ = phase.wait_for(|phase| *phase > Phase::Running) => None,
        };
        let Some((index, intended)) = start else { break };
        while tasks.try_join_next().is_some() {}
        if tasks.len() >= max_in_flight {
            dropped.push(intended.saturating_duration_since(began).as_micros() as u64);
            shared.live.dropped.set(dropped.len() as u64);
            continue;
        }
        let (shared, idle) = (Rc::clone(shared), Rc::clone(&idle));
        tasks.spawn_local(async move {
            let mut slot = idle.borrow_mut().pop();
            shared.perform(&mut slot, index, 0, Some(intended)).await;
            if let Some(connection) = slot
                && idle.borrow().len() < MAX_IDLE_CONNECTIONS
            {
                idle.borrow_mut().push(connection);
            }
        });
    }
    drop(due); // Lets the clock's thread end.
    while tasks.join_next().await.is_some() {}
    Ok(dropped)
}

/// The clock of the open loop: hands over each start when it is due, until there is none left or nobody listens.
fn tick(
    began: Instant,
    starts: &[Duration],
    due: &mpsc::Sender<(u64, Instant)>,
    stop: &sync_mpsc::Receiver<std::convert::Infallible>,
) {
    for (index, start) in starts.iter().enumerate() {
        let intended = began + *start;
        let wait = intended.saturating_duration_since(Instant::now());
        // A wait that ends before its time means that the run is over.
        if !wait.is_zero() && stop.recv_timeout(wait) != Err(sync_mpsc::RecvTimeoutError::Timeout) {
            return;
        }
        if due.blocking_send((index as u64, intended)).is_err() {
            return;
        }
    }
}
