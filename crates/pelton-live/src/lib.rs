//! Load tests as they go on: a line at the bottom of the terminal, a view that fills it, a page in a browser.
//!
//! Everything here is a [`Watch`](pelton_bench::watch::Watch): it sees what the measurement tells and does not disturb it.
#![forbid(unsafe_code)]

mod charts;
mod line;
mod looks;
#[cfg(test)]
mod sample;
mod sheets;
mod tally;
mod terminal;
mod web;

pub use line::Line;
pub use terminal::{TerminalError, TerminalView};
pub use web::{Download, Form, WebError, WebPage};
