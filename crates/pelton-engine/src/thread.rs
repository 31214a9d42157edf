//! The engine's loop: drain, plan, forward, sample, commit, send.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use pelton_model::{Model, ModelError};
use tokio::sync::mpsc;

use crate::handle::{Shared, admission};
use crate::sampling::Sampler;
use crate::scheduler::{Outcome, Scheduler, StepPlan, StepSamples};
use crate::sequence::{Sequence, SequenceId};
use crate::{ShutdownOutcome, Timeline, TokenEvent};

/// Messages read between two steps: so many that a flood of submissions and cancellations cannot hold up those who run.
const MAX_DRAINED: usize = 65_536;

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

/// Who listens to a sequence, and what happened to it when.
#[derive(Debug)]
struct Client {
    events: mpsc::Sender<TokenEvent>,
    queued_at: Instant,
    scheduled_at: Option<Instant>,
    first_token_at: Option<Instant>,
}

/// Runs until shutdown, until nobody can reach the engine any more, or until the model fails.
pub(crate) fn run(mut model: Box<dyn Model>, shared: &Shared, inbox: &Receiver<Message>) -> ShutdownOutcome {
    let mut engine = Engine::new(shared);
    let result = catch_unwind(AssertUnwindSafe(|| engine.serve(model.as_mut(), inbox)));
    let failure = match result {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(panic) => Some(format!("the engine thread panicked: {}", panic_message(panic.as_ref()))),
    };
    // First the news, then the end of the streams: whoever sees a stream end early finds out why.
    let failed = failure.is_some();
    if let Some(failure) = failure {
        // Nobody else sets it.
        let _ = shared.failure.set(failure);
    }
    shared.admission.fetch_max(if failed { admission::FAILED } else { admission::STOPPING }, Ordering::AcqRel);
    shared.gauges.alive.store(false, Ordering::Release);
    shared.gauges.running.store(0, Ordering::Relaxed);
    shared.gauges.waiting.store(0, Ordering::Relaxed);
    shared.gauges.blocks_used.store(0, Ordering::Relaxed);
    let not_read: usize = inbox
        .try_iter()
        .map(|message| if let Message::Submit(submissions) = message { submissions.len() } else { 0 })
        .sum();
    match engine.clients.iter().flatten().count() + not_read {
        0 if !failed => ShutdownOutcome::Drained,
        sequences => ShutdownOutcome::Cut { sequences },
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}

/// What the engine thread owns beside the model.
struct Engine<'a> {
    shared: &'a Shared,
    scheduler: Scheduler,
    sampler: Sampler,
    /// By seat.
    clients: Vec<Option<Client>>,
    free_seats: Vec<usize>,
    deadline: Option<Instant>,
    // Reused from step to step.
    plan: StepPlan,
    samples: StepSamples,
    outcomes: Vec<Outcome>,
}

