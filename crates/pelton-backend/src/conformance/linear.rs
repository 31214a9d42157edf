//! Linears: every stored precision, one to several hundred rows, joined parts, biases.

use super::{Numbers, Precision, RowsAs, Source, assert_close, assert_same_bits, kept, met, read, tolerance};
use crate::{Backend, DType, DenseWeight, HostTensor, WeightFormat};

/// Input features around register, lane and cache block sizes.
const K: [usize; 18] = [1, 2, 3, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 300];
/// Output features around lanes and panels.
const N: [usize; 20] = [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 128, 129];
/// Rows around register tiles and splits.
const M: [usize; 24] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 16, 17, 31, 33, 63, 64, 65, 95, 97, 193, 300];

/// Elements compared with the reference by case; the others follow from batch invariance and from smaller cases.
const MAX_COMPARED: usize = 600;

/// Results match the reference.
pub fn linear<B: Backend>(backend: &B, precision: Precision) {
    let mut seed = 0;
    for stored_as in WeightFormat::ALL {
        let rows_as = match stored_as {
            WeightFormat::Dense(DType::BF16) => RowsAs::Dense(precision.beside_bf16),
            WeightFormat::Dense(_) => RowsAs::Dense(DType::F32),
            WeightFormat::Grouped(groups) => RowsAs::Grouped(groups.group),
        };
        let shapes = (K.into_iter().map(|k| [7, 70, k]))
            .chain(N.into_iter().flat_map(|n| [[2, n, 33], [13, n, 34]]))
            .chain(M.into_iter().map(|m| [m, 66, 131]))
            // Several tiles of rows, several blocks of inputs.
            .chain([[40, 33, 1030], [26, 70, 513]]);
        for shape in shapes {
            seed += 1;
            compare(backend, Case { shape, stored_as, rows_as, seed });
        }
    }
    joined_parts_are_one_matrix(backend);
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    /// Rows, output features, input features.
    pub shape: [usize; 3],
    pub stored_as: WeightFormat,
    pub rows_as: RowsAs,
    /// Odd seeds have a bias.
    pub seed: u64,
}

pub(super) fn compare<B: Backend>(backend: &B, case: Case) {
    let Case { shape: [m, n, k], stored_as, rows_as, seed } = case;
    let mut numbers = Numbers(seed);
    let (x, w) = (numbers.take(m * k, 1.0), numbers.take(n * k, 1.0));
    let bias = (seed % 2 == 1).then(|| numbers.take(n, 4.0));
    let packed = pack(backend, &[(&w, n)], k, stored_as);
    let param = bias.as_ref().map(|bias| backend.param(&HostTensor::from_f32(vec![n], bias)).expect("a bias fits"));
    let rows = Source::new(backend, &x, k).rows(0..m);
    let mut out = backend.rows(m, n).expect("rows fit");
    backend.linear(&rows, &packed, param.as_ref(), &mut out);
    let found = read(backend, &out);
    assert_eq!(found.len(), m * n);

    // A step that shares no factor with the number of elements passes all rows and columns.
    let stride = (1 + m * n / MAX_COMPARED..).find(|&stride| gcd(stride, n) == 1).unwrap_or(1);
    for i in (0..m * n).step_by(stride) {
        let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
        let (mut expected, mut magnitude) = (0.0, 0.0);
        for (x, w) in met(x, rows_as).into_iter().zip(kept(w, stored_as)) {
            let product = x * w;
            expected += product;
            magnitude += product.abs();
        }
        if let Some(bias) = &bias {
            expected += f64::from(bias[i % n]);
            magnitude += f64::from(bias[i % n].abs());
        }
        let tolerance = tolerance::linear(k, magnitude);
        assert_close(found[i], expected, tolerance, || format!("{case:?}, row {}, column {}", i / n, i % n));
    }
}

fn joined_parts_are_one_matrix<B: Backend>(backend: &B) {
    let (m, k) = (9, 40);
    let mut numbers = Numbers(5);
    let (a, b, c) = (numbers.take(63 * k, 1.0), numbers.take(k, 1.0), numbers.take(70 * k, 1.0));
    let whole = [a.as_slice(), &b, &c].concat();
    let rows = Source::new(backend, &numbers.take(m * k, 1.0), k).rows(0..m);
    for stored_as in WeightFormat::ALL {
        let results = [
            pack(backend, &[(&whole, 134)], k, stored_as),
            pack(backend, &[(&a, 63), (&b, 1), (&c, 70)], k, stored_as),
        ]
        .map(|packed| {
            let mut out = backend.rows(m, 134).expect("rows fit");
            backend.linear(&rows, &packed, None, &mut out);
            read(backend, &out)
        });
        assert_same_bits(&results[1], &results[0], || format!("joined parts in {stored_as}"));
    }
}

/// A row's result has the same bits alone and among any number of other rows.
pub fn linear_is_batch_invariant<B: Backend>(backend: &B) {
    for (n, k) in [(65, 131), (200, 64), (16, 600)] {
        for stored_as in WeightFormat::ALL {
            let mut numbers = Numbers(n as u64);
            let max_rows = 200;
            let packed = pack(backend, &[(&numbers.take(n * k, 1.0), n)], k, stored_as);
            let bias = backend.param(&HostTensor::from_f32(vec![n], &numbers.take(n, 1.0))).expect("a bias fits");
            let source = Source::new(backend, &numbers.take(max_rows * k, 1.0), k);
            let result = |first: usize, count: usize| {
                let mut out = backend.rows(count, n).expect("rows fit");
                backend.linear(&source.rows(first..first + count), &packed, Some(&bias), &mut out);
                read(backend, &out)
            };
            let all = result(0, max_rows);
            for row in (0..max_rows).step_by(13).chain([max_rows - 1]) {
                let case = || format!("[{n}, {k}] in {stored_as}, row {row} alone");
                assert_same_bits(&result(row, 1), &all[row * n..][..n], case);
            }
            for count in (1..=64).chain([95, 96, 97, 130]) {
                let first = (count * 7) % (max_rows - count);
                let case = || format!("[{n}, {k}] in {stored_as}, rows {first} to {}", first + count);
                assert_same_bits(&result(first, count), &all[first * n..][..count * n], case);
            }
        }
    }
}

fn pack<B: Backend>(backend: &B, parts: &[(&[f32], usize)], k: usize, stored_as: WeightFormat) -> B::Linear {
    let parts: Vec<DenseWeight<'_>> = parts
        .iter()
        .map(|(values, n)| DenseWeight::new(HostTensor::from_f32(vec![*n, k], values), stored_as).expect("a matrix"))
        .collect();
    backend.pack(&parts).expect("a weight fits")
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
