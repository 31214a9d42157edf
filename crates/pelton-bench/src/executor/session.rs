//! One start: all requests of its session, each ended by its own limit or by the run's.

use std::rc::Rc;
use std::time::Instant;

use super::{Phase, Shared, count};
use crate::client::Connection;
use crate::recorder::{ErrorKind, Failure, RowBuilder};
use crate::workload::Session;

/// Who starts, and when.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// Which start of the whole test, all shards together.
    pub index: u64,
    /// Virtual user; 0 in the open loop.
    pub user: u32,
    /// When it should happen; `None` if now.
    pub intended: Option<Instant>,
}

impl Shared {
    /// All requests of one start, on `slot`'s connection. False if one failed, which ends the session.
    pub async fn perform(&self, slot: &mut Option<Connection>, start: Start) -> bool {
        let mut session: Session = self.job.workload.session(start.index);
        let mut turn = 0;
        while let Some(ask) = session.next() {
            // Made before the clock is read: composing is no part of a request's time.
            let body = self.job.client.body(&ask);
            let now = Instant::now();
            count(&self.live.started);
            let mut row = RowBuilder::new(self.began, now)
                .numbered(start.index, turn, start.user)
                .asking(ask.prompt_tokens, ask.output_tokens)
                .counting(Rc::clone(&self.live.tokens));
            if session.wants_answer() {
                row = row.keeping_text();
            }
            if let Some(intended) = start.intended.filter(|_| turn == 0) {
                row = row.intended(intended.saturating_duration_since(self.began).as_micros() as u64);
            }
            let timeout = self.job.timeout;
            let failure = tokio::select! {
                biased;
                result = self.job.client.exchange(slot, body, &mut row) => result.err(),
                () = tokio::time::sleep(timeout) => {
                    Some(Failure::new(ErrorKind::Timeout, format!("no complete answer within {timeout:?}")))
                }
                () = self.reaches(Phase::Cut) => {
                    let grace = self.job.limits.grace;
                    Some(Failure::new(ErrorKind::Cut, format!("still running {grace:?} after the end")))
                }
            };
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
        }
        true
    }
}
