//! Quantised checkpoints of `fixtures/formats/models`: logits against Transformers, what is kept in what, and the words for them.

use std::path::{Path, PathBuf};

use pelton_backend::{DType, StepBatch, TokenId};
use pelton_cpu::{CpuBackend, IsaChoice};
use pelton_model::{
    DTypeChoice, Decoder, KvBudget, KvFormatChoice, LoadError, LoadOptions, Model, ModelFiles, Quantize, load,
};
use safetensors::SafeTensors;
use serde_json::json;

use crate::fixture::{Sequence, backend, bits, edit_config, instruction_sets, options};

/// Name, and how its matrices are kept: of layers, of the embedding and head.
const MODELS: [(&str, &str); 10] = [
    ("gptq_4bit_act_order", "int4 g32 zeros, vocabulary float16"),
    ("gptq_4bit_orders_apart", "float16 and int4 g32, vocabulary float16"),
    ("gptq_mixed", "int4 g32 and int8 g32 and float16, vocabulary float16 and int4 g32"),
    ("gptq_8bit", "int8, vocabulary float16"),
    ("awq", "int4 g32 zeros, vocabulary float16"),
    ("compressed_4bit", "int4 g32, vocabulary float16"),
    ("compressed_8bit", "int8, vocabulary float16"),
    ("fp8_block", "float16"),
    ("bnb_8bit", "int8, vocabulary float16"),
    ("bnb_nf4", "float16"),
];

/// Half a unit in the last place of a float32 next to one.
const ROUNDING: f32 = 1.0 / (1 << 24) as f32;

/// How far float32 may be from Transformers, relative to the largest logit: as in the golden tests, sums of up to 128 products and angles
/// of up to 24 positions, over two blocks and the head.
const TOLERANCE: f32 = ROUNDING * 3.0 * (6.0 * 11.3 + 4.0 * 24.0 * 0.32);

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/formats/models"))
}

fn load_from(folder: &Path, isa: IsaChoice, options: &LoadOptions) -> Result<Decoder<CpuBackend>, LoadError> {
    load(&ModelFiles::directory(folder).unwrap(), backend(isa), options)
}

fn as_it_is() -> LoadOptions {
    LoadOptions {
        dtype: DTypeChoice::Auto,
        kv_format: KvFormatChoice::Exact(DType::F32.into()),
        kv_budget: KvBudget::Tokens(128),
        ..options(DType::F32)
    }
}

fn asked(quantize: Quantize) -> LoadOptions {
    LoadOptions { quantize: Some(quantize), ..as_it_is() }
}

fn refusal(name: &str, options: &LoadOptions) -> String {
    load_from(&root().join(name), IsaChoice::Auto, options).err().expect("it must not load").to_string()
}

/// Prompt, and logits `[prompt, vocab]`; of rows in numbers (`logits`), or in eight bits where matrices are integers (`rows8`).
fn expected(name: &str, rows: &str) -> (Vec<TokenId>, Vec<f32>) {
    let bytes = std::fs::read(root().join(format!("{name}.safetensors"))).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| file.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
    (
        words("prompt").into_iter().map(|word| TokenId(u32::from_le_bytes(word))).collect(),
        words(rows).into_iter().map(f32::from_le_bytes).collect(),
    )
}

fn logits(decoder: &mut Decoder<CpuBackend>, prompt: &[TokenId]) -> Vec<f32> {
    let mut batch = StepBatch::default();
    Sequence::new(prompt, prompt.len(), 0, 1).push(&mut batch, prompt.len(), false);
    batch.logit_rows.extend(0..prompt.len() as u32);
    decoder.forward(&batch).unwrap().to_vec()
}

/// The largest difference over the largest number.
fn distance(found: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(found.len(), wanted.len());
    let largest = wanted.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let worst = found.iter().zip(wanted).map(|(a, b)| (a - b).abs());
    worst.fold(0.0, |worst: f32, x| if x > worst || x.is_nan() { x } else { worst }) / largest
}

#[test]
fn decoded_to_float32_every_scheme_equals_transformers() {
    let numbers = LoadOptions { dtype: DTypeChoice::Exact(DType::F32), ..asked(Quantize::Numbers) };
    for (name, _) in MODELS {
        let (prompt, wanted) = expected(name, "logits");
        for isa in instruction_sets() {
            let mut decoder = load_from(&root().join(name), isa, &numbers).unwrap();
            assert_eq!(decoder.info().format.to_string(), "float32", "{name}");
            let distance = distance(&logits(&mut decoder, &prompt), &wanted);
            assert!(distance <= TOLERANCE, "{name}, {isa}: off by {distance:e}, {TOLERANCE:e} is allowed");
        }
    }
}

/// Rows that meet integers are rounded to eight bits, and the reference rounds them alike: what is left is the rounding of float32. No number of
/// the fixtures lies at the border of two codes, which it might tip over.
#[test]
fn in_integers_they_equal_transformers_with_rows_of_eight_bits() {
    let options = LoadOptions { dtype: DTypeChoice::Exact(DType::F32), ..as_it_is() };
    for (name, _) in MODELS {
        let (prompt, wanted) = expected(name, "rows8");
        for isa in instruction_sets() {
            let mut decoder = load_from(&root().join(name), isa, &options).unwrap();
            let distance = distance(&logits(&mut decoder, &prompt), &wanted);
            assert!(distance <= TOLERANCE, "{name}, {isa}: off by {distance:e}, {TOLERANCE:e} is allowed");
        }
    }
}

