//! What formats of weights, and of keys and values, cost in quality: perplexity of the demo model on text that it has not seen.

use std::path::Path;

use pelton_backend::{DType, KvFormat};
use pelton_cpu::{CpuBackend, CpuConfig};
use pelton_model::perplexity::PerplexityPlan;
use pelton_model::{DTypeChoice, KvBudget, KvFormatChoice, LoadOptions, ModelFiles, Quantize, load};
use pelton_text::TextModel;

/// Tokens of a window; windows overlap by one.
const CONTEXT: usize = 256;
/// Tokens from either end of the text: one is Python, the other Rust.
const END_TOKENS: usize = 3_060;

/// Mean nats by token of `models/demo/heldout.txt`.
fn nats(dtype: DType, quantize: Option<Quantize>, kv_format: KvFormatChoice) -> f64 {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    let files = ModelFiles::directory(demo.clone()).unwrap();
    let text = TextModel::from_files(&|name| Ok(files.read(name).unwrap().map(|bytes| bytes.into_owned()))).unwrap();
    let mut tokens = text.encode(&std::fs::read_to_string(demo.join("heldout.txt")).unwrap(), false).unwrap();
    tokens.drain(END_TOKENS..tokens.len() - END_TOKENS);
    let options = LoadOptions {
        dtype: DTypeChoice::Exact(dtype),
        quantize,
        kv_format,
        max_step_rows: CONTEXT,
        max_logit_rows: CONTEXT,
        max_positions: Some(CONTEXT),
        kv_budget: KvBudget::Tokens(CONTEXT),
        ..LoadOptions::default()
    };
    let mut model = load(&files, CpuBackend::new(CpuConfig::default()).unwrap(), &options).unwrap();
    let plan = PerplexityPlan { context: CONTEXT, stride: CONTEXT - 1, prefix: Vec::new() };
    plan.measure(&mut model, &tokens, &mut |_| ()).unwrap().nats().mean
}

#[test]
fn perplexity_stays_near_that_of_float32() {
    let auto = KvFormatChoice::Auto;
    let reference = nats(DType::F32, None, auto);
    assert!((0.5..4.0).contains(&reference), "a trained model: {reference} nats by token");
    for (name, dtype, quantize, kv_format, bound) in [
        ("bfloat16", DType::BF16, None, auto, 0.0005),
        ("float16", DType::F16, None, auto, 0.0005),
        ("int8", DType::F32, Some(Quantize::Int8), auto, 0.005),
        ("int4", DType::F32, Some(Quantize::Int4), auto, 0.03),
        ("int8 keys and values", DType::F32, None, KvFormatChoice::Exact(KvFormat::Int8), 0.001),
    ] {
        let change = (nats(dtype, quantize, kv_format) - reference).exp() - 1.0;
        println!("{name}: perplexity {:.4}, {:+.3} % of float32's", reference.exp(), 100.0 * change);
        assert!(change.abs() <= bound, "{name}: perplexity changes by {change:+.5}, more than {bound}");
    }
}
