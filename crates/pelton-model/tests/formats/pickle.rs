//! A model as PyTorch files.

use std::path::Path;

use pelton_model::{LoadError, LoadOptions, ModelFiles};

use crate::model::{bits, decoder, fixtures};

fn logits(folder: &Path) -> Result<Vec<u32>, LoadError> {
    Ok(bits(&mut decoder(&ModelFiles::directory(folder).unwrap(), LoadOptions::default())?))
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
