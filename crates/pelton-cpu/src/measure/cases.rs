//! The operations that are measured: shapes of released decoders, prepared once, run again and again.
//!
//! What a decoder reads from memory must not sit in a cache here either. Cases that share weights are far apart in the order of a
//! round, everything between them goes through the caches, and where all weights together would still fit, each matrix is there
//! several times and the copies take turns. Keys and values take turns by sequence and layer.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use half::bf16;
use pelton_backend::{
    Act, AdapterId, AdapterMatrices, AdapterWeight, AttendSpec, Backend, BackendError, BlockId, DType, DenseWeight,
    HostTensor, KvSpec, Norm, RopeSpec, StepBatch, TokenId, WeightFormat,
};

use super::Extent;
use super::roofline::{Need, Source, Unit};
use crate::isa::Isa;
use crate::{CpuBackend, KvCache, PackedLinear, Rows, Step};

/// What multiplies weights, keys or values kept in `format`.
fn unit(format: WeightFormat, isa: Isa) -> Unit {
    match (format, isa) {
        (WeightFormat::Dense(DType::BF16), Isa::Avx512Bf16(_) | Isa::Amx(_)) => Unit::Bf16,
        (WeightFormat::Dense(_), _) => Unit::F32,
        (WeightFormat::Grouped(_), _) => Unit::Int8,
    }
}

/// Sizes of what is measured.
struct Sizes {
    /// `[n, k]` of linears.
    linears: &'static [[usize; 2]],
    /// Rows of linears.
    linear_rows: &'static [usize],
    /// Columns of the residual stream.
    hidden: usize,
    /// Columns between gate and down.
    inner: usize,
    /// Rows of norm, rope, gate and embed.
    pointwise_rows: &'static [usize],
    /// Positions in the cache of each decoding sequence.
    context: usize,
    /// Sequences that decode together.
    decoding: &'static [usize],
    /// Rows of a prefill.
    prefill: usize,
}

/// The widths of a llama of 1.1 billion parameters (TinyLlama): its attention projections, an MLP projection, its head.
const FULL: Sizes = Sizes {
    linears: &[[2048, 2048], [2048, 5632], [32_000, 2048]],
    linear_rows: &[1, 8, 32, 256],
    hidden: 2048,
    inner: 5632,
    pointwise_rows: &[1, 32],
    context: 4096,
    decoding: &[1, 8],
    prefill: 2048,
};

/// The same operations, small.
const QUICK: Sizes = Sizes {
    linears: &[[256, 256], [256, 704]],
    linear_rows: &[1, 8, 32, 256],
    hidden: 256,
    inner: 704,
    pointwise_rows: &[1, 32],
    context: 512,
    decoding: &[1, 8],
    prefill: 256,
};

/// Grouped queries, as in that model.
const HEADS: AttendSpec = AttendSpec::causal(32, 4, 64, 0.125);

/// Columns of a row of queries, keys and values.
const QKV_COLS: usize = (HEADS.num_heads + 2 * HEADS.num_kv_heads) * HEADS.head_dim;

/// Precision of keys and values.
const KV_DTYPE: DType = DType::BF16;

/// Adapters of a step, and their rank.
const NUM_ADAPTERS: u16 = 4;
const ADAPTER_RANK: usize = 16;

/// Positions in a KV block.
const BLOCK_TOKENS: usize = 16;

/// Rows of a step that only fills the cache.
const FILL_ROWS: usize = 512;

/// Layers of keys and values at most; memory for the table should stay far below what a model takes.
const MAX_KV_LAYERS: usize = 16;

/// Batches of embed and decode that take turns.
const TURNS: usize = 16;

/// One operation at one size.
pub(super) struct Case {
    /// The operation of [`Backend`].
    pub kernel: &'static str,
    /// Its size, for people.
    pub size: String,
    /// Rows of the step.
    pub rows: usize,
    /// The least it moves and computes.
    pub need: Need,
    /// Does it once.
    pub run: Box<dyn FnMut(&CpuBackend)>,
}

