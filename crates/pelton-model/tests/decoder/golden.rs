//! Against Transformers: hidden states after each block, logits, and greedy tokens.

use std::collections::BTreeMap;
use std::path::Path;
use std::slice::from_ref;

use pelton_backend::{DType, StepBatch, TokenId};
use pelton_cpu::{CpuBackend, IsaChoice};
use pelton_model::{Decoder, HfConfig, Rope, spec_of};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::fixture::{
    Expected, Sequence, all, argmax, copy_of, decoder, decoder_in, edit_config, expected, instruction_sets, root,
};

/// Half a unit in the last place of a float32 next to one.
const ROUNDING: f32 = 1.0 / (1 << 24) as f32;
/// The same for bfloat16.
const BF16_ROUNDING: f32 = 1.0 / (1 << 8) as f32;

/// How far a float32 result may be from the reference, which is float32 itself, relative to the largest number of the row.
pub struct Tolerance {
    /// Longest sum of a linear.
    longest_sum: usize,
    /// The second fastest frequency, in radians per position.
    frequency: f32,
}

impl Tolerance {
    pub fn of(name: &str) -> Self {
        let config = std::fs::read(root().join(name).join("config.json")).unwrap();
        let (_, spec) = spec_of(&HfConfig::parse("config.json", &config).unwrap()).unwrap();
        let attention = &spec.attention;
        let sums = [spec.hidden_size, spec.mlp.intermediate_size, attention.num_heads * attention.head_dim];
        let frequency = |rope: &Rope| rope.theta.powf(-2.0 / rope.rotary_dim as f64) as f32;
        let frequency = spec.positions.ropes().iter().map(frequency).fold(0.0, f32::max);
        Self { longest_sum: sums.into_iter().max().unwrap(), frequency }
    }

    /// After `depth` blocks (the head counts as one), at `position`. Each block adds:
    ///
    /// - rounding of sums. Two ways of adding k products part like a random walk, by about sqrt(k) roundings; a block has four linears,
    ///   one after the other in pairs, and attention and activations between them: six such steps in all;
    /// - angles. The reference rounds frequency and angle to float32 (the fastest frequency, 1, is exact), which is up to two
    ///   roundings of an angle of `position * frequency` radians, in the query and in the keys it meets.
    pub fn after(&self, depth: usize, position: usize) -> f32 {
        let sums = 6.0 * (self.longest_sum as f32).sqrt();
        let angles = 4.0 * position as f32 * self.frequency;
        ROUNDING * depth as f32 * (sums + angles)
    }
}

/// The largest difference relative to the largest number of `wanted`.
pub fn distance(found: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(found.len(), wanted.len());
    let largest = wanted.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    found
        .iter()
        .zip(wanted)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |worst: f32, x| if x > worst || x.is_nan() { x } else { worst })
        / largest
}

/// How far a decoder is from the reference.
#[derive(Default)]
struct Found {
    /// The largest distance over what is allowed; at most one when all is well.
    ratio: f32,
    /// Where that is.
    place: String,
    /// The largest distance of logits, relative to the largest of their row.
    logits: f32,
}

/// Computes each prompt of `expected` in one step and compares what was kept of it.
fn compare(decoder: &mut Decoder<CpuBackend>, expected: &[Expected], allowed: impl Fn(usize, usize) -> f32) -> Found {
    let mut worst = Found::default();
    let note = |worst: &mut Found, distance: f32, depth: usize, row: usize, place: String| {
        let ratio = distance / allowed(depth, row);
        if ratio > worst.ratio || ratio.is_nan() {
            (worst.ratio, worst.place) = (ratio, format!("{place}, row {row}: off by {distance:e}"));
        }
    };
    for case in expected {
        let Expected { prompt, rows, hidden, logits, .. } = case;
        let len = prompt.len();
        let mut batch = StepBatch::default();
        sequence(case).push(&mut batch, len, false);
        batch.logit_rows.extend(rows.iter().map(|&row| row as u32));
        let mut num_blocks = 0;
        let found = decoder
            .forward_observed(&batch, &mut |block, residual| {
                num_blocks += 1;
                for (&row, wanted) in rows.iter().zip(&hidden[block]) {
                    let found = &residual[row * wanted.len()..][..wanted.len()];
                    let distance = distance(found, wanted);
                    note(&mut worst, distance, block + 1, row, format!("prompt of {len}, after block {block}"));
                }
            })
            .unwrap();
        assert_eq!(num_blocks, hidden.len());
        assert_eq!(found.len(), rows.len() * logits[0].len());
        for (found, (&row, wanted)) in found.chunks_exact(logits[0].len()).zip(rows.iter().zip(logits)) {
            let distance = distance(found, wanted);
            worst.logits = worst.logits.max(distance);
            note(&mut worst, distance, hidden.len() + 1, row, format!("prompt of {len}, logits"));
        }
    }
    worst
}

