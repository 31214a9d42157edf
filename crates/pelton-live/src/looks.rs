//! What a run tells, made small and handed to another thread, without ever making the measuring thread wait.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::time::Duration;

use pelton_bench::results::{Results, RunResult};
use pelton_bench::watch::{Moment, Sight, Watch};
use pelton_bench::{Case, Distribution, ErrorKind, Limits, Row, ServerSample, TokenArrival, Users};
use serde::Serialize;

/// Looks that may wait for the other thread: at four a second, about a quarter of a minute.
const MAX_WAITING: usize = 64;

/// Kinds of failures whose first words are handed over.
pub(crate) const MAX_ERROR_KINDS: usize = 64;

/// One thing seen.
#[derive(Debug)]
pub(crate) enum Look {
    Preparing(String),
    Found {
        api: &'static str,
        model: String,
    },
    Begins(Box<Begins>),
    Moment(Moment, Ended),
    Server(ServerSample),
    Ends(Box<Done>),
    /// All runs of a load test are over, or why there were none.
    Over(Result<Arc<Results>, String>),
    /// There is nothing more to see.
    Leave,
}

/// A run that begins.
#[derive(Clone, Debug)]
pub(crate) struct Begins {
    pub label: String,
    pub limits: Limits,
    /// From when on a start counts as late; `None` where users decide when they start.
    pub late_after_us: Option<u64>,
    /// Whether the number of users can be changed.
    pub is_steered: bool,
    /// From 0.
    pub n: usize,
    pub of: usize,
}

/// A run that is over, in the numbers of its results. Latencies are milliseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Done {
    pub label: String,
    pub began_unix_s: f64,
    pub wall_s: f64,
    /// In the whole run.
    pub started: u64,
    /// In the whole run.
    pub ended_badly: u64,
    /// Measured, with a complete answer.
    pub complete: u64,
    /// Measured, without one.
    pub failed: u64,
    pub dropped: u64,
    pub late: u64,
    pub requests_per_s: f64,
    pub tokens_per_s: f64,
    pub ttft: Option<Distribution>,
    pub itl: Option<Distribution>,
    pub e2e: Option<Distribution>,
    pub notes: Vec<String>,
}

/// The requests that ended since the look before: a few flat lists, since this is made on the measuring thread.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    pub requests: Vec<Request>,
    /// Of all requests, one after another.
    pub arrivals: Vec<TokenArrival>,
    /// First words of kinds of failures that were not seen before.
    pub words: Vec<(ErrorKind, String)>,
    /// Looks before this one that found no room, with the requests that were in them.
    pub missed_looks: u64,
}

/// Times as in [`Row`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub index: u64,
    pub intended_us: u64,
    pub start_us: u64,
    pub end_us: u32,
    pub num_arrivals: usize,
    pub failure: Option<ErrorKind>,
}

/// The measuring thread's end: a [`Watch`].
#[derive(Debug)]
pub(crate) struct Looker {
    looks: SyncSender<Look>,
    told: BTreeSet<ErrorKind>,
    missed_looks: u64,
}

/// The bounded line between two threads.
pub(crate) fn line() -> (SyncSender<Look>, Receiver<Look>) {
    mpsc::sync_channel(MAX_WAITING)
}

/// Both ends, of one who looks on.
pub(crate) fn channel() -> (Looker, Receiver<Look>) {
    let (looks, seen) = line();
    (Looker::new(looks), seen)
}

impl Looker {
    pub fn new(looks: SyncSender<Look>) -> Self {
        Self { looks, told: BTreeSet::new(), missed_looks: 0 }
    }

    fn ended(&mut self, rows: &[Row]) -> Ended {
        let mut ended = Ended {
            requests: Vec::with_capacity(rows.len()),
            arrivals: Vec::with_capacity(rows.iter().map(|row| row.arrivals.len()).sum()),
            words: Vec::new(),
            missed_looks: self.missed_looks,
        };
        for row in rows {
            if let Some(failure) = &row.failure
                && self.told.len() < MAX_ERROR_KINDS
                && self.told.insert(failure.kind)
            {
                ended.words.push((failure.kind, failure.message.clone()));
            }
            ended.arrivals.extend_from_slice(&row.arrivals);
            ended.requests.push(Request {
                index: row.index,
                intended_us: row.intended_us,
                start_us: row.start_us,
                end_us: row.end_us,
                num_arrivals: row.arrivals.len(),
                failure: row.failure.as_ref().map(|failure| failure.kind),
            });
        }
        ended
    }

