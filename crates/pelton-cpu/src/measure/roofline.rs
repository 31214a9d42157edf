//! Shares of bounds: what an operation needs at least, what the machine gives, and which of the two lasts longer.
//!
//! An operation cannot end before its bytes have come and its arithmetic is done. The longer of the two times is its bound (Williams,
//! Waterman and Patterson 2009, "Roofline"); the share of the bound is that time over the time it took.

use serde::Serialize;

/// What a machine gives, measured; per second, all threads together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Limits {
    /// Bytes read from memory.
    pub memory_bytes_per_s: f64,
    /// Bytes read from the second-level caches.
    pub cache_bytes_per_s: f64,
    /// f32 operations of the chosen instruction set; a fused multiply-add is two.
    pub f32_per_s: f64,
    /// Operations of bf16 dot products, in tiles or vectors, where the chosen instruction set has them.
    pub bf16_per_s: Option<f64>,
    /// Operations of int8 dot products, in tiles or vectors, where the CPU has them and the chosen instruction set is as wide.
    pub int8_per_s: Option<f64>,
}

/// Where an operation's bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Read from memory each time: weights, keys and values.
    Memory,
    /// Left in a cache by the operation before: activations.
    Cache,
}

/// What does the arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    F32,
    Bf16,
    Int8,
}

/// The least that an operation moves and computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Need {
    pub bytes: f64,
    pub source: Source,
    pub operations: f64,
    pub unit: Unit,
}

/// What limits an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// Reading memory.
    Memory,
    /// Reading the second-level caches.
    Cache,
    /// f32 arithmetic.
    F32,
    /// bf16 dot products.
    Bf16,
    /// int8 dot products.
    Int8,
}

impl Bound {
    /// For people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cache => "cache",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }

    /// What is counted, per second.
    pub(super) fn operations(self) -> &'static str {
        if self == Self::Int8 { "OP/s" } else { "FLOP/s" }
    }

    /// Whether bytes are what counts.
    pub(super) fn is_bytes(self) -> bool {
        matches!(self, Self::Memory | Self::Cache)
    }
}

impl Need {
    /// What limits it, and the least time in seconds.
    pub(super) fn bound(&self, limits: &Limits) -> (Bound, f64) {
        let (source, bytes_per_s) = match self.source {
            Source::Memory => (Bound::Memory, limits.memory_bytes_per_s),
            Source::Cache => (Bound::Cache, limits.cache_bytes_per_s),
        };
        // Without dot products bytes are multiplied and added as wider integers, at the pace of floats.
        let (unit, per_s) = match self.unit {
            Unit::F32 => None,
            Unit::Bf16 => limits.bf16_per_s.map(|per_s| (Bound::Bf16, per_s)),
            Unit::Int8 => limits.int8_per_s.map(|per_s| (Bound::Int8, per_s)),
        }
        .unwrap_or((Bound::F32, limits.f32_per_s));
        let (moving, computing) = (self.bytes / bytes_per_s, self.operations / per_s);
        if moving >= computing { (source, moving) } else { (unit, computing) }
    }
}

/// The middle of `values` (the upper of two), which are sorted by it. Panics when there are none.
pub(super) fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        memory_bytes_per_s: 10e9,
        cache_bytes_per_s: 100e9,
        f32_per_s: 200e9,
        bf16_per_s: Some(400e9),
        int8_per_s: None,
    };

    #[test]
    fn the_longer_of_moving_and_computing_is_the_bound() {
        let need = |source, operations, unit| Need { bytes: 1e9, source, operations, unit };
        assert_eq!(need(Source::Memory, 1e9, Unit::F32).bound(&LIMITS), (Bound::Memory, 0.1));
        assert_eq!(need(Source::Cache, 1e9, Unit::F32).bound(&LIMITS), (Bound::Cache, 0.01));
        assert_eq!(need(Source::Memory, 100e9, Unit::F32).bound(&LIMITS), (Bound::F32, 0.5));
        assert_eq!(need(Source::Memory, 100e9, Unit::Bf16).bound(&LIMITS), (Bound::Bf16, 0.25));
        let int8 = Limits { int8_per_s: Some(800e9), ..LIMITS };
        assert_eq!(need(Source::Memory, 400e9, Unit::Int8).bound(&int8), (Bound::Int8, 0.5));
        assert_eq!(need(Source::Memory, 400e9, Unit::Int8).bound(&LIMITS), (Bound::F32, 2.0));
        let without = Limits { bf16_per_s: None, ..LIMITS };
        assert_eq!(need(Source::Memory, 100e9, Unit::Bf16).bound(&without), (Bound::F32, 0.5));
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 3.0);
        assert_eq!(median(&mut [5.0]), 5.0);
    }
}
