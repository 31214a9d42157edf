//! Picking one of the likely tokens by a number between 0 and 1.

use std::cmp::Ordering;

use pelton_backend::TokenId;

use super::SamplingParams;
use super::survey::Survey;

/// A token that may be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) token: u32,
    /// Finite.
    pub(super) logit: f32,
    /// Probability, up to a factor that all candidates share; the likeliest has 1.
    pub(super) weight: f64,
}

/// In which order candidates are walked through by a draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DrawOrder {
    /// As they stand.
    AsGiven,
    /// The likeliest first, wherever they stand.
    LikeliestFirst,
}

/// Whether a draw needs the weight of the whole row: [`draw`] and [`keep_candidates`] ask the survey for it.
pub(super) fn needs_total(params: &SamplingParams, vocab_size: usize) -> bool {
    !params.is_greedy()
        && top_k(params, vocab_size).is_none()
        && (params.top_p < 1.0 || is_unfiltered(params, vocab_size))
}

/// Whether every token of a row may be drawn.
pub(super) fn is_unfiltered(params: &SamplingParams, vocab_size: usize) -> bool {
    top_k(params, vocab_size).is_none() && params.top_p >= 1.0 && params.min_p <= 0.0 && params.typical_p >= 1.0
}

fn top_k(params: &SamplingParams, vocab_size: usize) -> Option<usize> {
    Some(params.top_k as usize).filter(|&k| 0 < k && k < vocab_size)
}

/// Draws a token from `row` (`[vocab]`, processed logits, as `survey` has read it) under `params`; `uniform` is in `0.0..1.0`.
///
/// NaN counts as impossible, positive infinity as the greatest finite number. `None` when every token is impossible.
/// `candidates` is scratch.
pub(super) fn draw(
    row: &[f32],
    survey: &mut Survey,
    params: &SamplingParams,
    uniform: f64,
    candidates: &mut Vec<Candidate>,
) -> Option<TokenId> {
    if is_unfiltered(params, row.len()) {
        return survey.pick(row, params.temperature, uniform);
    }
    let order = keep_candidates(row, survey, params, candidates);
    let target = uniform * sum(candidates);
    let drawn = match order {
        DrawOrder::AsGiven => reach(candidates, target.next_up()),
        DrawOrder::LikeliestFirst => reach_by_likelihood(candidates, target.next_up()),
    };
    candidates.get(drawn).map(|candidate| TokenId(candidate.token))
}

/// Leaves in `candidates` what temperature, top-k, top-p, min-p and typical-p keep, applied in this order, each to what the one
/// before left (renormalised). At least one token stays, unless all are impossible.
pub(super) fn keep_candidates(
    row: &[f32],
    survey: &mut Survey,
    params: &SamplingParams,
    candidates: &mut Vec<Candidate>,
) -> DrawOrder {
    /// What is so far below the greatest, in units of the temperature, can never be drawn.
    const DEEPEST: f32 = 87.0;
    candidates.clear();
    if survey.greatest() == f32::NEG_INFINITY {
        return DrawOrder::AsGiven;
    }
    let mut order = DrawOrder::AsGiven;
    if let Some(k) = top_k(params, row.len()) {
        if survey.gather_likeliest(row, k, candidates) {
            order = DrawOrder::LikeliestFirst;
        }
        survey.weigh(candidates, params.temperature);
        candidates.retain(|candidate| candidate.weight > 0.0);
        if params.top_p < 1.0 {
            keep_top_p(candidates, f64::from(params.top_p) * sum(candidates));
            order = DrawOrder::LikeliestFirst;
        }
    } else if params.top_p < 1.0 {
        gather_top_p(row, survey, params, DEEPEST, candidates);
        order = DrawOrder::LikeliestFirst;
    } else {
        // A little more than min-p keeps: rounding must not decide here.
        let depth = if params.min_p > 0.0 { (0.01 - params.min_p.min(1.0).ln()).min(DEEPEST) } else { DEEPEST };
        survey.gather(row, level(survey, params, depth), None, candidates);
        survey.weigh(candidates, params.temperature);
        candidates.retain(|candidate| candidate.weight > 0.0);
    }
    if params.min_p > 0.0 {
        candidates.retain(|candidate| candidate.weight >= f64::from(params.min_p.min(1.0)));
    }
    if params.typical_p < 1.0 {
        keep_typical(candidates, params.typical_p.into());
        order = DrawOrder::AsGiven;
    }
    order
}

