//! A step as a decoder makes it: the same bits on every instruction set and number of threads, and no allocation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use pelton_backend::{
    Act, AdapterId, AdapterMatrices, AdapterWeight, AttendSpec, Backend, BlockId, DType, DenseWeight, HeadNorms,
    HostTensor, KvFormat, KvSpec, Norm, RopeSpec, RouteSpec, StepBatch, TokenId, WeightFormat,
};
use pelton_cpu::{CpuBackend, CpuConfig, IsaChoice};

/// Counts what is allocated, by any thread.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Tests of this file count the allocations of the whole process, so they take turns.
static TURN: Mutex<()> = Mutex::new(());

const VOCAB: usize = 150;
const HIDDEN: usize = 96;
const INNER: usize = 200;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 24;
const QKV: usize = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
const BLOCK_TOKENS: usize = 16;
const MAX_ROWS: usize = 64;

/// One block of a decoder over random weights, with every operation there is.
struct Decoder {
    backend: CpuBackend,
    table: <CpuBackend as Backend>::Linear,
    qkv: <CpuBackend as Backend>::Linear,
    qkv_bias: <CpuBackend as Backend>::Param,
    /// Of queries and values, two of them.
    adapters: <CpuBackend as Backend>::Adapters,
    output: <CpuBackend as Backend>::Linear,
    gate_up: <CpuBackend as Backend>::Linear,
    down: <CpuBackend as Backend>::Linear,
    norm: Norm<<CpuBackend as Backend>::Param>,
    angles: <CpuBackend as Backend>::Param,
    kv: <CpuBackend as Backend>::KvCache,
    step: <CpuBackend as Backend>::Step,
    /// Residual, normed, qkv, mixed, delta, gate_up, gated, taken, logits.
    rows: [<CpuBackend as Backend>::Rows; 9],
    host: Vec<f32>,
}

impl Decoder {
    fn new(isa: IsaChoice, threads: usize, format: WeightFormat) -> Self {
        let backend = CpuBackend::new(CpuConfig { threads: Some(threads), isa, pin: false }).unwrap();
        let mut rng = fastrand::Rng::with_seed(7);
        let mut numbers = |count: usize| -> Vec<f32> { (0..count).map(|_| rng.f32() - 0.5).collect() };
        let mut linear = |out: usize, k: usize| {
            let tensor = HostTensor::from_f32(vec![out, k], &numbers(out * k));
            backend.pack(&[DenseWeight::new(tensor, format).unwrap()]).unwrap()
        };
        let (table, qkv, output) = (linear(VOCAB, HIDDEN), linear(QKV, HIDDEN), linear(HIDDEN, HEADS * HEAD_DIM));
        let (gate_up, down) = (linear(2 * INNER, HIDDEN), linear(HIDDEN, INNER));
        let mut adapter = |adapter: u16, rank: usize, first_column: usize, columns: usize| AdapterWeight {
            adapter: AdapterId(adapter),
            down: HostTensor::from_f32(vec![rank, HIDDEN], &numbers(rank * HIDDEN)),
            up: HostTensor::from_f32(vec![columns, rank], &numbers(columns * rank)),
            scale: 0.3,
            first_column,
        };
        let values = QKV - KV_HEADS * HEAD_DIM;
        let weights = vec![
            adapter(0, 8, 0, HEADS * HEAD_DIM),
            adapter(0, 5, values, KV_HEADS * HEAD_DIM),
            adapter(1, 33, values, KV_HEADS * HEAD_DIM),
        ];
        let adapters = AdapterMatrices::new([QKV, HIDDEN], weights, DType::BF16).unwrap();
        let adapters = backend.pack_adapters(&adapters).unwrap();
        let param = |values: &[f32]| backend.param(&HostTensor::from_f32(vec![values.len()], values)).unwrap();
        let qkv_bias = param(&numbers(QKV));
        let norm = Norm::Rms { weight: param(&numbers(HIDDEN)), eps: 1e-6 };
        let angles = param(&numbers(512 * HEAD_DIM));
        let kv_format = match format {
            WeightFormat::Dense(dtype) => dtype.into(),
            WeightFormat::Grouped(_) => KvFormat::Int8,
        };
        let spec = KvSpec {
            num_layers: 1,
            num_kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            block_tokens: BLOCK_TOKENS,
            format: kv_format,
        };
        let kv = backend.kv_cache(&spec, 16).unwrap();
        let step = backend.step(MAX_ROWS).unwrap();
        let rows = [HIDDEN, HIDDEN, QKV, HEADS * HEAD_DIM, HIDDEN, 2 * INNER, INNER, HIDDEN, VOCAB]
            .map(|cols| backend.rows(MAX_ROWS, cols).unwrap());
        Self {
            table,
            qkv,
            qkv_bias,
            adapters,
            output,
            gate_up,
            down,
            norm,
            angles,
            kv,
            step,
            rows,
            host: Vec::new(),
            backend,
        }
    }

