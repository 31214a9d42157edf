//! The operations a decoder needs, in the order a decoder uses them.

use crate::{
    Act, AdapterMatrices, AttendSpec, BackendError, DenseWeight, GroupedWeight, HeadNorms, HostTensor, KvSpec,
    MemoryReport, Norm, RopeSpec, RouteSpec, StepBatch, Workers,
};

/// What a machine can do for a decoder.
///
/// Every operation is *batch invariant*: the numbers of a row depend on that row's input (and its sequence's KV cache) alone, bit for
/// bit; not on the other rows of the step, nor on how a prompt was cut into steps.
///
/// Activations ([`Backend::Rows`]) are `[rows, cols]`; the number of rows is the step's (or, after [`Backend::take_rows`], that of
/// its `logit_rows`), `cols` is fixed at allocation. Step operations panic when columns do not fit: the model is wrong then.
pub trait Backend: Sized + Send + Sync + 'static {
    /// `[rows, cols]` activations, in the backend's own precision (f32 on CPU). Capacity is fixed at allocation.
    type Rows: Send;
    /// Norm weights, biases, tables.
    type Param: Send + Sync;
    /// A packed matrix, opaque.
    type Linear: Send + Sync;
    /// Keys and values of all layers, by block.
    type KvCache: Send;
    /// A [`StepBatch`], uploaded.
    type Step: Send;
    /// Which rows go to which expert, and with what weight.
    type Routes: Send;
    /// What all adapters add to one linear.
    type Adapters: Send + Sync;

    // Loading.

    /// Stores `data` in f32 (tables and biases are small; their precision is kept).
    fn param(&self, data: &HostTensor<'_>) -> Result<Self::Param, BackendError>;
    /// Packs `parts`, joined by output rows, into the layout the kernels read in order. All parts have the same `in_features` and
    /// `stored_as`. Nothing of `parts` is kept.
    fn pack(&self, parts: &[DenseWeight<'_>]) -> Result<Self::Linear, BackendError>;
    /// The same for matrices that arrive in integers: all parts have the same `in_features`, `format` and order of input features.
    fn pack_grouped(&self, parts: &[GroupedWeight<'_>]) -> Result<Self::Linear, BackendError>;
    /// Packs what adapters add to one linear. Nothing of `matrices` is kept.
    fn pack_adapters(&self, matrices: &AdapterMatrices<'_>) -> Result<Self::Adapters, BackendError>;
    /// Room for `max_rows` rows of `cols` columns.
    fn rows(&self, max_rows: usize, cols: usize) -> Result<Self::Rows, BackendError>;
    /// Room for `num_blocks` blocks.
    fn kv_cache(&self, spec: &KvSpec, num_blocks: u32) -> Result<Self::KvCache, BackendError>;
    /// A step that can carry `max_rows` rows, filled by [`Backend::begin`].
    fn step(&self, max_rows: usize) -> Result<Self::Step, BackendError>;
    /// Room for the routes of `max_rows` rows, filled by [`Backend::route`].
    fn routes(&self, max_rows: usize, spec: &RouteSpec) -> Result<Self::Routes, BackendError>;
    /// Memory of the device.
    fn memory(&self) -> MemoryReport;
    /// One line for people: which device, which instruction set, how many threads.
    fn describe(&self) -> String;

    // One step.

    /// Takes over `batch`, reusing `step`'s memory.
    fn begin(&self, batch: &StepBatch, step: &mut Self::Step);
    /// `out[r] = table[token_ids[r]]`. `table` is a packed `[vocab, hidden]` matrix, so that a tied head needs no second copy.
    fn embed(&self, step: &Self::Step, table: &Self::Linear, out: &mut Self::Rows);
    /// `x[r] += table[positions[r]]`: `x` is `[rows, hidden]`, `table` `[positions, hidden]`.
    fn add_positions(&self, step: &Self::Step, table: &Self::Param, x: &mut Self::Rows);
    /// `x *= factor`.
    fn scale(&self, factor: f32, x: &mut Self::Rows);
    /// `out = norm(x)`, both `[rows, hidden]`. Accumulates in f32.
    fn norm(&self, x: &Self::Rows, norm: &Norm<Self::Param>, out: &mut Self::Rows);
    /// `residual += delta; out = norm(residual)`, all `[rows, hidden]`.
    fn add_norm(&self, residual: &mut Self::Rows, delta: &Self::Rows, norm: &Norm<Self::Param>, out: &mut Self::Rows);
    /// `residual += delta`, both `[rows, hidden]`.
    fn add(&self, residual: &mut Self::Rows, delta: &Self::Rows);
    /// `out = x * w^T + bias`: `x` is `[rows, in]`, `out` `[rows, out]`, `bias` `[out]`.
    fn linear(&self, x: &Self::Rows, w: &Self::Linear, bias: Option<&Self::Param>, out: &mut Self::Rows);
    /// `out[r, columns] += scale * (x[r] A^T) B^T` for each row of a span with an adapter and each of that adapter's matrices: `x` is `[rows, in]`, `out`
    /// `[rows, out]`, rows those of the step. Rows are never rounded. Other rows, and steps without adapters, cost nothing.
    fn adapt(&self, step: &Self::Step, x: &Self::Rows, adapters: &Self::Adapters, out: &mut Self::Rows);
    /// Norms each head of queries and keys in place; layout as in [`HeadNorms`].
    fn norm_heads(&self, qkv: &mut Self::Rows, norms: &HeadNorms<Self::Param>);
    /// Rotates queries and keys in place by each row's position; layout and table as in [`RopeSpec`].
    fn rope(&self, step: &Self::Step, qkv: &mut Self::Rows, table: &Self::Param, spec: &RopeSpec);
    /// Writes this step's keys and values of `layer` into `kv`, then attends causally: `qkv` is
    /// `[rows, (num_heads + 2 * num_kv_heads) * head_dim]`, `out` `[rows, num_heads * head_dim]`.
    fn attend(
        &self,
        step: &Self::Step,
        qkv: &Self::Rows,
        kv: &mut Self::KvCache,
        layer: usize,
        spec: &AttendSpec,
        out: &mut Self::Rows,
    );
    /// `out = act(gate) * up` where `gate_up` is `[rows, 2 * cols]`, gates first, and `out` `[rows, cols]`.
    fn gate(&self, gate_up: &Self::Rows, act: Act, out: &mut Self::Rows);
    /// `x = act(x)`.
    fn activate(&self, act: Act, x: &mut Self::Rows);
    /// Chooses experts for each row of `logits`, `[rows, num_experts]`: those with the `top_k` largest, of equal ones the first. An expert's weight is its
    /// share of the softmax over all logits, in f32.
    fn route(&self, logits: &Self::Rows, spec: &RouteSpec, routes: &mut Self::Routes);
    /// `out` = those rows of `x`, in order, that go to `expert`; returns how many. With none, `out` holds nothing that may be used.
    fn take_routed(&self, routes: &Self::Routes, expert: usize, x: &Self::Rows, out: &mut Self::Rows) -> usize;
    /// `out[row] += weight * x[i]` for the i-th row that goes to `expert`, and its weight. Experts are to be added in the same order for every row, so that a
    /// row's sum does not depend on other rows.
    fn add_routed(&self, routes: &Self::Routes, expert: usize, x: &Self::Rows, out: &mut Self::Rows);
    /// `x[r] *= sigmoid(gate[r])`: `gate` is `[rows, 1]`.
    fn scale_by_sigmoid(&self, gate: &Self::Rows, x: &mut Self::Rows);
    /// As many rows as `like` has, all zeros.
    fn zero(&self, like: &Self::Rows, out: &mut Self::Rows);
    /// `x = cap * tanh(x / cap)`.
    fn softcap(&self, cap: f32, x: &mut Self::Rows);
    /// `out[i] = x[logit_rows[i]]`; `out` then has as many rows as `logit_rows`.
    fn take_rows(&self, step: &Self::Step, x: &Self::Rows, out: &mut Self::Rows);
    /// Waits for everything before and shows `x` as f32, row-major; borrows if it is host memory, else copies into `host`.
    fn read<'a>(&self, x: &'a Self::Rows, host: &'a mut Vec<f32>) -> &'a [f32];
    /// Threads for work on the host between operations.
    fn workers(&self) -> &dyn Workers;
}
