//! The decoder on the CPU backend: against Transformers, against itself in other batches, and with broken files.

mod fixture;
mod golden;
mod invariance;
mod loading;
