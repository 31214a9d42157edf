//! Adapters: sums against the definition in f64, rows without one untouched, and no row moved by another's adapter.

use super::{Numbers, Source, assert_close, assert_same_bits, kept, read, step_of, tolerance};
use crate::{
    AdapterId, AdapterMatrices, AdapterWeight, Backend, BlockId, DType, HostTensor, StepBatch, TokenId, WeightFormat,
};

/// One matrix of an adapter, on the host.
struct Product {
    adapter: u16,
    rank: usize,
    first_column: usize,
    columns: usize,
    scale: f32,
    down: Vec<f32>,
    up: Vec<f32>,
}

struct Case {
    in_features: usize,
    out_features: usize,
    stored_as: DType,
    products: Vec<Product>,
}

impl Case {
    /// `shapes`: adapter, rank, first column and columns of each product.
    fn new([n, k]: [usize; 2], stored_as: DType, shapes: &[(u16, usize, usize, usize)], numbers: &mut Numbers) -> Self {
        let product = |&(adapter, rank, first_column, columns): &(u16, usize, usize, usize)| Product {
            adapter,
            rank,
            first_column,
            columns,
            scale: 0.5 + numbers.next(0.25),
            down: numbers.take(rank * k, 1.0),
            up: numbers.take(columns * rank, 1.0),
        };
        Self { in_features: k, out_features: n, stored_as, products: shapes.iter().map(product).collect() }
    }

    fn pack<B: Backend>(&self, backend: &B) -> B::Adapters {
        let weight = |product: &Product| AdapterWeight {
            adapter: AdapterId(product.adapter),
            down: HostTensor::from_f32(vec![product.rank, self.in_features], &product.down),
            up: HostTensor::from_f32(vec![product.columns, product.rank], &product.up),
            scale: product.scale,
            first_column: product.first_column,
        };
        let weights = self.products.iter().map(weight).collect();
        let matrices = AdapterMatrices::new([self.out_features, self.in_features], weights, self.stored_as);
        backend.pack_adapters(&matrices.expect("matrices fit")).expect("adapters fit")
    }

    /// What the adapter of a row adds to one column, and the sum of magnitudes.
    fn added(&self, adapter: u16, x: &[f32], column: usize) -> (f64, f64, usize) {
        let format = WeightFormat::Dense(self.stored_as);
        let (mut sum, mut magnitude, mut terms) = (0.0, 0.0, 0);
        for product in self.products.iter().filter(|product| product.adapter == adapter) {
            let Some(row) = column.checked_sub(product.first_column).filter(|row| *row < product.columns) else {
                continue;
            };
            let up = kept(&product.up[row * product.rank..][..product.rank], format);
            for (down, up) in product.down.chunks(self.in_features).zip(up) {
                for (x, a) in x.iter().zip(kept(down, format)) {
                    let term = f64::from(product.scale) * f64::from(*x) * a * up;
                    sum += term;
                    magnitude += term.abs();
                }
            }
            terms += self.in_features + product.rank;
        }
        (sum, magnitude, terms)
    }
}

/// Sequences of so many rows with these adapters.
fn batch_of(spans: &[(usize, Option<u16>)]) -> StepBatch {
    let mut batch = StepBatch::default();
    for (index, &(rows, adapter)) in spans.iter().enumerate() {
        let tokens = vec![TokenId(0); rows];
        batch.push_span(&tokens, 0, &[BlockId(index as u32)], 1024).adapter = adapter.map(AdapterId);
    }
    batch
}

/// The adapter of each row.
fn by_row(spans: &[(usize, Option<u16>)]) -> Vec<Option<u16>> {
    spans.iter().flat_map(|&(rows, adapter)| std::iter::repeat_n(adapter, rows)).collect()
}