/// The logit `depth` temperatures below the greatest.
fn level(survey: &Survey, params: &SamplingParams, depth: f32) -> f32 {
    (f64::from(survey.greatest()) - f64::from(depth) * f64::from(params.temperature)) as f32
}

/// The smallest set of likeliest tokens that has `top_p` of the weight (Holtzman et al. 2020): those above a threshold, which is
/// lowered until they have enough; only among the last to come in is the exact end looked for.
fn gather_top_p(
    row: &[f32],
    survey: &mut Survey,
    params: &SamplingParams,
    deepest: f32,
    candidates: &mut Vec<Candidate>,
) {
    let wanted = f64::from(params.top_p) * survey.total(params.temperature);
    let (mut depth, mut below, mut before) = (2.0, None, 0.0);
    loop {
        let from = level(survey, params, depth);
        let first = candidates.len();
        survey.gather(row, from, below, candidates);
        let added = &mut candidates[first..];
        survey.weigh(added, params.temperature);
        let weight = sum(added);
        if before + weight >= wanted && !added.is_empty() {
            let last = first + reach_by_likelihood(added, wanted - before);
            candidates.truncate(last + 1);
            break;
        }
        if depth >= deepest {
            break;
        }
        (depth, below, before) = ((2.0 * depth).min(deepest), Some(from), before + weight);
    }
    candidates.retain(|candidate| candidate.weight > 0.0);
}

/// Leaves the likeliest candidates that together weigh `wanted`, in no order.
fn keep_top_p(candidates: &mut Vec<Candidate>, wanted: f64) {
    let last = reach_by_likelihood(candidates, wanted);
    candidates.truncate(last + 1);
}

fn sum(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| candidate.weight).sum()
}

/// The first index up to which candidates weigh `wanted`; the last when rounding leaves a crumb.
fn reach(candidates: &[Candidate], wanted: f64) -> usize {
    let mut sum = 0.0;
    let crossing = candidates.iter().position(|candidate| {
        sum += candidate.weight;
        sum >= wanted
    });
    crossing.unwrap_or(candidates.len().saturating_sub(1))
}

/// As [`reach`] in the order of likelihood, into which candidates are brought only as far as needed: those before the index are
/// likelier than the one there, those after it are not.
fn reach_by_likelihood(candidates: &mut [Candidate], wanted: f64) -> usize {
    const FEW: usize = 48;
    let (mut first, mut end, mut before) = (0, candidates.len(), 0.0);
    while end - first > FEW {
        // Weight gathers at the likely end.
        let split = (end - first) / 4;
        candidates[first..end].select_nth_unstable_by(split, likelier_first);
        let weight = sum(&candidates[first..first + split]);
        if before + weight >= wanted {
            end = first + split;
        } else {
            (first, before) = (first + split, before + weight);
        }
    }
    candidates[first..end].sort_unstable_by(likelier_first);
    first + reach(&candidates[first..end], wanted - before)
}

/// The smallest set that has `mass` of the weight, nearest first to the entropy in information content (Meister et al. 2022).
fn keep_typical(candidates: &mut Vec<Candidate>, mass: f64) {
    let total: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
    let entropy: f64 = candidates
        .iter()
        .map(|candidate| candidate.weight / total)
        .map(|probability| -probability * probability.ln())
        .sum();
    let distance = |candidate: &Candidate| (-(candidate.weight / total).ln() - entropy).abs();
    candidates.sort_unstable_by(|a, b| distance(a).total_cmp(&distance(b)).then(a.token.cmp(&b.token)));
    let mut sum = 0.0;
    let crossing = candidates.iter().position(|candidate| {
        sum += candidate.weight;
        sum >= mass * total
    });
    if let Some(index) = crossing {
        candidates.truncate(index + 1);
    }
}

