//! Stored load tests ([`Results`](pelton_bench::results::Results)) told to people and programs: text for a terminal, charts.
//!
//! It measures nothing: every number comes from the results, so a report can be made again at any time, and in another form.
#![forbid(unsafe_code)]

pub mod charts;
mod compare;
pub mod console;
pub mod digest;
mod explain;
mod facts;
mod html;
mod markdown;
mod numbers;
pub mod recipes;
mod report;
pub mod sheet;
mod tables;

pub use compare::Comparison;
pub use explain::explain;
pub use html::html;
pub use markdown::markdown;
pub use numbers::utc;
pub use report::{Level, LoadKind, Report, Test, Told};
pub use tables::Table;
