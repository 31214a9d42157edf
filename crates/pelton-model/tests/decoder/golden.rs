//! Against Transformers: hidden states after each block, logits, and greedy tokens.

use pelton_backend::{DType, StepBatch};
use pelton_cpu::IsaChoice;
use pelton_model::{HfConfig, Model, spec_of};

use crate::fixture::{Expected, Sequence, all, argmax, decoder, expected, instruction_sets, root};

/// Half a unit in the last place of a float32 next to one.
const ROUNDING: f32 = 1.0 / (1 << 24) as f32;
/// The same for bfloat16.
const BF16_ROUNDING: f32 = 1.0 / (1 << 9) as f32;

/// How far a float32 result may be from the reference, which is float32 itself, relative to the largest number of the row.
struct Tolerance {
    /// Longest sum of a linear.
    longest_sum: usize,
    /// The second fastest frequency, in radians per position.
    frequency: f32,
}

impl Tolerance {
    fn of(name: &str) -> Self {
        let config = std::fs::read(root().join(name).join("config.json")).unwrap();
        let (_, spec) = spec_of(&HfConfig::parse("config.json", &config).unwrap()).unwrap();
        let attention = &spec.attention;
        let sums = [spec.hidden_size, spec.mlp.intermediate_size, attention.num_heads * attention.head_dim];
        let frequency = attention.rope.theta.powf(-2.0 / attention.head_dim as f64) as f32;
        Self { longest_sum: sums.into_iter().max().unwrap(), frequency }
    }

    /// After `depth` blocks (the head counts as one), at `position`. Each block adds:
    ///
    /// - rounding of sums. Two ways of adding k products part like a random walk, by about sqrt(k) roundings; a block has four linears,
    ///   one after the other in pairs, and attention and activations between them: six such steps in all;
    /// - angles. The reference rounds frequency and angle to float32 (the fastest frequency, 1, is exact), which is up to two
    ///   roundings of an angle of `position * frequency` radians, in the query and in the keys it meets.
    fn after(&self, depth: usize, position: usize) -> f32 {
        let sums = 6.0 * (self.longest_sum as f32).sqrt();
        let angles = 4.0 * position as f32 * self.frequency;
        ROUNDING * depth as f32 * (sums + angles)
    }
}

/// The largest difference relative to the largest number of `wanted`.
fn distance(found: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(found.len(), wanted.len());
    let largest = wanted.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    found
        .iter()
        .zip(wanted)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |worst: f32, x| if x > worst || x.is_nan() { x } else { worst })
        / largest
}

fn check(name: &str, isa: IsaChoice, dtype: DType, within: impl Fn(usize, usize) -> f32, greedy: bool) {
    let mut decoder = decoder(name, isa, dtype);
    for Expected { prompt, rows, hidden, logits, greedy: tokens, .. } in expected(name) {
        let at = |what: &str, row: usize| format!("{name}, {isa}, {dtype}: {what} at {row} of {}", prompt.len());
        let mut sequence = Sequence::new(&prompt, prompt.len() + tokens.len(), 3, 2);
        let mut batch = StepBatch::default();
        sequence.push(&mut batch, prompt.len(), false);
        batch.logit_rows.extend(rows.iter().map(|&row| row as u32));
        let mut blocks_seen = 0;
        let found = decoder
            .forward_observed(&batch, &mut |block, residual| {
                blocks_seen += 1;
                for (&row, wanted) in rows.iter().zip(&hidden[block]) {
                    let found = &residual[row * wanted.len()..][..wanted.len()];
                    let (distance, limit) = (distance(found, wanted), within(block + 1, row));
                    assert!(distance <= limit, "{} block {block}: {distance:e} > {limit:e}", at("residual", row));
                }
            })
            .unwrap();
        assert_eq!(blocks_seen, hidden.len());
        for (found, (&row, wanted)) in found.chunks_exact(logits[0].len()).zip(rows.iter().zip(&logits)) {
            let (distance, limit) = (distance(found, wanted), within(hidden.len() + 1, row));
            assert!(distance <= limit, "{}: {distance:e} > {limit:e}", at("logits", row));
        }
        if !greedy {
            continue;
        }
        let mut last = found[found.len() - logits[0].len()..].to_vec();
        for (index, &wanted) in tokens.iter().enumerate() {
            assert_eq!(argmax(&last), wanted, "{}", at("greedy token", index));
            sequence.tokens.push(wanted);
            batch.clear();
            sequence.push(&mut batch, 1, true);
            last.copy_from_slice(decoder.forward(&batch).unwrap());
        }
    }
}

#[test]
fn float32_equals_transformers_on_every_instruction_set() {
    for isa in instruction_sets() {
        for name in all() {
            let tolerance = Tolerance::of(&name);
            check(&name, isa, DType::F32, |depth, position| tolerance.after(depth, position), true);
        }
    }
}

/// In bfloat16 each block rounds its rows four times, and keys and values once, to a relative 2^-9; errors of single numbers are
/// independent and partly cancel in sums, so eight roundings per block bound the largest of them.
#[test]
fn bfloat16_stays_within_its_own_rounding() {
    for isa in instruction_sets() {
        for name in ["stored_bf16", "biases", "mqa_odd_sizes"] {
            check(name, isa, DType::BF16, |depth, _| 8.0 * depth as f32 * BF16_ROUNDING, false);
        }
    }
}

/// Greedy tokens say something only where the best token leads by more than the numbers may differ.
#[test]
fn greedy_tokens_of_the_fixtures_are_beyond_doubt() {
    for name in all() {
        let tolerance = Tolerance::of(&name);
        for Expected { logits, margins, prompt, greedy, .. } in expected(&name) {
            let largest = logits.iter().flatten().fold(0.0f32, |largest, x| largest.max(x.abs()));
            let doubt = 2.0 * largest * tolerance.after(4, prompt.len() + greedy.len());
            let narrowest = margins.iter().copied().fold(f32::MAX, f32::min);
            assert!(narrowest > doubt, "{name}, {} tokens: {narrowest:e} <= {doubt:e}", prompt.len());
        }
    }
}