    fn forward(&mut self, batch: &StepBatch) -> &[f32] {
        let backend = &self.backend;
        let [residual, normed, qkv, mixed, delta, gate_up, gated, taken, logits] = &mut self.rows;
        let rope = RopeSpec { num_heads: HEADS, num_kv_heads: KV_HEADS, head_dim: HEAD_DIM, rotary_dim: HEAD_DIM };
        let attend = AttendSpec::causal(HEADS, KV_HEADS, HEAD_DIM, 0.2);
        backend.begin(batch, &mut self.step);
        backend.embed(&self.step, &self.table, residual);
        backend.norm(residual, &self.norm, normed);
        backend.linear(normed, &self.qkv, Some(&self.qkv_bias), qkv);
        backend.adapt(&self.step, normed, &self.adapters, qkv);
        backend.rope(&self.step, qkv, &self.angles, &rope);
        backend.attend(&self.step, qkv, &mut self.kv, 0, &attend, mixed);
        backend.linear(mixed, &self.output, None, delta);
        backend.add_norm(residual, delta, &self.norm, normed);
        backend.linear(normed, &self.gate_up, None, gate_up);
        backend.gate(gate_up, Act::Silu, gated);
        backend.linear(gated, &self.down, None, delta);
        backend.add_norm(residual, delta, &self.norm, normed);
        backend.take_rows(&self.step, normed, taken);
        backend.linear(taken, &self.table, None, logits);
        backend.read(logits, &mut self.host)
    }
}

/// Gives each of two sequences its adapter.
fn adapt(batch: &mut StepBatch) {
    for (span, adapter) in batch.spans.iter_mut().zip(0..) {
        span.adapter = Some(AdapterId(adapter));
    }
}

/// Two sequences: a prompt of 40 tokens and one of 3, then steps of one token each.
fn batches() -> Vec<StepBatch> {
    let tables = [[BlockId(5), BlockId(1), BlockId(9), BlockId(3)], [BlockId(0), BlockId(2), BlockId(4), BlockId(6)]];
    let token = |i: u32| TokenId(i * 37 % VOCAB as u32);
    let mut prefill = StepBatch::default();
    prefill.push_span(&(0..40).map(token).collect::<Vec<_>>(), 0, &tables[0], BLOCK_TOKENS as u32);
    prefill.push_span(&(7..10).map(token).collect::<Vec<_>>(), 0, &tables[1], BLOCK_TOKENS as u32);
    adapt(&mut prefill);
    prefill.logit_rows = vec![39, 42];
    let decode = |i: u32| {
        let mut batch = StepBatch::default();
        batch.push_span(&[token(50 + i)], 40 + i, &tables[0], BLOCK_TOKENS as u32);
        batch.push_span(&[token(90 + i)], 3 + i, &tables[1], BLOCK_TOKENS as u32);
        batch.logit_rows = vec![0, 1];
        adapt(&mut batch);
        batch
    };
    std::iter::once(prefill).chain((0..8).map(decode)).collect()
}

#[test]
fn results_have_the_same_bits_on_every_instruction_set_and_number_of_threads() {
    let _turn = TURN.lock();
    for format in WeightFormat::ALL {
        let run = |isa, threads| -> Vec<u32> {
            let mut decoder = Decoder::new(isa, threads, format);
            let batches = batches();
            batches.iter().flat_map(|batch| decoder.forward(batch).to_vec()).map(f32::to_bits).collect()
        };
        let expected = run(IsaChoice::Scalar, 1);
        for isa in IsaChoice::NAMED.into_iter().filter(|isa| isa.missing().is_empty()) {
            // These round rows where weights are bfloat16: their own results, but on any number of threads.
            let own = matches!(isa, IsaChoice::Avx512Bf16 | IsaChoice::Amx) && format == DType::BF16.into();
            let expected = if own { &run(isa, 1) } else { &expected };
            for threads in [1, 2, 3] {
                assert!(run(isa, threads) == *expected, "{isa} on {threads} threads in {format}");
            }
        }
    }
}

