//! Attention: prefill, decode, mixed batches, shared blocks, several layers, every stored precision.

use std::ops::Range;

use super::{Numbers, Precision, Source, assert_close, assert_same_bits, kept, read, step_of, tolerance};
use crate::{AttendSpec, Backend, BlockId, DType, KvFormat, KvSpec, StepBatch, TokenId, WeightFormat, alibi_slope};

const FORMATS: [KvFormat; 4] =
    [KvFormat::Dense(DType::F32), KvFormat::Dense(DType::F16), KvFormat::Dense(DType::BF16), KvFormat::Int8];

/// One shape of attention and the sequences that go through it.
#[derive(Debug, Clone)]
struct Case {
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    block_tokens: usize,
    format: KvFormat,
    /// Positions of each sequence.
    lengths: Vec<usize>,
    /// Size of queries and keys: large ones make one position win.
    size: f32,
    window: Option<u32>,
    softcap: Option<f32>,
    alibi: Option<f32>,
}

const LAYERS: usize = 2;

/// Rows of a sequence that one step computes.
type Piece = (usize, Range<usize>);

/// Results of all layers, by sequence: `[layer][position][num_heads * head_dim]`.
type Results = Vec<Vec<f32>>;

/// Results match the reference.
pub fn attention<B: Backend>(backend: &B, precision: Precision) {
    for case in cases() {
        let bench = Bench::new(backend, case);
        let results = bench.run(&bench.one_mixed_step());
        bench.compare(&results, precision);
    }
}

/// A position's result has the same bits however its prompt was cut, whatever ran beside it and whoever computed its prefix.
pub fn attention_is_batch_invariant<B: Backend>(backend: &B) {
    for case in cases() {
        let bench = Bench::new(backend, case);
        let expected = bench.run(&bench.one_mixed_step());
        let plans = [
            ("each sequence alone", bench.each_alone()),
            ("in pieces of 1", bench.in_pieces(&[1])),
            ("in pieces of 16, 1, 33 and 5", bench.in_pieces(&[16, 1, 33, 5])),
            ("prefilled but for the last two positions", bench.prefill_then_decode()),
        ];
        for (name, plan) in plans {
            for (sequence, (found, expected)) in bench.run(&plan).iter().zip(&expected).enumerate() {
                assert_same_bits(found, expected, || format!("{:?}, sequence {sequence}, {name}", bench.case));
            }
        }
        let (tables, num_blocks) = bench.tables();
        let mut leftovers = bench.cache_of_nan(num_blocks);
        for (found, expected) in bench.run_in(&bench.one_mixed_step(), &tables, &mut leftovers).iter().zip(&expected) {
            assert_same_bits(found, expected, || format!("{:?}, blocks full of NaN before", bench.case));
        }
        bench.shared_blocks_are_as_good_as_own(&expected[0]);
    }
}

fn cases() -> Vec<Case> {
    let base = Case {
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 32,
        block_tokens: 16,
        format: DType::BF16.into(),
        lengths: vec![40, 1, 17],
        size: 1.0,
        window: None,
        softcap: None,
        alibi: None,
    };
    let mut cases = Vec::new();
    for format in FORMATS {
        cases.push(Case { format, lengths: vec![130, 3, 65, 64], ..base.clone() });
    }
    for (head_dim, format) in [1, 2, 8, 15, 17, 24, 33, 64, 80, 128].into_iter().zip(FORMATS.into_iter().cycle()) {
        cases.push(Case { head_dim, format, ..base.clone() });
    }
    for (block_tokens, format) in [16, 32, 48, 64, 80, 128].into_iter().zip(FORMATS.into_iter().cycle()) {
        cases.push(Case { block_tokens, format, lengths: vec![75, 9], head_dim: 24, ..base.clone() });
    }
    for (num_heads, num_kv_heads) in [(1, 1), (3, 3), (3, 1), (8, 1), (14, 2), (16, 1)] {
        cases.push(Case { num_heads, num_kv_heads, ..base.clone() });
    }
    for (window, (num_heads, num_kv_heads)) in
        [1, 2, 15, 16, 64, 70, 100].into_iter().zip([(4, 2), (3, 3)].into_iter().cycle())
    {
        cases.push(Case { window: Some(window), lengths: vec![140], num_heads, num_kv_heads, ..base.clone() });
    }
    for (softcap, size) in [(0.5, 1.0), (30.0, 1.0), (50.0, 12.0)] {
        cases.push(Case { softcap: Some(softcap), size, lengths: vec![70], ..base.clone() });
    }
    for (num_heads, num_kv_heads) in [(4, 2), (6, 6), (12, 3)] {
        cases.push(Case { alibi: Some(8.0), lengths: vec![80], num_heads, num_kv_heads, ..base.clone() });
    }
    cases.push(Case { window: Some(33), softcap: Some(20.0), alibi: Some(4.0), lengths: vec![100], ..base.clone() });
    cases.push(Case { size: 12.0, lengths: vec![100, 30], ..base.clone() });
    cases
}

