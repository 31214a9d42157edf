//! Sampling from vocabularies of real sizes, where thresholds, pieces and partial orders matter.

use proptest::prelude::*;
use pulp::Arch;

use super::SamplingParams;
use super::draw::{Candidate, draw, keep_candidates, likelier_first};
use super::survey::Survey;

fn params() -> SamplingParams {
    SamplingParams { temperature: 1.0, ..SamplingParams::default() }
}

fn survey(row: &[f32], temperature: f32) -> Survey {
    let mut survey = Survey::new(Arch::new());
    survey.read(row, [temperature]);
    survey
}

/// The kept tokens, by number.
fn kept(row: &[f32], params: &SamplingParams) -> Vec<u32> {
    let mut candidates = Vec::new();
    keep_candidates(row, &mut survey(row, params.temperature), params, &mut candidates);
    let mut tokens: Vec<u32> = candidates.iter().map(|candidate| candidate.token).collect();
    tokens.sort_unstable();
    tokens
}

/// All possible tokens with their probabilities, the likeliest first.
fn sorted(row: &[f32], temperature: f32) -> Vec<(u32, f64)> {
    let possible = row.iter().enumerate().filter(|(_, logit)| **logit > f32::NEG_INFINITY);
    let mut order: Vec<Candidate> =
        possible.map(|(token, &logit)| Candidate { token: token as u32, logit, weight: 0.0 }).collect();
    order.sort_by(likelier_first);
    let greatest = order[0].logit;
    for candidate in &mut order {
        candidate.weight = (f64::from(candidate.logit - greatest) / f64::from(temperature)).exp();
    }
    let total: f64 = order.iter().map(|candidate| candidate.weight).sum();
    order.iter().map(|candidate| (candidate.token, candidate.weight / total)).collect()
}

/// Rows of many shapes: flat, with ties, a bell, a peak that hides the rest, a staircase down which the threshold has to go; some
/// tokens impossible.
fn rows() -> impl Strategy<Value = Vec<f32>> {
    (1usize..40_000, 0..6, 0.0f32..30.0, any::<u64>(), prop_oneof![Just(0.0f32), 0.0f32..0.9]).prop_map(
        |(len, shape, width, seed, impossible)| {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut row: Vec<f32> = (0..len)
                .map(|token| match shape {
                    _ if random.f32() < impossible => [f32::NEG_INFINITY, f32::NAN][token % 2],
                    0 => -3.0,
                    1 => (random.f32() * width).floor(),
                    2 => (0..4).map(|_| random.f32() - 0.5).sum::<f32>() * width,
                    3 => random.f32() - width * (token % 997 != 0) as u8 as f32,
                    4 => -((token * 7919 % len) as f32).ln_1p() * width * 0.1,
                    _ => -width * (token % 16) as f32,
                })
                .collect();
            let possible = random.usize(..len);
            row[possible] = 0.5;
            row
        },
    )
}

#[test]
fn one_possible_token_is_found_wherever_it_is() {
    for len in [1, 15, 16, 17, 1023, 1024, 1025, 2048, 151_936, 152_001] {
        for at in [0, len / 3, len / 2, len - 1] {
            let mut row = vec![f32::NEG_INFINITY; len];
            row[at] = -7.0;
            for params in [
                params(),
                SamplingParams { top_k: 50, ..params() },
                SamplingParams { top_p: 0.9, ..params() },
                SamplingParams { min_p: 0.1, ..params() },
                SamplingParams { typical_p: 0.5, ..params() },
            ] {
                for uniform in [0.0, 0.5, 1.0 - f64::EPSILON] {
                    let mut survey = survey(&row, 1.0);
                    let token = draw(&row, &mut survey, &params, uniform, &mut Vec::new());
                    assert_eq!(token.map(|token| token.0 as usize), Some(at), "{params:?}");
                    assert_eq!(survey.likeliest(&row), token);
                    assert_eq!(survey.log_sum(), -7.0);
                }
            }
        }
    }
}

