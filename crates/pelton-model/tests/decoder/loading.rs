//! What `load` makes of good and of broken directories.

use std::path::Path;

use pelton_backend::{DType, TokenId};
use pelton_cpu::{CpuBackend, IsaChoice};
use pelton_model::{
    DTypeChoice, Decoder, KvBudget, KvFormatChoice, LoadError, LoadOptions, MemoryError, Model, ModelFiles, Quantize,
    load,
};
use serde_json::{Value, json};

use crate::fixture::{Sequence, all, backend, bits, copy_of, edit_config, options, root};

fn load_from(folder: &Path, options: &LoadOptions) -> Result<Decoder<CpuBackend>, LoadError> {
    load(&ModelFiles::directory(folder).unwrap(), backend(IsaChoice::Auto), options)
}

fn refusal(folder: &Path, options: &LoadOptions) -> String {
    load_from(folder, options).err().expect("it must not load").to_string()
}

fn logits(decoder: &mut Decoder<CpuBackend>) -> Vec<u32> {
    bits(&logits_of(decoder))
}

fn logits_of(decoder: &mut Decoder<CpuBackend>) -> Vec<f32> {
    let tokens: Vec<TokenId> = (0..20).map(TokenId).collect();
    Sequence::new(&tokens, 20, 0, 1).run(decoder, 20)
}

fn plain() -> LoadOptions {
    options(DType::F32)
}

#[test]
fn auto_keeps_the_precision_of_the_file() {
    let auto = LoadOptions { dtype: DTypeChoice::Auto, show_progress: true, ..plain() };
    for (name, dtype, kv) in [
        ("gqa", DType::F32, DType::F32),
        ("stored_bf16", DType::BF16, DType::BF16),
        ("stored_f16", DType::F16, DType::BF16),
    ] {
        let decoder = load_from(&root().join(name), &auto).unwrap();
        assert_eq!((decoder.info().format.clone(), decoder.info().kv_format), (dtype.into(), kv.into()), "{name}");
        assert_eq!((decoder.plan().format.clone(), decoder.plan().kv.format), (dtype.into(), kv.into()), "{name}");
        assert_eq!(decoder.info().architecture, "LlamaForCausalLM");
        assert!(decoder.info().notes.is_empty());
    }
    let exact = LoadOptions { kv_format: KvFormatChoice::Exact(DType::BF16.into()), ..plain() };
    assert_eq!(load_from(&root().join("gqa"), &exact).unwrap().info().kv_format, DType::BF16.into());
}

#[test]
fn quantised_matrices_are_counted_in_their_formats() {
    let bytes = |quantize| {
        let decoder = load_from(&root().join("gqa"), &LoadOptions { dtype: DTypeChoice::Auto, quantize, ..plain() });
        let decoder = decoder.unwrap();
        (decoder.plan().weights_bytes, decoder.info().format.to_string())
    };
    // Of [out, 32]: 32 codes, a scale and a sum; or 16 bytes of codes, the scale of one group and a factor. Of [32, 56]: two groups.
    let vectors = 4 * (3 * 2 * 32 + 32);
    let out_features = 32 + 16 + 16 + 32 + 2 * 56;
    let vocab = 2 * 200 * (32 + 8);
    assert_eq!(
        bytes(Some(Quantize::Int8)),
        (vectors + vocab + 3 * (out_features * (32 + 8) + 32 * (56 + 8)), "int8".into())
    );
    let int4 = vectors + vocab + 3 * (out_features * (16 + 2 + 4) + 32 * (28 + 2 * 2 + 4));
    assert_eq!(bytes(Some(Quantize::Int4)), (int4, "int4 g32, vocabulary int8".into()));
}

/// Every family's matrices can be quantised while they are loaded, whatever their order in the file.
#[test]
fn every_fixture_loads_in_integers() {
    for name in all() {
        let exact = logits_of(&mut load_from(&root().join(&name), &plain()).unwrap());
        let off = |quantize| {
            let options = LoadOptions { quantize: Some(quantize), ..plain() };
            let found = logits_of(&mut load_from(&root().join(&name), &options).unwrap());
            let distance: f32 = found.iter().zip(&exact).map(|(a, b)| (a - b) * (a - b)).sum();
            (distance / exact.iter().map(|x| x * x).sum::<f32>()).sqrt()
        };
        // Random weights forgive little; logits of another model would be off by the root of two.
        let (int8, int4) = (off(Quantize::Int8), off(Quantize::Int4));
        assert!(int8 > 0.0 && int8 < 0.3 && int4 > 0.0 && int4 < 0.9, "{name}: {int8} in int8, {int4} in int4");
    }
}