/// A prompt with room for what follows, on the same blocks each time.
fn sequence(case: &Expected) -> Sequence {
    Sequence::new(&case.prompt, case.prompt.len() + case.greedy.len(), 3, 2)
}

/// Greedy decoding, one token a step, behind the prompt that [`compare`] computed last.
fn greedy(decoder: &mut Decoder<CpuBackend>, case: &Expected) -> Vec<TokenId> {
    let mut sequence = sequence(case);
    sequence.num_computed = case.prompt.len() - 1;
    for _ in 0..case.greedy.len() {
        let logits = sequence.run(decoder, 1);
        sequence.tokens.push(argmax(&logits));
    }
    sequence.tokens.split_off(case.prompt.len())
}

/// Prints a table of what was found, by architecture.
#[test]
fn float32_equals_transformers_on_every_instruction_set() {
    // Fixtures, the largest distance of logits, greedy tokens that were compared.
    let mut table: BTreeMap<&str, (usize, f32, usize)> = BTreeMap::new();
    for name in all() {
        let (expected, tolerance) = (expected(&name), Tolerance::of(&name));
        let mut row = (1, 0.0f32, 0);
        let mut architecture = "";
        for isa in instruction_sets() {
            let mut decoder = decoder(&name, isa, DType::F32);
            for case in &expected {
                let allowed = |depth, position| tolerance.after(depth, position);
                let Found { ratio, place, logits } = compare(&mut decoder, from_ref(case), allowed);
                assert!(ratio <= 1.0, "{name}, {isa}: {place}, {ratio} times what is allowed");
                let tokens = greedy(&mut decoder, case);
                assert_eq!(tokens, case.greedy, "{name}, {isa}: after a prompt of {}", case.prompt.len());
                (row.1, row.2) = (row.1.max(logits), row.2 + tokens.len());
            }
            architecture = decoder.info().architecture;
        }
        let (fixtures, logits, tokens) = table.entry(architecture).or_default();
        (*fixtures, *logits, *tokens) = (*fixtures + row.0, logits.max(row.1), *tokens + row.2);
    }
    println!(
        "| architecture | fixtures | largest difference of logits | greedy tokens, all equal |\n| --- | --- | --- | --- |"
    );
    for (architecture, (fixtures, logits, tokens)) in table {
        println!("| {architecture} | {fixtures} | {logits:.1e} | {tokens} |");
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
        ("gpt2", "/activation_function", json!("gelu")),
        ("gpt2", "/layer_norm_epsilon", json!(1e-6)),
        ("gpt2_by_layer", "/scale_attn_by_inverse_layer_idx", json!(false)),
        ("gpt2_unscaled", "/scale_attn_weights", json!(true)),
        ("gpt_bigcode_untied_odd", "/activation_function", json!("gelu_pytorch_tanh")),
        ("gptj", "/rotary_dim", json!(6)),
        ("codegen", "/rotary_dim", json!(2)),
        ("gpt_neox", "/rotary_pct", json!(0.75)),
        ("gpt_neox", "/use_parallel_residual", json!(false)),
        ("gpt_neox_sequential", "/use_parallel_residual", json!(true)),
        ("mistral", "/sliding_window", json!(51)),
        ("mistral_narrow", "/sliding_window", json!(2)),
        ("mistral_no_window", "/sliding_window", json!(600)),
        ("qwen2_windows", "/layer_types/1", json!("full_attention")),
        ("qwen2_windows", "/use_sliding_window", json!(false)),
        ("qwen2_layer_types", "/layer_types/0", json!("full_attention")),
        ("starcoder2", "/sliding_window", json!(32)),
        ("phi", "/partial_rotary_factor", json!(0.75)),
        ("phi3_partial_window", "/partial_rotary_factor", json!(0.65)),
        ("phi3_long", "/rope_scaling/long_factor/1", json!(1.503)),
        ("phi3_long", "/original_max_position_embeddings", json!(66)),
        ("phi3_short", "/rope_scaling/short_factor/1", json!(1.103)),
        ("phi3_short", "/original_max_position_embeddings", json!(1023)),
        ("gemma", "/hidden_act", json!("relu")),
        ("gemma2", "/attn_logit_softcapping", json!(2.01)),
        ("gemma2", "/final_logit_softcapping", json!(3.001)),
        ("gemma2", "/query_pre_attn_scalar", json!(20.02)),
        ("gemma2", "/sliding_window", json!(21)),
        ("gemma3", "/rope_local_base_freq", json!(10_010.0)),
        ("gemma3", "/rope_scaling", Value::Null),
        ("gemma3", "/layer_types/1", json!("sliding_attention")),
        ("gemma3_multimodal", "/text_config/sliding_window", json!(19)),
        ("mixtral", "/num_experts_per_tok", json!(1)),
        ("mixtral_window", "/sliding_window", json!(41)),
        ("qwen2_moe", "/norm_topk_prob", json!(true)),
        ("qwen2_moe_mixed", "/norm_topk_prob", json!(false)),
        ("qwen3_moe", "/num_experts_per_tok", json!(3)),
        ("qwen3_moe_mixed", "/sliding_window", json!(29)),
    ];
    let mut unnoticed = Vec::new();
    for (name, key, value) in changes {
        let tolerance = Tolerance::of(name);
        let folder = copy_of(name);
        edit_config(folder.path(), |config| {
            let (parent, last) = key.rsplit_once('/').unwrap();
            match config.pointer_mut(parent).unwrap() {
                Value::Array(items) => items[last.parse::<usize>().unwrap()] = value.clone(),
                parent => parent[last] = value.clone(),
            }
        });
        let mut decoder = decoder_in(folder.path(), IsaChoice::Auto, DType::F32);
        let Found { ratio, .. } =
            compare(&mut decoder, &expected(name), |depth, position| tolerance.after(depth, position));
        if ratio <= 1.0 {
            unnoticed.push(format!("{name} with {key} = {value}: only {ratio} times what is allowed"));
        }
    }
    assert!(unnoticed.is_empty(), "{unnoticed:#?}");
}

