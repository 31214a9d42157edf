//! Against Transformers: hidden states after each block, logits, and greedy tokens.

use pelton_backend::{DType, StepBatch, TokenId};
use pelton_cpu::{CpuBackend, IsaChoice};
use pelton_model::{Decoder, HfConfig, spec_of};
use serde_json::{Value, json};

use crate::fixture::{
    Expected, Sequence, all, argmax, copy_of, decoder, decoder_in, edit_config, expected, instruction_sets, root,
};

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

/// The distance from the reference over what is allowed, and where; at most one when all is well.
type Worst = (f32, String);

/// Computes each prompt of `expected` in one step and compares what was kept of it.
fn compare(decoder: &mut Decoder<CpuBackend>, expected: &[Expected], allowed: impl Fn(usize, usize) -> f32) -> Worst {
    let mut worst: Worst = (0.0, String::new());
    let mut note = |distance: f32, depth: usize, row: usize, place: String| {
        let ratio = distance / allowed(depth, row);
        if ratio > worst.0 || ratio.is_nan() {
            worst = (ratio, format!("{place}, row {row}: off by {distance:e}"));
        }
    };
    for Expected { prompt, rows, hidden, logits, .. } in expected {
        let len = prompt.len();
        let mut batch = StepBatch::default();
        Sequence::new(prompt, len, 3, 2).push(&mut batch, len, false);
        batch.logit_rows.extend(rows.iter().map(|&row| row as u32));
        let mut num_blocks = 0;
        let found = decoder
            .forward_observed(&batch, &mut |block, residual| {
                num_blocks += 1;
                for (&row, wanted) in rows.iter().zip(&hidden[block]) {
                    let found = &residual[row * wanted.len()..][..wanted.len()];
                    note(distance(found, wanted), block + 1, row, format!("prompt of {len}, after block {block}"));
                }
            })
            .unwrap();
        assert_eq!(num_blocks, hidden.len());
        assert_eq!(found.len(), rows.len() * logits[0].len());
        for (found, (&row, wanted)) in found.chunks_exact(logits[0].len()).zip(rows.iter().zip(logits)) {
            note(distance(found, wanted), hidden.len() + 1, row, format!("prompt of {len}, logits"));
        }
    }
    worst
}

/// Greedy decoding, one token a step after the prompt.
fn greedy(decoder: &mut Decoder<CpuBackend>, prompt: &[TokenId], num_tokens: usize) -> Vec<TokenId> {
    let mut sequence = Sequence::new(prompt, prompt.len() + num_tokens, 3, 2);
    for _ in 0..num_tokens {
        let logits = sequence.run(decoder, prompt.len());
        sequence.tokens.push(argmax(&logits));
    }
    sequence.tokens.split_off(prompt.len())
}

#[test]
fn float32_equals_transformers_on_every_instruction_set() {
    for isa in instruction_sets() {
        for name in all() {
            let (mut decoder, expected, tolerance) =
                (decoder(&name, isa, DType::F32), expected(&name), Tolerance::of(&name));
            let (ratio, place) = compare(&mut decoder, &expected, |depth, position| tolerance.after(depth, position));
            assert!(ratio <= 1.0, "{name}, {isa}: {place}, {ratio} times what is allowed");
            for case in &expected {
                let tokens = greedy(&mut decoder, &case.prompt, case.greedy.len());
                assert_eq!(tokens, case.greedy, "{name}, {isa}: after a prompt of {}", case.prompt.len());
            }
        }
    }
}

/// The tolerance is tight: small changes of a constant, and of course a scaling rule left out, are beyond it.
#[test]
fn a_slightly_wrong_configuration_is_noticed() {
    let changes = [
        ("gqa", "/rms_norm_eps", json!(1e-6)),
        ("gqa", "/rope_theta", json!(10_002.0)),
        ("gelu_tanh", "/hidden_act", json!("gelu")),
        ("rope_linear", "/rope_scaling/factor", json!(4.002)),
        ("rope_linear", "/rope_scaling", Value::Null),
        ("rope_dynamic", "/rope_scaling/factor", json!(4.01)),
        ("rope_dynamic", "/max_position_embeddings", json!(257)),
        ("rope_llama3", "/rope_scaling/low_freq_factor", json!(1.01)),
        ("rope_llama3", "/rope_scaling/high_freq_factor", json!(4.01)),
        ("rope_yarn", "/rope_scaling/truncate", json!(false)),
        ("rope_yarn", "/rope_scaling/original_max_position_embeddings", json!(1000)),
        ("rope_yarn_mscale", "/rope_scaling/beta_fast", json!(16.1)),
        ("rope_yarn_mscale", "/rope_scaling/beta_slow", json!(2.01)),
        ("rope_yarn_mscale", "/rope_scaling/mscale_all_dim", json!(0.601)),
    ];
    for (name, key, value) in changes {
        let tolerance = Tolerance::of(name);
        let folder = copy_of(name);
        edit_config(folder.path(), |config| {
            let (parent, last) = key.rsplit_once('/').unwrap();
            config.pointer_mut(parent).unwrap()[last] = value.clone();
        });
        let mut decoder = decoder_in(folder.path(), IsaChoice::Auto, DType::F32);
        let (ratio, _) = compare(&mut decoder, &expected(name), |depth, position| tolerance.after(depth, position));
        assert!(ratio > 1.0, "{name} with {key} = {value}: only {ratio} times what is allowed");
    }
}

/// In bfloat16 each block rounds its rows four times, and keys and values once, to a relative 2^-9; errors of single numbers are
/// independent and partly cancel in sums, so eight roundings per block bound the largest of them.
#[test]
fn bfloat16_stays_within_its_own_rounding() {
    for isa in instruction_sets() {
        for name in ["stored_bf16", "biases", "mqa_odd_sizes"] {
            let mut decoder = decoder(name, isa, DType::BF16);
            let (ratio, place) = compare(&mut decoder, &expected(name), |depth, _| 8.0 * depth as f32 * BF16_ROUNDING);
            assert!(ratio <= 1.0, "{name}, {isa}: {place}, {ratio} times what is allowed");
            assert!(ratio > 0.01, "{name}, {isa}: {ratio}: nothing was rounded");
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
