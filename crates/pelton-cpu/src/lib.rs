//! The CPU backend: kernels, packing and the compute pool.
//!
//! Reading order: `isa` chooses the instruction set, `amx` are its tiles, `lanes` are the vector operations every kernel is written in, `buffer`, `kv`
//! and `step` what kernels read and write, `pool` who computes, `kernels` the operations, [`measure`] how fast they are. `unsafe` is
//! found where pointers are followed: lanes, tiles, pool and buffer.
#![allow(clippy::needless_range_loop, reason = "tiles are arrays of registers: indices say which, as in the formulas")]

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!(
    "the CPU backend is written for Linux on x86-64; other machines need lanes, memory report and pinning of their own"
);

mod amx;
mod buffer;
mod isa;
mod kernels;
mod kv;
mod lanes;
pub mod measure;
mod memory;
mod pieces;
mod pool;
mod scratch;
mod step;

use pelton_backend::{
    Act, AdapterMatrices, AttendSpec, Backend, BackendError, DenseWeight, GroupedWeight, HeadNorms, HostTensor, KvSpec,
    MemoryReport, Norm, RopeSpec, RouteSpec, StepBatch, Workers,
};

pub use buffer::{Param, Rows};
pub use isa::IsaChoice;
pub use kernels::linear::{PackedAdapters, PackedLinear};
pub use kernels::route::Routes;
pub use kv::KvCache;
pub use step::Step;

use isa::Isa;
use kernels::{activation, attention, embed, linear, norm, rope, route, scale};
use pool::Pool;
use scratch::Scratches;

/// What to compute with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuConfig {
    /// Threads, the caller of an operation included; by default as many as this process may run on at once.
    pub threads: Option<usize>,
    /// The instruction set.
    pub isa: IsaChoice,
    /// Bind each worker but the caller to one CPU of those this process may use.
    pub pin: bool,
}

/// Why a CPU cannot compute as asked.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// The instruction set was named and is not there.
    #[error("this CPU lacks {}, which instruction set {wanted} needs", missing.join(", "))]
    Isa {
        /// What was asked for.
        wanted: IsaChoice,
        /// CPU flags that are missing.
        missing: Vec<&'static str>,
    },
    /// No thread or absurdly many.
    #[error("threads is {threads}, must be 1 to {MAX_THREADS}")]
    Threads {
        /// What was asked for.
        threads: usize,
    },
    /// The operating system gives no more threads.
    #[error("cannot start {threads} compute threads: {source}")]
    Spawn {
        /// What was asked for.
        threads: usize,
        /// Why not.
        source: std::io::Error,
    },
}

/// Most threads a pool may have.
pub const MAX_THREADS: usize = 1024;

/// [`Backend`] on the CPUs of this machine. Operations run on the caller's thread and the workers of one pool.
pub struct CpuBackend {
    isa: Isa,
    pool: Pool,
    scratches: Scratches,
}

impl CpuBackend {
    /// Detects, then starts the workers.
    pub fn new(config: CpuConfig) -> Result<Self, CpuError> {
        let isa = Isa::detect(config.isa).map_err(|missing| CpuError::Isa { wanted: config.isa, missing })?;
        let threads = match config.threads {
            Some(threads) => threads,
            None => std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(MAX_THREADS),
        };
        if !(1..=MAX_THREADS).contains(&threads) {
            return Err(CpuError::Threads { threads });
        }
        let cpus = if config.pin { pool::allowed_cpus() } else { Vec::new() };
        let pool = Pool::new(threads, &cpus).map_err(|source| CpuError::Spawn { threads, source })?;
        Ok(Self { isa, pool, scratches: Scratches::new(threads) })
    }

    /// Threads, the caller included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }
}

impl Backend for CpuBackend {
    type Rows = Rows;
    type Param = Param;
    type Linear = PackedLinear;
    type KvCache = KvCache;
    type Step = Step;
    type Routes = Routes;
    type Adapters = PackedAdapters;

    fn param(&self, data: &HostTensor<'_>) -> Result<Param, BackendError> {
        Param::new(data)
    }

