//! What a block has behind its attention: an MLP, or experts of which each row visits a few.

use std::cell::RefCell;

use pelton_backend::{Act, Backend, RouteSpec};

use crate::quantize::Moments;
use crate::workspace::{BranchRows, ExpertsRows, MlpRows};

/// An MLP or experts.
pub(crate) enum Branch<B: Backend> {
    Dense(Mlp<B>),
    Experts(Experts<B>),
}

pub(crate) struct Mlp<B: Backend> {
    /// Gate and up, or up alone.
    pub(crate) up: Linear<B>,
    pub(crate) act: Act,
    pub(crate) down: Linear<B>,
}

pub(crate) struct Experts<B: Backend> {
    pub(crate) router: B::Linear,
    pub(crate) route: RouteSpec,
    pub(crate) experts: Vec<Mlp<B>>,
    pub(crate) shared: Option<Shared<B>>,
}

/// An expert that every row visits, and the linear to its weight.
pub(crate) struct Shared<B: Backend> {
    pub(crate) mlp: Mlp<B>,
    pub(crate) gate: B::Linear,
}

pub(crate) struct Linear<B: Backend> {
    pub(crate) weight: B::Linear,
    pub(crate) bias: Option<B::Param>,
    /// What some sequences' rows get beside.
    pub(crate) adapters: Option<B::Adapters>,
    /// What reaches it, where somebody wants to know.
    pub(crate) inputs: Option<RefCell<Moments>>,
}

impl<B: Backend> Branch<B> {
    /// Its linears in the order of [`crate::spec::LayerTensors::linears`].
    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear<B>> {
        let (one, experts) = match self {
            Self::Dense(mlp) => (Some(mlp), None),
            Self::Experts(experts) => {
                (experts.shared.as_mut().map(|shared| &mut shared.mlp), Some(&mut experts.experts))
            }
        };
        experts.into_iter().flatten().chain(one).flat_map(|mlp| [&mut mlp.up, &mut mlp.down])
    }

    /// Its linears in the order of [`crate::spec::LayerTensors::linears_of_every_row`].
    pub(crate) fn linears_of_every_row_mut(&mut self) -> impl Iterator<Item = &mut Linear<B>> {
        let mlp = match self {
            Self::Dense(mlp) => Some(mlp),
            Self::Experts(experts) => experts.shared.as_mut().map(|shared| &mut shared.mlp),
        };
        mlp.into_iter().flat_map(|mlp| [&mut mlp.up, &mut mlp.down])
    }

    /// `x` and `out` are `[rows, hidden]`.
    pub(crate) fn apply(&self, backend: &B, step: &B::Step, x: &B::Rows, rows: &mut BranchRows<B>, out: &mut B::Rows) {
        match (self, &mut rows.dense, &mut rows.experts) {
            (Self::Dense(mlp), Some(rows), _) => mlp.apply(backend, step, x, rows, out),
            (Self::Experts(experts), _, Some(rows)) => experts.apply(backend, step, x, rows, out),
            _ => unreachable!("the workspace was made for the model's branches"),
        }
    }
}

impl<B: Backend> Mlp<B> {
    fn apply(&self, backend: &B, step: &B::Step, x: &B::Rows, rows: &mut MlpRows<B>, out: &mut B::Rows) {
        self.up.apply(backend, step, x, &mut rows.up);
        match &mut rows.gated {
            Some(gated) => {
                backend.gate(&rows.up, self.act, gated);
                self.down.apply(backend, step, gated, out);
            }
            None => {
                backend.activate(self.act, &mut rows.up);
                self.down.apply(backend, step, &rows.up, out);
            }
        }
    }
}

impl<B: Backend> Experts<B> {
    fn apply(&self, backend: &B, step: &B::Step, x: &B::Rows, rows: &mut ExpertsRows<B>, out: &mut B::Rows) {
        backend.linear(x, &self.router, None, &mut rows.logits);
        backend.route(&rows.logits, &self.route, &mut rows.routes);
        match (&self.shared, &mut rows.shared) {
            (Some(shared), Some(rows)) => {
                shared.mlp.apply(backend, step, x, &mut rows.mlp, out);
                backend.linear(x, &shared.gate, None, &mut rows.gate);
                backend.scale_by_sigmoid(&rows.gate, out);
            }
            _ => backend.zero(x, out),
        }
        // In the same order for every row, which so has the same sum in any batch.
        for (index, expert) in self.experts.iter().enumerate() {
            if backend.take_routed(&rows.routes, index, x, &mut rows.taken) > 0 {
                expert.apply(backend, step, &rows.taken, &mut rows.mlp, &mut rows.result);
                backend.add_routed(&rows.routes, index, &rows.result, out);
            }
        }
    }
}

impl<B: Backend> Linear<B> {
    /// Rows of `x` are those of `step` where there are adapters: experts, which see some of them, have none.
    pub(crate) fn apply(&self, backend: &B, step: &B::Step, x: &B::Rows, out: &mut B::Rows) {
        if let Some(inputs) = &self.inputs {
            inputs.borrow_mut().add(backend.read(x, &mut Vec::new()));
        }
        backend.linear(x, &self.weight, self.bias.as_ref(), out);
        if let Some(adapters) = &self.adapters {
            backend.adapt(step, x, adapters, out);
        }
    }
}