/// Greater logits first; of equals the lower token.
pub(super) fn likelier_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// A number in `0.0..1.0` that depends on its arguments alone. There is no generator whose state could depend on batch mates:
/// three rounds of SplitMix64 (Steele, Lea and Flood 2014), one for each argument, and the upper 53 bits.
pub(super) fn uniform(seed: u64, choice: u32, position: u32) -> f64 {
    let hash = split_mix(split_mix(split_mix(seed) ^ u64::from(choice)) ^ u64::from(position));
    (hash >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// The first output of SplitMix64 with state `x`.
fn split_mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn params() -> SamplingParams {
        SamplingParams { temperature: 1.0, ..SamplingParams::default() }
    }

    fn survey(row: &[f32], params: &SamplingParams) -> Survey {
        let mut survey = Survey::new(pulp::Arch::new());
        survey.read(row, [params.temperature]);
        survey
    }

    fn drawn(row: &[f32], params: &SamplingParams, uniform: f64) -> Option<u32> {
        draw(row, &mut survey(row, params), params, uniform, &mut Vec::new()).map(|token| token.0)
    }

    fn kept(row: &[f32], params: &SamplingParams) -> Vec<u32> {
        let mut candidates = Vec::new();
        keep_candidates(row, &mut survey(row, params), params, &mut candidates);
        let mut tokens: Vec<u32> = candidates.iter().map(|candidate| candidate.token).collect();
        tokens.sort_unstable();
        tokens
    }

    #[test]
    fn draws_are_pinned() {
        assert_eq!(split_mix(0), 0xE220_A839_7B1D_CDAF);
        assert_eq!(split_mix(0x9E37_79B9_7F4A_7C15), 0x6E78_9E6A_A1B9_65F4);
        // Computed by a separate program from the definition.
        assert_eq!(uniform(0, 0, 0).to_bits(), 0.13870941014555427f64.to_bits());
        assert_eq!(uniform(42, 1, 7).to_bits(), 0.10584086659863745f64.to_bits());
        assert_eq!(uniform(u64::MAX, 3, 1000).to_bits(), 0.9234643141878413f64.to_bits());
    }

    #[test]
    fn draws_fill_the_range_evenly() {
        let mut bins = [0u32; 16];
        for position in 0..16_000 {
            bins[(uniform(7, 0, position) * 16.0) as usize] += 1;
        }
        // 1000 expected, standard deviation 31: five of them.
        assert!(bins.iter().all(|&count| (845..=1155).contains(&count)), "{bins:?}");
    }

    #[test]
    fn every_token_is_drawn_as_often_as_its_probability_says() {
        let row: Vec<f32> = [0.5f32, 0.25, 0.125, 0.125].iter().map(|probability| probability.ln()).collect();
        let mut counts = [0u32; 4];
        for position in 0..16_000 {
            let token = drawn(&row, &params(), uniform(1, 0, position)).unwrap();
            counts[token as usize] += 1;
        }
        for (count, expected) in counts.into_iter().zip([8000i32, 4000, 2000, 2000]) {
            // Standard deviations are below 64: five of them.
            assert!((count as i32 - expected).abs() < 320, "{counts:?}");
        }
    }

    #[test]
    fn temperature_sharpens_and_flattens() {
        let row = [0.0, 1.0];
        let share = |temperature: f32| {
            let mut candidates = Vec::new();
            let params = SamplingParams { temperature, ..params() };
            keep_candidates(&row, &mut survey(&row, &params), &params, &mut candidates);
            candidates[0].weight
        };
        assert!((share(1.0) - (-1.0f64).exp()).abs() < 1e-7);
        assert!((share(0.5) - (-2.0f64).exp()).abs() < 1e-7);
        assert_eq!(kept(&row, &SamplingParams { temperature: 1e-30, ..params() }), [1]);
    }

    #[test]
    fn ties_are_broken_by_the_lower_token() {
        let row = [1.0, 2.0, 2.0, 2.0];
        assert_eq!(kept(&row, &SamplingParams { top_k: 2, ..params() }), [1, 2]);
        assert_eq!(kept(&row, &SamplingParams { top_p: 0.0, ..params() }), [1]);
    }

    #[test]
    fn hostile_logits_never_panic() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let all = SamplingParams { top_k: 3, top_p: 0.9, min_p: 0.1, typical_p: 0.9, ..params() };
        for params in [params(), all] {
            assert_eq!(kept(&[nan, -inf, nan], &params), [] as [u32; 0]);
            assert_eq!(drawn(&[nan, -inf], &params, 0.5), None);
            assert_eq!(kept(&[nan, 1.0, -inf], &params), [1]);
            assert_eq!(kept(&[inf, 1.0, nan, f32::MAX], &params), [0, 3]);
        }
    }

    /// Straight from the definitions: sorts everything, in f64. `None` when a threshold is so near that rounding decides.
    fn reference(row: &[f32], params: &SamplingParams) -> Option<Vec<u32>> {
        let near = |a: f64, b: f64| (a - b).abs() < 1e-5;
        let mut tokens: Vec<(u32, f64)> = row
            .iter()
            .enumerate()
            .map(|(token, &logit)| (token as u32, f64::from(logit / params.temperature)))
            .collect();
        tokens.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if params.top_k > 0 {
            tokens.truncate(params.top_k as usize);
        }
        let normalise = |tokens: &mut Vec<(u32, f64)>| {
            let total: f64 = tokens.iter().map(|token| token.1).sum();
            tokens.iter_mut().for_each(|token| token.1 /= total);
        };
        tokens.iter_mut().for_each(|token| token.1 = token.1.exp());
        normalise(&mut tokens);
        let cut = |tokens: &mut Vec<(u32, f64)>, mass: f64| {
            let mut sum = 0.0;
            for index in 0..tokens.len() {
                sum += tokens[index].1;
                if near(sum, mass) {
                    return None;
                }
                if sum >= mass {
                    tokens.truncate(index + 1);
                    break;
                }
            }
            Some(())
        };
        if params.top_p < 1.0 {
            cut(&mut tokens, params.top_p.into())?;
            normalise(&mut tokens);
        }
        let least = f64::from(params.min_p) * tokens[0].1;
        if tokens.iter().any(|token| near(token.1, least)) {
            return None;
        }
        tokens.retain(|token| token.1 >= least);
        normalise(&mut tokens);
        if params.typical_p < 1.0 {
            let entropy: f64 = tokens.iter().map(|token| -token.1 * token.1.ln()).sum();
            let distance = |token: &(u32, f64)| (-token.1.ln() - entropy).abs();
            tokens.sort_by(|a, b| distance(a).total_cmp(&distance(b)));
            // Equal logits are equally far, but the order of near ones is up to rounding.
            if tokens.windows(2).any(|pair| near(distance(&pair[0]), distance(&pair[1]))) {
                return None;
            }
            cut(&mut tokens, params.typical_p.into())?;
        }
        let mut tokens: Vec<u32> = tokens.into_iter().map(|token| token.0).collect();
        tokens.sort_unstable();
        Some(tokens)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

        #[test]
        fn filters_keep_what_their_definitions_keep(
            row in prop::collection::vec(-6.0f32..6.0, 1..300),
            temperature in 0.3f32..2.0,
            top_k in prop_oneof![Just(0u32), 1..400u32],
            top_p in prop_oneof![Just(1.0f32), 0.05f32..0.99],
            min_p in prop_oneof![Just(0.0f32), 0.001f32..0.5],
            typical_p in prop_oneof![Just(1.0f32), 0.05f32..0.99],
        ) {
            let params = SamplingParams { temperature, top_k, top_p, min_p, typical_p, ..params() };
            if let Some(expected) = reference(&row, &params) {
                prop_assert_eq!(kept(&row, &params), expected);
            }
        }

        #[test]
        fn any_bits_are_survived(
            bits in prop::collection::vec(any::<u32>(), 1..50),
            top_p in 0.0f32..=1.0,
            typical_p in 0.0f32..=1.0,
            uniform in 0.0f64..1.0,
        ) {
            let row: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            let params = SamplingParams { top_p, typical_p, ..params() };
            let token = drawn(&row, &params, uniform);
            let any_possible = row.iter().any(|&logit| logit > f32::NEG_INFINITY);
            prop_assert_eq!(token.is_some(), any_possible);
            if let Some(token) = token {
                prop_assert!(row[token as usize] > f32::NEG_INFINITY);
            }
        }
    }
}