/// All cases, in the order of a round; `uncached_bytes` is what no cache holds.
pub(super) fn all(backend: &CpuBackend, extent: Extent, uncached_bytes: u64) -> Result<Vec<Case>, BackendError> {
    let sizes = match extent {
        Extent::Full => &FULL,
        Extent::Quick => &QUICK,
    };
    // What is small in any case need not be kept out of caches.
    let uncached_bytes = if extent == Extent::Full { uncached_bytes } else { 0 };
    let mut cases = linears(backend, sizes, uncached_bytes)?;
    cases.extend(adapters(backend, sizes, uncached_bytes)?);
    cases.extend(attention(backend, sizes, uncached_bytes)?);
    cases.extend(pointwise(backend, sizes)?);
    Ok(cases)
}

fn linears(backend: &CpuBackend, sizes: &Sizes, uncached_bytes: u64) -> Result<Vec<Case>, BackendError> {
    struct Matrix {
        n: usize,
        k: usize,
        format: WeightFormat,
        copies: Rc<Vec<PackedLinear>>,
        out: Rc<RefCell<Rows>>,
    }
    let max_rows = sizes.linear_rows.iter().copied().max().unwrap_or(1);
    let bytes = |format: WeightFormat, n: usize, k: usize| format.matrix_bytes(n as u64, k as u64);
    let together: u64 =
        sizes.linears.iter().flat_map(|&[n, k]| WeightFormat::ALL.map(|format| bytes(format, n, k))).sum();
    let num_copies = uncached_bytes.div_ceil(together.max(1)).max(1);
    let mut matrices = Vec::new();
    for &[n, k] in sizes.linears {
        let numbers = made_up_matrix(n, k);
        let out = Rc::new(RefCell::new(backend.rows(max_rows, n)?));
        for format in WeightFormat::ALL {
            let matrix = HostTensor::new(DType::BF16, vec![n, k], &numbers[..])?;
            let pack = |_| backend.pack(&[DenseWeight::new(matrix.clone(), format)?]);
            let copies = (0..num_copies).map(pack).collect::<Result<Vec<_>, _>>()?;
            matrices.push(Matrix { n, k, format, copies: Rc::new(copies), out: Rc::clone(&out) });
        }
    }
    let mut cases = Vec::new();
    for &rows in sizes.linear_rows {
        for matrix in &matrices {
            let &Matrix { n, k, format, .. } = matrix;
            let (copies, out) = (Rc::clone(&matrix.copies), Rc::clone(&matrix.out));
            let x = made_up_rows(backend, rows, k)?;
            let mut turn = 0;
            cases.push(Case {
                kernel: "linear",
                size: format!("{n} x {k} {format}"),
                rows,
                need: Need {
                    // Weights alone: activations come from a cache.
                    bytes: bytes(format, n, k) as f64,
                    source: Source::Memory,
                    operations: 2.0 * (rows * n * k) as f64,
                    unit: unit(format, backend.isa),
                },
                run: Box::new(move |backend| {
                    backend.linear(&x, &copies[turn % copies.len()], None, &mut out.borrow_mut());
                    turn += 1;
                }),
            });
        }
    }
    Ok(cases)
}

/// Adapters of one square linear whose rows are mixed in each step.
fn adapters(backend: &CpuBackend, sizes: &Sizes, uncached_bytes: u64) -> Result<Vec<Case>, BackendError> {
    let k = sizes.hidden;
    let numbers = made_up_matrix(ADAPTER_RANK, k);
    let matrix = |shape: [usize; 2]| HostTensor::new(DType::BF16, shape.to_vec(), &numbers[..]);
    let weight = |adapter: u16| {
        Ok(AdapterWeight {
            adapter: AdapterId(adapter),
            down: matrix([ADAPTER_RANK, k])?,
            up: matrix([k, ADAPTER_RANK])?,
            scale: 1.0,
            first_column: 0,
        })
    };
    let weights = (0..NUM_ADAPTERS).map(weight).collect::<Result<_, BackendError>>()?;
    let matrices = AdapterMatrices::new([k, k], weights, DType::BF16)?;
    let adapter_bytes = 2 * DType::BF16.size_bytes() * ADAPTER_RANK * k;
    let num_copies = uncached_bytes.div_ceil((usize::from(NUM_ADAPTERS) * adapter_bytes) as u64).clamp(1, 256);
    let copies = (0..num_copies).map(|_| backend.pack_adapters(&matrices)).collect::<Result<Vec<_>, _>>()?;
    let copies = Rc::new(copies);
    let mut cases = Vec::new();
    for &rows in sizes.pointwise_rows {
        let mut batch = StepBatch::default();
        for row in 0..rows as u32 {
            let rows = batch.push_span(&[TokenId(0)], 0, &[BlockId(row)], BLOCK_TOKENS as u32);
            rows.adapter = Some(AdapterId(row as u16 % NUM_ADAPTERS));
        }
        let step = uploaded(backend, &batch)?;
        let (x, mut out) = (made_up_rows(backend, rows, k)?, made_up_rows(backend, rows, k)?);
        let copies = Rc::clone(&copies);
        let present = rows.min(usize::from(NUM_ADAPTERS));
        let mut turn = 0;
        cases.push(Case {
            kernel: "adapt",
            size: format!("{k} x {k}, rank {ADAPTER_RANK}, {present} of {NUM_ADAPTERS}"),
            rows,
            need: Need {
                bytes: (present * adapter_bytes) as f64,
                source: Source::Memory,
                operations: 4.0 * (rows * ADAPTER_RANK * k) as f64,
                unit: Unit::F32,
            },
            run: Box::new(move |backend| {
                backend.adapt(&step, &x, &copies[turn % copies.len()], &mut out);
                turn += 1;
            }),
        });
    }
    Ok(cases)
}