/// Random queries, keys and values of a case; sequence 1 and later have their own.
struct Bench<'b, B: Backend> {
    backend: &'b B,
    case: Case,
    spec: AttendSpec,
    /// By layer, sequence and position: `[(num_heads + 2 * num_kv_heads) * head_dim]`.
    values: Vec<f32>,
    source: Source<'b, B>,
}

impl<'b, B: Backend> Bench<'b, B> {
    fn new(backend: &'b B, case: Case) -> Self {
        let spec = AttendSpec {
            num_heads: case.num_heads,
            num_kv_heads: case.num_kv_heads,
            head_dim: case.head_dim,
            scale: 1.0 / (case.head_dim as f32).sqrt(),
            window: case.window,
            softcap: case.softcap,
            alibi: case.alibi,
        };
        let cols = (case.num_heads + 2 * case.num_kv_heads) * case.head_dim;
        let positions: usize = case.lengths.iter().sum();
        let values = Numbers(case.head_dim as u64).take(LAYERS * positions * cols, case.size);
        let source = Source::new(backend, &values, cols);
        Self { backend, case, spec, values, source }
    }

    fn out_cols(&self) -> usize {
        self.case.num_heads * self.case.head_dim
    }

    /// Where a position's values are in `source`.
    fn row(&self, layer: usize, sequence: usize, position: usize) -> usize {
        let positions: usize = self.case.lengths.iter().sum();
        layer * positions + self.case.lengths[..sequence].iter().sum::<usize>() + position
    }

    fn one_mixed_step(&self) -> Vec<Vec<Piece>> {
        vec![self.case.lengths.iter().enumerate().map(|(sequence, &length)| (sequence, 0..length)).collect()]
    }

    fn each_alone(&self) -> Vec<Vec<Piece>> {
        // Last first, so that blocks are not filled in their order.
        self.case.lengths.iter().enumerate().rev().map(|(sequence, &length)| vec![(sequence, 0..length)]).collect()
    }

    /// All sequences side by side, step by step, each by pieces of these sizes in turn.
    fn in_pieces(&self, sizes: &[usize]) -> Vec<Vec<Piece>> {
        let mut done = vec![0; self.case.lengths.len()];
        let mut steps = Vec::new();
        while done != self.case.lengths {
            let mut step = Vec::new();
            for (sequence, done) in done.iter_mut().enumerate() {
                let size = sizes[(steps.len() + sequence) % sizes.len()].min(self.case.lengths[sequence] - *done);
                if size > 0 {
                    step.push((sequence, *done..*done + size));
                    *done += size;
                }
            }
            steps.push(step);
        }
        steps
    }

    fn prefill_then_decode(&self) -> Vec<Vec<Piece>> {
        let prompt = |length: usize| length.saturating_sub(2);
        let each = || self.case.lengths.iter().copied().enumerate();
        let mut steps: Vec<Vec<Piece>> = vec![each().map(|(sequence, length)| (sequence, 0..prompt(length))).collect()];
        for back in [2, 1] {
            steps.push(
                each()
                    .filter(|(_, length)| *length >= back)
                    .map(|(sequence, length)| (sequence, length - back..length - back + 1))
                    .collect(),
            );
        }
        steps.iter_mut().for_each(|step| step.retain(|(_, piece)| !piece.is_empty()));
        steps
    }

    /// Block tables of all sequences: their own blocks, in no order.
    fn tables(&self) -> (Vec<Vec<BlockId>>, u32) {
        let blocks_of = |length: usize| length.div_ceil(self.case.block_tokens);
        let num_blocks: usize = self.case.lengths.iter().map(|&length| blocks_of(length)).sum();
        let mut free: Vec<u32> = (0..num_blocks as u32).collect();
        let mut numbers = Numbers(99);
        for i in (1..free.len()).rev() {
            free.swap(i, (numbers.bits() % (i as u64 + 1)) as usize);
        }
        let mut free = free.into_iter().map(BlockId);
        let tables = self.case.lengths.iter().map(|&length| free.by_ref().take(blocks_of(length)).collect()).collect();
        (tables, num_blocks as u32)
    }

