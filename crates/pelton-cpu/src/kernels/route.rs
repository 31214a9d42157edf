//! Experts: which rows go to which, rows gathered for one, and its results added with their weights.

use pelton_backend::RouteSpec;

use crate::isa::{Isa, Kernel};
use crate::lanes::{LANES, Lanes, exp};
use crate::pieces::rows_per_piece;
use crate::pool::{Pool, SharedMut};

/// Which rows go to which expert. Nothing is allocated after the first.
pub struct Routes {
    /// `top_k` for each row, in order of size.
    chosen: Vec<Choice>,
    /// The same by expert, rows of one in order.
    by_expert: Vec<Visit>,
    /// Where each expert's visits begin, and the end of the last.
    starts: Vec<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Choice {
    expert: usize,
    weight: f32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Visit {
    row: usize,
    weight: f32,
}

const NO_CHOICE: Choice = Choice { expert: 0, weight: 0.0 };
const NO_VISIT: Visit = Visit { row: 0, weight: 0.0 };

impl Routes {
    pub(crate) fn new(max_rows: usize, spec: &RouteSpec) -> Self {
        let most = max_rows * spec.top_k;
        Self {
            chosen: Vec::with_capacity(most),
            by_expert: Vec::with_capacity(most),
            starts: vec![0; spec.num_experts + 1],
        }
    }

    /// How many rows go to `expert`.
    pub(crate) fn num_rows(&self, expert: usize) -> usize {
        self.visits(expert).len()
    }

    fn visits(&self, expert: usize) -> &[Visit] {
        &self.by_expert[self.starts[expert]..self.starts[expert + 1]]
    }
}

/// Fills `routes` from `logits`, `[rows, num_experts]`.
pub(crate) fn route(isa: Isa, pool: &Pool, logits: &[f32], spec: &RouteSpec, routes: &mut Routes) {
    let RouteSpec { num_experts, top_k, .. } = *spec;
    assert!((1..=num_experts).contains(&top_k), "{top_k} experts of {num_experts}");
    assert_eq!(routes.starts.len(), num_experts + 1, "routes for {num_experts} experts");
    let num_rows = logits.len() / num_experts;
    let Routes { chosen, by_expert, starts } = routes;
    chosen.resize(num_rows * top_k, NO_CHOICE);
    let rows = rows_per_piece(num_experts * top_k);
    pool.run_pieces(chosen, rows * top_k, |_, index, chosen| {
        let logits = logits[index * rows * num_experts..].chunks_exact(num_experts);
        for (logits, chosen) in logits.zip(chosen.chunks_exact_mut(top_k)) {
            isa.run(Choose { logits, renormalise: spec.renormalise, chosen });
        }
    });
    // Counted, then laid out; an expert's start serves as the place for its next row meanwhile.
    starts.fill(0);
    for choice in chosen.iter() {
        starts[choice.expert + 1] += 1;
    }
    for expert in 0..num_experts {
        starts[expert + 1] += starts[expert];
    }
    by_expert.resize(chosen.len(), NO_VISIT);
    for (index, &Choice { expert, weight }) in chosen.iter().enumerate() {
        by_expert[starts[expert]] = Visit { row: index / top_k, weight };
        starts[expert] += 1;
    }
    starts.copy_within(0..num_experts, 1);
    starts[0] = 0;
}

/// Copies the rows of `x` that go to `expert`; `out` has room for so many.
pub(crate) fn take(routes: &Routes, expert: usize, x: &[f32], cols: usize, out: &mut [f32]) {
    for (out, visit) in out.chunks_exact_mut(cols).zip(routes.visits(expert)) {
        out.copy_from_slice(&x[visit.row * cols..][..cols]);
    }
}

/// `out[row] += weight * x[i]` for the i-th row that goes to `expert`.
pub(crate) fn add(isa: Isa, pool: &Pool, routes: &Routes, expert: usize, x: &[f32], cols: usize, out: &mut [f32]) {
    let visits = routes.visits(expert);
    assert_eq!(x.len(), visits.len() * cols, "a result for each row of an expert");
    let rows = rows_per_piece(cols);
    let out = SharedMut::new(out);
    pool.run(visits.len().div_ceil(rows), |_, index| {
        let visits = visits[index * rows..].iter().take(rows);
        for (x, visit) in x[index * rows * cols..].chunks_exact(cols).zip(visits) {
            // SAFETY: a row chooses an expert once, so it is among the visits of one unit, once.
            let out = unsafe { out.slice(visit.row * cols, cols) };
            isa.run(AddWeighted { x, weight: visit.weight, out });
        }
    });
}

/// The experts of one row.
struct Choose<'a> {
    logits: &'a [f32],
    renormalise: bool,
    chosen: &'a mut [Choice],
}

impl Kernel for Choose<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, isa: L) {
        let Self { logits, renormalise, chosen } = self;
        for place in 0..chosen.len() {
            let (taken, rest) = chosen.split_at_mut(place);
            let mut left = (0..logits.len()).filter(|expert| taken.iter().all(|choice| choice.expert != *expert));
            // There is one: no more are chosen than there are.
            let mut best = left.next().unwrap_or(0);
            for expert in left {
                if logits[expert] > logits[best] {
                    best = expert;
                }
            }
            rest[0] = Choice { expert: best, weight: 0.0 };
        }
        let largest = isa.splat(logits[chosen[0].expert]);
        let mut sum = isa.splat(0.0);
        for at in (0..logits.len()).step_by(LANES) {
            let e = exp(isa, isa.sub(isa.read(logits, at), largest));
            sum = isa.add(sum, isa.keep_first(LANES.min(logits.len() - at), e, isa.splat(0.0)));
        }
        let total = isa.sum(sum);
        let mut share = 0.0;
        for choice in chosen.iter_mut() {
            let e = exp(isa, isa.sub(isa.splat(logits[choice.expert]), largest));
            choice.weight = isa.to_array(e)[0] / total;
            share += choice.weight;
        }
        if renormalise {
            for choice in chosen {
                choice.weight /= share;
            }
        }
    }
}

struct AddWeighted<'a> {
    x: &'a [f32],
    weight: f32,
    out: &'a mut [f32],
}

impl Kernel for AddWeighted<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, isa: L) {
        let weight = isa.splat(self.weight);
        for at in (0..self.x.len()).step_by(LANES) {
            let sum = isa.fma(weight, isa.read(self.x, at), isa.read(self.out, at));
            isa.write(self.out, at, sum);
        }
    }
}
