//! GPTQ: rounding the columns of a matrix one after the other, each making up for the errors of those before it.
//!
//! Frantar et al. 2023 (arXiv:2210.17323), in the form of Chee et al. 2023 (arXiv:2307.13304, section 3): with `u d u^T` the second moments
//! of the inputs, `u` unit upper triangular, the squared error of the outputs is the sum over columns `k` of `d[k]` times the square of
//! `error[k] + sum over j < k of error[j] * u[j, k]`. So column `k` is rounded after that sum has been added to it; no inverse is needed.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use pelton_backend::{Bits, GroupedRow, IntGroups};

use super::factor::{Moments, damp, unit_upper};

/// Added to the moments' diagonal, as share of its mean.
const DAMPING: f32 = 0.01;
/// Columns whose errors meet at once where a group is a whole row.
const BLOCK: usize = 128;

/// A matrix in integers.
#[derive(Debug)]
pub(crate) struct Rounded {
    /// One for each output feature; its codes and groups are of inputs in `order`.
    pub(crate) rows: Vec<GroupedRow>,
    /// `order[place]` is the input feature at `place`; `None`: as they come.
    pub(crate) order: Option<Vec<u32>>,
}

/// Rounds `weight` `[out, in]` into `format`, by what `moments` says of its inputs. With `act_order` inputs of large squares come first,
/// and groups are made in that order.
pub(crate) fn gptq(weight: &Array2<f32>, moments: &Moments, format: IntGroups, act_order: bool) -> Option<Rounded> {
    let in_features = weight.ncols();
    let mut order: Vec<u32> = (0..in_features as u32).collect();
    if act_order {
        let squares = moments.squares();
        order.sort_by(|&a, &b| squares[b as usize].total_cmp(&squares[a as usize]));
    }
    let places: Vec<usize> = order.iter().map(|&feature| feature as usize).collect();
    let weight = weight.select(Axis(1), &places);
    let mut moments = moments.means().select(Axis(0), &places).select(Axis(1), &places);
    damp(&mut moments, DAMPING);
    let rows = round(&weight, &unit_upper(moments)?, format);
    Some(Rounded { rows, order: act_order.then_some(order) })
}

fn round(weight: &Array2<f32>, u: &Array2<f32>, format: IntGroups) -> Vec<GroupedRow> {
    let (out_features, in_features) = weight.dim();
    let features = format.group.features(in_features);
    let num_groups = format.num_groups(in_features);
    let empty = GroupedRow { codes: vec![0; in_features], scales: vec![0.0; num_groups], zeros: vec![0; num_groups] };
    let mut rows = vec![empty; out_features];
    let mut errors = Array2::<f32>::zeros((out_features, in_features));
    // Groups are whole blocks, or blocks parts of a row.
    let block = features.min(BLOCK);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let rows_each = out_features.div_ceil(threads);
    for begin in (0..in_features).step_by(block) {
        let end = in_features.min(begin + block);
        let mut wished = weight.slice(s![.., begin..end]).to_owned();
        let (known, mut now) = errors.view_mut().split_at(Axis(1), begin);
        general_mat_mul(1.0, &known, &u.slice(s![..begin, begin..end]), 1.0, &mut wished);
        let within = u.slice(s![begin..end, begin..end]).iter().copied().collect::<Vec<_>>();
        let columns = Columns { begin, u: &within, format };
        std::thread::scope(|scope| {
            let errors = now.axis_chunks_iter_mut(Axis(0), rows_each);
            let wished = wished.axis_chunks_iter(Axis(0), rows_each);
            let weights = weight.axis_chunks_iter(Axis(0), rows_each);
            for (((errors, wished), weights), rows) in errors.zip(wished).zip(weights).zip(rows.chunks_mut(rows_each)) {
                scope.spawn(move || columns.round(weights, wished, errors, rows));
            }
        });
    }
    rows
}

/// Columns of one block, in one group.
#[derive(Clone, Copy)]
struct Columns<'a> {
    /// The first of them in the row.
    begin: usize,
    /// How their errors meet: `u[k]` is how that of column `k` reaches all of them.
    u: &'a [f32],
    format: IntGroups,
}