impl<'a> Engine<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.gauges.blocks_total.store(shared.spec.num_blocks.into(), Ordering::Relaxed);
        Self {
            shared,
            scheduler: Scheduler::new(&shared.config, &shared.spec),
            sampler: Sampler::new(shared.spec.vocab_size),
            clients: Vec::new(),
            free_seats: Vec::new(),
            deadline: None,
            plan: StepPlan::default(),
            samples: StepSamples::default(),
            outcomes: Vec::new(),
        }
    }

    fn serve(&mut self, model: &mut dyn Model, inbox: &Receiver<Message>) -> Result<(), ModelError> {
        loop {
            if !self.scheduler.has_work() {
                if self.deadline.is_some() {
                    return Ok(());
                }
                self.store_gauges();
                match inbox.recv() {
                    Ok(message) => self.receive(message),
                    // All handles and all streams are gone.
                    Err(_) => return Ok(()),
                }
            }
            for message in inbox.try_iter().take(MAX_DRAINED) {
                self.receive(message);
            }
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(());
            }
            if self.scheduler.has_work() {
                self.step(model)?;
            }
        }
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Submit(submissions) => submissions.into_iter().for_each(|submission| self.seat(submission)),
            Message::Cancel(id) => {
                if let Some(sequence) = self.scheduler.cancel(id) {
                    self.leave(sequence.seat);
                }
            }
            Message::Shutdown { deadline } => {
                self.deadline = Some(self.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
            }
        }
    }

    fn step(&mut self, model: &mut dyn Model) -> Result<(), ModelError> {
        let started_at = Instant::now();
        self.scheduler.plan(&mut self.plan);
        assert!(!self.plan.spans.is_empty(), "somebody gets on in every step");
        for span in self.plan.spans.iter().filter(|span| span.is_first) {
            if let Some(client) = &mut self.clients[span.seat] {
                client.scheduled_at = Some(started_at);
            }
        }
        let logits = model.forward(&self.plan.batch)?;
        self.sampler.sample(&self.plan, self.scheduler.running(), &logits, &mut self.samples);
        self.scheduler.commit(&self.plan, &mut self.samples, &mut self.outcomes);
        let sampled_at = Instant::now();
        self.scheduler.observe(&self.plan, sampled_at - started_at);

        // Counts first: whoever reads an event finds counts that include it.
        let gauges = &self.shared.gauges;
        let rows = self.plan.batch.num_rows() as u64;
        gauges.steps.store(gauges.steps.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        gauges.rows.store(gauges.rows.load(Ordering::Relaxed) + rows, Ordering::Relaxed);
        gauges.last_step_rows.store(rows, Ordering::Relaxed);
        self.store_gauges();
        let mut outcomes = std::mem::take(&mut self.outcomes);
        for outcome in outcomes.drain(..) {
            self.send(outcome, sampled_at);
        }
        self.outcomes = outcomes;
        Ok(())
    }

    fn store_gauges(&self) {
        let gauges = &self.shared.gauges;
        let counters = self.scheduler.counters();
        gauges.running.store(self.scheduler.running().len() as u64, Ordering::Relaxed);
        gauges.waiting.store(self.scheduler.num_waiting() as u64, Ordering::Relaxed);
        gauges.blocks_used.store(self.scheduler.num_blocks_used().into(), Ordering::Relaxed);
        gauges.prefix_queried_tokens.store(counters.prefix_queried_tokens, Ordering::Relaxed);
        gauges.prefix_hit_tokens.store(counters.prefix_hit_tokens, Ordering::Relaxed);
        gauges.preemptions.store(counters.preemptions, Ordering::Relaxed);
        gauges.drafts.store(counters.drafts, Ordering::Relaxed);
        gauges.drafted_tokens.store(counters.drafted_tokens, Ordering::Relaxed);
        for (gauge, count) in gauges.samples_by_accepted.iter().zip(counters.samples_by_accepted) {
            gauge.store(count, Ordering::Relaxed);
        }
    }

    fn send(&mut self, outcome: Outcome, sampled_at: Instant) {
        let Outcome { seat, started, token, finished } = outcome;
        let token = match token {
            Ok(token) => token,
            Err(error) => {
                if let Some(client) = self.leave(seat) {
                    let _ = client.events.try_send(TokenEvent::Failed(error));
                }
                return;
            }
        };
        let Some(client) = &mut self.clients[seat] else { return };
        let first_token_at = *client.first_token_at.get_or_insert(sampled_at);
        let scheduled_at = client.scheduled_at.unwrap_or(first_token_at);
        // There is room for every event; a reader that is gone has sent a cancellation.
        if let Some(started) = started {
            let _ = client.events.try_send(TokenEvent::Started {
                scheduled_at,
                num_cached_tokens: started.num_cached_tokens,
                prompt_logprobs: started.prompt_logprobs,
            });
        }
        let _ = client.events.try_send(TokenEvent::Token(token));
        let Some(finished) = finished else { return };
        let timeline = Timeline {
            queued_at: client.queued_at,
            scheduled_at,
            first_token_at,
            finished_at: sampled_at,
            num_prompt_tokens: finished.num_prompt_tokens,
            num_generated_tokens: finished.num_generated_tokens,
            num_cached_tokens: finished.num_cached_tokens,
            num_preemptions: finished.num_preemptions,
            num_drafted_tokens: finished.num_drafted_tokens,
            num_accepted_tokens: finished.num_accepted_tokens,
        };
        // The place is free before the reader hears of it, so that the next request of a reader finds it.
        if let Some(client) = self.leave(seat) {
            let _ = client.events.try_send(TokenEvent::Finished { reason: finished.reason, timeline });
        }
    }

    /// Takes a sequence in.
    fn seat(&mut self, submission: Submission) {
        let Submission { mut sequence, events, queued_at } = submission;
        let client = Client { events, queued_at, scheduled_at: None, first_token_at: None };
        let seat = self.free_seats.pop().unwrap_or_else(|| {
            self.clients.push(None);
            self.clients.len() - 1
        });
        self.clients[seat] = Some(client);
        sequence.seat = seat;
        self.scheduler.add(sequence);
    }

    /// Frees the seat of a sequence that is over.
    fn leave(&mut self, seat: usize) -> Option<Client> {
        let client = self.clients[seat].take()?;
        self.free_seats.push(seat);
        self.shared.num_open.fetch_sub(1, Ordering::Relaxed);
        Some(client)
    }
}