#[test]
fn matrices_are_kept_as_they_come() {
    for (name, format) in MODELS {
        let decoder = load_from(&root().join(name), IsaChoice::Auto, &as_it_is()).unwrap();
        assert_eq!(decoder.info().format.to_string(), format, "{name}");
    }
}

#[test]
fn what_cannot_be_joined_in_integers_is_kept_in_numbers_and_noted() {
    let notes =
        |name: &str| load_from(&root().join(name), IsaChoice::Auto, &as_it_is()).unwrap().info().notes.join("\n");
    let apart = notes("gptq_4bit_orders_apart");
    assert!(apart.contains("model.layers.0.self_attn.q_proj.weight") && apart.contains("kept in float16"), "{apart}");
    let mixed = notes("gptq_mixed");
    assert!(mixed.starts_with("model.layers.1.self_attn.q_proj.weight"), "{mixed}");
    assert_eq!(notes("gptq_4bit_act_order"), "");
    assert!(notes("fp8_block").starts_with("14 matrices in fp8 become numbers"), "{}", notes("fp8_block"));
}

/// `[out, in]` of the linears of a block, all of them with groups of 32.
const LINEARS: [(u64, u64); 7] = [(64, 64), (32, 64), (32, 64), (64, 64), (128, 64), (128, 64), (64, 128)];

#[test]
fn every_matrix_is_counted_in_the_format_it_is_kept_in() {
    let decoder = load_from(&root().join("awq"), IsaChoice::Auto, &as_it_is()).unwrap();
    // Half a byte a code; two of scale and one of zero point a group; a factor for each output feature.
    let block: u64 = LINEARS.iter().map(|(n, k)| n * (k / 2 + k / 32 * 3 + 4)).sum();
    assert_eq!(decoder.plan().weights_bytes, 2 * block + 2 * 2 * 64 * 64 + 4 * 5 * 64);
    let decoder = load_from(&root().join("fp8_block"), IsaChoice::Auto, &as_it_is()).unwrap();
    let block: u64 = LINEARS.iter().map(|(n, k)| n * k * 2).sum();
    assert_eq!(decoder.plan().weights_bytes, 2 * block + 2 * 2 * 64 * 64 + 4 * 5 * 64);
}

#[test]
fn a_word_that_says_what_the_checkpoint_is_changes_nothing() {
    for (name, quantize) in [
        ("gptq_8bit", Quantize::Gptq),
        ("gptq_8bit", Quantize::Marlin),
        ("awq", Quantize::Awq),
        ("compressed_8bit", Quantize::CompressedTensors),
        ("fp8_block", Quantize::Fp8),
        ("bnb_8bit", Quantize::Bitsandbytes),
        ("bnb_nf4", Quantize::BitsandbytesNf4),
    ] {
        let (prompt, _) = expected(name, "logits");
        let run = |options| {
            let mut decoder = load_from(&root().join(name), IsaChoice::Auto, &options).unwrap();
            bits(&logits(&mut decoder, &prompt))
        };
        assert_eq!(run(asked(quantize)), run(as_it_is()), "{name}, {quantize}");
    }
    let error = refusal("awq", &asked(Quantize::Gptq));
    assert!(error.starts_with("--quantize gptq needs a checkpoint quantised so, but this one is awq"), "{error}");
    let error = refusal("gptq_8bit", &asked(Quantize::Int4));
    assert!(error.starts_with("--quantize int4 contradicts the checkpoint, which is quantised as gptq"), "{error}");
}

#[test]
fn numbers_that_were_quantised_may_become_integers() {
    for name in ["fp8_block", "bnb_nf4"] {
        let (prompt, wanted) = expected(name, "logits");
        let mut decoder = load_from(&root().join(name), IsaChoice::Auto, &asked(Quantize::Int8)).unwrap();
        assert_eq!(decoder.info().format.to_string(), "int8");
        let distance = distance(&logits(&mut decoder, &prompt), &wanted);
        // Rows and weights in steps of 1 / 127 of their largest: of the order of a percent in each sum, more where the next is steep.
        assert!(distance <= 0.15, "{name}: off by {distance}");
    }
}

#[test]
fn weights_are_rounded_to_codebooks_where_that_is_asked_for() {
    let (prompt, _) = expected("fp8_block", "logits");
    let decoded = |quantize| {
        let options = LoadOptions { quantize: Some(quantize), ..options(DType::F32) };
        load_from(&crate::fixture::root().join("gqa"), IsaChoice::Auto, &options).unwrap()
    };
    let wanted = logits(&mut decoded(Quantize::Numbers), &prompt);
    let mut before = 0.0;
    // Of eight bits more is left than of four.
    for quantize in [Quantize::Fp8, Quantize::BitsandbytesNf4, Quantize::BitsandbytesFp4] {
        let mut decoder = decoded(quantize);
        assert!(decoder.info().notes[0].contains("saves no memory"), "{:?}", decoder.info().notes);
        let distance = distance(&logits(&mut decoder, &prompt), &wanted);
        assert!(distance > before && distance < 2.0, "{quantize}: off by {distance}, one of more bits by {before}");
        before = distance;
    }
}

#[test]
fn configurations_that_cannot_be_served_are_refused_before_weights_are_opened() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(root().join("gptq_4bit_act_order/config.json"), folder.path().join("config.json")).unwrap();
    edit_config(folder.path(), |config| config["quantization_config"]["bits"] = json!(2));
    let error = load_from(folder.path(), IsaChoice::Auto, &as_it_is()).err().unwrap().to_string();
    assert!(error.starts_with("config.json: quantization_config.bits is 2: GPTQ is read in 4 and 8 bits"), "{error}");
}
