//! Every buffer of a step, allocated once for the most rows a step may hold.

use pelton_backend::{Backend, BackendError, RouteSpec};

use crate::memory::StepLimits;
use crate::spec::{DecoderSpec, Experts, Mlp};

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
    pub(crate) attention: AttentionRows<B>,
    pub(crate) mlp: BranchRows<B>,
    /// Rows whose logits are wanted, `[logit_rows, hidden]`.
    pub(crate) wanted: B::Rows,
    /// `[logit_rows, vocab]`.
    pub(crate) logits: B::Rows,
    /// Logits on the host, where the backend's memory is not the host's.
    pub(crate) host: Vec<f32>,
}

/// Within attention.
pub(crate) struct AttentionRows<B: Backend> {
    /// `[rows, (num_heads + 2 * num_kv_heads) * head_dim]`.
    pub(crate) qkv: B::Rows,
    /// What attention mixed, `[rows, num_heads * head_dim]`.
    pub(crate) mixed: B::Rows,
}

/// Behind attention, for the kinds of branches that the model has.
pub(crate) struct BranchRows<B: Backend> {
    pub(crate) dense: Option<MlpRows<B>>,
    pub(crate) experts: Option<ExpertsRows<B>>,
}

/// Within an MLP.
pub(crate) struct MlpRows<B: Backend> {
    /// `[rows, intermediate]`, or `[rows, 2 * intermediate]`, gates first.
    pub(crate) up: B::Rows,
    /// `[rows, intermediate]`, where there is a gate.
    pub(crate) gated: Option<B::Rows>,
}

/// Within experts.
pub(crate) struct ExpertsRows<B: Backend> {
    /// `[rows, num_experts]`.
    pub(crate) logits: B::Rows,
    pub(crate) routes: B::Routes,
    /// Rows of one expert, `[rows, hidden]`.
    pub(crate) taken: B::Rows,
    pub(crate) mlp: MlpRows<B>,
    /// What it made of them, `[rows, hidden]`.
    pub(crate) result: B::Rows,
    pub(crate) shared: Option<SharedRows<B>>,
}

/// Within the shared expert.
pub(crate) struct SharedRows<B: Backend> {
    pub(crate) mlp: MlpRows<B>,
    /// `[rows, 1]`.
    pub(crate) gate: B::Rows,
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
            attention: AttentionRows {
                qkv: rows(spec.attention.qkv_width())?,
                mixed: rows(spec.attention.num_heads * spec.attention.head_dim)?,
            },
            mlp: BranchRows {
                dense: spec.dense_mlp().map(|mlp| MlpRows::new(mlp, &rows)).transpose()?,
                experts: match &spec.experts {
                    Some(experts) => Some(ExpertsRows::new(backend, experts, hidden, limits.max_step_rows)?),
                    None => None,
                },
            },
            wanted: backend.rows(limits.max_logit_rows, hidden)?,
            logits: backend.rows(limits.max_logit_rows, spec.vocab_size)?,
            host: Vec::new(),
        })
    }
}

impl<B: Backend> MlpRows<B> {
    fn new(mlp: &Mlp, rows: &dyn Fn(usize) -> Result<B::Rows, BackendError>) -> Result<Self, BackendError> {
        let gated = mlp.gated.then(|| rows(mlp.intermediate_size)).transpose()?;
        Ok(Self { up: rows(mlp.up_width())?, gated })
    }
}

impl<B: Backend> ExpertsRows<B> {
    fn new(backend: &B, experts: &Experts, hidden: usize, max_rows: usize) -> Result<Self, BackendError> {
        let rows = |cols: usize| backend.rows(max_rows, cols);
        let shared = experts.shared.as_ref();
        Ok(Self {
            logits: rows(experts.num_experts)?,
            routes: backend.routes(max_rows, &experts.route())?,
            taken: rows(hidden)?,
            mlp: MlpRows::new(&experts.mlp, &rows)?,
            result: rows(hidden)?,
            shared: shared
                .map(|mlp| Ok::<_, BackendError>(SharedRows { mlp: MlpRows::new(mlp, &rows)?, gate: rows(1)? }))
                .transpose()?,
        })
    }
}

impl Experts {
    /// As backends are told.
    pub(crate) fn route(&self) -> RouteSpec {
        let Self { num_experts, top_k, renormalise, .. } = *self;
        RouteSpec { num_experts, top_k, renormalise }
    }
}
