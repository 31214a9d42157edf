//! Checks that every backend must pass.
//!
//! Each function compares one operation with a plain reference in f64, at sizes one below, at and above every lane and tile that
//! kernels are likely to use, and asserts that results do not depend on batch mates, bit for bit. They panic at the first
//! difference, naming the case. Data is pseudo-random with fixed seeds.
//!
//! Activations are brought in through [`Backend::embed`] of an f32 table, which is exact, and out through [`Backend::read`].

mod adapters;
mod attention;
mod experts;
mod grouped;
mod linear;
mod norms;
mod pointwise;
mod tolerance;

pub use adapters::{adapters, adapters_are_batch_invariant};
pub use attention::{attention, attention_is_batch_invariant};
pub use experts::{experts, experts_are_batch_invariant};
pub use grouped::grouped;
pub use linear::{linear, linear_is_batch_invariant};
pub use norms::{add_norm, norm, norm_heads};
pub use pointwise::{activate, add_positions, embed, gate, pointwise_is_batch_invariant, rope, scale, take_rows};

use crate::{Backend, BackendError, BlockId, DType, DenseWeight, Group, HostTensor, StepBatch, TokenId, WeightFormat};

/// Precision that a backend states for its kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Precision {
    /// What is rounded to where it meets bfloat16: f32 (not at all) or bfloat16. Rows of a linear meet weights; in attention scaled
    /// queries meet keys, and exponentials of scores values. Beside f32 and float16 nothing is ever rounded.
    pub beside_bf16: DType,
}

/// The backend describes itself, and refuses what does not fit or does not fit together.
pub fn loading<B: Backend>(backend: &B) {
    assert!(!backend.describe().is_empty());
    let memory = backend.memory();
    assert!(memory.available_bytes > 0 && memory.available_bytes <= memory.total_bytes, "{memory:?}");

    let absurd = backend.rows(1 << 40, 1 << 20).map(|_| ());
    assert!(matches!(absurd, Err(BackendError::OutOfMemory { .. })), "{absurd:?}");

    let weight = |out: usize, k: usize, stored_as| {
        DenseWeight::new(HostTensor::from_f32(vec![out, k], &vec![0.0; out * k]), stored_as).expect("a matrix")
    };
    assert!(backend.pack(&[]).is_err(), "no parts");
    assert!(backend.pack(&[weight(2, 3, DType::F32), weight(2, 4, DType::F32)]).is_err(), "different inputs");
    assert!(backend.pack(&[weight(2, 3, DType::F32), weight(2, 3, DType::F16)]).is_err(), "different precisions");
}

/// Columns around lanes and their multiples.
const COLS: [usize; 14] = [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 300];

fn param<B: Backend>(backend: &B, values: &[f32]) -> B::Param {
    backend.param(&HostTensor::from_f32(vec![values.len()], values)).expect("a parameter fits")
}

/// Seeded numbers; SplitMix64 (Steele, Lea and Flood 2014).
struct Numbers(u64);

impl Numbers {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Uniform in `-size..size`.
    fn next(&mut self, size: f32) -> f32 {
        ((self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * size
    }

    fn take(&mut self, count: usize, size: f32) -> Vec<f32> {
        (0..count).map(|_| self.next(size)).collect()
    }
}

/// Host values, `[rows, cols]`, that can be brought in by row.
struct Source<'b, B: Backend> {
    backend: &'b B,
    table: B::Linear,
    cols: usize,
}

impl<'b, B: Backend> Source<'b, B> {
    fn new(backend: &'b B, values: &[f32], cols: usize) -> Self {
        let tensor = HostTensor::from_f32(vec![values.len() / cols, cols], values);
        let weight = DenseWeight::new(tensor, DType::F32).expect("a matrix");
        Self { backend, table: backend.pack(&[weight]).expect("a table fits"), cols }
    }

    /// The rows named, in that order, as activations.
    fn rows(&self, rows: impl Iterator<Item = usize>) -> B::Rows {
        let rows: Vec<u32> = rows.map(|row| row as u32).collect();
        let step = step_of(self.backend, &plain_batch(&rows, &vec![0; rows.len()]));
        let mut out = self.backend.rows(rows.len(), self.cols).expect("rows fit");
        self.backend.embed(&step, &self.table, &mut out);
        out
    }
}

/// Each row a sequence of its own, with this token at this position and no cache behind it.
fn plain_batch(tokens: &[u32], positions: &[u32]) -> StepBatch {
    let mut batch = StepBatch::default();
    for (&token, &position) in tokens.iter().zip(positions) {
        batch.push_span(&[TokenId(token)], position, &[BlockId(0)], u32::MAX);
    }
    batch.logit_rows = (0..tokens.len() as u32).collect();
    batch
}

fn step_of<B: Backend>(backend: &B, batch: &StepBatch) -> B::Step {
    let mut step = backend.step(batch.num_rows()).expect("a step fits");
    backend.begin(batch, &mut step);
    step
}

fn read<B: Backend>(backend: &B, rows: &B::Rows) -> Vec<f32> {
    let mut host = Vec::new();
    backend.read(rows, &mut host).to_vec()
}

/// `x` as it is stored in `dtype`.
fn rounded(x: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F32 => x,
        DType::F16 => half::f16::from_f32(x).to_f32(),
        DType::BF16 => half::bf16::from_f32(x).to_f32(),
    }
}

/// Numbers of one output feature as they are kept in `format`.
fn kept(numbers: &[f32], format: WeightFormat) -> Vec<f64> {
    match format {
        WeightFormat::Dense(dtype) => numbers.iter().map(|&x| f64::from(rounded(x, dtype))).collect(),
        WeightFormat::Grouped(groups) => {
            groups.quantise(numbers).values(groups.group.features(numbers.len())).collect()
        }
    }
}

/// What becomes of rows before they meet a weight.
#[derive(Debug, Clone, Copy)]
enum RowsAs {
    Dense(DType),
    /// Eight bits in such groups.
    Grouped(Group),
}

/// A row as it meets a weight.
fn met(row: &[f32], rows_as: RowsAs) -> Vec<f64> {
    match rows_as {
        RowsAs::Dense(dtype) => kept(row, dtype.into()),
        RowsAs::Grouped(group) => {
            let in_eight_bits = |numbers: &[f32]| -> Vec<f64> {
                let largest = numbers.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
                let code = |x: f32| f64::from((x * (127.0 / largest)).round_ties_even());
                numbers.iter().map(|&x| code(x) * f64::from(largest) / 127.0).collect()
            };
            row.chunks(group.features(row.len())).flat_map(in_eight_bits).collect()
        }
    }
}

/// Panics when `found` is further than `tolerance` from `expected`, or no number.
#[track_caller]
fn assert_close(found: f32, expected: f64, tolerance: f64, case: impl FnOnce() -> String) {
    let error = (f64::from(found) - expected).abs();
    assert!(error <= tolerance, "{}: found {found}, expected {expected}, off by {error:e} > {tolerance:e}", case());
}

/// Panics when two results differ in any bit.
#[track_caller]
fn assert_same_bits(found: &[f32], expected: &[f32], case: impl FnOnce() -> String) {
    assert_eq!(found.len(), expected.len());
    if let Some(i) = (0..found.len()).find(|&i| found[i].to_bits() != expected[i].to_bits()) {
        panic!("{}: element {i} is {:e}, expected {:e}", case(), found[i], expected[i]);
    }
}