    fn cache(&self, num_blocks: u32) -> B::KvCache {
        let Case { num_kv_heads, head_dim, block_tokens, format, .. } = self.case;
        let spec = KvSpec { num_layers: LAYERS, num_kv_heads, head_dim, block_tokens, format };
        self.backend.kv_cache(&spec, num_blocks).expect("a cache fits")
    }

    /// A cache in which an earlier sequence left nothing but NaN.
    fn cache_of_nan(&self, num_blocks: u32) -> B::KvCache {
        let mut kv = self.cache(num_blocks);
        let cols = (self.case.num_heads + 2 * self.case.num_kv_heads) * self.case.head_dim;
        let source = Source::new(self.backend, &vec![f32::NAN; cols], cols);
        let num_rows = num_blocks as usize * self.case.block_tokens;
        let blocks: Vec<BlockId> = (0..num_blocks).map(BlockId).collect();
        let mut batch = StepBatch::default();
        batch.push_span(&vec![TokenId(0); num_rows], 0, &blocks, self.case.block_tokens as u32);
        let step = step_of(self.backend, &batch);
        let mut out = self.backend.rows(num_rows, self.out_cols()).expect("rows fit");
        for layer in 0..LAYERS {
            self.backend.attend(
                &step,
                &source.rows([0].repeat(num_rows).into_iter()),
                &mut kv,
                layer,
                &self.spec,
                &mut out,
            );
        }
        assert!(read(self.backend, &out).iter().all(|x| x.is_nan()));
        kv
    }

    fn run(&self, steps: &[Vec<Piece>]) -> Results {
        let (tables, num_blocks) = self.tables();
        self.run_in(steps, &tables, &mut self.cache(num_blocks))
    }

    fn run_in(&self, steps: &[Vec<Piece>], tables: &[Vec<BlockId>], kv: &mut B::KvCache) -> Results {
        let mut results: Results =
            self.case.lengths.iter().map(|&length| vec![f32::NAN; LAYERS * length * self.out_cols()]).collect();
        for pieces in steps {
            self.step(pieces, tables, kv, &mut results);
        }
        results
    }

    fn step(&self, pieces: &[Piece], tables: &[Vec<BlockId>], kv: &mut B::KvCache, results: &mut Results) {
        let mut batch = StepBatch::default();
        for (sequence, piece) in pieces {
            let tokens = vec![TokenId(0); piece.len()];
            let blocks = &tables[*sequence][..piece.end.div_ceil(self.case.block_tokens)];
            batch.push_span(&tokens, piece.start as u32, blocks, self.case.block_tokens as u32);
        }
        let step = step_of(self.backend, &batch);
        let mut out = self.backend.rows(batch.num_rows(), self.out_cols()).expect("rows fit");
        for layer in 0..LAYERS {
            let rows = pieces
                .iter()
                .flat_map(|(sequence, piece)| piece.clone().map(move |position| self.row(layer, *sequence, position)));
            self.backend.attend(&step, &self.source.rows(rows), kv, layer, &self.spec, &mut out);
            let found = read(self.backend, &out);
            let mut found = found.chunks(self.out_cols());
            for (sequence, piece) in pieces {
                for position in piece.clone() {
                    let at = (layer * self.case.lengths[*sequence] + position) * self.out_cols();
                    results[*sequence][at..][..self.out_cols()].copy_from_slice(found.next().expect("a row"));
                }
            }
        }
    }

    /// A second sequence with the same tokens begins behind full blocks that the first one computed, in the same step and later.
    fn shared_blocks_are_as_good_as_own(&self, expected: &[f32]) {
        let length = self.case.lengths[0];
        let block_tokens = self.case.block_tokens;
        let shared_blocks = (length - 1) / block_tokens;
        let shared = shared_blocks * block_tokens;
        let num_blocks = length.div_ceil(block_tokens);
        let first: Vec<BlockId> = (0..num_blocks as u32).map(BlockId).collect();
        let second: Vec<BlockId> =
            (0..num_blocks).map(|i| BlockId(if i < shared_blocks { i } else { num_blocks + i } as u32)).collect();
        for together in [true, false] {
            let mut kv = self.cache(2 * num_blocks as u32);
            let mut results: Results = vec![vec![f32::NAN; LAYERS * length * self.out_cols()]];
            if together {
                // The same sequence twice in one batch: rows of the second follow those of the first.
                self.twice(&[&first, &second], length, shared, &mut kv, &mut results);
            } else {
                self.step(&[(0, 0..length)], std::slice::from_ref(&first), &mut kv, &mut results);
                self.step(&[(0, shared..length)], std::slice::from_ref(&second), &mut kv, &mut results);
            }
            assert_same_bits(&results[0], expected, || format!("{:?}, shared blocks, {together}", self.case));
        }
    }