/// What other decoders do besides, one after the other, on rows whose width is no multiple of a vector's.
fn other_operations(isa: IsaChoice, threads: usize) -> Vec<u32> {
    const COLS: usize = 75;
    const ROWS: usize = 40;
    let backend = CpuBackend::new(CpuConfig { threads: Some(threads), isa, pin: false }).unwrap();
    let mut rng = fastrand::Rng::with_seed(3);
    let mut numbers = |count: usize| -> Vec<f32> { (0..count).map(|_| 4.0 * rng.f32() - 2.0).collect() };
    let mut param = |len: usize| backend.param(&HostTensor::from_f32(vec![len], &numbers(len))).unwrap();
    let layer_norm = Norm::Layer { weight: param(COLS), bias: Some(param(COLS)), eps: 1e-5 };
    let positions = param(ROWS * COLS);
    let heads = HeadNorms { query: param(25), key: param(25), eps: 1e-5, num_heads: 1, num_kv_heads: 1 };
    let mut table = |cols: usize| {
        let tensor = HostTensor::from_f32(vec![ROWS, cols], &numbers(ROWS * cols));
        backend.pack(&[DenseWeight::new(tensor, DType::F32).unwrap()]).unwrap()
    };
    let (residual, delta, logits, gate) = (table(COLS), table(COLS), table(9), table(1));

    let mut batch = StepBatch::default();
    for row in 0..ROWS as u32 {
        batch.push_span(&[TokenId(row)], row, &[BlockId(row)], 64);
    }
    let mut step = backend.step(ROWS).unwrap();
    backend.begin(&batch, &mut step);
    let rows = |table, cols| {
        let mut rows = backend.rows(ROWS, cols).unwrap();
        backend.embed(&step, table, &mut rows);
        rows
    };
    let (mut x, mut sum) = (rows(&residual, COLS), rows(&delta, COLS));
    backend.add_positions(&step, &positions, &mut x);
    backend.scale(1.7, &mut x);
    backend.add(&mut x, &sum);
    let mut normed = backend.rows(ROWS, COLS).unwrap();
    backend.add_norm(&mut x, &sum, &layer_norm, &mut normed);
    backend.norm_heads(&mut normed, &heads);
    for act in [Act::Silu, Act::Gelu, Act::GeluTanh, Act::Relu] {
        backend.activate(act, &mut x);
        backend.add(&mut normed, &x);
    }
    let route = RouteSpec { num_experts: 9, top_k: 3, renormalise: true };
    let mut routes = backend.routes(ROWS, &route).unwrap();
    backend.route(&rows(&logits, 9), &route, &mut routes);
    let mut taken = backend.rows(ROWS, COLS).unwrap();
    backend.scale_by_sigmoid(&rows(&gate, 1), &mut sum);
    for expert in 0..9 {
        if backend.take_routed(&routes, expert, &normed, &mut taken) > 0 {
            backend.softcap(1.5, &mut taken);
            backend.add_routed(&routes, expert, &taken, &mut sum);
        }
    }
    backend.read(&sum, &mut Vec::new()).iter().map(|x| x.to_bits()).collect()
}

#[test]
fn other_operations_have_the_same_bits_on_every_instruction_set_and_number_of_threads() {
    let _turn = TURN.lock();
    let expected = other_operations(IsaChoice::Scalar, 1);
    for isa in IsaChoice::NAMED.into_iter().filter(|isa| isa.missing().is_empty()) {
        for threads in [1, 2, 3] {
            assert!(other_operations(isa, threads) == expected, "{isa} on {threads} threads");
        }
    }
}

#[test]
fn a_decode_step_allocates_nothing() {
    let _turn = TURN.lock();
    for isa in IsaChoice::NAMED.into_iter().filter(|isa| isa.missing().is_empty()) {
        for format in WeightFormat::ALL {
            let mut decoder = Decoder::new(isa, 2, format);
            let batches = batches();
            let (warm, counted) = batches.split_at(3);
            for batch in warm {
                decoder.forward(batch);
            }
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            for batch in counted {
                decoder.forward(batch);
            }
            assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0, "{isa} in {format}");
        }
    }
}
