//! Every buffer of a step, allocated once for the most rows a step may hold.

use pelton_backend::{Backend, BackendError};

use crate::memory::StepLimits;
use crate::spec::DecoderSpec;

/// Activations between the operations of a step; sizes are counted in [`crate::memory`].
pub(crate) struct Workspace<B: Backend> {
    /// The step, uploaded.
    pub(crate) step: B::Step,
    /// The residual stream, `[rows, hidden]`.
    pub(crate) residual: B::Rows,
    /// Its norm, `[rows, hidden]`.
    pub(crate) normed: B::Rows,
    /// What a branch adds to it, `[rows, hidden]`.
    pub(crate) delta: B::Rows,
    /// `[rows, (num_heads + 2 * num_kv_heads) * head_dim]`.
    pub(crate) qkv: B::Rows,
    /// What attention mixed, `[rows, num_heads * head_dim]`.
    pub(crate) mixed: B::Rows,
    /// `[rows, 2 * intermediate]`, gates first.
    pub(crate) gate_up: B::Rows,
    /// `[rows, intermediate]`.
    pub(crate) gated: B::Rows,
    /// Rows whose logits are wanted, `[logit_rows, hidden]`.
    pub(crate) wanted: B::Rows,
    /// `[logit_rows, vocab]`.
    pub(crate) logits: B::Rows,
    /// Logits on the host, where the backend's memory is not the host's.
    pub(crate) host: Vec<f32>,
}

impl<B: Backend> Workspace<B> {
    pub(crate) fn new(backend: &B, spec: &DecoderSpec, limits: StepLimits) -> Result<Self, BackendError> {
        let rows = |cols: usize| backend.rows(limits.max_step_rows, cols);
        let hidden = spec.hidden_size;
        Ok(Self {
            step: backend.step(limits.max_step_rows)?,
            residual: rows(hidden)?,
            normed: rows(hidden)?,
            delta: rows(hidden)?,
            qkv: rows(spec.attention.qkv_width())?,
            mixed: rows(spec.attention.num_heads * spec.attention.head_dim)?,
            gate_up: rows(2 * spec.mlp.intermediate_size)?,
            gated: rows(spec.mlp.intermediate_size)?,
            wanted: backend.rows(limits.max_logit_rows, hidden)?,
            logits: backend.rows(limits.max_logit_rows, spec.vocab_size)?,
            host: Vec::new(),
        })
    }
}
