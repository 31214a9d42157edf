//! Threads for slow text work, apart from async workers, with a bounded queue.

use crate::{TextError, TextModel};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;

/// Stack of a text thread: reading grammars and templates takes more than the usual two mebibytes.
const STACK_BYTES: usize = 16 << 20;

type Job = Box<dyn FnOnce(&TextModel) + Send>;

/// A few threads that tokenize, render templates, and do what else is slow with text. Clones share them; they end when the last clone is gone.
#[derive(Clone)]
pub struct TextPool {
    model: TextModel,
    jobs: SyncSender<Job>,
    limit: usize,
}

impl TextPool {
    /// Starts `threads` threads (at least one). Up to `max_queued` jobs (at least one) wait for a thread; more are refused.
    ///
    /// # Panics
    /// If the system cannot start a thread.
    pub fn new(model: TextModel, threads: usize, max_queued: usize) -> Self {
        let limit = max_queued.max(1);
        let (jobs, inbox) = sync_channel(limit);
        let inbox = Arc::new(Mutex::new(inbox));
        for index in 0..threads.max(1) {
            let (model, inbox) = (model.clone(), Arc::clone(&inbox));
            std::thread::Builder::new()
                .name(format!("text-{index}"))
                .stack_size(STACK_BYTES)
                .spawn(move || work(&model, &inbox))
                .expect("a text thread can be started");
        }
        Self { model, jobs, limit }
    }

    /// The model that jobs are given, for what is quick.
    pub fn model(&self) -> &TextModel {
        &self.model
    }

    /// Runs `job` on a text thread. Dropping the future abandons a job that has not begun.
    ///
    /// # Errors
    /// [`TextError::Busy`] at once if the queue is full; [`TextError::Panicked`] if the job panicked, which costs no thread.
    pub async fn run<R: Send + 'static>(
        &self,
        job: impl FnOnce(&TextModel) -> R + Send + 'static,
    ) -> Result<R, TextError> {
        let (reply, result) = oneshot::channel();
        let job: Job = Box::new(move |model| {
            if !reply.is_closed() {
                let outcome = catch_unwind(AssertUnwindSafe(|| job(model)));
                // Nobody may be waiting any more; then the result is not needed.
                let _abandoned = reply.send(outcome.map_err(|_| TextError::Panicked));
            }
        });
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => TextError::Busy { limit: self.limit },
            // The threads live as long as this sender.
            TrySendError::Disconnected(_) => TextError::Panicked,
        })?;
        result.await.unwrap_or(Err(TextError::Panicked))
    }
}

impl std::fmt::Debug for TextPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextPool").field("model", &self.model).field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// One thread: takes jobs until all senders are gone.
fn work(model: &TextModel, inbox: &Mutex<Receiver<Job>>) {
    loop {
        // The lock is held while waiting, never while working: jobs catch their own panics.
        let job = inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            Ok(job) => job(model),
            Err(_) => return,
        }
    }
}
