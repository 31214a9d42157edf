//! Loading a fixture, and what it computes.

use std::path::PathBuf;

use pelton_backend::{BlockId, StepBatch, TokenId};
use pelton_cpu::{CpuBackend, CpuConfig};
use pelton_model::{Decoder, KvBudget, LoadError, LoadOptions, Model, ModelFiles, load};

const BLOCK_TOKENS: u32 = 16;

pub fn fixtures() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures"))
}

/// The model of `files`, with room for 1,024 tokens.
pub fn decoder(files: &ModelFiles, options: LoadOptions) -> Result<Decoder<CpuBackend>, LoadError> {
    let backend = CpuBackend::new(CpuConfig { threads: Some(2), ..CpuConfig::default() }).unwrap();
    load(files, backend, &LoadOptions { kv_budget: KvBudget::Tokens(1024), ..options })
}

/// The logits after the last of `tokens`.
pub fn logits(decoder: &mut Decoder<CpuBackend>, tokens: &[u32]) -> Vec<f32> {
    let tokens: Vec<TokenId> = tokens.iter().copied().map(TokenId).collect();
    let blocks: Vec<BlockId> = (0..(tokens.len() as u32).div_ceil(BLOCK_TOKENS)).map(BlockId).collect();
    let mut batch = StepBatch::default();
    batch.push_span(&tokens, 0, &blocks, BLOCK_TOKENS);
    batch.logit_rows.push(tokens.len() as u32 - 1);
    decoder.forward(&batch).unwrap().to_vec()
}

/// `count` tokens after `prompt`, each the likeliest.
pub fn greedy(decoder: &mut Decoder<CpuBackend>, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        let logits = logits(decoder, &tokens);
        tokens.push((0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32);
    }
    tokens.split_off(prompt.len())
}

/// Exactly what was computed after twenty tokens.
pub fn bits(decoder: &mut Decoder<CpuBackend>) -> Vec<u32> {
    let tokens: Vec<u32> = (0..20).collect();
    logits(decoder, &tokens).iter().map(|value| value.to_bits()).collect()
}
