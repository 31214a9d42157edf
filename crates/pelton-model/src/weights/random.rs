//! Made-up weights, one tensor at a time: for measurements, where sizes matter and numbers do not.
//!
//! Matrices are normal numbers over the square root of their columns, so that activations keep their size and nothing overflows;
//! vectors are ones. The normal numbers are picked from a small table: a model of billions of them is made in seconds.

use std::f32::consts::TAU;

use half::bf16;
use pelton_backend::DType;

use crate::spec::TensorSpec;
use crate::weights::TensorSource;
use crate::weights::checkpoint::{CheckpointError, Tensor};

/// Different numbers; a power of two, so that some bits of a random word choose one.
const TABLE_LEN: usize = 1 << 12;

/// Numbers chosen by one random word.
const PER_WORD: usize = 64 / TABLE_LEN.ilog2() as usize;

/// Every tensor anybody asks for, in bfloat16. The same seed makes the same model, in whatever order its tensors are read.
pub(crate) struct RandomWeights {
    seed: u64,
    normals: Vec<f32>,
}

impl RandomWeights {
    /// What they are made in.
    pub(crate) const DTYPE: DType = DType::BF16;

    pub(crate) fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        // Box and Muller 1958; one minus a number below one has a logarithm.
        let normals = (0..TABLE_LEN).map(|_| (-2.0 * (1.0 - random.f32()).ln()).sqrt() * (TAU * random.f32()).cos());
        Self { seed, normals: normals.collect() }
    }

    fn matrix(&self, name: &str, rows: usize, columns: usize) -> Vec<u8> {
        let scale = 1.0 / (columns as f32).sqrt();
        let table: Vec<[u8; 2]> = self.normals.iter().map(|x| bf16::from_f32(x * scale).to_le_bytes()).collect();
        let mut random = fastrand::Rng::with_seed(self.seed ^ hash(name));
        let mut bytes = vec![0; 2 * rows * columns];
        for numbers in bytes.chunks_mut(2 * PER_WORD) {
            let mut word = random.u64(..);
            for number in numbers.chunks_exact_mut(2) {
                number.copy_from_slice(&table[word as usize % TABLE_LEN]);
                word /= TABLE_LEN as u64;
            }
        }
        bytes
    }
}

impl TensorSource for RandomWeights {
    fn tensor(&self, wanted: &TensorSpec) -> Result<Tensor, CheckpointError> {
        let bytes = match wanted.shape[..] {
            [rows, columns] => self.matrix(&wanted.name, rows, columns),
            _ => bf16::ONE.to_le_bytes().repeat(wanted.num_elements() as usize),
        };
        Ok(Tensor::made(Self::DTYPE, wanted.shape.clone(), bytes))
    }
}

/// FNV-1a: another stream of numbers for each tensor.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Stored;

    fn spec(name: &str, shape: &[usize]) -> TensorSpec {
        TensorSpec { name: name.into(), shape: shape.into(), stored: Stored::AsIs }
    }

    #[test]
    fn matrices_are_normal_over_the_root_of_their_columns() {
        let weights = RandomWeights::new(7);
        // An odd number of elements: the last word is used in part.
        let values = weights.tensor(&spec("a", &[333, 101])).unwrap().host().to_f32();
        assert_eq!(values.len(), 333 * 101);
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let variance = values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 0.005 && (variance * 101.0 - 1.0).abs() < 0.1, "mean {mean}, variance {variance}");
        let inside = values.iter().filter(|x| x.abs() < 1.0 / 101f32.sqrt()).count() as f32 / values.len() as f32;
        assert!((inside - 0.683).abs() < 0.03, "{inside} within one deviation");
        assert_eq!(weights.tensor(&spec("n", &[3])).unwrap().host().to_f32(), [1.0; 3]);
    }

    #[test]
    fn a_tensor_depends_on_its_name_and_the_seed_alone() {
        let read = |seed, name| RandomWeights::new(seed).tensor(&spec(name, &[8, 8])).unwrap().host().to_f32();
        assert_eq!(read(1, "a"), read(1, "a"));
        assert_ne!(read(1, "a"), read(1, "b"));
        assert_ne!(read(1, "a"), read(2, "a"));
    }
}
