//! One step's logits to tokens and log-probabilities.
//!
//! NaN counts as impossible. A row in which every token is impossible fails, and so does a constraint that cannot go on: both end their
//! sequence alone.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pelton_backend::TokenId;
use pelton_model::Logits;

use super::constraint::{self, TokenConstraint, TokenMask};
use super::draw::{Candidate, draw, is_unfiltered, likelier_first, needs_total, uniform};
use super::processors;
use super::survey::Survey;
use crate::event::{Foretold, SampledToken, SequenceError};
use crate::scheduler::{StepPlan, StepSamples};
use crate::sequence::Sequence;

/// Samples a step's sequences side by side, on the model's threads.
#[derive(Debug)]
pub(crate) struct Sampler {
    vocab_size: usize,
    /// By worker; each is locked by that worker alone.
    rows: Vec<Mutex<RowSampler>>,
    /// By span of the step; each is locked by whoever samples it.
    spans: Vec<Mutex<SpanSamples>>,
    /// By span: its first row of logits.
    first_rows: Vec<usize>,
}

/// What one span gave.
#[derive(Debug, Default)]
struct SpanSamples {
    prompt_logprobs: Vec<Foretold>,
    /// Empty where nothing is sampled.
    tokens: Vec<Result<SampledToken, SequenceError>>,
}

impl Sampler {
    pub(crate) fn new(vocab_size: usize) -> Self {
        Self { vocab_size, rows: Vec::new(), spans: Vec::new(), first_rows: Vec::new() }
    }

    /// Samples for each span of `plan` that wants it. `running` as it was planned.
    pub(crate) fn sample(
        &mut self,
        plan: &StepPlan,
        running: &[Sequence],
        logits: &Logits<'_>,
        samples: &mut StepSamples,
    ) {
        samples.tokens.clear();
        samples.num_tokens.clear();
        samples.prompt_logprobs.clear();
        assert_eq!(
            logits.len(),
            plan.batch.logit_rows.len() * self.vocab_size,
            "the model returns the logits asked for"
        );
        self.first_rows.clear();
        let mut num_rows = 0;
        for span in &plan.spans {
            self.first_rows.push(num_rows);
            num_rows += span.num_logits() as usize;
        }
        if num_rows == 0 {
            samples.num_tokens.resize(plan.spans.len(), 0);
            return;
        }
        let workers = logits.workers();
        let vocab_size = self.vocab_size;
        self.rows.resize_with(self.rows.len().max(workers.count()), || Mutex::new(RowSampler::new(vocab_size)));
        self.spans.resize_with(self.spans.len().max(plan.spans.len()), Mutex::default);
        let Self { rows, spans, first_rows, .. } = self;
        workers.run(plan.spans.len(), &|worker, index| {
            let (planned, result) = (&plan.spans[index], &mut *lock(&spans[index]));
            let sequence = &running[planned.running_index];
            let mut logits = logits[first_rows[index] * vocab_size..].chunks_exact(vocab_size);
            let mut sampler = lock(&rows[worker]);
            result.prompt_logprobs.clear();
            let foretold = sequence.tokens().iter().skip(planned.first_foretold as usize);
            for (&token, row) in foretold.zip(logits.by_ref().take(planned.num_prompt_logits as usize)) {
                result.prompt_logprobs.push(sampler.foretold(
                    row,
                    token,
                    sequence.group.report.prompt_logprobs.unwrap_or(0),
                ));
            }
            // Row by row, each as if the drafts before it had been sampled: the first that was not makes the rest worthless.
            result.tokens.clear();
            let sampled_rows = logits.take((planned.num_logits() - planned.num_prompt_logits) as usize);
            for (row, num_accepted) in sampled_rows.zip(0..) {
                let token = sampler.sample(row, sequence, num_accepted);
                let is_accepted = token.as_ref().is_ok_and(|token| sequence.draft(num_accepted) == Some(token.id));
                result.tokens.push(token);
                if !is_accepted {
                    break;
                }
            }
        });
        for span in &spans[..plan.spans.len()] {
            let span = &mut *lock(span);
            samples.prompt_logprobs.append(&mut span.prompt_logprobs);
            samples.num_tokens.push(span.tokens.len() as u32);
            samples.tokens.append(&mut span.tokens);
        }
    }
}

