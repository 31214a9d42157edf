//! Models with made-up weights: they load, compute finite numbers, and decode behind a made-up past.

use pelton_backend::{DType, TokenId};
use pelton_cpu::{CpuBackend, IsaChoice};
use pelton_model::rates::{RateCase, RatePlan, Rates};
use pelton_model::{DTypeChoice, Decoder, HfConfig, KvBudget, LoadOptions, Model, SHAPES, Shape, load_random};
use serde_json::Value;

use crate::fixture::{Sequence, backend, bits, options};

/// The shape with fewer and smaller layers.
fn small(shape: &Shape) -> HfConfig {
    let mut config: Value = serde_json::from_str(shape.json).unwrap();
    for (key, value) in [
        ("vocab_size", 300),
        ("num_hidden_layers", 2),
        ("n_layer", 2),
        ("intermediate_size", 160),
        ("n_inner", 160),
        ("max_position_embeddings", 256),
        ("n_positions", 256),
        ("rotary_dim", 8),
    ] {
        if config.get(key).is_some() {
            config[key] = value.into();
        }
    }
    for (width, heads) in [("hidden_size", "num_attention_heads"), ("n_embd", "n_head")] {
        if let Some(heads) = config.get(heads).and_then(Value::as_u64) {
            config[width] = (16 * heads).into();
        }
    }
    HfConfig::parse(shape.name, config.to_string().as_bytes()).unwrap()
}

#[test]
fn every_shape_computes_finite_numbers_of_its_own() {
    for shape in SHAPES {
        let logits = |seed| {
            let mut decoder =
                load_random(&small(&shape), seed, backend(IsaChoice::Auto), &options(DType::BF16)).unwrap();
            assert!(shape.json.contains(decoder.info().architecture), "{}", shape.name);
            let tokens: Vec<TokenId> = (0..40).map(TokenId).collect();
            Sequence::new(&tokens, 40, 0, 1).run(&mut decoder, 40)
        };
        let first = logits(1);
        assert!(first.iter().all(|x| x.is_finite()) && first.iter().any(|x| x.abs() > 0.1), "{}", shape.name);
        assert_eq!(bits(&first), bits(&logits(1)), "{}", shape.name);
        assert_ne!(bits(&first), bits(&logits(2)), "{}", shape.name);
    }
}

#[test]
fn auto_is_bfloat16() {
    let auto = LoadOptions { dtype: DTypeChoice::Auto, ..options(DType::F32) };
    let decoder = load_random(&small(&SHAPES[0]), 0, backend(IsaChoice::Auto), &auto).unwrap();
    assert_eq!((decoder.info().format.clone(), decoder.info().kv_format), (DType::BF16.into(), DType::BF16.into()));
}

/// Logits of a token behind sixteen positions that were never computed: their keys and values are what the cache holds.
fn behind_a_past(decoder: &mut Decoder<CpuBackend>, first_block: u32) -> Vec<u32> {
    let tokens: Vec<TokenId> = (0..17).map(TokenId).collect();
    let mut sequence = Sequence::new(&tokens, 17, first_block, 1);
    sequence.num_computed = 16;
    bits(&sequence.run(decoder, 1))
}

#[test]
fn rates_are_measured_behind_a_made_up_past() {
    let plan = RatePlan { batch: vec![1, 5], input_tokens: vec![50], output_tokens: 3, step_tokens: 12 };
    let options = LoadOptions {
        block_tokens: 16,
        max_step_rows: plan.max_step_rows(),
        max_logit_rows: plan.max_batch(),
        max_positions: Some(plan.max_positions()),
        kv_budget: KvBudget::Tokens(16 * plan.num_blocks(16)),
        ..options(DType::BF16)
    };
    let mut decoder = load_random(&small(&SHAPES[4]), 0, backend(IsaChoice::Auto), &options).unwrap();
    let empty = behind_a_past(&mut decoder, 0);
    decoder.fill_kv(plan.num_blocks(16) as u32).unwrap();
    assert_ne!(behind_a_past(&mut decoder, 0), empty);
    assert_eq!(behind_a_past(&mut decoder, 0), behind_a_past(&mut decoder, 18));
    let mut rates = Rates::new(plan).unwrap();
    rates.warm_up(&mut decoder).unwrap();
    for _ in 0..2 {
        rates.round(&mut decoder, &mut || ()).unwrap();
    }
    let summaries = rates.summaries(decoder.plan(), 10e9);
    assert_eq!(summaries.len(), 3);
    assert!(summaries.iter().all(|summary| summary.time_ms > 0.0 && summary.tokens_per_s > 0.0));
    assert!(matches!(summaries[2].case, RateCase::Decode { batch: 5, input_tokens: 50 }));
    assert!(summaries[2].step_bytes > summaries[1].step_bytes);
    assert_eq!(decoder.spec().vocab_size, 300);
}
