//! A view of a load test that fills the terminal: drawn by a thread of its own, steered by keys.

mod keys;
mod screen;

use std::io::{self, IsTerminal, Stderr};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread::JoinHandle;
use std::time::Duration;

use pelton_bench::BenchPlan;
use pelton_bench::watch::{Control, Sight, Watch};
use ratatui::backend::{Backend, CrosstermBackend};
use ratatui::crossterm::event::{self, Event, KeyEvent};
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use ratatui::crossterm::{cursor, execute};

use crate::looks::{self, Look, Looker};
use crate::tally::{About, Tally};
use keys::{Choices, Deed};

/// Longest wait for a key before looking at the run again; half of the time between two looks.
const KEY_WAIT: Duration = Duration::from_millis(125);

/// Why there is no view.
#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    /// The error stream, on which the view is drawn, is something else.
    #[error("standard error is no terminal")]
    None,
    /// The terminal refused.
    #[error("the terminal cannot be used: {0}")]
    Io(#[from] io::Error),
}

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
        if !io::stderr().is_terminal() {
            return Err(TerminalError::None);
        }
        let mut screen = Screen::enter()?;
        let (looker, looks) = looks::channel();
        let mut tally = Tally::new(About::of(plan));
        let thread = std::thread::Builder::new().name("live-terminal".to_owned()).spawn(move || {
            // A terminal that went away is not drawn on any more; the run goes on.
            let _ = show(&mut screen.terminal, &looks, &mut tally, &mut next_key, &control);
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
            if let Some(run) = tally.run.as_ref().filter(|run| run.begins.is_steered)
                && let Some(users) = run.now.users
            {
                control.set_users(keys::stepped(users, deed));
            }
        }
        None => {}
    }
}

/// Waits for a key, but not long. Without a keyboard there is none.
fn next_key() -> Option<Event> {
    match event::poll(KEY_WAIT) {
        Ok(true) => event::read().ok(),
        Ok(false) => None,
        Err(_) => {
            std::thread::sleep(KEY_WAIT);
            None
        }
    }
}

/// Whether the terminal is taken over.
static IS_OPEN: AtomicBool = AtomicBool::new(false);

/// The terminal while it is taken over.
struct Screen {
    terminal: ratatui::Terminal<CrosstermBackend<Stderr>>,
}

impl Screen {
    fn enter() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                leave();
                before(panic);
            }));
        });
        let terminal = ratatui::Terminal::new(CrosstermBackend::new(io::stderr()))?;
        enable_raw_mode()?;
        IS_OPEN.store(true, Ordering::SeqCst);
        // From here on dropping it restores the terminal.
        let screen = Self { terminal };
        execute!(io::stderr(), EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        leave();
    }
}

/// Gives the terminal back, once.
fn leave() {
    if IS_OPEN.swap(false, Ordering::SeqCst) {
        // There is nothing to be done about a terminal that went away.
        let _ = execute!(io::stderr(), LeaveAlternateScreen, cursor::Show);
        let _ = disable_raw_mode();
    }
}