fn result<B: Backend>(
    backend: &B,
    adapters: &B::Adapters,
    spans: &[(usize, Option<u16>)],
    [x, out]: [&Source<'_, B>; 2],
    first: usize,
) -> Vec<f32> {
    let step = step_of(backend, &batch_of(spans));
    let rows = by_row(spans).len();
    let mut sum = out.rows(first..first + rows);
    backend.adapt(&step, &x.rows(first..first + rows), adapters, &mut sum);
    read(backend, &sum)
}

/// Results match the definition, rows without an adapter stay as they are.
pub fn adapters<B: Backend>(backend: &B) {
    let one: &[_] = &[(1, Some(2))];
    let long: &[_] = &[(2, Some(0)), (1, None), (40, Some(2)), (30, None), (13, Some(0)), (1, Some(2))];
    let many: &[_] =
        &[(1, Some(0)), (1, Some(2)), (1, None), (1, Some(0)), (1, Some(2)), (1, Some(1)), (3, Some(0)), (1, Some(7))];
    for stored_as in [DType::F32, DType::F16, DType::BF16] {
        for ([n, k], shapes) in [
            ([1, 1], vec![(0, 1, 0, 1), (2, 2, 0, 1)]),
            ([70, 33], vec![(0, 8, 0, 70), (2, 3, 10, 31)]),
            // Joined matrices of different ranks; the second adapter leaves out the one between.
            ([129, 64], vec![(0, 16, 0, 64), (0, 8, 64, 32), (0, 17, 96, 33), (2, 4, 0, 64), (2, 32, 96, 33)]),
            ([300, 513], vec![(0, 64, 0, 300), (1, 1, 299, 1), (2, 15, 0, 150), (2, 16, 150, 150)]),
        ] {
            let mut numbers = Numbers((n + k) as u64);
            let case = Case::new([n, k], stored_as, &shapes, &mut numbers);
            let packed = case.pack(backend);
            let (x, out) = (numbers.take(100 * k, 1.0), numbers.take(100 * n, 1.0));
            let sources = [Source::new(backend, &x, k), Source::new(backend, &out, n)];
            for spans in [one, long, many] {
                let found = result(backend, &packed, spans, [&sources[0], &sources[1]], 0);
                for (row, adapter) in by_row(spans).into_iter().enumerate() {
                    let found = &found[row * n..][..n];
                    let has = |id: &u16| case.products.iter().any(|product| product.adapter == *id);
                    let Some(adapter) = adapter.filter(has) else {
                        assert_same_bits(found, &out[row * n..][..n], || format!("row {row} has no adapter"));
                        continue;
                    };
                    for column in (0..n).step_by(1 + n / 40) {
                        let (sum, magnitude, terms) = case.added(adapter, &x[row * k..][..k], column);
                        let before = f64::from(out[row * n + column]);
                        let tolerance = tolerance::linear(terms + 2, magnitude + before.abs());
                        assert_close(found[column], before + sum, tolerance, || {
                            format!("[{n}, {k}] in {stored_as}, adapter {adapter}, row {row}, column {column}")
                        });
                    }
                }
            }
        }
    }
}

/// A row's result has the same bits alone, among rows of its adapter, and among those of others.
pub fn adapters_are_batch_invariant<B: Backend>(backend: &B) {
    let (n, k) = (150, 131);
    for stored_as in [DType::F32, DType::BF16] {
        let mut numbers = Numbers(11);
        let shapes = [(0, 16, 0, 100), (0, 5, 100, 50), (1, 8, 0, 150), (2, 33, 20, 64)];
        let case = Case::new([n, k], stored_as, &shapes, &mut numbers);
        let packed = case.pack(backend);
        let x = Source::new(backend, &numbers.take(70 * k, 1.0), k);
        let out = Source::new(backend, &numbers.take(70 * n, 1.0), n);
        let adapter = |row: usize| [Some(0), Some(1), None, Some(0), Some(2)][row % 5];
        let alone: Vec<Vec<f32>> =
            (0..70).map(|row| result(backend, &packed, &[(1, adapter(row))], [&x, &out], row)).collect();
        for count in (2..=30).chain([70]) {
            let first = (count * 7) % (71 - count);
            let spans: Vec<_> = (first..first + count).map(|row| (1, adapter(row))).collect();
            let found = result(backend, &packed, &spans, [&x, &out], first);
            for (row, found) in found.chunks(n).enumerate() {
                assert_same_bits(found, &alone[first + row], || {
                    format!("in {stored_as}, row {} of {count}", first + row)
                });
            }
        }
        // All rows of one sequence, which is cut into steps of several lengths.
        for adapter in [0, 1, 2] {
            let alone: Vec<f32> =
                (0..70).flat_map(|row| result(backend, &packed, &[(1, Some(adapter))], [&x, &out], row)).collect();
            for count in [2, 11, 12, 13, 24, 25, 64, 70] {
                let found = result(backend, &packed, &[(count, Some(adapter))], [&x, &out], 0);
                assert_same_bits(&found, &alone[..count * n], || format!("{count} rows of adapter {adapter}"));
            }
        }
    }
}