#[test]
fn the_spec_says_what_was_allocated() {
    let options = LoadOptions { max_positions: Some(500), kv_budget: KvBudget::Tokens(1001), ..plain() };
    let decoder = load_from(&root().join("gqa"), &options).unwrap();
    let spec = decoder.spec();
    assert_eq!((spec.vocab_size, spec.max_positions), (200, 500));
    assert_eq!((spec.num_blocks, spec.block_tokens), (63, 16));
    assert_eq!((spec.max_step_rows, spec.max_logit_rows), (options.max_step_rows, options.max_logit_rows));
    let layer = 32 * (32 + 16 + 16) + 32 * 32 + 3 * 32 * 56 + 2 * 32;
    assert_eq!(decoder.info().num_parameters, 2 * 200 * 32 + 3 * layer + 32);
}

#[test]
fn a_model_inside_the_program_is_the_same_model() {
    let read = |name: &str| -> &'static [u8] { std::fs::read(root().join("stored_bf16").join(name)).unwrap().leak() };
    let names = ["config.json", "model.safetensors"];
    let files = ModelFiles::embedded(&names.map(|name| (name, read(name))));
    let mut embedded = load(&files, backend(IsaChoice::Auto), &plain()).unwrap();
    let mut on_disk = load_from(&root().join("stored_bf16"), &plain()).unwrap();
    assert_eq!(logits(&mut embedded), logits(&mut on_disk));
}

#[test]
fn rope_parameters_as_transformers_5_writes_them_are_read() {
    let folder = copy_of("rope_llama3");
    edit_config(folder.path(), |config| {
        let mut scaling = config["rope_scaling"].take();
        scaling["rope_theta"] = config["rope_theta"].take();
        config["rope_parameters"] = scaling;
    });
    let mut newer = load_from(folder.path(), &plain()).unwrap();
    let mut older = load_from(&root().join("rope_llama3"), &plain()).unwrap();
    assert_eq!(logits(&mut newer), logits(&mut older));
}

#[test]
fn a_missing_head_is_taken_as_tied_and_noted() {
    let folder = copy_of("mha_tied");
    let mut tied = load_from(folder.path(), &plain()).unwrap();
    edit_config(folder.path(), |config| config["tie_word_embeddings"] = json!(false));
    let mut untied = load_from(folder.path(), &plain()).unwrap();
    assert_eq!(logits(&mut tied), logits(&mut untied));
    assert!(untied.info().notes[0].contains("lm_head.weight is missing"), "{:?}", untied.info().notes);
}

#[test]
fn a_head_that_is_not_used_and_old_buffers_are_tolerated() {
    let folder = copy_of("gqa");
    edit_config(folder.path(), |config| config["tie_word_embeddings"] = json!(true));
    load_from(folder.path(), &plain()).unwrap();
    add_tensor(folder.path(), "model.layers.0.self_attn.rotary_emb.inv_freq");
    load_from(folder.path(), &plain()).unwrap();
    add_tensor(folder.path(), "model.layers.0.self_attn.q_norm.weight");
    let error = refusal(folder.path(), &plain());
    assert!(
        error.ends_with("(1 wrong): model.layers.0.self_attn.q_norm.weight belongs to no part of the model"),
        "{error}"
    );
}

/// Appends a tensor of one float to the checkpoint.
fn add_tensor(folder: &Path, name: &str) {
    let path = folder.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let data = &bytes[8 + header_len..];
    header[name] = json!({"dtype": "F32", "shape": [1], "data_offsets": [data.len(), data.len() + 4]});
    let header = header.to_string();
    std::fs::write(path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data, &[0; 4]].concat()).unwrap();
}

