//! Gauges and counters of the engine, stored once per step by the engine thread and read by anyone.

use std::sync::atomic::{AtomicBool, AtomicU64};

use crate::start::MAX_SPECULATE;

/// Written by the engine thread alone, once per step (`Relaxed`), but for `alive`, which [`crate::start`] sets before there is a
/// thread; read by metrics, health and info.
#[derive(Debug, Default)]
pub struct EngineGauges {
    /// True while the engine can compute: false before start-up, after a failure and after shutdown.
    pub alive: AtomicBool,
    /// Sequences with blocks.
    pub running: AtomicU64,
    /// Sequences waiting for blocks or for their turn.
    pub waiting: AtomicU64,
    /// Blocks owned by sequences.
    pub blocks_used: AtomicU64,
    /// All blocks.
    pub blocks_total: AtomicU64,
    /// Steps computed.
    pub steps: AtomicU64,
    /// Rows computed, over all steps.
    pub rows: AtomicU64,
    /// Rows of the last step.
    pub last_step_rows: AtomicU64,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queried_tokens: AtomicU64,
    /// Prompt tokens found there.
    pub prefix_hit_tokens: AtomicU64,
    /// Sequences that lost their blocks.
    pub preemptions: AtomicU64,
    /// Rounds of drafting: a sequence in a step, with at least one drafted token.
    pub drafts: AtomicU64,
    /// Tokens drafted.
    pub drafted_tokens: AtomicU64,
    /// Rounds of sampling (a sequence in a step) by the drafted tokens that were accepted: at index 0 those that gave one token and no
    /// more.
    pub samples_by_accepted: [AtomicU64; MAX_SPECULATE as usize + 1],
}