/// Locks; what a panicking holder left is replaced as a whole before it is read.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Samples from rows, with scratch memory that is reused from row to row.
#[derive(Debug)]
pub(crate) struct RowSampler {
    /// `[vocab]` logits of one row, once they have to change.
    row: Vec<f32>,
    /// `[vocab]`, zero between rows.
    counts: Vec<u32>,
    survey: Survey,
    candidates: Vec<Candidate>,
    mask: TokenMask,
}

impl RowSampler {
    pub(crate) fn new(vocab_size: usize) -> Self {
        Self {
            row: Vec::with_capacity(vocab_size),
            counts: vec![0; vocab_size],
            survey: Survey::new(pulp::Arch::new()),
            candidates: Vec::new(),
            mask: TokenMask::default(),
        }
    }

    /// How `logits` (`[vocab]`) foretold `token`, beside the `top_n` likeliest.
    fn foretold(&mut self, logits: &[f32], token: TokenId, top_n: u8) -> Foretold {
        self.survey.read(logits, [1.0]);
        let own = logits[token.0 as usize];
        let likelier = logits.iter().filter(|&&logit| logit > own).count();
        Foretold {
            logprob: log_probability(logits, token, self.survey.log_sum()),
            rank: u32::try_from(likelier).unwrap_or(u32::MAX).saturating_add(1),
            top: self.likeliest(logits, top_n),
        }
    }

    /// The likeliest tokens of `logits` (`[vocab]`, surveyed just before) with their log-probabilities, best first.
    fn likeliest(&mut self, logits: &[f32], top_n: u8) -> Vec<(TokenId, f32)> {
        let Self { survey, candidates, .. } = self;
        let log_sum = survey.log_sum();
        survey.gather_likeliest(logits, top_n.into(), candidates);
        candidates.sort_unstable_by(likelier_first);
        let top = candidates.iter().map(|likely| (TokenId(likely.token), (f64::from(likely.logit) - log_sum) as f32));
        top.collect()
    }

    /// Samples the token that follows `sequence` and its first `num_drafts` drafts, and tells it to the sequence's constraint, which knows
    /// of these drafts. `logits`: `[vocab]`.
    pub(crate) fn sample(
        &mut self,
        logits: &[f32],
        sequence: &Sequence,
        num_drafts: u32,
    ) -> Result<SampledToken, SequenceError> {
        let report = sequence.group.report;
        let mut is_changed = self.process(logits, sequence, num_drafts);
        let id = match &sequence.constraint {
            None => self.pick(logits, is_changed, sequence, uniform_of(sequence, num_drafts, Draw::First))?,
            Some(following) => self.follow(lock(following).as_mut(), logits, &mut is_changed, sequence, num_drafts)?,
        };
        if !report.wants_logprobs() {
            return Ok(SampledToken { id, logprob: None, top: Vec::new() });
        }
        if is_changed {
            self.survey.read(logits, [1.0]);
        }
        let logprob = report.logprobs.then(|| log_probability(logits, id, self.survey.log_sum()));
        Ok(SampledToken { id, logprob, top: self.likeliest(logits, report.top_n) })
    }

    /// Picks a token from `self.row` if that `is_changed`, else from `logits`, and surveys what it picks from.
    fn pick(
        &mut self,
        logits: &[f32],
        is_changed: bool,
        sequence: &Sequence,
        uniform: f64,
    ) -> Result<TokenId, SequenceError> {
        let params = &sequence.group.sampling;
        let Self { row, survey, candidates, .. } = self;
        let row = if is_changed { row.as_slice() } else { logits };
        // One pass for both sums, unless they are of different rows.
        let drawn_at = needs_total(params, row.len()).then_some(params.temperature);
        match (drawn_at, sequence.group.report.wants_logprobs() && !is_changed) {
            (Some(temperature), true) if temperature != 1.0 => survey.read(row, [temperature, 1.0]),
            (Some(temperature), _) => survey.read(row, [temperature]),
            (None, true) => survey.read(row, [1.0]),
            (None, false) => survey.read(row, []),
        }
        let id =
            if params.is_greedy() { survey.likeliest(row) } else { draw(row, survey, params, uniform, candidates) };
        id.ok_or(SequenceError::NoToken)
    }