fn attention(backend: &CpuBackend, sizes: &Sizes, uncached_bytes: u64) -> Result<Vec<Case>, BackendError> {
    let max_sequences = sizes.decoding.iter().copied().max().unwrap_or(1);
    let sequence_blocks = sizes.context.max(sizes.prefill).div_ceil(BLOCK_TOKENS);
    let kv_spec = |num_layers| KvSpec {
        num_layers,
        num_kv_heads: HEADS.num_kv_heads,
        head_dim: HEADS.head_dim,
        block_tokens: BLOCK_TOKENS,
        format: KV_DTYPE.into(),
    };
    let num_blocks = max_sequences * sequence_blocks;
    let layer_bytes = (kv_spec(1).block_bytes() * num_blocks) as u64;
    let num_layers = uncached_bytes.div_ceil(layer_bytes).clamp(2, MAX_KV_LAYERS as u64) as usize;
    let mut kv = backend.kv_cache(&kv_spec(num_layers), num_blocks as u32)?;
    fill(backend, &mut kv, num_layers, num_blocks)?;
    let kv = Rc::new(RefCell::new(kv));
    let blocks = |sequence: usize| -> Vec<BlockId> {
        (sequence * sequence_blocks..(sequence + 1) * sequence_blocks).map(|block| BlockId(block as u32)).collect()
    };

    let mut cases = Vec::new();
    for &sequences in sizes.decoding {
        // As many batches as there are groups of so many sequences; with each layer they take turns.
        let mut turns = Vec::new();
        for group in 0..(max_sequences / sequences).min(TURNS) {
            let mut batch = StepBatch::default();
            for sequence in group * sequences..(group + 1) * sequences {
                batch.push_span(&[TokenId(0)], sizes.context as u32 - 1, &blocks(sequence), BLOCK_TOKENS as u32);
            }
            turns.push(uploaded(backend, &batch)?);
        }
        let qkv = made_up_rows(backend, sequences, QKV_COLS)?;
        let mut out = backend.rows(sequences, HEADS.num_heads * HEADS.head_dim)?;
        let kv = Rc::clone(&kv);
        let mut turn = 0;
        cases.push(Case {
            kernel: "attend",
            size: format!("decode, {sequences} x {} tokens, KV {}", sizes.context, KV_DTYPE),
            rows: sequences,
            need: attention_need(backend, sequences * sizes.context, sequences * sizes.context),
            run: Box::new(move |backend| {
                let layer = turn / turns.len() % num_layers;
                backend.attend(&turns[turn % turns.len()], &qkv, &mut kv.borrow_mut(), layer, &HEADS, &mut out);
                turn += 1;
            }),
        });
    }

    let rows = sizes.prefill;
    let mut batch = StepBatch::default();
    batch.push_span(&vec![TokenId(0); rows], 0, &blocks(0), BLOCK_TOKENS as u32);
    let step = uploaded(backend, &batch)?;
    let qkv = made_up_rows(backend, rows, QKV_COLS)?;
    let mut out = backend.rows(rows, HEADS.num_heads * HEADS.head_dim)?;
    cases.push(Case {
        kernel: "attend",
        size: format!("prefill, {rows} tokens, KV {KV_DTYPE}"),
        rows,
        need: attention_need(backend, rows, rows * (rows + 1) / 2),
        run: Box::new(move |backend| backend.attend(&step, &qkv, &mut kv.borrow_mut(), 0, &HEADS, &mut out)),
    });
    Ok(cases)
}

