//! Experts: choices and weights against the definitions in f64, rows gathered and results added.

use super::{Numbers, Source, assert_close, assert_same_bits, read, tolerance};
use crate::{Backend, RouteSpec};

const COLS: [usize; 5] = [1, 15, 16, 33, 300];

/// Each row visits its experts once, in order of rows, and is given back with their weights.
pub fn experts<B: Backend>(backend: &B) {
    for (num_experts, top_k) in [(1, 1), (2, 1), (4, 4), (8, 2), (15, 3), (16, 5), (17, 2), (60, 4), (128, 8)] {
        for renormalise in [false, true] {
            for num_rows in [1, 2, 90] {
                let spec = RouteSpec { num_experts, top_k, renormalise };
                check(backend, &spec, num_rows, COLS[(num_experts + num_rows) % COLS.len()]);
            }
        }
    }
}

fn check<B: Backend>(backend: &B, spec: &RouteSpec, num_rows: usize, cols: usize) {
    let mut numbers = Numbers(spec.num_experts as u64 + num_rows as u64);
    let mut logits = numbers.take(num_rows * spec.num_experts, 4.0);
    // The first row's are all equal: the first experts are chosen.
    logits[..spec.num_experts].fill(0.25);
    let x = numbers.take(num_rows * cols, 1.0);
    let mut routes = backend.routes(num_rows, spec).expect("routes fit");
    backend.route(&Source::new(backend, &logits, spec.num_experts).rows(0..num_rows), spec, &mut routes);

    let rows = Source::new(backend, &x, cols).rows(0..num_rows);
    let (mut taken, mut sum) =
        (backend.rows(num_rows, cols).expect("fits"), backend.rows(num_rows, cols).expect("fits"));
    backend.zero(&rows, &mut sum);
    let mut expected = vec![0.0f64; num_rows * cols];
    for expert in 0..spec.num_experts {
        let visits: Vec<(usize, f64)> = (0..num_rows)
            .filter_map(|row| Some((row, weight(&logits[row * spec.num_experts..][..spec.num_experts], expert, spec)?)))
            .collect();
        assert_eq!(backend.take_routed(&routes, expert, &rows, &mut taken), visits.len(), "{spec:?}, expert {expert}");
        if visits.is_empty() {
            continue;
        }
        let wanted: Vec<f32> = visits.iter().flat_map(|(row, _)| &x[row * cols..][..cols]).copied().collect();
        assert_same_bits(&read(backend, &taken), &wanted, || format!("{spec:?}, expert {expert}"));
        // An expert that multiplies by its number.
        backend.scale(expert as f32, &mut taken);
        backend.add_routed(&routes, expert, &taken, &mut sum);
        for (row, weight) in visits {
            for column in 0..cols {
                expected[row * cols + column] += f64::from(x[row * cols + column] * expert as f32) * weight;
            }
        }
    }
    for (i, found) in read(backend, &sum).into_iter().enumerate() {
        // All terms have the sign of `x`.
        let tolerance = tolerance::experts(spec.num_experts, spec.top_k, expected[i], 8.0);
        assert_close(found, expected[i], tolerance, || format!("{spec:?}, {num_rows} rows of {cols}, number {i}"));
    }
}

/// The weight of `expert` for a row of `logits`, if it is chosen.
fn weight(logits: &[f32], expert: usize, spec: &RouteSpec) -> Option<f64> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let chosen = &order[..spec.top_k];
    let share = |experts: &[usize]| experts.iter().map(|&expert| f64::from(logits[expert]).exp()).sum::<f64>();
    let whole = if spec.renormalise { share(chosen) } else { share(&order) };
    chosen.contains(&expert).then(|| f64::from(logits[expert]).exp() / whole)
}

/// Each row has the same bits alone and among others.
pub fn experts_are_batch_invariant<B: Backend>(backend: &B) {
    let spec = RouteSpec { num_experts: 20, top_k: 3, renormalise: true };
    let (num_rows, cols) = (90, 33);
    let mut numbers = Numbers(5);
    let logits = Source::new(backend, &numbers.take(num_rows * spec.num_experts, 4.0), spec.num_experts);
    let x = Source::new(backend, &numbers.take(num_rows * cols, 1.0), cols);
    let result = |first: usize, count: usize| {
        let mut routes = backend.routes(count, &spec).expect("routes fit");
        backend.route(&logits.rows(first..first + count), &spec, &mut routes);
        let rows = x.rows(first..first + count);
        let (mut taken, mut sum) = (backend.rows(count, cols).expect("fits"), backend.rows(count, cols).expect("fits"));
        backend.zero(&rows, &mut sum);
        for expert in 0..spec.num_experts {
            if backend.take_routed(&routes, expert, &rows, &mut taken) > 0 {
                backend.scale(1.0 + expert as f32 / 7.0, &mut taken);
                backend.add_routed(&routes, expert, &taken, &mut sum);
            }
        }
        read(backend, &sum)
    };
    let all = result(0, num_rows);
    for count in [1, 2, 17, 64] {
        for first in (0..num_rows - count).step_by(5) {
            assert_same_bits(&result(first, count), &all[first * cols..][..count * cols], || {
                format!("rows {first} to {}", first + count)
            });
        }
    }
}
