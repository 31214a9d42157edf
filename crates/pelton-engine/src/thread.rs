//! The engine's loop: drain, plan, forward, sample, commit, send.

use std::sync::mpsc::Receiver;
use std::time::Instant;

use pelton_model::Model;
use tokio::sync::mpsc;

use crate::handle::Shared;
use crate::sequence::{Sequence, SequenceId};
use crate::{ShutdownOutcome, TokenEvent};

/// What handles and streams tell the engine.
#[derive(Debug)]
pub(crate) enum Message {
    Submit(Vec<Submission>),
    Cancel(SequenceId),
    Shutdown { deadline: Instant },
}

/// A sequence and the engine's end of its stream.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) sequence: Sequence,
    pub(crate) events: mpsc::Sender<TokenEvent>,
    pub(crate) queued_at: Instant,
}

pub(crate) fn run(_model: Box<dyn Model>, _shared: &Shared, inbox: &Receiver<Message>) -> ShutdownOutcome {
    while !matches!(inbox.recv(), Ok(Message::Shutdown { .. }) | Err(_)) {}
    ShutdownOutcome::Drained
}