/// Attention that reads `read` positions of keys and values, where rows and positions make `pairs`.
fn attention_need(backend: &CpuBackend, read: usize, pairs: usize) -> Need {
    Need {
        bytes: (read * 2 * HEADS.num_kv_heads * HEADS.head_dim * KV_DTYPE.size_bytes()) as f64,
        source: Source::Memory,
        // A score and a share of a value: two multiply-adds for each column of each query head.
        operations: (pairs * 4 * HEADS.num_heads * HEADS.head_dim) as f64,
        unit: unit(KV_DTYPE.into(), backend.isa),
    }
}

/// Writes keys and values to every block, each as a sequence of its own, which costs next to nothing.
fn fill(backend: &CpuBackend, kv: &mut KvCache, num_layers: usize, num_blocks: usize) -> Result<(), BackendError> {
    let qkv = made_up_rows(backend, FILL_ROWS, QKV_COLS)?;
    let mut part = backend.rows(FILL_ROWS, QKV_COLS)?;
    let mut out = backend.rows(FILL_ROWS, HEADS.num_heads * HEADS.head_dim)?;
    let mut step = backend.step(FILL_ROWS)?;
    let all: Vec<usize> = (0..num_blocks).collect();
    let mut batch = StepBatch::default();
    for blocks in all.chunks(FILL_ROWS / BLOCK_TOKENS) {
        batch.clear();
        for &block in blocks {
            batch.push_span(&[TokenId(0); BLOCK_TOKENS], 0, &[BlockId(block as u32)], BLOCK_TOKENS as u32);
        }
        // The last piece may be shorter than the rows made up.
        batch.logit_rows = (0..batch.num_rows() as u32).collect();
        backend.begin(&batch, &mut step);
        backend.take_rows(&step, &qkv, &mut part);
        for layer in 0..num_layers {
            backend.attend(&step, &part, kv, layer, &HEADS, &mut out);
        }
    }
    Ok(())
}

