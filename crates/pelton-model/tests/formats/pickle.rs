//! A model as PyTorch files.

use std::path::{Path, PathBuf};

use pelton_backend::{BlockId, StepBatch, TokenId};
use pelton_cpu::{CpuBackend, CpuConfig};
use pelton_model::{KvBudget, LoadError, LoadOptions, Model, ModelFiles, load};

fn fixtures() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures"))
}

/// The bits of the logits after twenty tokens.
fn logits(folder: &Path) -> Result<Vec<u32>, LoadError> {
    let backend = CpuBackend::new(CpuConfig { threads: Some(2), ..CpuConfig::default() }).unwrap();
    let options = LoadOptions { kv_budget: KvBudget::Tokens(1024), ..LoadOptions::default() };
    let mut decoder = load(&ModelFiles::directory(folder).unwrap(), backend, &options)?;
    let tokens: Vec<TokenId> = (0..20).map(TokenId).collect();
    let mut batch = StepBatch::default();
    batch.push_span(&tokens, 0, &[BlockId(0), BlockId(1)], 16);
    batch.logit_rows.push(19);
    Ok(decoder.forward(&batch).unwrap().iter().map(|value| value.to_bits()).collect())
}

/// A folder with the files of `names`, each with what it shall be called.
fn folder(names: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (from, to) in names {
        std::fs::copy(fixtures().join(from), folder.path().join(to)).unwrap();
    }
    folder
}

#[test]
fn shards_of_pickles_are_the_same_model() {
    let wanted = logits(&fixtures().join("models/stored_f16")).unwrap();
    assert_eq!(logits(&fixtures().join("formats/pickle/model")).unwrap(), wanted);
}

#[test]
fn safetensors_are_preferred() {
    let folder = folder(&[
        ("models/stored_f16/config.json", "config.json"),
        ("models/stored_f16/model.safetensors", "model.safetensors"),
        ("formats/pickle/code.bin", "pytorch_model.bin"),
    ]);
    assert_eq!(logits(folder.path()).unwrap(), logits(&fixtures().join("models/stored_f16")).unwrap());
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let error = logits(folder.path()).unwrap_err().to_string();
    assert!(error.contains("it asks for __builtin__.print: only tensors are read, nothing is executed"), "{error}");
}

#[test]
fn indexes_that_lead_in_circles_are_refused() {
    let config = ("models/stored_f16/config.json", "config.json");
    for target in ["pytorch_model.bin.index.json", "model.safetensors.index.json", "../x.bin", "model.safetensors"] {
        let folder = folder(&[config]);
        let index = format!(r#"{{"weight_map": {{"a": "{target}"}}}}"#);
        std::fs::write(folder.path().join("pytorch_model.bin.index.json"), index).unwrap();
        let error = logits(folder.path()).unwrap_err().to_string();
        assert!(error.contains("pytorch_model.bin.index.json is broken"), "{error}");
        assert!(error.contains("is not the name of a *.bin file"), "{error}");
    }
}
