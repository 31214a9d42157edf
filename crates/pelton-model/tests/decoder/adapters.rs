//! Adapters: against PEFT, against merged weights, against themselves in mixed batches, and those that do not fit.

use std::path::PathBuf;

use pelton_backend::{AdapterId, BlockId, DType, StepBatch, TokenId};
use pelton_cpu::{CpuBackend, IsaChoice};
use pelton_model::{
    AdapterSource, Decoder, HfConfig, LoadError, LoadOptions, Model, ModelFiles, Quantize, load, load_random,
};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;
use tempfile::TempDir;

use crate::fixture::{BLOCK_TOKENS, Sequence, backend, bits, copy_of, instruction_sets, options, root as models};
use crate::golden::{Tolerance, distance};

const PROMPTS: [usize; 3] = [1, 9, 60];

fn root() -> PathBuf {
    models().join("../adapters")
}

/// Names of all adapters and of their models.
fn all() -> Vec<(String, String)> {
    let folders = std::fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = folders
        .filter(|path| path.join("expected.safetensors").exists())
        .map(|path| {
            let config: Value =
                serde_json::from_slice(&std::fs::read(path.join("adapter_config.json")).unwrap()).unwrap();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, config["base_model_name_or_path"].as_str().unwrap().to_owned())
        })
        .collect();
    found.sort();
    assert!(found.len() >= 10, "{found:?}");
    found
}

fn source(folder: impl Into<PathBuf>) -> AdapterSource {
    let folder = folder.into();
    let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
    AdapterSource::Files { name, files: ModelFiles::directory(folder).unwrap() }
}

/// `model` with the adapters of these names.
fn adapted(model: &str, adapters: &[&str], isa: IsaChoice, options: LoadOptions) -> Decoder<CpuBackend> {
    let adapters = adapters.iter().map(|name| source(root().join(name))).collect();
    let files = ModelFiles::directory(models().join(model)).unwrap();
    load(&files, backend(isa), &LoadOptions { adapters, ..options }).unwrap()
}

/// Logits of `rows` of a prompt.
fn logits(decoder: &mut Decoder<CpuBackend>, prompt: &[TokenId], rows: &[u32], adapter: Option<u16>) -> Vec<f32> {
    let blocks: Vec<BlockId> = (0..(prompt.len() as u32).div_ceil(BLOCK_TOKENS)).map(BlockId).collect();
    let mut batch = StepBatch::default();
    batch.push_span(prompt, 0, &blocks, BLOCK_TOKENS).adapter = adapter.map(AdapterId);
    batch.logit_rows = rows.to_vec();
    decoder.forward(&batch).unwrap().to_vec()
}

/// What PEFT computed for a prompt: tokens, rows, logits with the adapter and without.
type Golden = (Vec<TokenId>, Vec<u32>, Vec<f32>, Vec<f32>);

