//! The reports that people of this field know, made again: each file plans the load tests of one, and prints its tables.
//!
//! A recipe measures nothing and knows no server: its plans are run like any other, and its tables are computed from stored results.
//! Where the original's formula differs from ours, both are printed, each by its name. Figures that the originals published stand beside,
//! with the machine they were taken on.

pub mod card;
pub mod engine;
pub mod lengths;
pub mod llm_bench;
mod table;
pub mod vus;

pub use table::Table;
