//! The decoder: one forward pass for every declared family, on any backend.

use pelton_backend::{
    Act, AttendSpec, Backend, BackendError, BlockId, DType, DenseWeight, HostTensor, KvFormat, RmsNorm, RopeSpec,
    StepBatch, TokenId,
};

use crate::formats::WeightFormats;
use crate::memory::MemoryPlan;
use crate::model::{Logits, Model, ModelError, ModelSpec};
use crate::workspace::Workspace;

/// A loaded model with its KV cache and all buffers of a step.
pub struct Decoder<B: Backend> {
    pub(crate) backend: B,
    pub(crate) spec: ModelSpec,
    pub(crate) info: DecoderInfo,
    pub(crate) plan: MemoryPlan,
    pub(crate) attend: AttendSpec,
    pub(crate) rope: RopeSpec,
    pub(crate) act: Act,
    pub(crate) embed: B::Linear,
    pub(crate) layers: Vec<Layer<B>>,
    pub(crate) norm: RmsNorm<B::Param>,
    /// `None`: logits come from `embed`.
    pub(crate) head: Option<B::Linear>,
    pub(crate) rope_table: B::Param,
    pub(crate) kv: B::KvCache,
    pub(crate) work: Workspace<B>,
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

pub(crate) struct Layer<B: Backend> {
    pub(crate) attention_norm: RmsNorm<B::Param>,
    pub(crate) qkv: Linear<B>,
    pub(crate) out: Linear<B>,
    pub(crate) mlp_norm: RmsNorm<B::Param>,
    pub(crate) gate_up: Linear<B>,
    pub(crate) down: Linear<B>,
}

pub(crate) struct Linear<B: Backend> {
    pub(crate) weight: B::Linear,
    pub(crate) bias: Option<B::Param>,
}

impl<B: Backend> Linear<B> {
    fn apply(&self, backend: &B, x: &B::Rows, out: &mut B::Rows) {
        backend.linear(x, &self.weight, self.bias.as_ref(), out);
    }
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
        let Self { backend, work, kv, attend, .. } = self;
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
                backend.embed(&work.step, &table, &mut work.qkv);
                for layer in 0..self.layers.len() {
                    backend.attend(&work.step, &work.qkv, kv, layer, attend, &mut work.mixed);
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
        let Self { backend, layers, work, kv, .. } = self;
        backend.begin(batch, &mut work.step);
        backend.embed(&work.step, &self.embed, &mut work.residual);
        if let Some(first) = layers.first() {
            backend.norm(&work.residual, &first.attention_norm, &mut work.normed);
        }
        for (index, layer) in layers.iter().enumerate() {
            layer.qkv.apply(backend, &work.normed, &mut work.qkv);
            backend.rope(&work.step, &mut work.qkv, &self.rope_table, &self.rope);
            backend.attend(&work.step, &work.qkv, kv, index, &self.attend, &mut work.mixed);
            layer.out.apply(backend, &work.mixed, &mut work.delta);
            backend.add_norm(&mut work.residual, &work.delta, &layer.mlp_norm, &mut work.normed);
            layer.gate_up.apply(backend, &work.normed, &mut work.gate_up);
            backend.gate(&work.gate_up, self.act, &mut work.gated);
            layer.down.apply(backend, &work.gated, &mut work.delta);
            // Adding a block's result and norming for what comes next is one operation.
            let next = layers.get(index + 1).map_or(&self.norm, |next| &next.attention_norm);
            backend.add_norm(&mut work.residual, &work.delta, next, &mut work.normed);
            observe(backend, index, &work.residual);
        }
        if batch.logit_rows.is_empty() {
            return Ok(Logits::from([].as_slice()));
        }
        backend.take_rows(&work.step, &work.normed, &mut work.wanted);
        backend.linear(&work.wanted, self.head.as_ref().unwrap_or(&self.embed), None, &mut work.logits);
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
