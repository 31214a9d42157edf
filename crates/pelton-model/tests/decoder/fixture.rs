//! Fixtures of `fixtures/models`, decoders of them, and sequences to feed.

use std::path::{Path, PathBuf};

use pelton_backend::{AdapterId, BlockId, DType, StepBatch, TokenId};
use pelton_cpu::{CpuBackend, CpuConfig, IsaChoice};
use pelton_model::{DTypeChoice, Decoder, KvBudget, LoadOptions, Model, ModelFiles, load};
use safetensors::SafeTensors;
use serde_json::Value;
use tempfile::TempDir;

pub const BLOCK_TOKENS: u32 = 16;
/// Longer than the longest prompt, so that it can be computed in one step.
pub const MAX_STEP_ROWS: usize = 800;

pub fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models"))
}

/// At least so many: a folder that is not found would not be missed.
const NUM_FIXTURES: usize = 61;

/// Names of all fixtures.
pub fn all() -> Vec<String> {
    let folders = std::fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<String> = folders
        .filter(|path| path.join("expected.safetensors").exists())
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    assert!(names.len() >= NUM_FIXTURES, "{names:?}");
    names
}

/// Instruction sets of this machine.
pub fn instruction_sets() -> Vec<IsaChoice> {
    IsaChoice::NAMED.into_iter().filter(|isa| isa.missing().is_empty()).collect()
}

pub fn backend(isa: IsaChoice) -> CpuBackend {
    CpuBackend::new(CpuConfig { threads: Some(2), isa, ..CpuConfig::default() }).unwrap()
}

pub fn options(dtype: DType) -> LoadOptions {
    LoadOptions {
        dtype: DTypeChoice::Exact(dtype),
        block_tokens: BLOCK_TOKENS as usize,
        max_step_rows: MAX_STEP_ROWS,
        max_logit_rows: 130,
        kv_budget: KvBudget::Tokens(8192),
        ..LoadOptions::default()
    }
}

pub fn decoder(name: &str, isa: IsaChoice, dtype: DType) -> Decoder<CpuBackend> {
    decoder_in(&root().join(name), isa, dtype)
}

pub fn decoder_in(folder: &Path, isa: IsaChoice, dtype: DType) -> Decoder<CpuBackend> {
    load(&ModelFiles::directory(folder).unwrap(), backend(isa), &options(dtype)).unwrap()
}

/// A copy that a test may change.
pub fn copy_of(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(root().join(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

/// Rewrites `config.json`.
pub fn edit_config(folder: &Path, edit: impl FnOnce(&mut Value)) {
    let path = folder.join("config.json");
    let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

/// What Transformers computed for one prompt.
pub struct Expected {
    pub prompt: Vec<TokenId>,
    /// Positions whose values are kept.
    pub rows: Vec<usize>,
    /// `[layers][rows][hidden]`.
    pub hidden: Vec<Vec<Vec<f32>>>,
    /// `[rows][vocab]`.
    pub logits: Vec<Vec<f32>>,
    pub greedy: Vec<TokenId>,
    /// The lead of each greedy token over the second best.
    pub margins: Vec<f32>,
}

pub const PROMPTS: [usize; 4] = [1, 7, 130, 700];

pub fn expected(name: &str) -> Vec<Expected> {
    let bytes = std::fs::read(root().join(name).join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: String| -> Vec<[u8; 4]> {
        file.tensor(&name).unwrap().data().chunks_exact(4).map(|word| word.try_into().unwrap()).collect()
    };
    let integers = |name: String| words(name).into_iter().map(u32::from_le_bytes).collect::<Vec<_>>();
    let floats = |name: String| words(name).into_iter().map(f32::from_le_bytes).collect::<Vec<_>>();
    let tokens = |name: String| integers(name).into_iter().map(TokenId).collect::<Vec<_>>();
    let of_prompt = |n: usize| {
        let hidden = format!("hidden.{n}");
        let shape = file.tensor(&hidden).unwrap().shape().to_vec();
        let logits = floats(format!("logits.{n}"));
        let vocab = logits.len() / shape[1];
        Expected {
            prompt: tokens(format!("prompt.{n}")),
            rows: integers(format!("rows.{n}")).into_iter().map(|row| row as usize).collect(),
            hidden: floats(hidden)
                .chunks_exact(shape[1] * shape[2])
                .map(|layer| layer.chunks_exact(shape[2]).map(<[f32]>::to_vec).collect())
                .collect(),
            logits: logits.chunks_exact(vocab).map(<[f32]>::to_vec).collect(),
            greedy: tokens(format!("greedy.{n}")),
            margins: floats(format!("margin.{n}")),
        }
    };
    PROMPTS.into_iter().map(of_prompt).collect()
}

/// A sequence and its blocks.
#[derive(Clone)]
pub struct Sequence {
    pub tokens: Vec<TokenId>,
    pub num_computed: usize,
    pub blocks: Vec<BlockId>,
    pub adapter: Option<AdapterId>,
}

impl Sequence {
    /// `tokens` with room for `max_tokens`, on every `stride`-th block from `first_block` on, downwards.
    pub fn new(tokens: &[TokenId], max_tokens: usize, first_block: u32, stride: u32) -> Self {
        let num_blocks = (max_tokens as u32).div_ceil(BLOCK_TOKENS);
        let blocks = (0..num_blocks).rev().map(|index| BlockId(first_block + index * stride)).collect();
        Self { tokens: tokens.to_vec(), num_computed: 0, blocks, adapter: None }
    }

    /// Adds the next `num_rows` uncomputed tokens to `batch`; asks for the logits of the last of them when `wanted`.
    pub fn push(&mut self, batch: &mut StepBatch, num_rows: usize, wanted: bool) {
        let rows = self.num_computed..self.num_computed + num_rows;
        let span = batch.push_span(&self.tokens[rows.clone()], rows.start as u32, &self.blocks, BLOCK_TOKENS);
        span.adapter = self.adapter;
        self.num_computed = rows.end;
        if wanted {
            batch.logit_rows.push(batch.num_rows() as u32 - 1);
        }
    }

    /// Computes all that is not computed, `chunk` rows a step; the logits of the last row.
    pub fn run(&mut self, decoder: &mut Decoder<CpuBackend>, chunk: usize) -> Vec<f32> {
        let mut batch = StepBatch::default();
        loop {
            batch.clear();
            let num_rows = chunk.min(self.tokens.len() - self.num_computed);
            let last = self.num_computed + num_rows == self.tokens.len();
            self.push(&mut batch, num_rows, last);
            let logits = decoder.forward(&batch).unwrap();
            if last {
                return logits.to_vec();
            }
        }
    }
}

/// The first of the largest.
pub fn argmax(logits: &[f32]) -> TokenId {
    let best = (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
    TokenId(best as u32)
}

/// Exactly what was computed.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
