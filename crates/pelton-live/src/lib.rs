//! Load tests as they go on: a line at the bottom of the terminal, a view that fills it, a page in a browser.
//!
//! Everything here is told by the measurement ([`Watch`](pelton_bench::watch::Watch), [`BatchSight`](pelton_bench::batches::BatchSight)) and
//! does not disturb it.
#![forbid(unsafe_code)]

mod batches;
mod charts;
mod line;
mod looks;
#[cfg(test)]
mod sample;
mod sheets;
mod tally;
mod terminal;
mod tty;
mod web;

pub use batches::BatchView;
pub use line::Line;
pub use terminal::TerminalView;
pub use tty::{TerminalError, leave as leave_terminal};
pub use web::{Download, Form, WebError, WebPage};
