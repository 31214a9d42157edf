//! The reader's end of one sequence.

use std::fmt;
use std::sync::mpsc::Sender;
use std::task::{Context, Poll};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use crate::TokenEvent;
use crate::sequence::SequenceId;
use crate::thread::Message;

/// The events of one sequence. Dropping it cancels the sequence: the engine frees it before its next step.
///
/// `None` means that nothing comes any more. The engine never waits for a reader: a stream has room for all its events.
pub struct TokenStream {
    id: SequenceId,
    events: mpsc::Receiver<TokenEvent>,
    inbox: Sender<Message>,
}

impl TokenStream {
    pub(crate) fn new(id: SequenceId, events: mpsc::Receiver<TokenEvent>, inbox: Sender<Message>) -> Self {
        Self { id, events, inbox }
    }

    /// Waits for the next event. Cancel safe.
    pub async fn next(&mut self) -> Option<TokenEvent> {
        self.events.recv().await
    }

    /// The next event, or a wake-up when there is one.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<TokenEvent>> {
        self.events.poll_recv(cx)
    }

    /// Blocks for the next event. Panics inside an async runtime.
    pub fn blocking_next(&mut self) -> Option<TokenEvent> {
        self.events.blocking_recv()
    }

    /// The next event if it is there already: `Pending` when it is not yet there, `Ready(None)` when nothing comes any more.
    pub fn try_next(&mut self) -> Poll<Option<TokenEvent>> {
        match self.events.try_recv() {
            Ok(event) => Poll::Ready(Some(event)),
            Err(TryRecvError::Empty) => Poll::Pending,
            Err(TryRecvError::Disconnected) => Poll::Ready(None),
        }
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        // The engine drops its end when a sequence is over: then there is nothing to cancel. An engine that is gone does not care.
        if !self.events.is_closed() {
            let _ = self.inbox.send(Message::Cancel(self.id));
        }
    }
}

impl fmt::Debug for TokenStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenStream").field("id", &self.id).finish_non_exhaustive()
    }
}