#[test]
fn flat_rows_keep_the_lowest_tokens() {
    let row = vec![2.5; 151_936];
    assert_eq!(kept(&row, &SamplingParams { top_p: 0.5, ..params() }), (0..75_968).collect::<Vec<_>>());
    for top_k in [1, 50, 100, 2_000, 100_000] {
        assert_eq!(kept(&row, &SamplingParams { top_k, ..params() }), (0..top_k).collect::<Vec<_>>());
    }
    for uniform in [0.0, 0.3, 0.999_999] {
        let token = draw(&row, &mut survey(&row, 1.0), &params(), uniform, &mut Vec::new()).unwrap();
        assert_eq!(token.0, (uniform * 151_936.0) as u32);
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    let mut random = fastrand::Rng::with_seed(3);
    let mut row: Vec<f32> = (0..20_011).map(|_| random.f32() * 40.0 - 20.0).collect();
    (row[5], row[700], row[4000]) = (f32::NAN, f32::NEG_INFINITY, 19.999);
    let mut arches = vec![Arch::Scalar, Arch::new()];
    #[cfg(target_arch = "x86_64")]
    arches.extend(pulp::x86::V3::try_new().map(Arch::V3));
    let found = arches.into_iter().map(|arch| {
        let mut survey = Survey::new(arch);
        survey.read(&row, [0.7, 1.0]);
        let sums = (survey.total(0.7).to_bits(), survey.log_sum().to_bits());
        let picked: Vec<_> = (0..200).map(|index| survey.pick(&row, 0.7, f64::from(index) / 200.0)).collect();
        let mut candidates = Vec::new();
        survey.gather_likeliest(&row, 100, &mut candidates);
        survey.weigh(&mut candidates, 0.7);
        (sums, picked, candidates)
    });
    let found: Vec<_> = found.collect();
    assert!(found.iter().all(|other| *other == found[0]));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn top_k_is_the_beginning_of_the_sorted_row(row in rows(), top_k in prop_oneof![1u32..64, 64..20_000u32]) {
        // A temperature at which nothing underflows.
        let params = SamplingParams { top_k, temperature: 100.0, ..params() };
        let mut expected: Vec<u32> = sorted(&row, 1.0).into_iter().map(|token| token.0).take(top_k as usize).collect();
        expected.sort_unstable();
        prop_assert_eq!(kept(&row, &params), expected);
    }

    #[test]
    fn top_p_is_the_shortest_beginning_that_has_the_weight(
        row in rows(),
        top_p in prop_oneof![0.0f32..1.0, Just(0.9f32), 0.999f32..1.0],
        temperature in 0.2f32..3.0,
    ) {
        let kept = kept(&row, &SamplingParams { top_p, temperature, ..params() });
        let sorted = sorted(&row, temperature);
        let mut expected: Vec<u32> = sorted.iter().map(|token| token.0).take(kept.len()).collect();
        expected.sort_unstable();
        prop_assert_eq!(&kept, &expected);
        let weight = |num_kept: usize| sorted[..num_kept].iter().map(|token| token.1).sum::<f64>();
        prop_assert!(weight(kept.len()) >= f64::from(top_p) - 1e-5);
        prop_assert!(weight(kept.len() - 1) <= f64::from(top_p) + 1e-5);
    }

    #[test]
    fn draws_fall_where_the_sums_say(
        row in rows(),
        temperature in 0.2f32..3.0,
        top_p in prop_oneof![Just(1.0f32), 0.1f32..0.95],
        uniform in 0.0f64..1.0,
    ) {
        let params = SamplingParams { temperature, top_p, ..params() };
        let token = draw(&row, &mut survey(&row, temperature), &params, uniform, &mut Vec::new()).unwrap().0;
        let mut order = sorted(&row, temperature);
        if top_p < 1.0 {
            order.truncate(kept(&row, &params).len());
        } else {
            order.sort_by_key(|token| token.0);
        }
        let total: f64 = order.iter().map(|token| token.1).sum();
        let at = order.iter().position(|other| other.0 == token).unwrap();
        let before: f64 = order[..at].iter().map(|token| token.1).sum();
        prop_assert!(before / total - 1e-5 < uniform && uniform < (before + order[at].1) / total + 1e-5);
    }

    #[test]
    fn sums_are_exact_to_rounding(row in rows(), temperature in 0.2f32..3.0) {
        let order = sorted(&row, temperature);
        let total = survey(&row, temperature).total(temperature);
        prop_assert!((total * order[0].1 - 1.0).abs() < 4e-6, "{}", total * order[0].1 - 1.0);
    }
}