fn golden(name: &str) -> Vec<Golden> {
    let bytes = std::fs::read(root().join(name).join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: String| -> Vec<[u8; 4]> {
        file.tensor(&name).unwrap().data().chunks_exact(4).map(|word| word.try_into().unwrap()).collect()
    };
    let integers = |name: String| words(name).into_iter().map(u32::from_le_bytes).collect::<Vec<_>>();
    let floats = |name: String| words(name).into_iter().map(f32::from_le_bytes).collect::<Vec<_>>();
    let of = |n: usize| {
        let prompt = integers(format!("prompt.{n}")).into_iter().map(TokenId).collect();
        (prompt, integers(format!("rows.{n}")), floats(format!("logits.{n}")), floats(format!("plain.{n}")))
    };
    PROMPTS.into_iter().map(of).collect()
}

/// How far two ways of computing may be apart, each with products of low rank or merged: twice what is allowed without adapters.
fn allowed(model: &str, decoder_layers: usize) -> f32 {
    2.0 * Tolerance::of(model).after(decoder_layers + 1, PROMPTS[2])
}

fn num_layers(model: &str) -> usize {
    let config = std::fs::read(models().join(model).join("config.json")).unwrap();
    pelton_model::spec_of(&HfConfig::parse("config.json", &config).unwrap()).unwrap().1.layers.len()
}

#[test]
fn logits_are_those_of_peft() {
    for (name, model) in all() {
        for isa in instruction_sets() {
            let mut decoder = adapted(&model, &[&name], isa, options(DType::F32));
            let allowed = allowed(&model, num_layers(&model));
            for (prompt, rows, with, without) in golden(&name) {
                for (adapter, wanted) in [(Some(0), with), (None, without)] {
                    let found = logits(&mut decoder, &prompt, &rows, adapter);
                    let distance = distance(&found, &wanted);
                    assert!(distance <= allowed, "{name}, {isa}, {adapter:?}: {distance:e} > {allowed:e}");
                }
            }
        }
    }
}

/// The factor on the product of a module.
type Scale = fn(&str) -> f64;

/// A copy of `model` with `scale * B A` added to each matrix in f64.
fn merged(model: &str, adapter: &str, scale: Scale) -> TempDir {
    let folder = copy_of(model);
    let path = folder.path().join("model.safetensors");
    let (base, adapter) =
        (std::fs::read(&path).unwrap(), std::fs::read(root().join(adapter).join("adapter_model.safetensors")).unwrap());
    let (base, adapter) = (SafeTensors::deserialize(&base).unwrap(), SafeTensors::deserialize(&adapter).unwrap());
    let mut num_merged = 0;
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = base
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let mut values = numbers(&view);
            let module = name.strip_suffix(".weight").unwrap_or_default();
            let half = |half: &str| adapter.tensor(&format!("base_model.model.{module}.{half}.weight"));
            if let (Ok(down), Ok(up)) = (half("lora_A"), half("lora_B")) {
                num_merged += 1;
                let (rank, inputs) = (down.shape()[0], down.shape()[1]);
                let (a, b) = (numbers(&down), numbers(&up));
                for (i, value) in values.iter_mut().enumerate() {
                    let (row, column) = (i / inputs, i % inputs);
                    let product: f64 = (0..rank).map(|r| b[row * rank + r] * a[r * inputs + column]).sum();
                    *value += scale(module) * product;
                }
            }
            let bytes = values.iter().flat_map(|&value| (value as f32).to_le_bytes()).collect();
            (name, view.shape().to_vec(), bytes)
        })
        .collect();
    assert_eq!(2 * num_merged, adapter.len(), "every product is merged");
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    folder
}

