//! Operations on each row or element by itself: embed, take_rows, positions, rope, factors, activations.

use super::norms::{head_norms, layer_norm, rms_norm};
use super::{
    COLS, Numbers, Source, assert_close, assert_same_bits, kept, param, plain_batch, read, step_of, tolerance,
};
use crate::{Act, Backend, DenseWeight, HostTensor, RopeSpec, WeightFormat};

const ACTS: [Act; 4] = [Act::Silu, Act::Gelu, Act::GeluTanh, Act::Relu];

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

/// The row of each position is added, rounded once.
pub fn add_positions<B: Backend>(backend: &B) {
    for cols in COLS {
        let positions = [0, 1, 2, 50, 17, 99];
        let table = Numbers(cols as u64 + 2).take(100 * cols, 1.0);
        let values = Numbers(cols as u64).take(positions.len() * cols, 3.0);
        let mut x = Source::new(backend, &values, cols).rows(0..positions.len());
        let step = step_of(backend, &plain_batch(&[0; 6], &positions));
        backend.add_positions(&step, &param(backend, &table), &mut x);
        let added = positions.iter().flat_map(|&position| &table[position as usize * cols..][..cols]);
        let expected: Vec<f32> = values.iter().zip(added).map(|(x, added)| x + added).collect();
        assert_same_bits(&read(backend, &x), &expected, || format!("{cols} columns"));
    }
}

/// Products are rounded once; caps hold near and far from zero; gates scale whole rows.
pub fn scale<B: Backend>(backend: &B) {
    for cols in COLS {
        let values = Numbers(cols as u64).take(5 * cols, 100.0);
        let rows = || Source::new(backend, &values, cols).rows(0..5);
        let mut x = rows();
        backend.scale(5.625, &mut x);
        let expected: Vec<f32> = values.iter().map(|x| x * 5.625).collect();
        assert_same_bits(&read(backend, &x), &expected, || format!("{cols} columns times 5.625"));
        for cap in [0.5, 30.0, 1000.0] {
            let mut x = rows();
            backend.softcap(cap, &mut x);
            for (found, &x) in read(backend, &x).into_iter().zip(&values) {
                let expected = f64::from(cap) * (f64::from(x) / f64::from(cap)).tanh();
                let tolerance = tolerance::softcap(f64::from(x), f64::from(cap));
                assert_close(found, expected, tolerance, || format!("{x} capped at {cap}, {cols} columns"));
            }
        }
        let gates = [-100.0, -2.5, 0.0, 0.3, 100.0];
        let mut x = rows();
        backend.scale_by_sigmoid(&Source::new(backend, &gates, 1).rows(0..5), &mut x);
        for (i, found) in read(backend, &x).into_iter().enumerate() {
            let (x, gate) = (f64::from(values[i]), f64::from(gates[i / cols]));
            let y = x * sigmoid(gate);
            let tolerance = tolerance::sigmoid_gate(y, x, gate, 0.0);
            assert_close(found, y, tolerance, || format!("{x} by a gate of {gate}, {cols} columns"));
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

/// Plain activations match their definitions, also far from zero.
pub fn activate<B: Backend>(backend: &B) {
    for act in ACTS {
        for size in [1.0, 8.0, 100.0] {
            for cols in COLS {
                let mut values = Numbers(cols as u64 + 5).take(5 * cols, size);
                values[0] = 0.0;
                let mut x = Source::new(backend, &values, cols).rows(0..5);
                backend.activate(act, &mut x);
                for (found, &x) in read(backend, &x).into_iter().zip(&values) {
                    let (expected, tolerance) = activated(act, f64::from(x), 1.0);
                    assert_close(found, expected, tolerance, || format!("{act:?} of {x}, {cols} columns"));
                }
            }
        }
    }
}

/// `act(x) * up`, and how far a result may be from it.
fn activated(act: Act, x: f64, up: f64) -> (f64, f64) {
    match act {
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
        Act::Relu => {
            let y = x.max(0.0) * up;
            (y, tolerance::product(y))
        }
    }
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
                    let (expected, tolerance) = activated(act, x, up);
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
    let norms = [rms_norm(backend, &numbers.take(cols, 1.0)), layer_norm(backend, &numbers.take(cols, 1.0))];
    let heads = head_norms(backend, &numbers.take(spec.head_dim, 1.0), spec.num_heads, spec.num_kv_heads);
    let position_table = param(backend, &numbers.take(num_rows * cols, 1.0));
    let gates = Source::new(backend, &numbers.take(num_rows, 3.0), 1);
    let table = param(backend, &rope_table(num_rows, spec.rotary_dim));

    // All operations on rows `first..first + count`, by name.
    let results = |first: usize, count: usize| {
        let rows = || source.rows(first..first + count);
        let mut found = Vec::new();
        let mut out = backend.rows(count, cols).expect("rows fit");
        for norm in &norms {
            backend.norm(&rows(), norm, &mut out);
            found.push(("norm", cols, read(backend, &out)));
            let mut residual = rows();
            backend.add_norm(&mut residual, &delta.rows(first..first + count), norm, &mut out);
            found.push(("add_norm", cols, read(backend, &out)));
            found.push(("residual", cols, read(backend, &residual)));
        }
        let positions: Vec<u32> = (first..first + count).map(|row| row as u32).collect();
        let step = step_of(backend, &plain_batch(&vec![0; count], &positions));
        let mut qkv = rows();
        backend.rope(&step, &mut qkv, &table, &spec);
        found.push(("rope", cols, read(backend, &qkv)));
        backend.norm_heads(&mut qkv, &heads);
        found.push(("norm_heads", cols, read(backend, &qkv)));
        let mut x = rows();
        backend.add_positions(&step, &position_table, &mut x);
        found.push(("add_positions", cols, read(backend, &x)));
        backend.add(&mut x, &delta.rows(first..first + count));
        found.push(("add", cols, read(backend, &x)));
        backend.scale(3.0, &mut x);
        found.push(("scale", cols, read(backend, &x)));
        backend.softcap(5.0, &mut x);
        found.push(("softcap", cols, read(backend, &x)));
        backend.scale_by_sigmoid(&gates.rows(first..first + count), &mut x);
        found.push(("scale_by_sigmoid", cols, read(backend, &x)));
        for (act, name) in ACTS.into_iter().zip(["silu", "gelu", "gelu_tanh", "relu"]) {
            let mut out = backend.rows(count, cols / 2).expect("rows fit");
            backend.gate(&rows(), act, &mut out);
            found.push((name, cols / 2, read(backend, &out)));
            backend.activate(act, &mut out);
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