    fn try_send(&mut self, moment: Moment, ended: Ended) {
        match self.looks.try_send(Look::Moment(moment, ended)) {
            Ok(()) => {}
            Err(TrySendError::Full(Look::Moment(_, ended))) => {
                self.missed_looks += 1;
                // Told with the next failure of that kind.
                ended.words.iter().for_each(|(kind, _)| {
                    self.told.remove(kind);
                });
            }
            // Nobody looks any more.
            Err(_) => {}
        }
    }
}

impl Watch for Looker {
    fn see(&mut self, sight: Sight<'_>) {
        // Between runs nothing is measured, and these few must arrive: they may wait for room. If nobody looks any more, they are gone.
        match sight {
            Sight::Preparing(what) | Sight::Series(what) => {
                let _ = self.looks.send(Look::Preparing(what.to_owned()));
            }
            Sight::Found { api, model } => {
                let _ = self.looks.send(Look::Found { api: api.name(), model: model.to_owned() });
            }
            Sight::Begins { case, limits, n, of } => {
                self.told.clear();
                self.missed_looks = 0;
                let begins = Begins {
                    label: case.to_string(),
                    limits: limits.clone(),
                    late_after_us: late_after(case).map(|after| after.as_micros() as u64),
                    is_steered: matches!(
                        case,
                        Case::Closed { users: Users::Steered { .. }, .. }
                            | Case::Closed { users: Users::Constant(_), each: None }
                    ),
                    n,
                    of,
                };
                let _ = self.looks.send(Look::Begins(Box::new(begins)));
            }
            Sight::Moment(moment, rows) => {
                let ended = self.ended(rows);
                self.try_send(*moment, ended);
            }
            Sight::Server(sample) => {
                // The next one comes soon.
                let _ = self.looks.try_send(Look::Server(*sample));
            }
            Sight::Ends(result) => {
                let _ = self.looks.send(Look::Ends(Box::new(Done::of(result))));
            }
        }
    }
}

impl Done {
    fn of(result: &RunResult) -> Self {
        let summary = &result.summary;
        let requests = &summary.requests;
        Self {
            label: result.case.to_string(),
            began_unix_s: result.began_unix_s,
            wall_s: result.wall_s,
            started: requests.started,
            ended_badly: summary.errors.values().map(|error| error.count).sum(),
            complete: requests.complete,
            failed: requests.failed,
            dropped: requests.dropped,
            late: requests.late,
            requests_per_s: summary.rates.requests_per_s,
            tokens_per_s: summary.rates.output_tokens_per_s,
            ttft: summary.ttft_ms.clone(),
            itl: summary.itl_ms.clone(),
            e2e: summary.e2e_ms.clone(),
            notes: summary.notes.clone(),
        }
    }
}

fn late_after(case: &Case) -> Option<Duration> {
    match case {
        Case::Open { bounds, .. } => Some(bounds.late_after),
        Case::Closed { .. } | Case::Waves(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn a_look_without_room_is_counted_and_does_not_wait() {
        let (mut looker, looks) = channel();
        let rows = [sample::row(0, 0, 0, &[(10, 1)])];
        for n in 0..MAX_WAITING as u64 + 3 {
            looker.see(Sight::Moment(&Moment { done: n, ..Moment::default() }, &rows));
        }
        let seen: Vec<Look> = looks.try_iter().collect();
        assert_eq!(seen.len(), MAX_WAITING);
        looker.see(Sight::Moment(&Moment::default(), &[]));
        let Ok(Look::Moment(_, ended)) = looks.try_recv() else { panic!("there is room again") };
        assert_eq!(ended.missed_looks, 3);
    }

    #[test]
    fn nobody_looking_stops_nothing() {
        let (mut looker, looks) = channel();
        drop(looks);
        looker.see(Sight::Preparing("words"));
        looker.see(Sight::Moment(&Moment::default(), &[]));
    }

    #[test]
    fn first_words_of_a_kind_are_handed_over_once() {
        let (mut looker, looks) = channel();
        let rows = [sample::failed(0, "first"), sample::failed(1, "second")];
        looker.see(Sight::Moment(&Moment::default(), &rows));
        looker.see(Sight::Moment(&Moment::default(), &rows));
        let words: Vec<(ErrorKind, String)> = looks
            .try_iter()
            .flat_map(|look| match look {
                Look::Moment(_, ended) => ended.words,
                _ => Vec::new(),
            })
            .collect();
        assert_eq!(words, [(ErrorKind::Broken, "first".to_owned())]);
    }
}