fn numbers(view: &TensorView<'_>) -> Vec<f64> {
    let words = |size: usize| view.data().chunks_exact(size);
    match view.dtype() {
        safetensors::Dtype::F32 => {
            words(4).map(|word| f64::from(f32::from_le_bytes(word.try_into().unwrap()))).collect()
        }
        safetensors::Dtype::F16 => {
            words(2).map(|word| half::f16::from_le_bytes(word.try_into().unwrap()).to_f64()).collect()
        }
        safetensors::Dtype::BF16 => {
            words(2).map(|word| half::bf16::from_le_bytes(word.try_into().unwrap()).to_f64()).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// The scales of `qwen2_patterns`, by hand.
fn qwen2_scale(module: &str) -> f64 {
    let alpha = match module {
        "model.layers.0.self_attn.v_proj" => 3.0,
        "model.layers.1.self_attn.v_proj" => 20.0,
        "model.layers.1.mlp.up_proj" => 5.0,
        _ => 8.0,
    };
    let rank = match module {
        "model.layers.1.mlp.down_proj" => 7.0,
        _ if module.ends_with("k_proj") => 2.0,
        _ => 4.0,
    };
    alpha / rank
}

#[test]
fn merged_weights_give_the_same_logits() {
    let cases: [(&str, &str, Scale); 4] = [
        ("gqa", "llama_all", |_| 2.0),
        ("qwen2", "qwen2_patterns", qwen2_scale),
        ("gpt_bigcode", "gpt_bigcode", |_| 2.0),
        ("starcoder2", "starcoder2", |_| 2.0),
    ];
    for (model, name, scale) in cases {
        let folder = merged(model, name, scale);
        let files = ModelFiles::directory(folder.path()).unwrap();
        let mut merged = load(&files, backend(IsaChoice::Auto), &options(DType::F32)).unwrap();
        let mut decoder = adapted(model, &[name], IsaChoice::Auto, options(DType::F32));
        let allowed = allowed(model, num_layers(model));
        for (prompt, rows, ..) in golden(name) {
            let wanted = logits(&mut merged, &prompt, &rows, None);
            let distance = distance(&logits(&mut decoder, &prompt, &rows, Some(0)), &wanted);
            assert!(distance <= allowed, "{name}: {distance:e} > {allowed:e}");
        }
    }
}

/// Rows of three adapters and of none decode in one step, and prompts join them; each has the bits it has alone.
#[test]
fn company_of_other_adapters_changes_no_bit() {
    let names = ["llama_all", "llama_attention", "llama_one_layer"];
    let formats = [
        options(DType::F32),
        options(DType::BF16),
        LoadOptions { quantize: Some(Quantize::Int8), ..options(DType::BF16) },
    ];
    for isa in instruction_sets() {
        for format in &formats {
            let case = format!("{isa}, {:?}, {:?}", format.dtype, format.quantize);
            let mut decoder = adapted("gqa", &names, isa, format.clone());
            assert_eq!(decoder.spec().num_adapters, 3);
            // All prompts are alike, so that only adapters tell them apart.
            let tokens: Vec<TokenId> = (0..40).map(|i| TokenId(i * 7 % 97)).collect();
            let sequence = |index: u32| Sequence {
                adapter: [Some(0), Some(1), None, Some(2)][index as usize % 4].map(AdapterId),
                ..Sequence::new(&tokens, 48, index * 3, 1)
            };
            let alone: Vec<Vec<u32>> = (0..4).map(|index| bits(&sequence(index).run(&mut decoder, 40))).collect();
            for (a, b) in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)] {
                assert_ne!(alone[a], alone[b], "{case}: adapters differ");
            }
            let mut sequences: Vec<Sequence> = (0..30).map(sequence).collect();
            let mut batch = StepBatch::default();
            for (index, sequence) in sequences.iter_mut().enumerate() {
                // Some have their last token to come, some five, some all.
                if index % 3 > 0 {
                    sequence.push(&mut batch, [0, 35, 39][index % 3], false);
                }
            }
            decoder.forward(&batch).unwrap();
            batch.clear();
            for sequence in &mut sequences {
                let rest = sequence.tokens.len() - sequence.num_computed;
                sequence.push(&mut batch, rest, true);
            }
            let found = decoder.forward(&batch).unwrap();
            for (index, row) in found.chunks_exact(found.len() / 30).enumerate() {
                assert_eq!(bits(row), alone[index % 4], "{case}: sequence {index}");
            }
        }
    }
}

/// Loads `model` with the adapter in `folder` and tells why not.
fn refusal(model: &str, folder: &TempDir) -> String {
    let files = ModelFiles::directory(models().join(model)).unwrap();
    let adapters =
        vec![AdapterSource::Files { name: "mine".to_owned(), files: ModelFiles::directory(folder.path()).unwrap() }];
    let error = load(&files, backend(IsaChoice::Auto), &LoadOptions { adapters, ..options(DType::F32) }).map(drop);
    let error = error.unwrap_err();
    assert!(matches!(error, LoadError::Adapter(_)), "{error}");
    error.to_string()
}

fn copy(name: &str) -> TempDir {
    copy_of(&format!("../adapters/{name}"))
}

/// Rewrites the names of an adapter's tensors; `None` leaves one out.
fn rename(folder: &TempDir, name: impl Fn(&str) -> Option<String>) {
    rename_in(folder, "adapter_model.safetensors", name);
}

fn rename_in(folder: &TempDir, file: &str, name: impl Fn(&str) -> Option<String>) {
    let path = folder.path().join(file);
    let bytes = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let renamed = file.tensors().into_iter().filter_map(|(old, view)| Some((name(&old)?, view)));
    let written = safetensors::serialize(renamed, None).unwrap();
    std::fs::write(path, written).unwrap();
}

#[test]
fn adapters_of_other_models_are_refused_tensor_by_tensor() {
    let error = refusal("mqa_odd_sizes", &copy("llama_attention"));
    let prefix = "adapter mine: it does not fit the model (12 wrong): ";
    assert!(error.starts_with(prefix), "{error}");
    let layer = "base_model.model.model.layers.";
    for problem in [
        &format!("{layer}2.self_attn.q_proj.lora_A.weight belongs to no linear of the model that can have adapters"),
        &format!("{layer}0.self_attn.q_proj.lora_A.weight has shape [4, 32], expected [4, 36]"),
    ] {
        assert!(error.contains(problem), "{error}");
    }
    let error = refusal("gpt2", &copy("llama_attention"));
    assert!(error.contains("(12 wrong)") && error.contains("belongs to no linear"), "{error}");
    // The router chooses experts, and experts see some rows.
    let folder = copy("llama_one_layer");
    rename(&folder, |name| Some(name.replace("layers.1.mlp.down_proj", "layers.1.mlp.experts.0.down_proj")));
    let error = refusal("qwen2_moe", &folder);
    assert!(error.contains("experts.0.down_proj.lora_A.weight belongs to no linear"), "{error}");
}

#[test]
fn broken_adapters_are_refused() {
    let folder = copy("llama_one_layer");
    let gone = "base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight";
    rename(&folder, |name| (name != gone).then(|| name.to_owned()));
    assert_eq!(
        refusal("gqa", &folder),
        format!("adapter mine: it does not fit the model (1 wrong): {gone} is missing, expected [16, 40]")
    );
    let folder = copy("llama_one_layer");
    rename(&folder, |name| Some(name.replace("lora_A.weight", "lora_embedding_A")));
    let error = refusal("gqa", &folder);
    assert!(error.contains("k_proj.lora_embedding_A is no matrix that is added to a linear"), "{error}");

    let folder = copy("llama_one_layer");
    let config = folder.path().join("adapter_config.json");
    let text = std::fs::read_to_string(&config).unwrap().replace("\"use_dora\": false", "\"use_dora\": true");
    std::fs::write(&config, text).unwrap();
    let error = refusal("gqa", &folder);
    assert!(error.starts_with("adapter mine: adapter_config.json: use_dora is true"), "{error}");
    std::fs::remove_file(&config).unwrap();
    assert_eq!(refusal("gqa", &folder), "adapter mine: adapter_config.json is missing");
    let folder = copy("llama_one_layer");
    std::fs::remove_file(folder.path().join("adapter_model.safetensors")).unwrap();
    assert_eq!(refusal("gqa", &folder), "adapter mine: adapter_model.safetensors is missing");
    std::fs::write(folder.path().join("adapter_model.safetensors"), b"not a file").unwrap();
    assert!(refusal("gqa", &folder).starts_with("adapter mine: adapter_model.safetensors"), "damaged");
}

/// Checkpoints and adapters are written from a whole model or from a part of it.
#[test]
fn prefixes_of_model_and_adapter_may_differ() {
    let (prompt, rows, wanted, _) = golden("gpt_bigcode").swap_remove(1);
    let folder = copy("gpt_bigcode");
    rename(&folder, |name| Some(name.replace("base_model.model.transformer.", "base_model.model.")));
    let adapters = vec![source(folder.path())];
    let files = ModelFiles::directory(models().join("gpt_bigcode")).unwrap();
    let options = LoadOptions { adapters, ..options(DType::F32) };
    let mut decoder = load(&files, backend(IsaChoice::Auto), &options).unwrap();
    let allowed = allowed("gpt_bigcode", num_layers("gpt_bigcode"));
    assert!(distance(&logits(&mut decoder, &prompt, &rows, Some(0)), &wanted) <= allowed);

    // The other way round: a model whose file has no prefix.
    let bare = copy_of("gpt_bigcode");
    rename_in(&bare, "model.safetensors", |name| Some(name.replace("transformer.", "")));
    let files = ModelFiles::directory(bare.path()).unwrap();
    let options = LoadOptions { adapters: vec![source(root().join("gpt_bigcode"))], ..options };
    let mut decoder = load(&files, backend(IsaChoice::Auto), &options).unwrap();
    assert!(distance(&logits(&mut decoder, &prompt, &rows, Some(0)), &wanted) <= allowed);
}

/// GGUF has other names, joins other matrices, and keeps rows of queries and keys in another order.
#[test]
fn adapters_fit_gguf_files_of_their_model() {
    for (gguf, model, adapter) in [
        ("llama-f16.gguf", "stored_f16", "llama_one_layer"),
        ("gpt2.gguf", "gpt2", "gpt2"),
        ("gpt_neox.gguf", "gpt_neox", "gpt_neox"),
        ("starcoder2.gguf", "starcoder2", "starcoder2"),
    ] {
        let files = ModelFiles::at(models().join("../formats/gguf").join(gguf)).unwrap();
        let options = LoadOptions { adapters: vec![source(root().join(adapter))], ..options(DType::F32) };
        let mut found = load(&files, backend(IsaChoice::Auto), &options).unwrap();
        let mut wanted = adapted(model, &[adapter], IsaChoice::Auto, options);
        let tokens: Vec<TokenId> = (0..20).map(TokenId).collect();
        let [with, without] = [Some(0), None].map(|id| logits(&mut wanted, &tokens, &[5, 19], id));
        assert!(distance(&with, &without) > 1e-3, "{gguf}: the adapter does something");
        let off = distance(&logits(&mut found, &tokens, &[5, 19], Some(0)), &with);
        assert!(off < 1e-5, "{gguf}: {off}");
    }
}

#[test]
fn memory_counts_adapters() {
    let names = ["llama_all", "llama_attention"];
    let plain = adapted("gqa", &[], IsaChoice::Auto, options(DType::BF16));
    let with = adapted("gqa", &names, IsaChoice::Auto, options(DType::BF16));
    let numbers = |name: &str| {
        let bytes = std::fs::read(root().join(name).join("adapter_model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let numbers = |(name, view): &(String, TensorView<'_>)| {
            let rank = view.shape()[usize::from(name.contains("lora_B"))];
            (view.shape().iter().product::<usize>() / rank * rank.next_multiple_of(32)) as u64
        };
        file.tensors().iter().map(numbers).sum::<u64>()
    };
    let plan = with.plan();
    assert_eq!((plan.num_adapters, plan.adapters_bytes), (2, 2 * (numbers(names[0]) + numbers(names[1]))));
    assert_eq!(plan.total_bytes() - plain.plan().total_bytes(), plan.adapters_bytes);
}

#[test]
fn made_up_adapters_change_what_a_made_up_model_says() {
    let config = HfConfig::parse(
        "config.json",
        br#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": 40, "max_position_embeddings": 64, "rms_norm_eps": 1e-6}"#,
    )
    .unwrap();
    let options = LoadOptions { adapters: vec![AdapterSource::Random { rank: 8 }; 2], ..options(DType::F32) };
    let mut decoder = load_random(&config, 1, backend(IsaChoice::Auto), &options).unwrap();
    let tokens = [TokenId(3), TokenId(9)];
    let [a, b, none] = [Some(0), Some(1), None].map(|adapter| logits(&mut decoder, &tokens, &[1], adapter));
    assert!(a != b && a != none && b != none && a.iter().all(|x| x.is_finite()));
}
