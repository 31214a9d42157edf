//! Operations on each row or element by itself: embed, take_rows, norms, rope, gates.

use super::{Numbers, Source, assert_close, assert_same_bits, kept, plain_batch, read, step_of, tolerance};
use crate::{Act, Backend, DenseWeight, HostTensor, RmsNorm, RopeSpec, WeightFormat};

/// Columns around lanes and their multiples.
const COLS: [usize; 14] = [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 300];

const ACTS: [Act; 3] = [Act::Silu, Act::Gelu, Act::GeluTanh];

/// Rows come out of a packed table as they were stored: exactly, but for two roundings where they are codes.
pub fn embed<B: Backend>(backend: &B) {
    for format in WeightFormat::ALL {
        for (vocab, cols) in [(1, 1), (63, 16), (64, 33), (65, 7), (200, 130)] {
            let values = Numbers(vocab as u64).take(vocab * cols, 1.0);
            let weight = DenseWeight::new(HostTensor::from_f32(vec![vocab, cols], &values), format).expect("a matrix");
            let table = backend.pack(&[weight]).expect("a table fits");
            let tokens: Vec<u32> = (0..70).map(|i| (i * 41 % vocab) as u32).collect();
            let step = step_of(backend, &plain_batch(&tokens, &[0; 70]));
            let mut out = backend.rows(70, cols).expect("rows fit");
            backend.embed(&step, &table, &mut out);
            let expected = tokens.iter().flat_map(|&token| kept(&values[token as usize * cols..][..cols], format));
            for (i, (found, expected)) in read(backend, &out).into_iter().zip(expected).enumerate() {
                let tolerance = match format {
                    WeightFormat::Dense(_) => 0.0,
                    WeightFormat::Grouped(_) => tolerance::scaled_code(expected),
                };
                assert_close(found, expected, tolerance, || format!("[{vocab}, {cols}] in {format}, number {i}"));
            }
        }
    }
}

/// Rows are copied as `logit_rows` says, and there are then as many.
pub fn take_rows<B: Backend>(backend: &B) {
    let cols = 19;
    let values = Numbers(3).take(50 * cols, 1.0);
    let x = Source::new(backend, &values, cols).rows(0..50);
    let mut out = backend.rows(50, cols).expect("rows fit");
    for wanted in [vec![], vec![49], vec![0, 7, 8, 30], (0..50).collect()] {
        let mut batch = plain_batch(&[0; 50], &[0; 50]);
        batch.logit_rows = wanted;
        backend.take_rows(&step_of(backend, &batch), &x, &mut out);
        let expected: Vec<f32> =
            batch.logit_rows.iter().flat_map(|&row| &values[row as usize * cols..][..cols]).copied().collect();
        assert_same_bits(&read(backend, &out), &expected, || format!("{:?}", batch.logit_rows));
    }
}

/// RMS norms match the reference.
pub fn norm<B: Backend>(backend: &B) {
    for cols in COLS {
        for num_rows in [1, 3, 70] {
            let mut numbers = Numbers(cols as u64);
            let (x, weight) = (numbers.take(num_rows * cols, 2.0), numbers.take(cols, 1.0));
            let norm = rms_norm(backend, &weight);
            let mut out = backend.rows(num_rows, cols).expect("rows fit");
            backend.norm(&Source::new(backend, &x, cols).rows(0..num_rows), &norm, &mut out);
            compare_norm(&read(backend, &out), &x, &weight, norm.eps);
        }
    }
}

/// The residual stream keeps the sum, rounded once, and the norm is that of the sum.
pub fn add_norm<B: Backend>(backend: &B) {
    for cols in COLS {
        for num_rows in [1, 3, 70] {
            let mut numbers = Numbers(cols as u64 + 1);
            let (residual, delta) = (numbers.take(num_rows * cols, 2.0), numbers.take(num_rows * cols, 1.0));
            let weight = numbers.take(cols, 1.0);
            let norm = rms_norm(backend, &weight);
            let mut stream = Source::new(backend, &residual, cols).rows(0..num_rows);
            let mut out = backend.rows(num_rows, cols).expect("rows fit");
            backend.add_norm(&mut stream, &Source::new(backend, &delta, cols).rows(0..num_rows), &norm, &mut out);
            let sum: Vec<f32> = residual.iter().zip(&delta).map(|(a, b)| a + b).collect();
            assert_same_bits(&read(backend, &stream), &sum, || format!("residual of {cols} columns"));
            compare_norm(&read(backend, &out), &sum, &weight, norm.eps);
        }
    }
}

