//! A model as GGUF.

use pelton_backend::DType;
use pelton_model::{DTypeChoice, FilesError, LoadOptions, Model, ModelFiles, Quantize};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::model::{bits, decoder, fixtures, greedy, logits};

fn file(name: &str) -> ModelFiles {
    ModelFiles::gguf_file(fixtures().join("formats/gguf").join(name)).unwrap()
}

fn safetensors_model() -> ModelFiles {
    ModelFiles::directory(fixtures().join("models/stored_f16")).unwrap()
}

/// Prompt, logits after it and greedy tokens.
fn expected() -> (Vec<u32>, Vec<f32>, Vec<u32>) {
    let bytes = std::fs::read(fixtures().join("formats/gguf/llama-q8_0.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| -> Vec<[u8; 4]> {
        tensors.tensor(name).unwrap().data().chunks_exact(4).map(|word| word.try_into().unwrap()).collect()
    };
    let integers = |name| words(name).into_iter().map(u32::from_le_bytes).collect();
    (integers("prompt"), words("logits").into_iter().map(f32::from_le_bytes).collect(), integers("greedy"))
}

fn distance(found: &[f32], wanted: &[f32]) -> f32 {
    let largest = wanted.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    found.iter().zip(wanted).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs())) / largest
}

#[test]
fn f16_is_the_same_model_to_the_last_bit() {
    for dtype in [DTypeChoice::Auto, DTypeChoice::Exact(DType::F32)] {
        let options = LoadOptions { dtype, ..LoadOptions::default() };
        let mut found = decoder(&file("llama-f16.gguf"), options.clone()).unwrap();
        let mut wanted = decoder(&safetensors_model(), options).unwrap();
        assert_eq!(bits(&mut found), bits(&mut wanted));
        assert_eq!((found.info(), found.spec()), (wanted.info(), wanted.spec()));
        let (prompt, ..) = expected();
        assert_eq!(greedy(&mut found, &prompt, 32), greedy(&mut wanted, &prompt, 32));
    }
}

#[test]
fn q8_0_decoded_is_what_transformers_computes_with_its_numbers() {
    let (prompt, wanted, tokens) = expected();
    let options = LoadOptions {
        dtype: DTypeChoice::Exact(DType::F32),
        quantize: Some(Quantize::Numbers),
        ..LoadOptions::default()
    };
    let mut decoder = decoder(&file("llama-q8_0.gguf"), options).unwrap();
    let off = distance(&logits(&mut decoder, &prompt), &wanted);
    assert!(off < 1e-5, "{off}");
    assert_eq!(greedy(&mut decoder, &prompt, 32), tokens);
}

#[test]
fn q8_0_stays_in_its_integers() {
    let (prompt, wanted, tokens) = expected();
    let mut decoder = decoder(&file("llama-q8_0.gguf"), LoadOptions::default()).unwrap();
    // Matrices whose rows are no whole blocks are in F16.
    assert_eq!(decoder.info().format.to_string(), "int8 g32 and float16, vocabulary int8 g32");
    // Rows that meet integers are rounded to eight bits.
    let off = distance(&logits(&mut decoder, &prompt), &wanted);
    assert!(off < 0.03, "{off}");
    let found = greedy(&mut decoder, &prompt, 32);
    let alike = found.iter().zip(&tokens).take_while(|(a, b)| a == b).count();
    assert!(alike >= 4, "{found:?} {tokens:?}");
}

#[test]
fn every_family_is_the_same_model() {
    let tokens: Vec<u32> = (1..40).collect();
    for name in ["qwen3", "gemma", "gemma2", "phi3_long", "phi", "starcoder2", "gpt_neox", "gpt2"] {
        let options = LoadOptions { dtype: DTypeChoice::Exact(DType::F32), ..LoadOptions::default() };
        let mut found =
            decoder(&file(&format!("{name}.gguf")), options.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let folder = tempfile::tempdir().unwrap();
        let model = fixtures().join("models").join(name);
        std::fs::copy(model.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
        let mut config: Value = serde_json::from_slice(&std::fs::read(model.join("config.json")).unwrap()).unwrap();
        if config["query_pre_attn_scalar"].is_number() {
            // No key of GGUF says it; it is the width of a head in all but the largest.
            config["query_pre_attn_scalar"] = config["head_dim"].clone();
        }
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let mut wanted = decoder(&ModelFiles::directory(folder.path()).unwrap(), options).unwrap();
        assert_eq!(found.info().architecture, wanted.info().architecture);
        assert_eq!(found.info().num_parameters, wanted.info().num_parameters, "{name}");
        let off = distance(&logits(&mut found, &tokens), &logits(&mut wanted, &tokens));
        println!("{name}: off by {off:e}");
        assert!(off < 1e-5, "{name}: {off}");
        assert_eq!(greedy(&mut found, &tokens, 8), greedy(&mut wanted, &tokens, 8), "{name}");
    }
}

#[test]
fn a_folder_with_one_file_is_that_file_and_several_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |name: &str| {
        std::fs::copy(fixtures().join("formats/gguf/llama-f16.gguf"), folder.path().join(name)).unwrap();
    };
    copy("b.gguf");
    // What lies beside it is not the model's.
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    let mut found = decoder(&ModelFiles::directory(folder.path()).unwrap(), LoadOptions::default()).unwrap();
    assert_eq!(bits(&mut found), bits(&mut decoder(&file("llama-f16.gguf"), LoadOptions::default()).unwrap()));
    copy("a.gguf");
    let error = ModelFiles::directory(folder.path()).unwrap_err();
    assert!(matches!(error, FilesError::SeveralGguf { count: 2, .. }));
    let text = error.to_string();
    assert!(
        text.contains("holds 2 GGUF files: a.gguf, b.gguf; name one of them") && text.ends_with("/a.gguf"),
        "{text}"
    );
    let safetensors = fixtures().join("models/stored_f16/model.safetensors");
    std::fs::copy(safetensors, folder.path().join("model.safetensors")).unwrap();
    assert!(ModelFiles::directory(folder.path()).is_ok(), "other weights are preferred");
}
