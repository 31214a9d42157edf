//! Stored load tests ([`Results`](pelton_bench::results::Results)) told to people and programs: text for a terminal, charts.
//!
//! It measures nothing: every number comes from the results, so a report can be made again at any time, and in another form.
#![forbid(unsafe_code)]

pub mod charts;
pub mod console;
mod numbers;
mod report;

pub use report::{Level, LoadKind, Report, Test, Told};
pub mod recipes;
