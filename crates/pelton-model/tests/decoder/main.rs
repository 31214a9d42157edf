//! The decoder on the CPU backend: against Transformers, against itself in other batches, with broken files and with made-up weights.

mod fixture;
mod formats;
mod golden;
mod invariance;
mod loading;
mod random;