    fn twice(
        &self,
        tables: &[&[BlockId]; 2],
        length: usize,
        shared: usize,
        kv: &mut B::KvCache,
        results: &mut Results,
    ) {
        let block_tokens = self.case.block_tokens as u32;
        let mut batch = StepBatch::default();
        batch.push_span(&vec![TokenId(0); length], 0, tables[0], block_tokens);
        batch.push_span(&vec![TokenId(0); length - shared], shared as u32, tables[1], block_tokens);
        let step = step_of(self.backend, &batch);
        let mut out = self.backend.rows(batch.num_rows(), self.out_cols()).expect("rows fit");
        for layer in 0..LAYERS {
            let rows = (0..length).chain(shared..length).map(|position| self.row(layer, 0, position));
            self.backend.attend(&step, &self.source.rows(rows), kv, layer, &self.spec, &mut out);
            let found = read(self.backend, &out);
            let (first, second) = found.split_at(length * self.out_cols());
            let result = &mut results[0][layer * length * self.out_cols()..][..length * self.out_cols()];
            result.copy_from_slice(first);
            result[shared * self.out_cols()..].copy_from_slice(second);
        }
    }

    /// Some positions of each sequence against softmax attention in f64.
    fn compare(&self, results: &Results, precision: Precision) {
        let rounds = self.case.format == DType::BF16.into() && precision.beside_bf16 == DType::BF16;
        for (sequence, &length) in self.case.lengths.iter().enumerate() {
            let step = (length / 5).max(1);
            for position in (0..length).step_by(step).chain([length - 1]) {
                for layer in 0..LAYERS {
                    for head in 0..self.case.num_heads {
                        let at = (layer * length + position) * self.out_cols() + head * self.case.head_dim;
                        let found = &results[sequence][at..][..self.case.head_dim];
                        self.compare_head(found, layer, sequence, position, head, rounds);
                    }
                }
            }
        }
    }

    /// `rounds`: queries and exponentials are rounded to bfloat16.
    fn compare_head(&self, found: &[f32], layer: usize, sequence: usize, position: usize, head: usize, rounds: bool) {
        let Case { num_heads, num_kv_heads, head_dim, format, .. } = self.case;
        let cols = (num_heads + 2 * num_kv_heads) * head_dim;
        let values_of = |position: usize, head: usize| {
            let row = self.row(layer, sequence, position);
            &self.values[row * cols + head * head_dim..][..head_dim]
        };
        let kv_head = head / (num_heads / num_kv_heads);
        let query: Vec<f32> = values_of(position, head).iter().map(|q| q * self.spec.scale).collect();
        let query = kept(&query, if rounds { DType::BF16 } else { DType::F32 }.into());
        let mut scores = Vec::new();
        let mut score_magnitude = 0.0f64;
        let slope = self.spec.alibi.map_or(0.0, |max_exponent| f64::from(alibi_slope(head, num_heads, max_exponent)));
        let first = self.spec.window.map_or(0, |window| (position + 1).saturating_sub(window as usize));
        for context in first..=position {
            let key = stored(values_of(context, num_heads + kv_head), format);
            let (mut score, mut magnitude) = (0.0, 0.0);
            for (&q, &k) in query.iter().zip(&key) {
                let product = q * k;
                score += product;
                magnitude += product.abs();
            }
            if let Some(cap) = self.spec.softcap {
                let cap = f64::from(cap);
                score = cap * (score / cap).tanh();
                magnitude += cap;
            }
            let distance = slope * (position - context) as f64;
            score -= distance;
            magnitude += distance;
            scores.push(score);
            score_magnitude = score_magnitude.max(magnitude);
        }
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let size = f64::from(self.case.size);
        let tolerance = tolerance::attention(head_dim, position + 1, score_magnitude, size, rounds);
        let values: Vec<Vec<f64>> = (first..=position)
            .map(|context| stored(values_of(context, num_heads + num_kv_heads + kv_head), format))
            .collect();
        for (d, &found) in found.iter().enumerate() {
            let mixed: f64 = weights.iter().zip(&values).map(|(weight, value)| weight * value[d]).sum();
            let case = || {
                format!("{:?}, layer {layer}, sequence {sequence}, position {position}, head {head}, {d}", self.case)
            };
            assert_close(found, mixed / sum, tolerance, case);
        }
    }
}

/// A head's key or value as it is kept.
fn stored(numbers: &[f32], format: KvFormat) -> Vec<f64> {
    match format {
        KvFormat::Dense(dtype) => kept(numbers, dtype.into()),
        KvFormat::Int8 => kept(numbers, WeightFormat::INT8),
    }
}
