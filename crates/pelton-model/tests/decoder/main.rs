//! The decoder on the CPU backend: against Transformers, against itself in other batches, with adapters, with broken files and with made-up weights.

mod adapters;
mod fixture;
mod formats;
mod golden;
mod invariance;
mod loading;
mod random;