    fn pack(&self, parts: &[DenseWeight<'_>]) -> Result<PackedLinear, BackendError> {
        PackedLinear::new(&self.pool, parts)
    }

    fn pack_grouped(&self, parts: &[GroupedWeight<'_>]) -> Result<PackedLinear, BackendError> {
        PackedLinear::from_grouped(&self.pool, parts)
    }

    fn pack_adapters(&self, matrices: &AdapterMatrices<'_>) -> Result<PackedAdapters, BackendError> {
        PackedAdapters::new(&self.pool, matrices)
    }

    fn rows(&self, max_rows: usize, cols: usize) -> Result<Rows, BackendError> {
        Rows::new(max_rows, cols)
    }

    fn kv_cache(&self, spec: &KvSpec, num_blocks: u32) -> Result<KvCache, BackendError> {
        KvCache::new(spec, num_blocks)
    }

    fn step(&self, max_rows: usize) -> Result<Step, BackendError> {
        Ok(Step::new(max_rows))
    }

    fn routes(&self, max_rows: usize, spec: &RouteSpec) -> Result<Routes, BackendError> {
        Ok(Routes::new(max_rows, spec))
    }

    fn memory(&self) -> MemoryReport {
        memory::report()
    }

    fn describe(&self) -> String {
        let threads = self.pool.threads();
        format!("CPU, {}, {threads} {}", self.isa.name(), if threads == 1 { "thread" } else { "threads" })
    }

    fn begin(&self, batch: &StepBatch, step: &mut Step) {
        step.begin(batch);
    }

    fn embed(&self, step: &Step, table: &PackedLinear, out: &mut Rows) {
        out.set_num_rows(step.batch.num_rows());
        embed::embed(&self.pool, &step.batch.token_ids, table, out.values_mut());
    }

    fn add_positions(&self, step: &Step, table: &Param, x: &mut Rows) {
        let cols = x.cols();
        embed::add_positions(self.isa, &self.pool, &step.batch.positions, table.values(), cols, x.values_mut());
    }

    fn scale(&self, factor: f32, x: &mut Rows) {
        scale::scale(self.isa, &self.pool, factor, x.values_mut());
    }

    fn norm(&self, x: &Rows, norm: &Norm<Param>, out: &mut Rows) {
        let norm = values_of(norm);
        assert_eq!(x.cols(), norm.cols(), "a norm's weight is as wide as its rows");
        out.set_num_rows(x.num_rows());
        norm::norm(self.isa, &self.pool, x.values(), norm, out.values_mut());
    }

    fn add_norm(&self, residual: &mut Rows, delta: &Rows, norm: &Norm<Param>, out: &mut Rows) {
        let norm = values_of(norm);
        assert_eq!(residual.cols(), norm.cols(), "a norm's weight is as wide as its rows");
        out.set_num_rows(residual.num_rows());
        norm::add_norm(self.isa, &self.pool, residual.values_mut(), delta.values(), norm, out.values_mut());
    }

    fn add(&self, residual: &mut Rows, delta: &Rows) {
        norm::add(self.isa, &self.pool, residual.values_mut(), delta.values());
    }

    fn linear(&self, x: &Rows, w: &PackedLinear, bias: Option<&Param>, out: &mut Rows) {
        assert_eq!((x.cols(), out.cols()), (w.in_features, w.out_features), "columns of a linear");
        out.set_num_rows(x.num_rows());
        let args = linear::Linear { x: x.values(), weights: w, bias: bias.map(Param::values), num_rows: x.num_rows() };
        linear::linear(self.isa, &self.pool, &self.scratches, &args, out.values_mut());
    }

    fn adapt(&self, step: &Step, x: &Rows, adapters: &PackedAdapters, out: &mut Rows) {
        let args = linear::Adapt { step, x: x.values(), adapters };
        linear::adapt(self.isa, &self.pool, &self.scratches, &args, out.values_mut());
    }

    fn norm_heads(&self, qkv: &mut Rows, norms: &HeadNorms<Param>) {
        let HeadNorms { query, key, eps, num_heads, num_kv_heads } = norms;
        let (eps, num_heads, num_kv_heads) = (*eps, *num_heads, *num_kv_heads);
        let norms = HeadNorms { query: query.values(), key: key.values(), eps, num_heads, num_kv_heads };
        norm::norm_heads(self.isa, &self.pool, qkv.values_mut(), &norms);
    }

    fn rope(&self, step: &Step, qkv: &mut Rows, table: &Param, spec: &RopeSpec) {
        rope::rope(self.isa, &self.pool, &step.batch.positions, qkv.values_mut(), table.values(), spec);
    }

    fn attend(&self, step: &Step, qkv: &Rows, kv: &mut KvCache, layer: usize, spec: &AttendSpec, out: &mut Rows) {
        assert_eq!(out.cols(), spec.num_heads * spec.head_dim, "columns of attention results");
        out.set_num_rows(qkv.num_rows());
        let args = attention::Attend { step, qkv: qkv.values(), layer, spec };
        attention::attend(self.isa, &self.pool, &self.scratches, &args, kv, out.values_mut());
    }

    fn gate(&self, gate_up: &Rows, act: Act, out: &mut Rows) {
        assert_eq!(gate_up.cols(), 2 * out.cols(), "gates and ups are twice as wide as their product");
        out.set_num_rows(gate_up.num_rows());
        let cols = out.cols();
        activation::gate(self.isa, &self.pool, gate_up.values(), act, cols, out.values_mut());
    }

    fn activate(&self, act: Act, x: &mut Rows) {
        activation::activate(self.isa, &self.pool, act, x.values_mut());
    }

    fn route(&self, logits: &Rows, spec: &RouteSpec, routes: &mut Routes) {
        assert_eq!(logits.cols(), spec.num_experts, "a logit for each expert");
        route::route(self.isa, &self.pool, logits.values(), spec, routes);
    }

    fn take_routed(&self, routes: &Routes, expert: usize, x: &Rows, out: &mut Rows) -> usize {
        let cols = x.cols();
        assert_eq!(cols, out.cols(), "taken rows keep their columns");
        let num_rows = routes.num_rows(expert);
        out.set_num_rows(num_rows);
        route::take(routes, expert, x.values(), cols, out.values_mut());
        num_rows
    }

    fn add_routed(&self, routes: &Routes, expert: usize, x: &Rows, out: &mut Rows) {
        let cols = x.cols();
        assert_eq!(cols, out.cols(), "an expert's results have the columns of their sum");
        route::add(self.isa, &self.pool, routes, expert, x.values(), cols, out.values_mut());
    }

    fn scale_by_sigmoid(&self, gate: &Rows, x: &mut Rows) {
        assert_eq!(gate.cols(), 1, "one gate for a row");
        let cols = x.cols();
        scale::scale_by_sigmoid(self.isa, &self.pool, gate.values(), cols, x.values_mut());
    }

    fn zero(&self, like: &Rows, out: &mut Rows) {
        out.set_num_rows(like.num_rows());
        out.values_mut().fill(0.0);
    }

    fn softcap(&self, cap: f32, x: &mut Rows) {
        scale::softcap(self.isa, &self.pool, cap, x.values_mut());
    }

    fn take_rows(&self, step: &Step, x: &Rows, out: &mut Rows) {
        let cols = x.cols();
        assert_eq!(cols, out.cols(), "taken rows keep their columns");
        out.set_num_rows(step.batch.logit_rows.len());
        for (out, &row) in out.values_mut().chunks_exact_mut(cols).zip(&step.batch.logit_rows) {
            out.copy_from_slice(&x.values()[row as usize * cols..][..cols]);
        }
    }

    fn read<'a>(&self, x: &'a Rows, _host: &'a mut Vec<f32>) -> &'a [f32] {
        x.values()
    }

    fn workers(&self) -> &dyn Workers {
        &self.pool
    }
}

fn values_of(norm: &Norm<Param>) -> norm::Norm<'_> {
    match norm {
        Norm::Rms { weight, eps } => norm::Norm::Rms { weight: weight.values(), eps: *eps },
        Norm::Layer { weight, bias, eps } => {
            norm::Norm::Layer { weight: weight.values(), bias: bias.as_ref().map(Param::values), eps: *eps }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_bounded_and_named() {
        for threads in [0, MAX_THREADS + 1] {
            let Err(error) = CpuBackend::new(CpuConfig { threads: Some(threads), ..CpuConfig::default() }) else {
                panic!("{threads} threads must be refused")
            };
            assert_eq!(error.to_string(), format!("threads is {threads}, must be 1 to 1024"));
        }
        let config = CpuConfig { threads: Some(2), isa: IsaChoice::Scalar, pin: true };
        assert_eq!(CpuBackend::new(config).unwrap().describe(), "CPU, scalar, 2 threads");
    }

    #[test]
    fn a_missing_instruction_set_is_named() {
        for isa in IsaChoice::NAMED {
            match CpuBackend::new(CpuConfig { threads: Some(1), isa, pin: false }) {
                Ok(_) => assert_eq!(isa.missing(), [""; 0]),
                Err(error) => {
                    assert!(error.to_string().contains(&format!("instruction set {isa} needs")), "{error}");
                    assert!(error.to_string().contains(isa.missing()[0]), "{error}");
                }
            }
        }
    }
}