impl Columns<'_> {
    /// Rounds these columns of some rows. `wished` is what earlier columns wish of these, `errors` (from these columns on) takes what is left.
    fn round(
        self,
        weights: ArrayView2<'_, f32>,
        wished: ArrayView2<'_, f32>,
        mut errors: ArrayViewMut2<'_, f32>,
        rows: &mut [GroupedRow],
    ) {
        let (in_features, width) = (weights.ncols(), wished.ncols());
        let features = self.format.group.features(in_features);
        let group = self.begin / features;
        let own = s![self.begin..self.begin + width];
        for (index, row) in rows.iter_mut().enumerate() {
            let all = weights.row(index);
            let weight = all.slice(own).to_vec();
            let mut wished = wished.row(index).to_vec();
            if self.begin.is_multiple_of(features) {
                // A row of many blocks is scaled by its weights; a group by what it would become if it were not rounded.
                let fitted = if features > BLOCK {
                    all.to_vec()
                } else {
                    let mut whole = wished.clone();
                    for k in 0..width {
                        self.pass_on(k, weight[k] - whole[k], &mut whole);
                    }
                    whole
                };
                let fitted = self.format.quantise(&fitted);
                (row.scales[group], row.zeros[group]) = (fitted.scales[0], fitted.zeros[0]);
            }
            let (scale, zero) = (row.scales[group], f32::from(row.zeros[group]));
            for k in 0..width {
                let code = nearest(wished[k], scale, zero, self.format.bits);
                row.codes[self.begin + k] = code;
                let error = weight[k] - (f32::from(code) - zero) * scale;
                errors[[index, k]] = error;
                self.pass_on(k, error, &mut wished);
            }
        }
    }

    /// Adds what the error of column `k` makes the columns after it wish.
    fn pass_on(self, k: usize, error: f32, wished: &mut [f32]) {
        let u = &self.u[k * wished.len()..][..wished.len()];
        wished[k + 1..].iter_mut().zip(&u[k + 1..]).for_each(|(x, u)| *x += error * u);
    }
}