/// The order of rows matters: two rows of a projection that change places are noticed in every layout, and so is one dimension rotated with another.
#[test]
fn rows_in_the_wrong_order_are_noticed() {
    for (name, tensor, rows) in [
        ("gptj", "transformer.h.0.attn.q_proj.weight", [0, 2]),
        ("codegen", "transformer.h.0.attn.qkv_proj.weight", [8, 16]),
        ("gpt_neox", "gpt_neox.layers.0.attention.query_key_value.weight", [8, 16]),
        ("gpt_bigcode_heads", "transformer.h.0.attn.c_attn.weight", [8, 16]),
        ("phi3", "model.layers.0.self_attn.qkv_proj.weight", [31, 32]),
    ] {
        let folder = copy_of(name);
        swap_rows(&folder.path().join("model.safetensors"), tensor, rows);
        let tolerance = Tolerance::of(name);
        let mut decoder = decoder_in(folder.path(), IsaChoice::Auto, DType::F32);
        let Found { ratio, .. } =
            compare(&mut decoder, &expected(name), |depth, position| tolerance.after(depth, position));
        assert!(ratio > 1.0, "{name} with rows {rows:?} of {tensor} exchanged: only {ratio} times what is allowed");
    }
}

/// Exchanges two rows of a matrix of two-byte numbers.
fn swap_rows(path: &Path, tensor: &str, rows: [usize; 2]) {
    let mut bytes = std::fs::read(path).unwrap();
    let (begin, row_bytes) = {
        let view = SafeTensors::deserialize(&bytes).unwrap().tensor(tensor).unwrap();
        (view.data().as_ptr() as usize - bytes.as_ptr() as usize, 2 * view.shape()[1])
    };
    for byte in 0..row_bytes {
        bytes.swap(begin + rows[0] * row_bytes + byte, begin + rows[1] * row_bytes + byte);
    }
    std::fs::write(path, bytes).unwrap();
}

/// In bfloat16 each block rounds keys and values, and where there are products of bfloat16 also its rows four times, queries and the weights of
/// values. Errors of single numbers are independent and partly cancel in sums, so eight roundings per block bound the largest of them.
#[test]
fn bfloat16_stays_within_its_own_rounding() {
    for isa in instruction_sets() {
        for name in ["stored_bf16", "biases", "mqa_odd_sizes", "gemma", "gptj", "gpt_neox", "starcoder2"] {
            let mut decoder = decoder(name, isa, DType::BF16);
            let Found { ratio, place, .. } =
                compare(&mut decoder, &expected(name), |depth, _| 8.0 * depth as f32 * BF16_ROUNDING);
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