fn rms_norm<B: Backend>(backend: &B, weight: &[f32]) -> RmsNorm<B::Param> {
    RmsNorm { weight: param(backend, weight), eps: 1e-5 }
}

fn param<B: Backend>(backend: &B, values: &[f32]) -> B::Param {
    backend.param(&HostTensor::from_f32(vec![values.len()], values)).expect("a parameter fits")
}

fn compare_norm(found: &[f32], x: &[f32], weight: &[f32], eps: f32) {
    let cols = weight.len();
    for (row, (found, x)) in found.chunks(cols).zip(x.chunks(cols)).enumerate() {
        let squares: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let scale = 1.0 / (squares / cols as f64 + f64::from(eps)).sqrt();
        for i in 0..cols {
            let expected = f64::from(x[i]) * scale * f64::from(weight[i]);
            let tolerance = tolerance::norm(cols, expected);
            assert_close(found[i], expected, tolerance, || format!("row {row}, column {i} of {cols}"));
        }
    }
}

/// Queries and keys are rotated by their positions, whole heads or part of them; values stay.
pub fn rope<B: Backend>(backend: &B) {
    for (head_dim, rotary_dim) in
        [(2, 2), (8, 8), (24, 24), (32, 32), (64, 64), (80, 80), (128, 128), (64, 16), (80, 34)]
    {
        for (num_heads, num_kv_heads) in [(1, 1), (4, 2)] {
            let spec = RopeSpec { num_heads, num_kv_heads, head_dim, rotary_dim };
            let cols = (num_heads + 2 * num_kv_heads) * head_dim;
            let positions = [0, 1, 2, 50, 17, 99];
            let table = rope_table(100, rotary_dim);
            let values = Numbers(head_dim as u64).take(positions.len() * cols, 3.0);
            let mut qkv = Source::new(backend, &values, cols).rows(0..positions.len());
            let step = step_of(backend, &plain_batch(&[0; 6], &positions));
            backend.rope(&step, &mut qkv, &param(backend, &table), &spec);
            let found = read(backend, &qkv);
            let half = rotary_dim / 2;
            for (row, &position) in positions.iter().enumerate() {
                let angles = &table[position as usize * rotary_dim..][..rotary_dim];
                for column in 0..cols {
                    let (head, d) = (column / head_dim, column % head_dim);
                    let at = row * cols + column;
                    if head >= num_heads + num_kv_heads || d >= rotary_dim {
                        assert_eq!(found[at], values[at], "{spec:?}, row {row}, column {column} must stay");
                        continue;
                    }
                    let (cos, sin) = (f64::from(angles[d % half]), f64::from(angles[half + d % half]));
                    let other = f64::from(if d < half { -values[at + half] } else { values[at - half] });
                    let (own, other) = (f64::from(values[at]) * cos, other * sin);
                    let tolerance = tolerance::rope(own, other);
                    assert_close(found[at], own + other, tolerance, || format!("{spec:?}, row {row}, column {column}"));
                }
            }
        }
    }
}

fn rope_table(positions: usize, rotary_dim: usize) -> Vec<f32> {
    let half = rotary_dim / 2;
    let angle = |position: usize, i: usize| position as f64 / 10_000f64.powf(i as f64 / half as f64);
    (0..positions)
        .flat_map(|position| {
            (0..rotary_dim).map(move |i| {
                (if i < half { angle(position, i).cos() } else { angle(position, i - half).sin() }) as f32
            })
        })
        .collect()
}

