//! A view of batches being measured that fills the terminal: a tab for each size, latencies, throughputs, and both against each other.
//!
//! It is drawn by a thread of its own, eight times a second at most, from what the measuring thread sends it.

mod keys;
mod screen;
mod state;

use std::io;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;

use pelton_bench::batches::{BatchSight, Batches};
use pelton_bench::watch::Control;
use ratatui::backend::Backend;
use ratatui::crossterm::event::Event;

use crate::tty::{Screen, TerminalError, next_key};
use keys::Choices;
use state::{State, Told};

/// The view, from [`open`](Self::open) until its user quits or it is dropped; then the terminal is as it was before.
#[derive(Debug)]
pub struct BatchView {
    /// Holds no more than a message for each run.
    told: Option<Sender<Told>>,
    thread: Option<JoinHandle<()>>,
}

impl BatchView {
    /// Takes over the terminal of the error stream: the standard output stays free for tables. Quitting stops the measurement by `control`.
    ///
    /// # Errors
    /// If there is no terminal.
    pub fn open(batches: &Batches, control: Control) -> Result<Self, TerminalError> {
        let mut screen = Screen::enter()?;
        let (told, sights) = channel();
        let mut state = State::new(batches.clone());
        let thread = std::thread::Builder::new().name("live-batches".to_owned()).spawn(move || {
            // A terminal that went away is not drawn on any more; the measurement goes on.
            let end = show(&mut screen.terminal, &sights, &mut state, &mut next_key);
            // First the terminal: whatever still runs ends behind it.
            drop(screen);
            if matches!(end, Ok(End::Quit)) {
                control.stop();
            }
        })?;
        Ok(Self { told: Some(told), thread: Some(thread) })
    }

    /// Shows what happened. Returns at once.
    pub fn see(&mut self, sight: BatchSight<'_>) {
        self.tell(Told::of(sight));
    }

    /// Says that the measurement is over, with what went wrong if anything did, and waits until the user has seen enough.
    pub fn finish(mut self, failure: Option<String>) {
        self.tell(Told::Over(failure));
        self.join();
    }

    fn tell(&mut self, told: Told) {
        if let Some(sender) = &self.told {
            // Who has quit wants to hear nothing.
            let _ = sender.send(told);
        }
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been told by the hook.
            let _ = thread.join();
        }
    }
}

impl Drop for BatchView {
    fn drop(&mut self) {
        drop(self.told.take());
        self.join();
    }
}

/// Why the view ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// A key.
    Quit,
    /// Nobody tells anything any more, or nobody can press a key.
    Left,
}

/// Draws until the user quits.
fn show<B: Backend>(
    terminal: &mut ratatui::Terminal<B>,
    told: &Receiver<Told>,
    state: &mut State,
    next_key: &mut dyn FnMut() -> io::Result<Option<Event>>,
) -> Result<End, B::Error> {
    let mut choices = Choices::default();
    let mut is_stale = true;
    loop {
        loop {
            match told.try_recv() {
                Ok(told) => {
                    state.take(told);
                    is_stale = true;
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(End::Left),
            }
        }
        if is_stale {
            terminal.draw(|frame| screen::draw(frame, state, &choices))?;
            is_stale = false;
        }
        match next_key() {
            Ok(Some(Event::Key(key))) => {
                if choices.press(key, state) {
                    return Ok(End::Quit);
                }
                is_stale = true;
            }
            Ok(Some(_)) => is_stale = true, // The size, for example.
            Ok(None) => {}
            Err(_) if state.is_over() => return Ok(End::Left),
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

    use super::*;
    use crate::batches::state::sample;

    #[test]
    fn it_stays_open_after_the_last_run_until_a_key_ends_it() {
        let (sender, told) = channel();
        let mut terminal = ratatui::Terminal::new(TestBackend::new(100, 40)).expect("a buffer");
        let mut state = sample::measured();
        sender.send(Told::Over(None)).expect("a receiver");
        let mut keys = VecDeque::from([None, None, Some(KeyCode::Tab), None, Some(KeyCode::Char('q'))]);
        let mut next = || {
            Ok(keys
                .pop_front()
                .expect("nothing after q")
                .map(|code| Event::Key(KeyEvent::new(code, KeyModifiers::NONE))))
        };
        assert_eq!(show(&mut terminal, &told, &mut state, &mut next), Ok(End::Quit));
        assert!(keys.is_empty());
    }

    #[test]
    fn it_ends_with_those_who_tell_and_without_a_keyboard() {
        let mut terminal = ratatui::Terminal::new(TestBackend::new(100, 40)).expect("a buffer");
        let (sender, told) = channel();
        drop(sender);
        let none = &mut || Ok(None);
        assert_eq!(show(&mut terminal, &told, &mut sample::measured(), none), Ok(End::Left));

        let (sender, told) = channel();
        sender.send(Told::Over(None)).expect("a receiver");
        let broken = &mut || Err(io::Error::from(io::ErrorKind::NotConnected));
        assert_eq!(show(&mut terminal, &told, &mut sample::measured(), broken), Ok(End::Left));
    }
}