    /// Picks a token that `following` allows, and tells it.
    ///
    /// Which tokens are allowed is a walk through the vocabulary, whether one of them is takes next to nothing. So where the whole distribution is drawn
    /// from, a token is drawn as if all were allowed, and taken if it is; only if not, one is drawn from those that are. Both together are the distribution of
    /// the allowed tokens: of probability p and all of them of probability a, a token is taken with p + (1 - a) p / a = p / a. The likeliest of all is
    /// the likeliest of the allowed if it is one.
    fn follow(
        &mut self,
        following: &mut dyn TokenConstraint,
        logits: &[f32],
        is_changed: &mut bool,
        sequence: &Sequence,
        num_drafts: u32,
    ) -> Result<TokenId, SequenceError> {
        let params = &sequence.group.sampling;
        let stopping = &sequence.group.stopping;
        let of_all = params.is_greedy() || is_unfiltered(params, logits.len());
        let mut first = None;
        if of_all {
            first = Some(self.pick(logits, *is_changed, sequence, uniform_of(sequence, num_drafts, Draw::First))?);
        }
        if let Some(id) = first.filter(|id| !stopping.stop_tokens.contains(id))
            && constraint::try_accept(following, id)?
        {
            return Ok(id);
        }
        let too_short = is_too_short(sequence, num_drafts);
        constraint::allowed(following, &stopping.stop_tokens, too_short, logits.len(), &mut self.mask)?;
        let id = match first.filter(|&id| self.mask.is_allowed(id)) {
            Some(id) => id,
            None => {
                if !std::mem::replace(is_changed, true) {
                    self.row.clear();
                    self.row.extend_from_slice(logits);
                }
                self.mask.apply(&mut self.row);
                let again = if first.is_some() { Draw::Second } else { Draw::First };
                self.pick(logits, true, sequence, uniform_of(sequence, num_drafts, again))?
            }
        };
        if !stopping.stop_tokens.contains(&id) {
            constraint::accept(following, id)?;
        }
        Ok(id)
    }

    /// Puts the processed logits into `self.row`, without what a constraint says of them; false when there is nothing to change, so that nothing is copied.
    fn process(&mut self, logits: &[f32], sequence: &Sequence, num_drafts: u32) -> bool {
        let params = &sequence.group.sampling;
        let stopping = &sequence.group.stopping;
        let repetition = params.repetition_penalty != 1.0;
        let occurrence = params.frequency_penalty != 0.0 || params.presence_penalty != 0.0;
        let tokens = sequence.tokens_with(num_drafts);
        let generated = &tokens[sequence.group.num_prompt_tokens as usize..];
        let too_short = sequence.constraint.is_none() && is_too_short(sequence, num_drafts);
        let is_penalized = repetition || occurrence || !params.logit_bias.is_empty();
        if !is_penalized && !too_short && params.watermark.is_none() {
            return false;
        }
        self.row.clear();
        self.row.extend_from_slice(logits);
        if let (Some(watermark), Some(&previous)) = (params.watermark, tokens.last()) {
            watermark.add(&mut self.row, previous);
        }
        processors::add_bias(&mut self.row, &params.logit_bias);
        if repetition {
            let tokens = tokens.iter().copied();
            processors::penalize_repetition(&mut self.row, tokens, params.repetition_penalty, &mut self.counts);
        }
        if occurrence {
            let (frequency, presence) = (params.frequency_penalty, params.presence_penalty);
            processors::penalize_occurrence(&mut self.row, generated, frequency, presence, &mut self.counts);
        }
        if too_short {
            processors::mask(&mut self.row, &stopping.stop_tokens);
        }
        true
    }
}

