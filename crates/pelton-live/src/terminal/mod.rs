//! A view of a load test that fills the terminal: drawn by a thread of its own, steered by keys.

mod keys;
mod screen;

use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread::JoinHandle;

use pelton_bench::BenchPlan;
use pelton_bench::watch::{Control, Sight, Watch};
use ratatui::backend::Backend;
use ratatui::crossterm::event::{Event, KeyEvent};

use crate::looks::{self, Look, Looker};
use crate::tally::{About, Tally};
use crate::tty::{Screen, TerminalError, next_key};
use keys::{Choices, Deed};

/// The view, from [`open`](Self::open) until it is dropped; then the terminal is as it was before.
#[derive(Debug)]
pub struct TerminalView {
    /// Dropped first, which ends the thread.
    looker: Option<Looker>,
    thread: Option<JoinHandle<()>>,
}

impl TerminalView {
    /// Takes over the terminal of the error stream: the standard output stays free for the report. Keys end and steer runs by `control`.
    ///
    /// # Errors
    /// If there is no terminal.
    pub fn open(plan: &BenchPlan, control: Control) -> Result<Self, TerminalError> {
        let mut screen = Screen::enter()?;
        let (looker, looks) = looks::channel();
        let mut tally = Tally::new(About::of(plan));
        let thread = std::thread::Builder::new().name("live-terminal".to_owned()).spawn(move || {
            // A terminal that went away is not drawn on any more; the run goes on.
            let _ = show(&mut screen.terminal, &looks, &mut tally, &mut || next_key().unwrap_or_default(), &control);
        })?;
        Ok(Self { looker: Some(looker), thread: Some(thread) })
    }
}

impl Watch for TerminalView {
    fn see(&mut self, sight: Sight<'_>) {
        if let Some(looker) = &mut self.looker {
            looker.see(sight);
        }
    }
}

impl Drop for TerminalView {
    fn drop(&mut self) {
        drop(self.looker.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been told by the hook.
            let _ = thread.join();
        }
    }
}

/// Draws until nobody tells anything any more.
fn show<B: Backend>(
    terminal: &mut ratatui::Terminal<B>,
    looks: &Receiver<Look>,
    tally: &mut Tally,
    next_key: &mut dyn FnMut() -> Option<Event>,
    control: &Control,
) -> Result<(), B::Error> {
    let mut choices = Choices::default();
    let mut frozen: Option<Tally> = None;
    let mut is_stale = true;
    loop {
        loop {
            match looks.try_recv() {
                Ok(look) => {
                    tally.take(look);
                    is_stale = true;
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
        if is_stale {
            terminal.draw(|frame| screen::draw(frame, frozen.as_ref().unwrap_or(tally), &choices))?;
            is_stale = false;
        }
        match next_key() {
            Some(Event::Key(key)) => {
                press(key, &mut choices, tally, control);
                if choices.is_frozen != frozen.is_some() {
                    frozen = choices.is_frozen.then(|| tally.clone());
                }
                is_stale = true;
            }
            Some(_) => is_stale = true, // The size, for example.
            None => {}
        }
    }
}

fn press(key: KeyEvent, choices: &mut Choices, tally: &Tally, control: &Control) {
    match choices.press(key) {
        Some(Deed::End) => control.stop(),
        Some(deed @ (Deed::MoreUsers | Deed::FewerUsers)) => {
            if let Some(run) = tally.steered()
                && let Some(users) = run.now.users
            {
                control.set_users(keys::stepped(users, deed));
            }
        }
        None => {}
    }
}
