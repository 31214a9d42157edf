//! How far an operation may be from exact arithmetic, derived from the precision of f32 and the lengths of its sums.
//!
//! All bounds are of the worst case, first order in [`U`] (Higham, Accuracy and Stability of Numerical Algorithms, chapter 3): a sum of
//! `n` terms in any order, fused or not, is off by at most `n * U` times the sum of magnitudes. They hold for every order of
//! summation, and a wrong or missing term in a sum of a few hundred exceeds them by far.

/// Unit roundoff of f32: half the distance from 1 to the next number.
const U: f64 = 1.0 / (1 << 24) as f64;

/// Numbers below this, near the smallest normal f32, may be flushed to zero, also on the way.
const UNDERFLOW: f64 = 1e-37;

/// A linear over `k` inputs; `magnitude` is the sum of `|x * w|` and `|bias|`. Each term is rounded at most twice, once as a
/// product and once as a sum; weights (and rows, where they are rounded) enter the reference as they are stored.
pub(super) fn linear(k: usize, magnitude: f64) -> f64 {
    (2 * k + 2) as f64 * U * magnitude + k as f64 * UNDERFLOW
}

/// `code * scale` with result `y`: the scale and the product are rounded.
pub(super) fn scaled_code(y: f64) -> f64 {
    2.0 * U * y.abs()
}

/// An RMS norm of `cols` columns with result `y`. The sum of squares is relatively off by `cols * U`, its root by half of that; mean,
/// epsilon, root, reciprocal and two products round six times.
pub(super) fn norm(cols: usize, y: f64) -> f64 {
    (cols as f64 / 2.0 + 6.0) * U * y.abs()
}

/// A layer norm of `cols` columns, `normed + bias`, of a row whose largest number is `largest` standard deviations from zero.
///
/// The mean is off by `cols + 1` roundings of the largest number, so each distance by one more; that moves results by as many roundings of
/// `largest * weight`. It moves the variance in second order, beside what the sum of squares adds, as in [`norm`]; the bias rounds once more.
pub(super) fn layer_norm(cols: usize, normed: f64, bias: f64, largest: f64, weight: f64) -> f64 {
    let distance = (cols as f64 + 2.0) * U * largest;
    let scale = (cols as f64 / 2.0 + 7.0) * U + 2.0 * distance;
    scale * normed.abs() + distance * weight.abs() + U * (normed + bias).abs()
}

/// One product with result `y`.
pub(super) fn product(y: f64) -> f64 {
    U * y.abs()
}

/// `cap * tanh(x / cap)`: the exponential of `2 x / cap` is relatively good to six `U` and two roundings of its argument; what becomes of that in
/// `1 - 2 / (e + 1)` is at most half of it (`2 e / (e + 1)^2`, and as much of the argument as there is curvature), and four more round.
pub(super) fn softcap(x: f64, cap: f64) -> f64 {
    let u = 2.0 * x.abs() / cap;
    (6.0 + 2.0 * u * (-u).exp() + 4.0) * U * cap
}

/// A sum of `top_k` experts' results with their weights, all of one sign, result `y`, where logits differ by up to `range`: exponentials are good to four `U`
/// and the argument's rounding, their sum over all experts to as many more as there are, then two divisions and the sum.
pub(super) fn experts(num_experts: usize, top_k: usize, y: f64, range: f64) -> f64 {
    let exponential = 6.0 + range;
    (2.0 * exponential + (num_experts + top_k) as f64 + 4.0 + top_k as f64) * U * y.abs() + UNDERFLOW
}

/// `a * cos - b * sin`: two products and a sum.
pub(super) fn rope(a_cos: f64, b_sin: f64) -> f64 {
    3.0 * U * (a_cos.abs() + b_sin.abs())
}

/// `x * sigmoid(u) * up` with result `y` and `factor = x * up`, where `u` was computed with `argument_roundings` roundings, each of which turns into a relative
/// error of `|u| * U`; the exponential is good to four `U` and its argument reduction to two, the rest rounds four times.
pub(super) fn sigmoid_gate(y: f64, factor: f64, u: f64, argument_roundings: f64) -> f64 {
    (argument_roundings * u.abs() + 10.0) * U * y.abs() + UNDERFLOW * (1.0 + factor.abs())
}

/// `x * Phi(x) * up` with result `y` and `factor = x * up`: the error function may be a fit good to 2e-7; `exp(-x^2 / 2)` turns two roundings of its argument
/// (and that of scaling `x`, squared) into relative errors of `x^2 / 2 * U` each; the rest rounds ten times.
pub(super) fn gelu(y: f64, factor: f64, x: f64) -> f64 {
    (2e-7 + (4.0 * x * x / 2.0 + 10.0) * U) * y.abs() + UNDERFLOW * (1.0 + factor.abs())
}

/// Attention over `context` positions with heads of `head_dim`.
///
/// A score is off by `2 * head_dim + 4` roundings of `score_magnitude` (the sum of `|q * k|`, scaled; a cap, which is off by a few roundings of itself,
/// and a penalty for distance, of two, count into it). That and the roundings of the
/// subtraction (of up to `2 * score_magnitude`) are relative errors of the weight, as are four of the exponential and two of each
/// softmax correction, of which there is at most one by position. Normalising doubles them; mixing adds `context + 2` roundings, twice as many
/// where products round apart from sums. Weights that are `rounded` to bfloat16 are each off by half a unit of its eight bits more; their sum is not.
pub(super) fn attention(
    head_dim: usize,
    context: usize,
    score_magnitude: f64,
    value_magnitude: f64,
    rounded: bool,
) -> f64 {
    let score = (2.0 * head_dim as f64 + 4.0) * score_magnitude;
    let weight = score + 4.0 + 3.0 * context as f64;
    let weight_rounding = if rounded { 1.0 / 256.0 } else { 0.0 };
    ((2.0 * weight + 2.0 * context as f64 + 2.0) * U + weight_rounding) * value_magnitude
}