/// Whether stop tokens may not come yet.
fn is_too_short(sequence: &Sequence, num_drafts: u32) -> bool {
    let stopping = &sequence.group.stopping;
    let num_generated = sequence.num_known() + num_drafts - sequence.group.num_prompt_tokens;
    num_generated < stopping.min_tokens && !stopping.stop_tokens.is_empty()
}

/// Where a token of `sequence` is drawn, in `0.0..1.0`.
fn uniform_of(sequence: &Sequence, num_drafts: u32, draw: Draw) -> f64 {
    let seed = match draw {
        Draw::First => sequence.group.sampling.seed,
        Draw::Second => !sequence.group.sampling.seed,
    };
    uniform(seed, sequence.choice, sequence.num_known() + num_drafts)
}

/// Which draw of a token.
enum Draw {
    First,
    /// After one that was refused: it must not depend on that.
    Second,
}

/// Log-probability of `token`; negative infinity for what is impossible.
fn log_probability(row: &[f32], token: TokenId, log_sum: f64) -> f32 {
    let logit = row[token.0 as usize];
    if logit > f32::NEG_INFINITY { (f64::from(logit.min(f32::MAX)) - log_sum) as f32 } else { f32::NEG_INFINITY }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::sampling::constraint::{ConstraintError, Ending};
    use crate::sequence::{Group, SequenceId};
    use crate::{ReportParams, SamplingParams, StoppingParams};

    fn sequence(sampling: SamplingParams, stopping: StoppingParams, report: ReportParams, choice: u32) -> Sequence {
        let group = Arc::new(Group::new(SequenceId(0), 2, None, sampling, stopping, report));
        Sequence::new(SequenceId(choice.into()), choice, group, vec![TokenId(0), TokenId(3)], None)
    }

    fn sample(logits: &[f32], sequence: &Sequence) -> Result<SampledToken, SequenceError> {
        RowSampler::new(logits.len()).sample(logits, sequence, 0)
    }

    fn plain(sampling: SamplingParams) -> Sequence {
        sequence(sampling, StoppingParams::default(), ReportParams::default(), 0)
    }

    #[test]
    fn greedy_takes_the_likeliest_and_of_equals_the_lowest() {
        let greedy = plain(SamplingParams::default());
        assert_eq!(sample(&[1.0, 7.0, 7.0, -2.0], &greedy).unwrap().id, TokenId(1));
        assert_eq!(sample(&[f32::NAN, f32::NEG_INFINITY, -9.0, f32::NAN], &greedy).unwrap().id, TokenId(2));
        assert_eq!(sample(&[f32::NAN, f32::NEG_INFINITY, f32::NAN, f32::NAN], &greedy), Err(SequenceError::NoToken));
        assert_eq!(sample(&[0.0, 0.0, f32::INFINITY, 1.0], &greedy).unwrap().id, TokenId(2));
    }

    #[test]
    fn bias_comes_before_penalties() {
        // Token 3 is in the prompt: (1 + 4) / 4 < 2, while 1 / 4 + 4 would win.
        let sampling = SamplingParams {
            logit_bias: vec![(TokenId(3), 4.0)],
            repetition_penalty: 4.0,
            ..SamplingParams::default()
        };
        assert_eq!(sample(&[0.0, 0.0, 2.0, 1.0], &plain(sampling)).unwrap().id, TokenId(2));
    }

    #[test]
    fn occurrence_penalties_look_at_the_answer_alone() {
        let sampling = SamplingParams { presence_penalty: 2.0, frequency_penalty: 2.0, ..SamplingParams::default() };
        assert_eq!(sample(&[0.0, 0.0, 0.0, 1.0], &plain(sampling)).unwrap().id, TokenId(3));
    }

    #[test]
    fn stop_tokens_are_masked_until_min_tokens() {
        let stopping = |min_tokens| StoppingParams { max_tokens: 9, min_tokens, stop_tokens: vec![TokenId(1)] };
        let logits = [0.0, 5.0, 4.0, 0.0];
        for (min_tokens, expected) in [(0, 1), (1, 2)] {
            let sequence = sequence(SamplingParams::default(), stopping(min_tokens), ReportParams::default(), 0);
            assert_eq!(sample(&logits, &sequence).unwrap().id, TokenId(expected));
        }
    }

    #[test]
    fn choices_draw_differently_and_the_first_as_if_alone() {
        let sampling = SamplingParams { temperature: 1.0, seed: 11, ..SamplingParams::default() };
        let logits = vec![0.0; 1000];
        let drawn: Vec<u32> = (0..4)
            .map(|choice| {
                let sequence = sequence(sampling.clone(), StoppingParams::default(), ReportParams::default(), choice);
                sample(&logits, &sequence).unwrap().id.0
            })
            .collect();
        assert_eq!(drawn[0], (uniform(11, 0, 2) * 1000.0) as u32);
        assert_eq!(drawn.iter().collect::<std::collections::HashSet<_>>().len(), 4, "{drawn:?}");
    }

    /// Allows some tokens, always.
    struct Always(&'static [u32]);

    impl TokenConstraint for Always {
        fn allow(&mut self, mask: &mut TokenMask) -> Result<Ending, ConstraintError> {
            self.0.iter().for_each(|&token| mask.allow(TokenId(token)));
            Ok(Ending::May)
        }

        fn accept(&mut self, token: TokenId) -> Result<(), ConstraintError> {
            assert!(self.0.contains(&token.0));
            Ok(())
        }

        fn try_accept(&mut self, token: TokenId) -> Result<bool, ConstraintError> {
            Ok(self.0.contains(&token.0))
        }

        fn fork(&self) -> Box<dyn TokenConstraint> {
            Box::new(Self(self.0))
        }
    }

    #[test]
    fn allowed_tokens_are_drawn_as_often_as_if_there_were_no_others() {
        let logits = [0.3f32, 1.0, 2.0, 0.0, -1.0, 1.5];
        let is_stop = |token: u32| token == 4;
        let weight = |token: usize| f64::from(logits[token].exp());
        for (allowed, top_k) in [(&[1u32, 2, 3][..], 0), (&[0, 5], 0), (&[3], 0), (&[0, 1, 3], 4)] {
            const NUM_DRAWS: u64 = 40_000;
            let total: f64 =
                (0..6u32).filter(|token| allowed.contains(token) || is_stop(*token)).map(|t| weight(t as usize)).sum();
            let mut counts = [0u32; 6];
            for seed in 0..NUM_DRAWS {
                let sampling = SamplingParams { temperature: 1.0, top_k, seed, ..SamplingParams::default() };
                let stopping = StoppingParams { stop_tokens: vec![TokenId(4)], ..StoppingParams::default() };
                let mut sequence = sequence(sampling, stopping, ReportParams::default(), 0);
                sequence.constraint = Some(Mutex::new(Box::new(Always(allowed))));
                counts[sample(&logits, &sequence).unwrap().id.0 as usize] += 1;
            }
            for token in 0..6 {
                let expected =
                    if allowed.contains(&token) || is_stop(token) { weight(token as usize) / total } else { 0.0 };
                let seen = f64::from(counts[token as usize]) / NUM_DRAWS as f64;
                assert!((seen - expected).abs() < 0.01, "{token} of {allowed:?}: {seen:.3}, not {expected:.3}");
            }
        }
    }

    #[test]
    fn a_watermark_is_found_in_what_was_marked_and_nowhere_else() {
        let watermark = crate::Watermark { gamma: 0.5, delta: 2.0 };
        let say = |watermark| {
            let sampling = SamplingParams { temperature: 1.0, seed: 5, watermark, ..SamplingParams::default() };
            let mut random = fastrand::Rng::with_seed(5);
            let stopping = StoppingParams { max_tokens: 1000, ..StoppingParams::default() };
            let mut sequence = sequence(sampling, stopping, ReportParams::default(), 0);
            let mut sampler = RowSampler::new(500);
            for _ in 0..200 {
                let logits: Vec<f32> = (0..500).map(|_| random.f32() * 4.0).collect();
                let token = sampler.sample(&logits, &sequence, 0);
                sequence.take_sample(token);
            }
            sequence.tokens()[2..].to_vec()
        };
        assert!(watermark.z_score(&say(Some(watermark))) > 6.0);
        assert!(watermark.z_score(&say(None)).abs() < 4.0);
        let other = crate::Watermark { gamma: 0.25, ..watermark };
        assert!(other.z_score(&say(Some(other))) > 6.0);
        assert_eq!(watermark.z_score(&[TokenId(3)]), 0.0);
    }

    #[test]
    fn log_probabilities_are_those_of_the_raw_logits() {
        let sampling = SamplingParams { logit_bias: vec![(TokenId(0), 100.0)], ..SamplingParams::default() };
        let report = ReportParams { logprobs: true, top_n: 3, prompt_logprobs: None };
        let sequence = sequence(sampling, StoppingParams::default(), report, 0);
        let logits: Vec<f32> =
            [0.125f32, 0.5, 0.25, 0.125].iter().map(|probability| probability.ln() + 900.0).collect();
        let sampled = sample(&logits, &sequence).unwrap();
        assert_eq!(sampled.id, TokenId(0));
        let near = |a: f32, b: f32| (a - b.ln()).abs() < 1e-4;
        assert!(near(sampled.logprob.unwrap(), 0.125));
        let [(TokenId(1), a), (TokenId(2), b), (TokenId(0), c)] = sampled.top[..] else { panic!("{:?}", sampled.top) };
        assert!(near(a, 0.5) && near(b, 0.25) && near(c, 0.125));
    }

    #[test]
    fn hostile_rows_have_log_probabilities_too() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let told = |logits: &[f32]| {
            let report = ReportParams { logprobs: true, top_n: 3, prompt_logprobs: None };
            sample(logits, &sequence(SamplingParams::default(), StoppingParams::default(), report, 0)).unwrap()
        };
        let sampled = told(&[inf, nan, 0.0, nan]);
        assert_eq!((sampled.id, sampled.logprob, &sampled.top[0]), (TokenId(0), Some(0.0), &(TokenId(0), 0.0)));
        assert_eq!(sampled.top.iter().map(|top| top.0).collect::<Vec<_>>(), [TokenId(0), TokenId(2)]);
        assert_eq!(told(&[nan, -inf, 1.0, -inf]).top, [(TokenId(2), 0.0)]);
        assert_eq!(log_probability(&[inf, nan, -inf], TokenId(1), 0.0), -inf);
        assert_eq!(log_probability(&[inf, nan, -inf], TokenId(2), 0.0), -inf);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

        #[test]
        fn greedy_and_the_likeliest_told_are_the_beginning_of_the_sorted_row(
            mut row in prop::collection::vec(prop_oneof![8 => (-4i8..4).prop_map(f32::from), 1 => Just(f32::NAN)], 4..600),
            num_copies in prop_oneof![4 => Just(1usize), 1 => 2usize..40],
            n in 0u8..=255,
        ) {
            row = row.repeat(num_copies);
            let mut order: Vec<u32> = (0..row.len() as u32).filter(|&token| !row[token as usize].is_nan()).collect();
            order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
            let report = ReportParams { logprobs: true, top_n: n, prompt_logprobs: None };
            let sequence = sequence(SamplingParams::default(), StoppingParams::default(), report, 0);
            let Ok(sampled) = sample(&row, &sequence) else {
                prop_assert!(order.is_empty());
                return Ok(());
            };
            prop_assert_eq!(sampled.id.0, order[0]);
            order.truncate(n.into());
            prop_assert_eq!(sampled.top.iter().map(|(token, _)| token.0).collect::<Vec<_>>(), order);
            let sum: f64 = row.iter().filter(|logit| !logit.is_nan()).map(|&logit| f64::from(logit).exp()).sum();
            for (token, logprob) in sampled.top.into_iter().chain(sampled.logprob.map(|logprob| (sampled.id, logprob))) {
                let exact = f64::from(row[token.0 as usize]) - sum.ln();
                prop_assert!((f64::from(logprob) - exact).abs() < 1e-5, "{logprob} instead of {exact}");
            }
        }
    }
}
