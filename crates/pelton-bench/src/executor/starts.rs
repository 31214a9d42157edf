//! The open loop: starts that happen at their times, whatever the server does.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::mpsc as sync_mpsc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::session::{Opening, Start};
use super::{Job, Phase, Shared, Started};
use crate::BenchError;
use crate::arrival;
use crate::client::Connection;
use crate::plan::Starts;
use crate::workload::trace;

/// Idle connections kept for later starts.
const MAX_IDLE_CONNECTIONS: usize = 1024;

/// Starts that may wait between the two threads. When it is full the clock waits, and the starts are late, which is recorded.
const MAX_DUE_STARTS: usize = 1024;

/// Starts known beforehand.
pub struct Schedule {
    /// Index among the starts of all shards, and time after the beginning; ascending.
    starts: Vec<(u64, Duration)>,
    /// Whether later starts were left out because they lie after the duration.
    is_cut: bool,
}

/// This shard's part of the starts: every `of`-th, so that the shards together make the whole schedule, whatever its form.
pub fn schedule(job: &Job, starts: &Starts) -> Result<Schedule, BenchError> {
    let (times, whole) = match starts {
        &Starts::Rate { rate, arrival } => {
            (arrival::start_times(arrival, rate, &[], job.seed, &job.limits), job.limits.requests)
        }
        &Starts::Ramping { from, ref stages, arrival } => {
            let times = arrival::start_times(arrival, from, stages, job.seed, &job.limits);
            // A ramp that ends at 0 has no more starts to give.
            let is_over = stages.last().is_some_and(|last| last.target == 0.0)
                && stages.iter().map(|stage| stage.duration).sum::<Duration>() <= job.limits.duration;
            let whole = if is_over { times.len() as u64 } else { job.limits.requests };
            (times, whole)
        }
        Starts::Trace { path, speed } => {
            let entries = trace::read(path)?;
            let whole = job.limits.requests.min(entries.len() as u64);
            let slowed = |at: Duration| Duration::try_from_secs_f64(at.as_secs_f64() / speed).unwrap_or(Duration::MAX);
            let times = entries.iter().map(|entry| slowed(entry.at));
            (times.take(whole as usize).take_while(|&at| at < job.limits.duration).collect(), whole)
        }
    };
    let is_cut = (times.len() as u64) < whole;
    let mine = |index: &u64| index % u64::from(job.shard.of) == u64::from(job.shard.index);
    Ok(Schedule { starts: (0..).zip(times).filter(|(index, _)| mine(index)).collect(), is_cut })
}

/// Starts everything that is due until the schedule or the run ends, and waits for what was started.
pub async fn open_loop(shared: &Rc<Shared>, schedule: Schedule) -> Result<Started, BenchError> {
    let (due_sender, mut due) = mpsc::channel(MAX_DUE_STARTS);
    let (_stop_clock, stop) = sync_mpsc::channel();
    let Schedule { starts, is_cut } = schedule;
    let (began, wished) = (shared.began, starts.len());
    let max_in_flight = shared.job.case.max_in_flight().div_ceil(shared.job.shard.of as usize);
    let clock = move || tick(began, &starts, &due_sender, &stop);
    std::thread::Builder::new().name("bench-clock".to_owned()).spawn(clock).map_err(BenchError::Thread)?;

    let idle = Rc::new(RefCell::new(Vec::<Connection>::new()));
    let mut dropped_us = Vec::new();
    let mut seen = 0;
    let mut tasks = JoinSet::new();
    let mut ready: Option<Opening> = None;
    let shard = shared.job.shard;
    loop {
        if ready.is_none() && seen < wished {
            // What has just been started is sent first; what is due already does not wait either.
            tokio::task::yield_now().await;
            if due.is_empty() {
                ready = Some(shared.open(seen as u64 * u64::from(shard.of) + u64::from(shard.index)));
            }
        }
        let start = tokio::select! {
            biased;
            start = due.recv() => start,
            // Ended tasks are taken out here, so that their number is the number in flight.
            Some(_) = tasks.join_next() => continue,
            () = shared.reaches(Phase::Ending) => None,
        };
        let Some((index, intended)) = start else { break };
        seen += 1;
        while tasks.try_join_next().is_some() {}
        if tasks.len() >= max_in_flight {
            ready = None;
            dropped_us.push(intended.saturating_duration_since(began).as_micros() as u64);
            shared.live.dropped.set(dropped_us.len() as u64);
            continue;
        }
        let (shared, idle) = (Rc::clone(shared), Rc::clone(&idle));
        let opening = ready.take().unwrap_or_else(|| shared.open(index));
        tasks.spawn_local(async move {
            let mut slot = idle.borrow_mut().pop();
            shared.perform(&mut slot, opening, Start { user: 0, intended: Some(intended) }).await;
            if let Some(connection) = slot
                && idle.borrow().len() < MAX_IDLE_CONNECTIONS
            {
                idle.borrow_mut().push(connection);
            }
        });
    }
    drop(due); // Lets the clock's thread end.
    while tasks.join_next().await.is_some() {}
    Ok(Started { dropped_us, all: seen == wished && !is_cut })
}

/// The clock: hands over each start when it is due, until there is none left or nobody listens.
fn tick(
    began: Instant,
    starts: &[(u64, Duration)],
    due: &mpsc::Sender<(u64, Instant)>,
    stop: &sync_mpsc::Receiver<std::convert::Infallible>,
) {
    for &(index, start) in starts {
        let intended = began + start;
        let wait = intended.saturating_duration_since(Instant::now());
        // A wait that ends before its time means that the run is over.
        if !wait.is_zero() && stop.recv_timeout(wait) != Err(sync_mpsc::RecvTimeoutError::Timeout) {
            return;
        }
        if due.blocking_send((index, intended)).is_err() {
            return;
        }
    }
}
