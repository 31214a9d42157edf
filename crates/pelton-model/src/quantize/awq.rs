//! AWQ: inputs that carry much get finer steps, by making their weights larger and what feeds them smaller.
//!
//! Lin et al. 2024 (arXiv:2306.00978). A factor for each input, `square^(alpha / 2)`, with the `alpha` whose rounding hurts the outputs
//! least; then each group's range is narrowed as far as that helps. What an input carries is taken from its mean square.

use ndarray::{Array1, Array2, Axis};
use pelton_backend::{Bits, GroupedRow, IntGroups};

use super::factor::Moments;

/// Steps of `alpha` between 0 and 1.
const ALPHAS: usize = 20;
/// Rows of a matrix by which an `alpha` is judged: outputs are alike enough.
const JUDGES: usize = 512;
/// Shares of a group's range that are tried.
const SHARES: [f32; 9] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6];

/// Factors for the inputs that all of `weights`, `[out, in]` each, read: weights are multiplied by them, what feeds them divided.
pub(crate) fn factors(weights: &[&Array2<f32>], moments: &Moments, format: IntGroups) -> Array1<f32> {
    let (squares, means) = (moments.squares(), moments.means());
    let judges: Vec<Array2<f32>> = weights
        .iter()
        .map(|weight| {
            let step = weight.nrows().div_ceil(JUDGES / weights.len().min(JUDGES)).max(1);
            let rows: Vec<usize> = (0..weight.nrows()).step_by(step).collect();
            weight.select(Axis(0), &rows)
        })
        .collect();
    let candidates = (0..ALPHAS).map(|step| candidate(&squares, step as f32 / ALPHAS as f32));
    let judged = candidates.map(|factors| {
        let scaled_squares = &squares / &(&factors * &factors);
        let loss: f64 = judges
            .iter()
            .map(|weight| {
                let mut error = weight * &factors;
                for mut row in error.rows_mut() {
                    let rounded = round(&row.to_vec(), scaled_squares.as_slice().expect("contiguous"), format);
                    let kept = rounded.values(format.group.features(row.len()));
                    row.iter_mut().zip(kept).for_each(|(x, kept)| *x -= kept as f32);
                }
                error /= &factors;
                (&error.dot(&means) * &error).iter().map(|&x| f64::from(x)).sum::<f64>()
            })
            .sum();
        (loss, factors)
    });
    let best = judged.min_by(|(a, _), (b, _)| a.total_cmp(b));
    best.map_or_else(|| Array1::ones(squares.len()), |(_, factors)| factors)
}

/// `square^(alpha / 2)`, around one.
fn candidate(squares: &Array1<f32>, alpha: f32) -> Array1<f32> {
    let factors = squares.mapv(|square| square.max(1e-12).powf(alpha / 2.0).clamp(1e-4, 1e4));
    let (least, most) = factors.iter().fold((f32::MAX, 0.0f32), |(a, b), &x| (a.min(x), b.max(x)));
    factors / (least * most).sqrt()
}

/// One row in `format`, which has zero points, each group's range narrowed as far as the squared error by `squares` of the inputs falls.
pub(crate) fn round(values: &[f32], squares: &[f32], format: IntGroups) -> GroupedRow {
    let features = format.group.features(values.len());
    let most = f32::from(format.bits.largest());
    let mut row = GroupedRow { codes: vec![0; values.len()], scales: Vec::new(), zeros: Vec::new() };
    let groups = values.chunks(features).zip(squares.chunks(features)).zip(row.codes.chunks_mut(features));
    for ((values, squares), codes) in groups {
        let (least, greatest) = values.iter().fold((0.0f32, 0.0f32), |(a, b), &x| (a.min(x), b.max(x)));
        let mut best = (f32::INFINITY, 0.0, 0.0);
        for share in SHARES {
            let scale = half::f16::from_f32(share * (greatest / most - least / most)).to_f32();
            if scale == 0.0 {
                continue;
            }
            let zero = (-share * least / scale).round_ties_even().clamp(0.0, most);
            let error = |(&x, &square): (&f32, &f32)| {
                let code = (x / scale + zero).round_ties_even().clamp(0.0, most);
                square * (x - (code - zero) * scale).powi(2)
            };
            let loss: f32 = values.iter().zip(squares).map(error).sum();
            if loss < best.0 {
                best = (loss, scale, zero);
            }
        }
        let (_, scale, zero) = best;
        if scale > 0.0 {
            let code = |x: f32| (x / scale + zero).round_ties_even().clamp(0.0, most) as u8;
            codes.iter_mut().zip(values).for_each(|(out, &x)| *out = code(x));
        }
        row.scales.push(scale);
        row.zeros.push(zero as u8);
    }
    row
}

/// Four bits in groups with zero points: the one form that AWQ files have.
pub(crate) const fn format(group: pelton_backend::Group) -> IntGroups {
    IntGroups { bits: Bits::Four, group, zeros: true }
}

#[cfg(test)]
mod tests {
    use pelton_backend::Group;

    use super::super::factor::tests::inputs;
    use super::*;

    /// Squared error of the outputs.
    fn loss(weight: &Array2<f32>, moments: &Moments, round: impl Fn(&[f32]) -> Vec<f32>) -> f32 {
        let mut error = weight.clone();
        for mut row in error.rows_mut() {
            let kept = round(&row.to_vec());
            row.iter_mut().zip(kept).for_each(|(x, kept)| *x -= kept);
        }
        (&error.dot(&moments.means()) * &error).sum()
    }

    #[test]
    fn factors_and_narrower_ranges_lower_the_error_of_outputs() {
        let (n, format) = (160, format(Group::Of64));
        let mut random = fastrand::Rng::with_seed(7);
        let weight = Array2::from_shape_simple_fn((48, n), || random.f32() - random.f32());
        let mut moments = Moments::new(n);
        // A few inputs carry most, as in trained models.
        let mut x = inputs(500, n, 8);
        x.iter_mut().skip(5).step_by(40).for_each(|x| *x *= 20.0);
        moments.add(&x);
        let factors = factors(&[&weight, &weight], &moments, format);
        assert!(factors[5] > 1.1 * factors[6] && factors.iter().all(|&factor| factor > 0.0), "{factors}");

        let values = |row: GroupedRow| row.values(64).map(|value| value as f32).collect::<Vec<_>>();
        let plain = loss(&weight, &moments, |row| values(format.quantise(row)));
        let squares = moments.squares().to_vec();
        let narrowed = loss(&weight, &moments, |row| values(round(row, &squares, format)));
        let scaled_squares: Vec<f32> =
            squares.iter().zip(&factors).map(|(square, factor)| square / factor.powi(2)).collect();
        let both = loss(&weight, &moments, |row| {
            let scaled: Vec<f32> = row.iter().zip(&factors).map(|(x, factor)| x * factor).collect();
            let kept = values(round(&scaled, &scaled_squares, format));
            kept.into_iter().zip(&factors).map(|(x, factor)| x / factor).collect()
        });
        assert!(narrowed < plain && both < 0.97 * narrowed, "{plain} plain, {narrowed} narrowed, {both} with factors");
    }

    #[test]
    fn zeros_stay_zeros() {
        let row = round(&[0.0; 40], &[1.0; 40], format(Group::Of32));
        assert!(row.values(32).all(|value| value == 0.0) && row.scales.len() == 2);
        assert!(candidate(&Array1::zeros(4), 0.5).iter().all(|factor| *factor == 1.0));
    }
}