/// Gated activations match their definitions, also far from zero.
pub fn gate<B: Backend>(backend: &B) {
    for act in ACTS {
        for size in [1.0, 8.0, 100.0] {
            for cols in COLS {
                let num_rows = 5;
                let mut gate_up = Numbers(cols as u64 + 7).take(num_rows * 2 * cols, size);
                gate_up[0] = 0.0;
                let mut out = backend.rows(num_rows, cols).expect("rows fit");
                backend.gate(&Source::new(backend, &gate_up, 2 * cols).rows(0..num_rows), act, &mut out);
                for (i, &found) in read(backend, &out).iter().enumerate() {
                    let row = &gate_up[i / cols * 2 * cols..][..2 * cols];
                    let (x, up) = (f64::from(row[i % cols]), f64::from(row[cols + i % cols]));
                    let (expected, tolerance) = match act {
                        Act::Silu => {
                            let y = x * sigmoid(x) * up;
                            (y, tolerance::sigmoid_gate(y, x * up, x, 0.0))
                        }
                        Act::Gelu => {
                            let y = x * 0.5 * erfc(-x / std::f64::consts::SQRT_2) * up;
                            (y, tolerance::gelu(y, x * up, x))
                        }
                        Act::GeluTanh => {
                            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                            let y = x * sigmoid(2.0 * u) * up;
                            (y, tolerance::sigmoid_gate(y, x * up, 2.0 * u, 6.0))
                        }
                    };
                    assert_close(found, expected, tolerance, || format!("{act:?} of {x} times {up}, {cols} columns"));
                }
            }
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The complementary error function in f64: a series of positive terms for small magnitudes, a continued fraction for large.
/// Source: Abramowitz and Stegun 1964, 7.1.6 and 7.1.14.
fn erfc(z: f64) -> f64 {
    if z < 0.0 {
        return 2.0 - erfc(-z);
    }
    if z < 2.5 {
        let (mut term, mut sum) = (z, z);
        for n in 1..100 {
            term *= 2.0 * z * z / (2 * n + 1) as f64;
            sum += term;
        }
        return 1.0 - 2.0 / std::f64::consts::PI.sqrt() * (-z * z).exp() * sum;
    }
    let mut tail = 0.0;
    for n in (1..=200).rev() {
        tail = n as f64 / 2.0 / (z + tail);
    }
    (-z * z).exp() / (z + tail) / std::f64::consts::PI.sqrt()
}

/// Each row has the same bits alone and among any number of others.
pub fn pointwise_is_batch_invariant<B: Backend>(backend: &B) {
    let spec = RopeSpec { num_heads: 3, num_kv_heads: 1, head_dim: 20, rotary_dim: 20 };
    let (num_rows, cols) = (150, (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim);
    let mut numbers = Numbers(11);
    let source = Source::new(backend, &numbers.take(num_rows * cols, 3.0), cols);
    let delta = Source::new(backend, &numbers.take(num_rows * cols, 1.0), cols);
    let norm = rms_norm(backend, &numbers.take(cols, 1.0));
    let table = param(backend, &rope_table(num_rows, spec.rotary_dim));

    // All operations on rows `first..first + count`, by name.
    let results = |first: usize, count: usize| {
        let rows = || source.rows(first..first + count);
        let mut found = Vec::new();
        let mut out = backend.rows(count, cols).expect("rows fit");
        backend.norm(&rows(), &norm, &mut out);
        found.push(("norm", cols, read(backend, &out)));
        let mut residual = rows();
        backend.add_norm(&mut residual, &delta.rows(first..first + count), &norm, &mut out);
        found.push(("add_norm", cols, read(backend, &out)));
        found.push(("residual", cols, read(backend, &residual)));
        let positions: Vec<u32> = (first..first + count).map(|row| row as u32).collect();
        let step = step_of(backend, &plain_batch(&vec![0; count], &positions));
        let mut qkv = rows();
        backend.rope(&step, &mut qkv, &table, &spec);
        found.push(("rope", cols, read(backend, &qkv)));
        for (act, name) in ACTS.into_iter().zip(["silu", "gelu", "gelu_tanh"]) {
            let mut out = backend.rows(count, cols / 2).expect("rows fit");
            backend.gate(&rows(), act, &mut out);
            found.push((name, cols / 2, read(backend, &out)));
        }
        found
    };
    let all = results(0, num_rows);
    let alone = (0..num_rows).step_by(7).map(|row| (row, 1));
    for (first, count) in alone.chain((1..=64).map(|count| (count * 5 % (num_rows - count), count))) {
        for ((name, cols, found), (_, _, all)) in results(first, count).into_iter().zip(&all) {
            let expected = &all[first * cols..][..count * cols];
            assert_same_bits(&found, expected, || format!("{name}, rows {first} to {}", first + count));
        }
    }
}