#[test]
fn missing_and_damaged_files_are_named() {
    let folder = copy_of("sharded");
    std::fs::remove_file(folder.path().join("model-00002-of-00004.safetensors")).unwrap();
    let error = refusal(folder.path(), &plain());
    assert!(error.ends_with("files that are not there (1): model-00002-of-00004.safetensors"), "{error}");

    let folder = copy_of("gqa");
    let weights = folder.path().join("model.safetensors");
    let whole = std::fs::metadata(&weights).unwrap().len();
    std::fs::File::options().write(true).open(&weights).unwrap().set_len(whole - 100).unwrap();
    assert_eq!(
        refusal(folder.path(), &plain()),
        format!("model.safetensors is truncated: header says {whole} bytes, file has {}", whole - 100)
    );
    std::fs::write(&weights, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n").unwrap();
    assert!(refusal(folder.path(), &plain()).starts_with("model.safetensors is not a safetensors file"));
    std::fs::remove_file(&weights).unwrap();
    std::fs::remove_file(folder.path().join("expected.safetensors")).unwrap();
    assert!(refusal(folder.path(), &plain()).starts_with("there is none of model.safetensors,"));
    std::fs::write(folder.path().join("config.json"), "{").unwrap();
    assert!(refusal(folder.path(), &plain()).starts_with("config.json is not a JSON object"));
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    assert_eq!(refusal(folder.path(), &plain()), "config.json is missing");
}

#[test]
fn weights_of_another_model_are_refused_with_names_and_shapes() {
    let folder = copy_of("gqa");
    edit_config(folder.path(), |config| {
        config["vocab_size"] = json!(201);
        config["num_hidden_layers"] = json!(2);
    });
    let error = refusal(folder.path(), &plain());
    assert!(error.contains("model.embed_tokens.weight has shape [200, 32], expected [201, 32]"), "{error}");
    assert!(error.contains("model.layers.2.input_layernorm.weight belongs to no part"), "{error}");
    assert!(error.contains("(11 wrong)"), "{error}");
    edit_config(folder.path(), |config| {
        config["vocab_size"] = json!(200);
        config["num_hidden_layers"] = json!(4);
    });
    assert!(
        refusal(folder.path(), &plain())
            .contains("model.layers.3.self_attn.q_proj.weight is missing, expected [32, 32]")
    );
}

#[test]
fn options_beyond_the_model_or_the_machine_are_refused() {
    let refused = |options: LoadOptions| load_from(&root().join("gqa"), &options).err().expect("it must not load");
    let error = refused(LoadOptions { max_positions: Some(1025), ..plain() }).to_string();
    assert_eq!(error, "max_positions is 1025, expected 1 to 1024, the positions of the model");
    for options in [
        LoadOptions { max_positions: Some(0), ..plain() },
        LoadOptions { block_tokens: 0, ..plain() },
        LoadOptions { block_tokens: 100_000, ..plain() },
        LoadOptions { max_step_rows: 0, ..plain() },
        LoadOptions { max_logit_rows: 801, ..plain() },
    ] {
        assert!(matches!(refused(options), LoadError::Option { .. }));
    }
    let error = refused(LoadOptions { kv_budget: KvBudget::Tokens(1 << 31), ..plain() });
    assert!(matches!(error, LoadError::Memory(MemoryError::NotEnough { .. })), "{error}");
    let text = error.to_string();
    assert!(text.contains("for 2147483648 tokens") && text.contains("--max-batch-total-tokens"), "{text}");
    let options = LoadOptions { kv_budget: KvBudget::Tokens(100), max_positions: Some(1024), ..plain() };
    let error = refused(options).to_string();
    assert!(error.starts_with("the KV cache would hold 112 tokens, one sequence may have 1024"), "{error}");
}

#[test]
fn a_length_that_nobody_asked_for_is_what_the_cache_holds() {
    let options = LoadOptions { kv_budget: KvBudget::Tokens(100), ..plain() };
    let decoder = load_from(&root().join("gqa"), &options).unwrap();
    assert_eq!(decoder.spec().max_positions, 112);
    assert_eq!(
        decoder.info().notes,
        ["sequences may have 112 tokens, what the KV cache holds; the model was made for 1024"]
    );
}

#[test]
fn steps_without_rows_or_without_wanted_logits_are_empty() {
    let mut decoder = load_from(&root().join("gqa"), &plain()).unwrap();
    let mut batch = pelton_backend::StepBatch::default();
    assert!(decoder.forward(&batch).unwrap().is_empty());
    Sequence::new(&[TokenId(1)], 1, 0, 1).push(&mut batch, 1, false);
    assert!(decoder.forward(&batch).unwrap().is_empty());
}
