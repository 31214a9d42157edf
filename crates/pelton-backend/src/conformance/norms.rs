//! Norms of rows and of heads, against the definitions in f64.

use super::{COLS, Numbers, Source, assert_close, assert_same_bits, param, read, tolerance};
use crate::{Backend, HeadNorms, Norm};

const EPS: f32 = 1e-5;

/// Norms match the reference, also where the mean is far from zero.
pub fn norm<B: Backend>(backend: &B) {
    for cols in COLS {
        for num_rows in [1, 3, 70] {
            let mut numbers = Numbers(cols as u64);
            let (mut x, weight) = (numbers.take(num_rows * cols, 2.0), numbers.take(cols, 1.0));
            x[..cols].iter_mut().for_each(|x| *x += 30.0);
            let mut out = backend.rows(num_rows, cols).expect("rows fit");
            for norm in norms(backend, &weight) {
                backend.norm(&Source::new(backend, &x, cols).rows(0..num_rows), &norm, &mut out);
                compare(&norm, &read(backend, &out), &x, &weight);
            }
        }
    }
}

/// The residual stream keeps the sum, rounded once, and the norm is that of the sum; the sum may also be had alone.
pub fn add_norm<B: Backend>(backend: &B) {
    for cols in COLS {
        for num_rows in [1, 3, 70] {
            let mut numbers = Numbers(cols as u64 + 1);
            let (residual, delta) = (numbers.take(num_rows * cols, 2.0), numbers.take(num_rows * cols, 1.0));
            let weight = numbers.take(cols, 1.0);
            let sum: Vec<f32> = residual.iter().zip(&delta).map(|(a, b)| a + b).collect();
            let delta = Source::new(backend, &delta, cols).rows(0..num_rows);
            let stream = || Source::new(backend, &residual, cols).rows(0..num_rows);
            let mut out = backend.rows(num_rows, cols).expect("rows fit");
            for norm in norms(backend, &weight) {
                let mut stream = stream();
                backend.add_norm(&mut stream, &delta, &norm, &mut out);
                assert_same_bits(&read(backend, &stream), &sum, || format!("residual of {cols} columns"));
                compare(&norm, &read(backend, &out), &sum, &weight);
            }
            let mut stream = stream();
            backend.add(&mut stream, &delta);
            assert_same_bits(&read(backend, &stream), &sum, || format!("sum of {cols} columns"));
        }
    }
}

/// Each head of queries and keys is normed by itself; values stay.
pub fn norm_heads<B: Backend>(backend: &B) {
    for head_dim in [1, 2, 8, 15, 16, 17, 64, 80, 128] {
        for (num_heads, num_kv_heads) in [(1, 1), (4, 2), (5, 1)] {
            let cols = (num_heads + 2 * num_kv_heads) * head_dim;
            let mut numbers = Numbers(head_dim as u64);
            let (values, weights) = (numbers.take(7 * cols, 3.0), numbers.take(2 * head_dim, 1.0));
            let (query, key) = weights.split_at(head_dim);
            let norms =
                HeadNorms { query: param(backend, query), key: param(backend, key), eps: EPS, num_heads, num_kv_heads };
            let mut qkv = Source::new(backend, &values, cols).rows(0..7);
            backend.norm_heads(&mut qkv, &norms);
            let found = read(backend, &qkv);
            let heads = found.chunks(head_dim).zip(values.chunks(head_dim)).enumerate();
            for (index, (found, values)) in heads {
                let head = index % (num_heads + 2 * num_kv_heads);
                if head >= num_heads + num_kv_heads {
                    assert_same_bits(found, values, || format!("values of {num_kv_heads} heads of {head_dim}"));
                    continue;
                }
                let weight = if head < num_heads { query } else { key };
                compare(&rms_norm(backend, weight), found, values, weight);
            }
        }
    }
}

fn norms<B: Backend>(backend: &B, weight: &[f32]) -> [Norm<B::Param>; 3] {
    let unbiased = Norm::Layer { weight: param(backend, weight), bias: None, eps: EPS };
    [rms_norm(backend, weight), layer_norm(backend, weight), unbiased]
}

pub(super) fn rms_norm<B: Backend>(backend: &B, weight: &[f32]) -> Norm<B::Param> {
    Norm::Rms { weight: param(backend, weight), eps: EPS }
}

/// Its bias is [`bias_of`] the weight.
pub(super) fn layer_norm<B: Backend>(backend: &B, weight: &[f32]) -> Norm<B::Param> {
    Norm::Layer { weight: param(backend, weight), bias: Some(param(backend, &bias_of(weight))), eps: EPS }
}

pub(super) fn head_norms<B: Backend>(
    backend: &B,
    weight: &[f32],
    num_heads: usize,
    num_kv_heads: usize,
) -> HeadNorms<B::Param> {
    HeadNorms {
        query: param(backend, weight),
        key: param(backend, &bias_of(weight)),
        eps: EPS,
        num_heads,
        num_kv_heads,
    }
}

fn bias_of(weight: &[f32]) -> Vec<f32> {
    weight.iter().map(|weight| 0.5 - 2.0 * weight).collect()
}

fn compare<P>(norm: &Norm<P>, found: &[f32], x: &[f32], weight: &[f32]) {
    let cols = weight.len();
    for (row, (found, x)) in found.chunks(cols).zip(x.chunks(cols)).enumerate() {
        let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let mean_square = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>() / cols as f64 + f64::from(EPS);
        let largest = x.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
        for i in 0..cols {
            let weight_i = f64::from(weight[i]);
            let (expected, tolerance) = match norm {
                Norm::Rms { .. } => {
                    let expected = x[i] / mean_square(&x).sqrt() * weight_i;
                    (expected, tolerance::norm(cols, expected))
                }
                Norm::Layer { bias, .. } => {
                    let mean = x.iter().sum::<f64>() / cols as f64;
                    let distances: Vec<f64> = x.iter().map(|x| x - mean).collect();
                    let root = mean_square(&distances).sqrt();
                    let bias = if bias.is_some() { f64::from(bias_of(weight)[i]) } else { 0.0 };
                    let normed = distances[i] / root * weight_i;
                    let tolerance = tolerance::layer_norm(cols, normed, bias, largest / root, weight_i);
                    (normed + bias, tolerance)
                }
            };
            assert_close(found[i], expected, tolerance, || format!("row {row}, column {i} of {cols}"));
        }
    }
}