/// The code nearest to `value`; that of zero where all of the group are.
fn nearest(value: f32, scale: f32, zero: f32, bits: Bits) -> u8 {
    if scale == 0.0 || !scale.is_finite() {
        return zero as u8;
    }
    (value / scale + zero).round_ties_even().clamp(0.0, f32::from(bits.largest())) as u8
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, ArrayView1};
    use pelton_backend::Group;

    use super::super::factor::tests::inputs;
    use super::*;

    const OF_64: IntGroups = IntGroups { bits: Bits::Four, group: Group::Of64, zeros: false };

    fn weight(out_features: usize, in_features: usize) -> Array2<f32> {
        let mut random = fastrand::Rng::with_seed(5);
        Array2::from_shape_simple_fn((out_features, in_features), || random.f32() - random.f32())
    }

    /// The numbers that `rounded` stands for.
    fn values(rounded: &Rounded, format: IntGroups, in_features: usize) -> Array2<f32> {
        let features = format.group.features(in_features);
        let mut values = Array2::zeros((rounded.rows.len(), in_features));
        for (mut out, row) in values.rows_mut().into_iter().zip(&rounded.rows) {
            for (place, value) in row.values(features).enumerate() {
                out[rounded.order.as_ref().map_or(place, |order| order[place] as usize)] = value as f32;
            }
        }
        values
    }

    /// Squared error of the outputs over `x` `[rows, in]`.
    fn loss(weight: &Array2<f32>, kept: &Array2<f32>, x: &[f32]) -> f32 {
        let x = ArrayView2::from_shape((x.len() / weight.ncols(), weight.ncols()), x).unwrap();
        (weight - kept).dot(&x.t()).mapv(|error| error * error).sum()
    }

    /// The published algorithm, column by column, with the inverse of the moments written out.
    fn by_inverse(weight: &Array2<f32>, x: &[f32], format: IntGroups) -> Array2<f32> {
        let n = weight.ncols();
        let mut moments = Moments::new(n);
        moments.add(x);
        let mut h = moments.means();
        damp(&mut h, DAMPING);
        let mut h = h.mapv(f64::from);
        let mut inverse = Array2::<f64>::eye(n);
        for k in 0..n {
            let pivot = h[[k, k]];
            for j in 0..n {
                h[[k, j]] /= pivot;
                inverse[[k, j]] /= pivot;
            }
            for i in (0..n).filter(|&i| i != k) {
                let factor = h[[i, k]];
                for j in 0..n {
                    let (a, b) = (h[[k, j]], inverse[[k, j]]);
                    h[[i, j]] -= factor * a;
                    inverse[[i, j]] -= factor * b;
                }
            }
        }
        let features = format.group.features(n);
        let mut left = weight.mapv(f64::from);
        let mut kept = Array2::zeros(weight.dim());
        let mut fitted = vec![(0.0, 0.0); weight.nrows()];
        for k in 0..n {
            for row in 0..weight.nrows() {
                if k % features == 0 {
                    let group: Vec<f32> =
                        left.slice(s![row, k..n.min(k + features)]).iter().map(|&x| x as f32).collect();
                    let group = format.quantise(&group);
                    fitted[row] = (group.scales[0], f32::from(group.zeros[0]));
                }
                let (scale, zero) = fitted[row];
                let code = nearest(left[[row, k]] as f32, scale, zero, format.bits);
                let value = f64::from((f32::from(code) - zero) * scale);
                kept[[row, k]] = value as f32;
                let error = (left[[row, k]] - value) / inverse[[k, k]];
                for j in k..n {
                    left[[row, j]] -= error * inverse[[k, j]];
                }
            }
            // What remains is the inverse without this column.
            let (column, pivot) = (inverse.column(k).to_owned(), inverse[[k, k]]);
            for i in 0..n {
                for j in 0..n {
                    inverse[[i, j]] -= column[i] * column[j] / pivot;
                }
            }
        }
        kept
    }

    #[test]
    fn the_published_algorithm_gives_the_same_numbers() {
        const ROWS: usize = 40;
        for n in [64, 100, 192] {
            let (weight, x) = (weight(ROWS, n), inputs(3 * n, n, 2));
            let mut moments = Moments::new(n);
            moments.add(&x);
            let rounded = gptq(&weight, &moments, OF_64, false).unwrap();
            let (ours, published) = (values(&rounded, OF_64, n), by_inverse(&weight, &x, OF_64));
            // Where the last bits of a sum decide between two codes, all later columns of the row make up for another error.
            let alike = |(a, b): (ArrayView1<f32>, ArrayView1<f32>)| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
            let same = ours.rows().into_iter().zip(published.rows()).filter(|&rows| alike(rows)).count();
            assert!(same >= ROWS / 2, "{same} of {ROWS} rows alike at {n}");
            let (ours, published) = (loss(&weight, &ours, &x), loss(&weight, &published, &x));
            assert!((ours / published - 1.0).abs() < 0.03, "{ours} beside {published} at {n}");
        }
    }

    #[test]
    fn outputs_are_nearer_than_by_rounding_each_weight() {
        for format in [
            OF_64,
            IntGroups { zeros: true, ..OF_64 },
            IntGroups { group: Group::Row, ..OF_64 },
            IntGroups { group: Group::Of128, ..OF_64 },
            IntGroups { bits: Bits::Eight, group: Group::Row, zeros: false },
        ] {
            let n = 300;
            let (weight, x) = (weight(40, n), inputs(800, n, 3));
            let mut moments = Moments::new(n);
            moments.add(&x);
            let mut plain = Array2::zeros(weight.dim());
            for (mut out, row) in plain.rows_mut().into_iter().zip(weight.rows()) {
                let row = format.quantise(&row.to_vec());
                out.iter_mut().zip(row.values(format.group.features(n))).for_each(|(out, value)| *out = value as f32);
            }
            let plain = loss(&weight, &plain, &x);
            for act_order in [false, true] {
                let rounded = gptq(&weight, &moments, format, act_order).unwrap();
                let ours = loss(&weight, &values(&rounded, format, n), &x);
                assert!(ours < 0.5 * plain, "{format}, act-order {act_order}: {ours} beside {plain}");
            }
        }
    }

    #[test]
    fn inputs_that_never_come_do_no_harm() {
        let (weight, mut x) = (weight(3, 70), inputs(200, 70, 4));
        x.iter_mut().skip(13).step_by(70).for_each(|x| *x = 0.0);
        let mut moments = Moments::new(70);
        moments.add(&x);
        for act_order in [false, true] {
            let rounded = gptq(&weight, &moments, OF_64, act_order).unwrap();
            assert!(values(&rounded, OF_64, 70).iter().all(|value| value.is_finite()));
        }
        assert!(gptq(&weight, &Moments::new(70), OF_64, false).is_some(), "without any rows");
    }
}
