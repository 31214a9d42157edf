//! The readers of untrusted files as functions over bytes. Whatever these are, the readers answer.

use crate::config::HfConfig;
use crate::families::spec_of;
use crate::files::{Blob, ModelFiles};
use crate::weights::{pickle, safetensors, scheme_of};

/// The header of a safetensors file.
pub fn safetensors(bytes: &[u8]) {
    let _ = safetensors::entries("fuzzed.safetensors", &Blob::Memory(bytes));
}

/// A PyTorch file: the archive, its pickle, and every tensor's elements in order.
pub fn pickle(bytes: &[u8]) {
    pickle::fuzz(bytes);
}

/// The pickle of a PyTorch file alone.
pub fn state_dict(bytes: &[u8]) {
    pickle::fuzz_state_dict(bytes);
}

/// A GGUF file: the header, the configuration and the tokenizer's metadata made of it.
pub fn gguf(bytes: &[u8]) {
    crate::gguf::fuzz(bytes);
}

/// `config.json`: the family's declaration with every tensor it implies, and how quantised matrices are spelt.
pub fn config(bytes: &[u8]) {
    let Ok(config) = HfConfig::parse("config.json", bytes) else { return };
    let _ = scheme_of(&config, &ModelFiles::embedded(&[]));
    if let Ok((_, spec)) = spec_of(&config) {
        // Thousands of layers are allowed, and all of them alike.
        if spec.layers.len() <= 64 {
            assert!(spec.tensors().matrices().all(|tensor| tensor.num_elements() > 0));
        }
    }
}
