//! One start: all requests of its session, each ended by its own limit or by the run's.

use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{Phase, Shared, count};
use crate::client::{Connection, Question};
use crate::recorder::{ErrorKind, Failure, RowBuilder};
use crate::workload::{Ask, Session};

/// A start whose first request is ready to be sent. Composing takes time, which an open loop spends before the request is due.
#[derive(Debug)]
pub struct Opening {
    /// Which start of the whole test, all shards together.
    index: u64,
    session: Session,
    first: Option<(Ask, Question)>,
}

/// Who starts, and when.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// Virtual user; 0 in the open loop.
    pub user: u32,
    /// When it should happen; `None` if now.
    pub intended: Option<Instant>,
}

impl Shared {
    /// Composes the first request of start number `index`.
    pub fn open(&self, index: u64) -> Opening {
        let mut session = self.job.workload.session(index);
        let first = self.compose(&mut session);
        Opening { index, session, first }
    }

    fn compose(&self, session: &mut Session) -> Option<(Ask, Question)> {
        let ask = session.next()?;
        let body = self.job.client.body(&ask);
        Some((ask, body))
    }

    /// All requests of one start, on `slot`'s connection. False if one failed, which ends the session.
    pub async fn perform(&self, slot: &mut Option<Connection>, opening: Opening, start: Start) -> bool {
        let Opening { index, mut session, first: mut next } = opening;
        let mut turn = 0;
        // Composed before the clock is read: it is no part of a request's time.
        while let Some((ask, body)) = next {
            let now = Instant::now();
            count(&self.live.started);
            let mut row = RowBuilder::new(self.began, now)
                .numbered(index, turn, start.user)
                .asking(ask.prompt_tokens, ask.output_tokens)
                .counting(Rc::clone(&self.live.tokens));
            if session.wants_answer() {
                row = row.keeping_text();
            }
            if let Some(intended) = start.intended.filter(|_| turn == 0) {
                row = row.intended(intended.saturating_duration_since(self.began).as_micros() as u64);
            }
            // A task of its own: asking the clock and the run's phase again at each token would cost more than the token.
            let mut limit =
                tokio::task::spawn_local(limit(self.phase.clone(), now, self.job.timeout, self.job.limits.grace));
            let failure = tokio::select! {
                biased;
                result = self.job.client.exchange(slot, body, &mut row) => result.err(),
                // It neither panics nor is aborted before this.
                failure = &mut limit => failure.ok(),
            };
            limit.abort();
            let is_well = failure.is_none();
            count(if is_well { &self.live.done } else { &self.live.failed });
            let answer = row.take_pieces().concat();
            self.rows.borrow_mut().push(row.finish(failure, Instant::now()));
            if !is_well {
                return false;
            }
            if session.wants_answer() {
                session.answered(answer);
                // Who still thinks when the run ends says nothing more.
                if tokio::time::timeout(session.pause(), self.reaches(Phase::Ending)).await.is_ok() {
                    return true;
                }
            }
            turn += 1;
            next = self.compose(&mut session);
        }
        true
    }
}

/// Waits until a request that started at `start` must end: after its own time, or when the run's grace is over.
async fn limit(mut phase: watch::Receiver<Phase>, start: Instant, timeout: Duration, grace: Duration) -> Failure {
    tokio::select! {
        () = tokio::time::sleep_until((start + timeout).into()) => {
            Failure::new(ErrorKind::Timeout, format!("no complete answer within {timeout:?}"))
        }
        // The sender outlives all tasks.
        _ = phase.wait_for(|now| *now >= Phase::Cut) => {
            Failure::new(ErrorKind::Cut, format!("still running {grace:?} after the end"))
        }
    }
}
