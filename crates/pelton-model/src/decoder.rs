//! The decoder: one forward pass for every declared family, on any backend.

use pelton_backend::{
    Backend, BackendError, BlockId, DType, DenseWeight, HostTensor, KvFormat, Norm, StepBatch, TokenId,
};

use crate::formats::WeightFormats;
use crate::layer::{Layer, Pass, Rotary};
use crate::memory::MemoryPlan;
use crate::model::{Logits, Model, ModelError, ModelSpec};
use crate::workspace::Workspace;

/// A loaded model with its KV cache and all buffers of a step.
pub struct Decoder<B: Backend> {
    pub(crate) backend: B,
    pub(crate) spec: ModelSpec,
    pub(crate) info: DecoderInfo,
    pub(crate) plan: MemoryPlan,
    pub(crate) embed: B::Linear,
    pub(crate) embed_factor: Option<f32>,
    /// `[positions, hidden]`, where they are learned.
    pub(crate) positions: Option<B::Param>,
    pub(crate) rotary: Rotary<B>,
    pub(crate) layers: Vec<Layer<B>>,
    pub(crate) norm: Norm<B::Param>,
    pub(crate) head: Head<B>,
    pub(crate) kv: B::KvCache,
    pub(crate) work: Workspace<B>,
}

/// From the residual stream to logits.
pub(crate) struct Head<B: Backend> {
    /// `None`: the embedding.
    pub(crate) weight: Option<B::Linear>,
    pub(crate) bias: Option<B::Param>,
    pub(crate) softcap: Option<f32>,
}

/// What a loaded model is, for people and for information endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecoderInfo {
    /// Name in `config.json`.
    pub architecture: &'static str,
    /// How the packed matrices are kept.
    pub format: WeightFormats,
    /// How keys and values are kept.
    pub kv_format: KvFormat,
    /// Numbers in the checkpoint that the model uses.
    pub num_parameters: u64,
    /// Things that were settled in a way worth a warning.
    pub notes: Vec<String>,
}

impl<B: Backend> Decoder<B> {
    /// Where the memory went.
    pub fn plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// What was loaded.
    pub fn info(&self) -> &DecoderInfo {
        &self.info
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// [`Model::forward`], showing the residual stream after each block: `observe(layer, [rows, hidden])`.
    pub fn forward_observed(
        &mut self,
        batch: &StepBatch,
        observe: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<Logits<'_>, ModelError> {
        let mut host = Vec::new();
        self.compute(batch, |backend, layer, residual| observe(layer, backend.read(residual, &mut host)))
    }

    /// Writes made-up keys and values to the first `num_blocks` blocks of every layer, without computing the layers: for measurements of
    /// sequences that have a past. Panics when there are fewer blocks.
    pub fn fill_kv(&mut self, num_blocks: u32) -> Result<(), BackendError> {
        assert!(num_blocks <= self.spec.num_blocks, "{num_blocks} blocks of {}", self.spec.num_blocks);
        let Self { backend, work, kv, layers, .. } = self;
        let Some(attend) = layers.first().map(|layer| layer.attention.attend) else { return Ok(()) };
        let block_tokens = self.spec.block_tokens as usize;
        // A table of queries, keys and values, one row for each position of a block.
        let columns = (attend.num_heads + 2 * attend.num_kv_heads) * attend.head_dim;
        let values: Vec<f32> = (0..block_tokens * columns).map(|i| (i % 61) as f32 / 61.0 - 0.5).collect();
        let table = HostTensor::from_f32(vec![block_tokens, columns], &values);
        let table = backend.pack(&[DenseWeight::new(table, DType::F32)?])?;
        let tokens: Vec<TokenId> = (0..block_tokens as u32).map(TokenId).collect();
        // Each block is a sequence of its own, which attends to next to nothing.
        let blocks: Vec<BlockId> = (0..num_blocks).map(BlockId).collect();
        let rows = block_tokens.min(self.spec.max_step_rows);
        let mut batch = StepBatch::default();
        for (piece, tokens) in tokens.chunks(rows).enumerate() {
            for blocks in blocks.chunks(self.spec.max_step_rows / rows) {
                batch.clear();
                for block in blocks {
                    batch.push_span(tokens, (piece * rows) as u32, std::slice::from_ref(block), block_tokens as u32);
                }
                backend.begin(&batch, &mut work.step);
                let rows = &mut work.attention;
                backend.embed(&work.step, &table, &mut rows.qkv);
                for layer in 0..layers.len() {
                    backend.attend(&work.step, &rows.qkv, kv, layer, &attend, &mut rows.mixed);
                }
            }
        }
        Ok(())
    }

    /// One step; `observe` sees the residual stream after each block, and compiles to nothing where nobody looks.
    fn compute(
        &mut self,
        batch: &StepBatch,
        mut observe: impl FnMut(&B, usize, &B::Rows),
    ) -> Result<Logits<'_>, ModelError> {
        self.assert_within_limits(batch);
        if batch.num_rows() == 0 {
            return Ok(Logits::from([].as_slice()));
        }
        let Self { backend, layers, work, kv, rotary, .. } = self;
        backend.begin(batch, &mut work.step);
        backend.embed(&work.step, &self.embed, &mut work.residual);
        if let Some(factor) = self.embed_factor {
            backend.scale(factor, &mut work.residual);
        }
        if let Some(table) = &self.positions {
            backend.add_positions(&work.step, table, &mut work.residual);
        }
        let norm = |index: usize| layers.get(index).map_or(&self.norm, |layer| &layer.norm);
        backend.norm(&work.residual, norm(0), &mut work.normed);
        let mut pass = Pass { backend: &*backend, rotary: &*rotary, kv };
        for (index, layer) in layers.iter().enumerate() {
            layer.forward(&mut pass, work, norm(index + 1));
            observe(backend, index, &work.residual);
        }
        if batch.logit_rows.is_empty() {
            return Ok(Logits::from([].as_slice()));
        }
        backend.take_rows(&work.step, &work.normed, &mut work.wanted);
        let Head { weight, bias, softcap } = &self.head;
        backend.linear(&work.wanted, weight.as_ref().unwrap_or(&self.embed), bias.as_ref(), &mut work.logits);
        if let Some(cap) = softcap {
            backend.softcap(*cap, &mut work.logits);
        }
        Ok(Logits::new(backend.read(&work.logits, &mut work.host), backend.workers()))
    }

    fn assert_within_limits(&self, batch: &StepBatch) {
        let ModelSpec { max_positions, max_step_rows, max_logit_rows, .. } = self.spec;
        let (rows, logit_rows) = (batch.num_rows(), batch.logit_rows.len());
        assert!(rows <= max_step_rows, "step has {rows} rows, limit is {max_step_rows}");
        assert!(logit_rows <= max_logit_rows, "step wants {logit_rows} rows of logits, limit is {max_logit_rows}");
        let longest = batch.spans.iter().map(|span| span.context_len).max().unwrap_or(0);
        assert!(longest as usize <= max_positions, "sequence has {longest} positions, limit is {max_positions}");
    }
}

impl<B: Backend> Model for Decoder<B> {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&mut self, batch: &StepBatch) -> Result<Logits<'_>, ModelError> {
        self.compute(batch, |_, _, _| {})
    }
}
