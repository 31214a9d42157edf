//! The readers of untrusted files as functions over bytes. Whatever these are, the readers answer.

use crate::files::Blob;
use crate::weights::{pickle, safetensors};

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
