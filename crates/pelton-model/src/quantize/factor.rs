//! The second moments of a linear's inputs, and their factors.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2, s};

/// Columns that are eliminated at once.
const BLOCK: usize = 64;
/// Columns of the rest that are updated at once: only those blocks that reach below the diagonal.
const UPDATE: usize = 256;

/// Sum of `x^T x` over rows `x` `[in]` that met a linear.
#[derive(Debug)]
pub(crate) struct Moments {
    sum: Array2<f32>,
    rows: usize,
}

impl Moments {
    pub(crate) fn new(in_features: usize) -> Self {
        Self { sum: Array2::zeros((in_features, in_features)), rows: 0 }
    }

    /// Adds `rows`, `[rows, in]` row-major.
    pub(crate) fn add(&mut self, rows: &[f32]) {
        let columns = self.sum.ncols();
        let x = ArrayView2::from_shape((rows.len() / columns, columns), rows).expect("whole rows");
        general_mat_mul(1.0, &x.t(), &x, 1.0, &mut self.sum);
        self.rows += x.nrows();
    }

    /// Rows so far.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Mean square of each input.
    pub(crate) fn squares(&self) -> Array1<f32> {
        self.sum.diag().mapv(|square| square / self.rows.max(1) as f32)
    }

    /// The means, `[in, in]`, symmetric.
    pub(crate) fn means(&self) -> Array2<f32> {
        self.sum.mapv(|sum| sum / self.rows.max(1) as f32)
    }
}

/// Adds `share` of the mean diagonal to the diagonal, so that inputs which never vary, or vary together, do no harm.
pub(crate) fn damp(moments: &mut Array2<f32>, share: f32) {
    let mean = moments.diag().sum() / moments.nrows() as f32;
    // Where all inputs are zero any number will do.
    let added = if mean > 0.0 { share * mean } else { 1.0 };
    moments.diag_mut().mapv_inplace(|square| square + added);
}

/// `u` unit upper triangular with `moments = u d u^T`, `d` diagonal: what remains of column `k`'s square when the columns after it are known.
///
/// `None` when `moments` is not positive definite. Numbers below the diagonal mean nothing.
pub(crate) fn unit_upper(moments: Array2<f32>) -> Option<Array2<f32>> {
    // A Cholesky factor of the matrix read backwards is an upper factor of the matrix.
    let mut a = moments.slice(s![..;-1, ..;-1]).to_owned();
    cholesky(a.view_mut())?;
    let mut u = a.slice(s![..;-1, ..;-1]).to_owned();
    for column in 0..u.ncols() {
        let pivot = u[[column, column]];
        u.slice_mut(s![..=column, column]).mapv_inplace(|x| x / pivot);
    }
    Some(u)
}

/// Replaces the lower triangle of `a` by `l` with `a = l l^T`.
fn cholesky(mut a: ArrayViewMut2<'_, f32>) -> Option<()> {
    let n = a.nrows();
    for begin in (0..n).step_by(BLOCK) {
        let end = n.min(begin + BLOCK);
        for column in begin..end {
            // Columns of earlier blocks are accounted for.
            let row = a.slice(s![column, begin..column]).to_owned();
            let square = a[[column, column]] - row.dot(&row);
            if !(square > 0.0 && square.is_finite()) {
                return None;
            }
            let pivot = square.sqrt();
            a[[column, column]] = pivot;
            for below in column + 1..n {
                let known = a.slice(s![below, begin..column]).dot(&row);
                a[[below, column]] = (a[[below, column]] - known) / pivot;
            }
        }
        let panel = a.slice(s![end.., begin..end]).to_owned();
        for from in (end..n).step_by(UPDATE) {
            let to = n.min(from + UPDATE);
            let below = panel.slice(s![from - end.., ..]);
            let across = panel.slice(s![from - end..to - end, ..]);
            general_mat_mul(-1.0, &below, &across.t(), 1.0, &mut a.slice_mut(s![from.., from..to]));
        }
    }
    Some(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Rows of inputs that depend on each other, as activations do.
    pub fn inputs(rows: usize, columns: usize, seed: u64) -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut values = Vec::with_capacity(rows * columns);
        for _ in 0..rows {
            let common = random.f32() - 0.5;
            for column in 0..columns {
                let own = random.f32() - 0.5;
                let size = 0.1 + (column % 7) as f32;
                values.push(size * (own + if column % 3 == 0 { 2.0 * common } else { -common }));
            }
        }
        values
    }

    #[test]
    fn factors_multiply_back_at_every_size_around_a_block() {
        for n in [1, 2, 63, 64, 65, 130, 331, 400] {
            let mut moments = Moments::new(n);
            moments.add(&inputs(2 * n, n, 1));
            assert_eq!(moments.rows(), 2 * n);
            let mut means = moments.means();
            damp(&mut means, 0.01);
            let u = unit_upper(means.clone()).unwrap();
            let upper = Array2::from_shape_fn((n, n), |(i, j)| if i <= j { f64::from(u[[i, j]]) } else { 0.0 });
            // What is left is diagonal: take it from the last column on, without a second factorisation.
            let mut d = vec![0.0; n];
            for k in (0..n).rev() {
                d[k] = f64::from(means[[k, k]]) - (k + 1..n).map(|j| d[j] * upper[[k, j]].powi(2)).sum::<f64>();
                assert!((upper[[k, k]] - 1.0).abs() < 1e-6 && d[k] > 0.0);
            }
            let product = (&upper * &Array1::from(d)).dot(&upper.t());
            let largest = means.diag().iter().fold(0.0f32, |a, &b| a.max(b));
            for (ours, exact) in product.iter().zip(&means) {
                assert!((*ours as f32 - exact).abs() < 1e-4 * largest, "{n}: {ours} for {exact}");
            }
        }
    }

    #[test]
    fn what_is_not_positive_definite_is_told() {
        assert!(unit_upper(ndarray::array![[1.0, 2.0], [2.0, 1.0]]).is_none());
        assert!(unit_upper(ndarray::array![[1.0, 0.0], [0.0, f32::NAN]]).is_none());
        let mut zeros = Array2::zeros((3, 3));
        damp(&mut zeros, 0.01);
        assert!(unit_upper(zeros).is_some());
    }
}
