//! What formats of weights, and of keys and values, cost in quality: perplexity of the demo model on text that it has not seen.

use std::path::Path;

use pelton_backend::{BlockId, DType, KvFormat, StepBatch, TokenId};
use pelton_cpu::{CpuBackend, CpuConfig};
use pelton_model::{DTypeChoice, KvBudget, KvFormatChoice, LoadOptions, Model, ModelFiles, Quantize, load};
use pelton_text::TextModel;

/// Tokens of each window; a window sees itself alone.
const WINDOW: usize = 256;
const NUM_WINDOWS: usize = 24;
const BLOCK_TOKENS: usize = 16;

/// Mean nats by token over windows from all over `models/demo/heldout.txt`.
fn nats(dtype: DType, quantize: Option<Quantize>, kv_format: KvFormatChoice) -> f64 {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    let files = ModelFiles::directory(demo.clone()).unwrap();
    let text = TextModel::from_files(&|name| Ok(files.read(name).unwrap().map(|bytes| bytes.into_owned()))).unwrap();
    let tokens = text.encode(&std::fs::read_to_string(demo.join("heldout.txt")).unwrap(), false).unwrap();
    let tokens: Vec<TokenId> = tokens.into_iter().map(TokenId).collect();
    let options = LoadOptions {
        dtype: DTypeChoice::Exact(dtype),
        quantize,
        kv_format,
        block_tokens: BLOCK_TOKENS,
        max_step_rows: WINDOW,
        max_logit_rows: WINDOW,
        max_positions: Some(WINDOW),
        kv_budget: KvBudget::Tokens(WINDOW),
        ..LoadOptions::default()
    };
    let mut model = load(&files, CpuBackend::new(CpuConfig::default()).unwrap(), &options).unwrap();
    let vocab_size = model.spec().vocab_size;
    let blocks: Vec<BlockId> = (0..(WINDOW / BLOCK_TOKENS) as u32).map(BlockId).collect();
    let mut total = 0.0;
    for window in 0..NUM_WINDOWS {
        let first = window * (tokens.len() - WINDOW) / NUM_WINDOWS;
        let window = &tokens[first..first + WINDOW];
        let mut batch = StepBatch::default();
        batch.push_span(window, 0, &blocks, BLOCK_TOKENS as u32);
        batch.logit_rows = (0..WINDOW as u32 - 1).collect();
        let logits = model.forward(&batch).unwrap();
        for (row, &TokenId(next)) in logits.chunks_exact(vocab_size).zip(&window[1..]) {
            let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
            total += sum.ln() - f64::from(row[next as usize]);
        }
    }
    total / (NUM_WINDOWS * (WINDOW - 1)) as f64
}

#[test]
fn perplexity_stays_near_that_of_float32() {
    let auto = KvFormatChoice::Auto;
    let reference = nats(DType::F32, None, auto);
    assert!((0.5..4.0).contains(&reference), "a trained model: {reference} nats by token");
    for (name, dtype, quantize, kv_format, bound) in [
        ("bfloat16", DType::BF16, None, auto, 0.0005),
        ("float16", DType::F16, None, auto, 0.0005),
        ("int8", DType::F32, Some(Quantize::INT8), auto, 0.005),
        ("int4", DType::F32, Some(Quantize::INT4), auto, 0.02),
        ("int8 keys and values", DType::F32, None, KvFormatChoice::Exact(KvFormat::Int8), 0.001),
    ] {
        let change = (nats(dtype, quantize, kv_format) - reference).exp() - 1.0;
        println!("{name}: perplexity {:.4}, {:+.3} % of float32's", reference.exp(), 100.0 * change);
        assert!(change.abs() <= bound, "{name}: perplexity changes by {change:+.5}, more than {bound}");
    }
}
