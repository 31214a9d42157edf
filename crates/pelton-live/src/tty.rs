//! The terminal of the error stream while a view fills it: taken, read for keys, given back whatever happens.

use std::io::{self, IsTerminal, Stderr};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use ratatui::crossterm::{cursor, execute};

/// Longest wait for a key before looking at what is measured again; half of the time between two looks at a load test.
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

/// Whether the terminal is taken over.
static IS_OPEN: AtomicBool = AtomicBool::new(false);

/// The terminal, until it is dropped.
pub(crate) struct Screen {
    pub(crate) terminal: ratatui::Terminal<CrosstermBackend<Stderr>>,
}

impl Screen {
    /// Takes it over. A panic of any thread gives it back before it is told.
    pub(crate) fn enter() -> Result<Self, TerminalError> {
        if !io::stderr().is_terminal() {
            return Err(TerminalError::None);
        }
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

/// Gives the terminal back, if a view has it: for those who end the process.
pub fn leave() {
    if IS_OPEN.swap(false, Ordering::SeqCst) {
        // There is nothing to be done about a terminal that went away.
        let _ = execute!(io::stderr(), LeaveAlternateScreen, cursor::Show);
        let _ = disable_raw_mode();
    }
}

/// Waits for a key, but not long.
///
/// # Errors
/// After as long a wait, if there is no keyboard.
pub(crate) fn next_key() -> io::Result<Option<Event>> {
    match event::poll(KEY_WAIT) {
        Ok(true) => event::read().map(Some),
        Ok(false) => Ok(None),
        Err(error) => {
            std::thread::sleep(KEY_WAIT);
            Err(error)
        }
    }
}
