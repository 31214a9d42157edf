//! A block: attention and MLP around the residual stream, in the arrangements there are.

use pelton_backend::{AttendSpec, Backend, HeadNorms, Norm, RopeSpec};

use crate::mlp::{Branch, Linear};
use crate::workspace::{AttentionRows, Workspace};

/// A block's weights.
pub(crate) struct Layer<B: Backend> {
    /// Of what attention reads.
    pub(crate) norm: Norm<B::Param>,
    pub(crate) attention: Attention<B>,
    pub(crate) mlp: Branch<B>,
    pub(crate) arrangement: Arrangement<B>,
}

/// [`Block`](crate::spec::Block) with its norms.
pub(crate) enum Arrangement<B: Backend> {
    Sequential { mlp_norm: Norm<B::Param> },
    Sandwiched { after_attention: Norm<B::Param>, mlp_norm: Norm<B::Param>, after_mlp: Norm<B::Param> },
    ParallelOneNorm,
    ParallelTwoNorms { mlp_norm: Norm<B::Param> },
}

pub(crate) struct Attention<B: Backend> {
    pub(crate) qkv: Linear<B>,
    pub(crate) head_norms: Option<HeadNorms<B::Param>>,
    /// Which table.
    pub(crate) rope: usize,
    /// Its place in the KV cache.
    pub(crate) layer: usize,
    pub(crate) attend: AttendSpec,
    pub(crate) out: Linear<B>,
}

/// Rotary tables; none where positions are learned.
pub(crate) struct Rotary<B: Backend> {
    pub(crate) spec: RopeSpec,
    pub(crate) tables: Vec<B::Param>,
}

/// What every block of a step uses.
pub(crate) struct Pass<'a, B: Backend> {
    pub(crate) backend: &'a B,
    pub(crate) rotary: &'a Rotary<B>,
    pub(crate) kv: &'a mut B::KvCache,
}

impl<B: Backend> Layer<B> {
    /// Its linears in the order of [`crate::spec::LayerTensors::linears`].
    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear<B>> {
        [&mut self.attention.qkv, &mut self.attention.out].into_iter().chain(self.mlp.linears_mut())
    }

    /// Its linears in the order of [`crate::spec::LayerTensors::linears_of_every_row`].
    pub(crate) fn linears_of_every_row_mut(&mut self) -> impl Iterator<Item = &mut Linear<B>> {
        [&mut self.attention.qkv, &mut self.attention.out].into_iter().chain(self.mlp.linears_of_every_row_mut())
    }

    /// Takes `residual` and `normed` of the workspace from this block's input to the `next` norm's.
    pub(crate) fn forward(&self, pass: &mut Pass<'_, B>, work: &mut Workspace<B>, next: &Norm<B::Param>) {
        let backend = pass.backend;
        let Workspace { step, residual, normed, delta, attention, mlp, .. } = work;
        match &self.arrangement {
            Arrangement::Sequential { mlp_norm } => {
                self.attention.apply(pass, step, normed, attention, delta);
                backend.add_norm(residual, delta, mlp_norm, normed);
                self.mlp.apply(backend, step, normed, mlp, delta);
            }
            Arrangement::Sandwiched { after_attention, mlp_norm, after_mlp } => {
                self.attention.apply(pass, step, normed, attention, delta);
                backend.norm(delta, after_attention, normed);
                backend.add_norm(residual, normed, mlp_norm, delta);
                self.mlp.apply(backend, step, delta, mlp, normed);
                backend.norm(normed, after_mlp, delta);
            }
            Arrangement::ParallelOneNorm => {
                self.attention.apply(pass, step, normed, attention, delta);
                backend.add(residual, delta);
                self.mlp.apply(backend, step, normed, mlp, delta);
            }
            Arrangement::ParallelTwoNorms { mlp_norm } => {
                self.attention.apply(pass, step, normed, attention, delta);
                backend.norm(residual, mlp_norm, normed);
                backend.add(residual, delta);
                self.mlp.apply(backend, step, normed, mlp, delta);
            }
        }
        // Adding a block's result and norming for what comes next is one operation.
        backend.add_norm(residual, delta, next, normed);
    }
}

impl<B: Backend> Attention<B> {
    fn apply(
        &self,
        pass: &mut Pass<'_, B>,
        step: &B::Step,
        x: &B::Rows,
        rows: &mut AttentionRows<B>,
        out: &mut B::Rows,
    ) {
        let Pass { backend, rotary, kv } = pass;
        self.qkv.apply(*backend, step, x, &mut rows.qkv);
        if let Some(norms) = &self.head_norms {
            backend.norm_heads(&mut rows.qkv, norms);
        }
        if let Some(table) = rotary.tables.get(self.rope) {
            backend.rope(step, &mut rows.qkv, table, &rotary.spec);
        }
        backend.attend(step, &rows.qkv, kv, self.layer, &self.attend, &mut rows.mixed);
        self.out.apply(*backend, step, &rows.mixed, out);
    }
}