/// What surrounds linears and attention: its rows are in a cache, left there by the operation before.
fn pointwise(backend: &CpuBackend, sizes: &Sizes) -> Result<Vec<Case>, BackendError> {
    let &Sizes { hidden, inner, .. } = sizes;
    let vocab = sizes.linears.iter().map(|&[n, _]| n).max().unwrap_or(hidden);
    let table_bytes = made_up_matrix(vocab, hidden);
    let table = HostTensor::new(DType::BF16, vec![vocab, hidden], &table_bytes[..])?;
    let table = Rc::new(backend.pack(&[DenseWeight::new(table, DType::BF16)?])?);
    let in_cache =
        |floats: usize| Need { bytes: 4.0 * floats as f64, source: Source::Cache, operations: 0.0, unit: Unit::F32 };
    let mut cases = Vec::new();
    for &rows in sizes.pointwise_rows {
        let mut batch = StepBatch::default();
        for row in 0..rows as u32 {
            batch.push_span(&[TokenId(row)], row % BLOCK_TOKENS as u32, &[BlockId(row)], BLOCK_TOKENS as u32);
        }
        let step = uploaded(backend, &batch)?;

        let ones = HostTensor::from_f32(vec![hidden], &vec![1.0; hidden]);
        let norm = Norm::Rms { weight: backend.param(&ones)?, eps: 1e-5 };
        let (mut residual, delta) = (made_up_rows(backend, rows, hidden)?, made_up_rows(backend, rows, hidden)?);
        let mut out = backend.rows(rows, hidden)?;
        cases.push(Case {
            kernel: "add_norm",
            size: format!("{hidden}"),
            rows,
            // Reads both, writes the sum and its norm.
            need: in_cache(4 * rows * hidden),
            run: Box::new(move |backend| backend.add_norm(&mut residual, &delta, &norm, &mut out)),
        });

        let rope = RopeSpec {
            num_heads: HEADS.num_heads,
            num_kv_heads: HEADS.num_kv_heads,
            head_dim: HEADS.head_dim,
            rotary_dim: HEADS.head_dim,
        };
        // Cosines of one and sines of zero: what is multiplied does not matter, and rows keep their size.
        let angles: Vec<f32> = (0..BLOCK_TOKENS * HEADS.head_dim)
            .map(|i| f32::from(u8::from(i % HEADS.head_dim < HEADS.head_dim / 2)))
            .collect();
        let angles = backend.param(&HostTensor::from_f32(vec![BLOCK_TOKENS, HEADS.head_dim], &angles))?;
        let mut qkv = made_up_rows(backend, rows, QKV_COLS)?;
        let rotated = (HEADS.num_heads + HEADS.num_kv_heads) * HEADS.head_dim;
        cases.push(Case {
            kernel: "rope",
            size: format!("{} + {} heads of {}", HEADS.num_heads, HEADS.num_kv_heads, HEADS.head_dim),
            rows,
            need: in_cache(2 * rows * rotated),
            run: Box::new(move |backend| backend.rope(&step, &mut qkv, &angles, &rope)),
        });

        let gate_up = made_up_rows(backend, rows, 2 * inner)?;
        let mut out = backend.rows(rows, inner)?;
        cases.push(Case {
            kernel: "gate",
            size: format!("silu, {inner}"),
            rows,
            need: in_cache(3 * rows * inner),
            run: Box::new(move |backend| backend.gate(&gate_up, Act::Silu, &mut out)),
        });

        let mut turns = Vec::new();
        let tokens = Cell::new(0u32);
        for _ in 0..TURNS {
            let token_ids = (0..rows).map(|_| {
                // Steps of a number that shares no factor with the size of a vocabulary, far apart.
                tokens.set((tokens.get() + 7919) % vocab as u32);
                TokenId(tokens.get())
            });
            turns.push(uploaded(backend, &StepBatch { token_ids: token_ids.collect(), ..StepBatch::default() })?);
        }
        let table = Rc::clone(&table);
        let mut out = backend.rows(rows, hidden)?;
        let mut turn = 0;
        cases.push(Case {
            kernel: "embed",
            size: format!("{vocab} x {hidden} {}", DType::BF16),
            rows,
            need: Need { source: Source::Memory, bytes: 2.0 * (rows * hidden) as f64, ..in_cache(0) },
            run: Box::new(move |backend| {
                backend.embed(&turns[turn % TURNS], &table, &mut out);
                turn += 1;
            }),
        });
    }
    Ok(cases)
}

fn uploaded(backend: &CpuBackend, batch: &StepBatch) -> Result<Step, BackendError> {
    let mut step = backend.step(batch.num_rows())?;
    backend.begin(batch, &mut step);
    Ok(step)
}

/// Made-up numbers repeat after so many, a prime, so that neighbouring rows differ. Fewer would be learnt by branch predictors: rounding rows
/// once seemed to cost nothing, and took a third of a linear's time with others.
const PERIOD: usize = 65_537;

/// Numbers between -0.5 and 0.5 without a pattern; SplitMix64 (Steele, Lea and Flood 2014).
fn made_up(index: usize) -> f32 {
    let mixed = ((index % PERIOD + 1) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((mixed ^ (mixed >> 27)) >> 40) as f32 / (1u64 << 24) as f32 - 0.5
}

/// Little-endian bf16 of a matrix `[n, k]`.
fn made_up_matrix(n: usize, k: usize) -> Vec<u8> {
    let period: Vec<u8> = (0..PERIOD).flat_map(|i| bf16::from_f32(made_up(i)).to_le_bytes()).collect();
    let mut bytes = Vec::with_capacity(2 * n * k + period.len());
    while bytes.len() < 2 * n * k {
        bytes.extend_from_slice(&period);
    }
    bytes.truncate(2 * n * k);
    bytes
}

/// `rows` rows of `cols` made-up numbers.
fn made_up_rows(backend: &CpuBackend, rows: usize, cols: usize) -> Result<Rows, BackendError> {
    let values: Vec<f32> = (0..rows * cols).map(made_up).collect();
    let table = HostTensor::from_f32(vec![rows, cols], &values);
    let table = backend.pack(&[DenseWeight::new(table, DType::F32)?])?;
    let token_ids = (0..rows as u32).map(TokenId).collect();
    let step = uploaded(backend, &StepBatch { token_ids, ..StepBatch::default() })?;
    let mut out = backend.rows(rows, cols)?;
    backend.embed(&step, &table, &mut out);
    Ok(out)
}
