//! Load tests as they go on: a line at the bottom of the terminal.
//!
//! Everything here is a [`Watch`](pelton_bench::watch::Watch): it sees what the measurement tells and does not disturb it.
#![forbid(unsafe_code)]

mod line;

pub use line::Line;
