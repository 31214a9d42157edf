//! A run as seen from outside while it goes on, and the hand that steers it.

use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

use crate::plan::{Api, Case, Limits};
use crate::recorder::Row;
use crate::results::RunResult;
use crate::scrape::ServerSample;

/// Looks on while runs go on. Called on the measuring thread between requests, so it must return at once.
pub trait Watch {
    /// Something happened.
    fn see(&mut self, sight: Sight<'_>);
}

/// What there is to see, in this order for each run.
#[derive(Debug)]
pub enum Sight<'a> {
    /// Work before the first request that may take a while, such as finding words for prompts.
    Preparing(&'a str),
    /// Where a series of load tests is; stays until the next such word.
    Series(&'a str),
    /// The server was asked what it is.
    Found {
        /// The dialect that will be spoken.
        api: Api,
        /// The model's name in requests; empty for TGI.
        model: &'a str,
    },
    /// A run begins: number `n` of `of`.
    Begins {
        /// Its load.
        case: &'a Case,
        /// What ends it.
        limits: &'a Limits,
        /// From 0.
        n: usize,
        /// Runs in all.
        of: usize,
    },
    /// About every quarter of a second: how it stands, and the requests that ended since the last look.
    Moment(&'a Moment, &'a [Row]),
    /// The server's own metrics were read.
    Server(&'a ServerSample),
    /// It is over.
    Ends(&'a RunResult),
}

/// How a run stands. Counts are from its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Moment {
    /// Time since the beginning.
    #[serde(serialize_with = "crate::plan::seconds::serialize", rename = "at_s")]
    pub at: Duration,
    /// Users wished at this moment; `None` where starts are timed.
    pub users: Option<usize>,
    /// Requests started.
    pub started: u64,
    /// Requests ended well.
    pub done: u64,
    /// Requests failed.
    pub failed: u64,
    /// Starts dropped.
    pub dropped: u64,
    /// Tokens that arrived, of requests under way too.
    pub tokens: u64,
}

impl Moment {
    /// Requests under way.
    pub fn running(&self) -> u64 {
        self.started - self.done - self.failed
    }
}

/// Looks on and does nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Blind;

impl Watch for Blind {
    fn see(&mut self, _: Sight<'_>) {}
}

/// Steers a run from another thread. Clones are of the same hand.
#[derive(Clone, Debug)]
pub struct Control {
    /// How often it was called.
    stop: watch::Sender<u32>,
    users: watch::Sender<Option<usize>>,
}

impl Default for Control {
    fn default() -> Self {
        Self { stop: watch::Sender::new(0), users: watch::Sender::new(None) }
    }
}

impl Control {
    /// Ends the run as an interrupt does: nothing more starts, what runs has its grace, the results so far are kept.
    /// Called again, what runs is cut at once.
    pub fn stop(&self) {
        self.stop.send_modify(|times| *times = times.saturating_add(1));
    }

    /// Whether [`stop`](Self::stop) was called.
    pub fn is_stopped(&self) -> bool {
        *self.stop.borrow() > 0
    }

    /// Waits for [`stop`](Self::stop).
    pub(crate) async fn stopped(&self) {
        // The sender lives in `self`.
        let _ = self.stop.subscribe().wait_for(|times| *times > 0).await;
    }

    /// Waits until [`stop`](Self::stop) was called twice.
    pub(crate) async fn cut(&self) {
        let _ = self.stop.subscribe().wait_for(|times| *times > 1).await;
    }

    /// Changes the number of users of the run that goes on, at once; at most [`MAX_USERS`](crate::MAX_USERS). Loads that are neither
    /// [`Users::Constant`](crate::Users::Constant) nor [`Users::Steered`](crate::Users::Steered) keep their own number, as do users with a
    /// number of requests each, and shares.
    pub fn set_users(&self, users: usize) {
        self.users.send_replace(Some(users));
    }

    /// What [`set_users`](Self::set_users) said last.
    pub(crate) fn users(&self) -> watch::Receiver<Option<usize>> {
        self.users.subscribe()
    }
}
