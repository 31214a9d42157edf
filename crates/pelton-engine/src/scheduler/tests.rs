//! Schedules against what each sequence would say alone.

use std::sync::Arc;

use fastrand::Rng;
use pelton_backend::{BlockId, StepBatch, TokenId, Workers};
use pelton_model::{Logits, ModelSpec};

mod drafts;

use super::*;
use crate::sampling::{RowSampler, Sampler};
use crate::sequence::Group;
use crate::{
    ConstraintError, Ending, ReportParams, SamplingParams, StoppingParams, TokenConstraint, TokenMask, Watermark,
};

/// A model that remembers: what it stores at a position is a hash of the token there and of everything that it finds stored at the
/// positions before, and its logits are a hash of that. A wrong block, a stale one, or one row left out changes what it says.
struct Recall {
    vocab_size: usize,
    block_tokens: u32,
    stored: Vec<u64>,
    logits: Vec<f32>,
}

fn mix(a: u64, b: u64) -> u64 {
    let x = (a ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    x ^ (x >> 32)
}

fn recall(before: impl Iterator<Item = u64>, token: TokenId) -> u64 {
    mix(before.fold(1, mix), u64::from(token.0) + 2)
}

fn logits_of(memory: u64, vocab_size: usize) -> impl Iterator<Item = f32> {
    (0..vocab_size as u64).map(move |token| (mix(memory, token + 77) % 1000) as f32 / 200.0)
}

impl Recall {
    fn new(spec: &ModelSpec) -> Self {
        let slots = spec.num_blocks * spec.block_tokens;
        Self {
            vocab_size: spec.vocab_size,
            block_tokens: spec.block_tokens,
            stored: vec![0; slots as usize],
            logits: Vec::new(),
        }
    }

    fn forward(&mut self, batch: &StepBatch) -> &[f32] {
        self.logits.clear();
        for span in &batch.spans {
            let table = &batch.block_tables[span.first_block as usize..][..span.num_blocks as usize];
            for row in span.first_row..span.first_row + span.num_rows {
                let position = batch.positions[row as usize];
                let before = (0..position).map(|position| {
                    let BlockId(block) = table[(position / self.block_tokens) as usize];
                    self.stored[(block * self.block_tokens + position % self.block_tokens) as usize]
                });
                let memory = recall(before, batch.token_ids[row as usize]);
                self.stored[batch.slots[row as usize] as usize] = memory;
                if batch.logit_rows.contains(&row) {
                    self.logits.extend(logits_of(memory, self.vocab_size));
                }
            }
        }
        &self.logits
    }
}

/// What one sequence says when nobody else is there: no blocks, no budget, no cache.
struct Alone {
    tokens: Vec<SampledToken>,
    reason: FinishReason,
    prompt_logprobs: Option<Vec<Option<f32>>>,
}

impl Alone {
    fn new(mut sequence: Sequence, vocab_size: usize) -> Self {
        let mut sampler = RowSampler::new(vocab_size);
        let mut alone = Alone { tokens: Vec::new(), reason: FinishReason::Length, prompt_logprobs: None };
        let (mut stored, mut rows) = (Vec::new(), Vec::<Vec<f32>>::new());
        while !sequence.is_over() {
            for &token in &sequence.tokens()[stored.len()..] {
                let memory = recall(stored.iter().copied(), token);
                stored.push(memory);
                rows.push(logits_of(memory, vocab_size).collect());
            }
            let sample = sampler.sample(&rows[rows.len() - 1], &sequence, 0);
            alone.tokens.extend(sample.clone());
            if let Some(finished) = sequence.take_sample(sample).finished {
                alone.reason = finished.reason;
            }
        }
        if sequence.group.report.prompt_logprobs.is_some() {
            let prompt = &sequence.tokens()[..sequence.group.num_prompt_tokens as usize];
            let foretold = prompt[1..].iter().zip(&rows).map(|(token, row)| {
                let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
                Some((f64::from(row[token.0 as usize]) - sum.ln()) as f32)
            });
            alone.prompt_logprobs = Some([None].into_iter().chain(foretold).collect());
        }
        alone
    }
}

/// Three workers, the last unit first: nobody may count on an order.
struct Backwards;

impl Workers for Backwards {
    fn count(&self) -> usize {
        3
    }

    fn run(&self, num_units: usize, work: &(dyn Fn(usize, usize) + Sync)) {
        (0..num_units).rev().for_each(|unit| work(unit % 3, unit));
    }
}

/// A scheduler with everything around it, and what it is expected to say.
struct World {
    scheduler: Scheduler,
    sampler: Sampler,
    model: Recall,
    spec: ModelSpec,
    max_rows: usize,
    plan: StepPlan,
    samples: StepSamples,
    outcomes: Vec<Outcome>,
    /// By id.
    expected: Vec<Alone>,
    said: Vec<Vec<SampledToken>>,
    is_open: Vec<bool>,
    num_finished: usize,
    /// What a step of so many rows takes.
    took: fn(u32) -> Duration,
}

/// What a test asks for, with everything else at rest.
#[derive(Clone)]
struct Ask {
    prompt: Vec<TokenId>,
    max_tokens: u32,
    num_choices: u32,
    sampling: SamplingParams,
    min_tokens: u32,
    stop_tokens: Vec<TokenId>,
    report: ReportParams,
    constraint: Option<Box<dyn TokenConstraint>>,
}

/// Forbids one token after another, in an order that depends on all that came; may always end.
struct Whims {
    state: u32,
    vocab_size: u32,
}

impl TokenConstraint for Whims {
    fn allow(&mut self, mask: &mut TokenMask) -> Result<Ending, ConstraintError> {
        (0..self.vocab_size).for_each(|token| mask.allow(TokenId(token)));
        mask.forbid(TokenId(self.state % self.vocab_size));
        Ok(Ending::May)
    }

    fn accept(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        assert_ne!(token.0, self.state % self.vocab_size, "what is forbidden does not come");
        self.state = self.state.wrapping_mul(5).wrapping_add(token.0 + 1) % 1009;
        Ok(())
    }

    fn try_accept(&mut self, token: TokenId) -> Result<bool, ConstraintError> {
        let is_allowed = token.0 != self.state % self.vocab_size;
        if is_allowed {
            self.accept(token)?;
        }
        Ok(is_allowed)
    }

    fn fork(&self) -> Box<dyn TokenConstraint> {
        Box::new(Self { ..*self })
    }
}

fn ask(prompt: &[u32], max_tokens: u32) -> Ask {
    Ask {
        prompt: prompt.iter().copied().map(TokenId).collect(),
        max_tokens,
        num_choices: 1,
        sampling: SamplingParams::default(),
        min_tokens: 0,
        stop_tokens: Vec::new(),
        report: ReportParams::default(),
        constraint: None,
    }
}

impl World {
    fn new(config: EngineConfig, spec: ModelSpec) -> Self {
        Self {
            scheduler: Scheduler::new(&config, &spec),
            sampler: Sampler::new(spec.vocab_size),
            model: Recall::new(&spec),
            max_rows: spec.max_step_rows.min(config.max_step_tokens as usize),
            spec,
            plan: StepPlan::default(),
            samples: StepSamples::default(),
            outcomes: Vec::new(),
            expected: Vec::new(),
            said: Vec::new(),
            is_open: Vec::new(),
            num_finished: 0,
            took: |rows| Duration::from_millis(8 + u64::from(rows)),
        }
    }

    /// `num_blocks` of two tokens, `max_step_tokens`, everything else wide.
    fn small(num_blocks: u32, max_step_tokens: u32) -> Self {
        let config = EngineConfig { max_step_tokens, max_sequences: 8, max_queued: 8, ..EngineConfig::default() };
        let spec = ModelSpec {
            vocab_size: 4,
            max_positions: 1000,
            num_blocks,
            block_tokens: 2,
            max_step_rows: 1000,
            max_logit_rows: 1000,
            num_adapters: 0,
        };
        Self::new(config, spec)
    }

    fn submit(&mut self, ask: Ask) -> Vec<SequenceId> {
        let first = SequenceId(self.expected.len() as u64);
        let stopping =
            StoppingParams { max_tokens: ask.max_tokens, min_tokens: ask.min_tokens, stop_tokens: ask.stop_tokens };
        let group = Group::new(first, ask.prompt.len() as u32, None, ask.sampling, stopping, ask.report);
        let group = Arc::new(group);
        let add = |choice| {
            let id = SequenceId(first.0 + u64::from(choice));
            let mut sequence =
                Sequence::new(id, choice, Arc::clone(&group), ask.prompt.clone(), ask.constraint.clone());
            sequence.seat = id.0 as usize;
            self.scheduler.add(sequence);
            let alone = Sequence::new(id, choice, Arc::clone(&group), ask.prompt.clone(), ask.constraint.clone());
            self.expected.push(Alone::new(alone, self.spec.vocab_size));
            self.said.push(Vec::new());
            self.is_open.push(true);
            id
        };
        (0..ask.num_choices).map(add).collect()
    }

    fn cancel(&mut self, id: SequenceId) {
        assert_eq!(self.scheduler.cancel(id).is_some(), self.is_open[id.0 as usize]);
        self.is_open[id.0 as usize] = false;
        self.scheduler.check_integrity();
    }

    /// Plans, and checks what any plan must keep to.
    fn plan(&mut self) {
        self.scheduler.plan(&mut self.plan);
        self.scheduler.check_integrity();
        let plan = &self.plan;
        assert!(plan.batch.num_rows() <= self.max_rows, "{plan}");
        assert!(plan.batch.logit_rows.len() <= self.spec.max_logit_rows, "{plan}");
        assert!(plan.batch.logit_rows.is_sorted_by(|a, b| a < b), "{plan}");
        assert!(plan.spans.iter().any(|span| span.running_index == 0), "the earliest gets on: {plan}");
        let mut seats: Vec<usize> = plan.spans.iter().map(|span| span.seat).collect();
        seats.sort_unstable();
        seats.dedup();
        assert_eq!(seats.len(), plan.spans.len(), "one span each: {plan}");
        for span in plan.spans.iter().filter(|span| span.num_drafts > 0) {
            let sequence = &self.scheduler.running[span.running_index];
            let stopping = &sequence.group.stopping;
            assert!(sequence.num_generated() + span.num_drafts < stopping.max_tokens, "a row for nothing: {plan}");
            let mut drafts = (0..span.num_drafts).map(|index| sequence.draft(index));
            assert!(drafts.all(|draft| draft.is_some_and(|draft| !stopping.stop_tokens.contains(&draft))), "{plan}");
        }
    }

    /// One step; everything said is compared with what was expected.
    fn step(&mut self) {
        self.plan();
        let logits = self.model.forward(&self.plan.batch);
        let logits = Logits::new(logits, &Backwards);
        self.sampler.sample(&self.plan, self.scheduler.running(), &logits, &mut self.samples);
        self.scheduler.commit(&self.plan, &mut self.samples, &mut self.outcomes);
        self.scheduler.check_integrity();
        self.scheduler.observe(&self.plan, (self.took)(self.plan.batch.num_rows() as u32));
        for outcome in self.outcomes.drain(..) {
            let (expected, said) = (&self.expected[outcome.seat], &mut self.said[outcome.seat]);
            assert!(self.is_open[outcome.seat], "nothing comes after the end");
            assert_eq!(outcome.started.is_some(), said.is_empty(), "started comes with the first token");
            if let Some(started) = outcome.started {
                let (found, wanted) = (started.prompt_logprobs, &expected.prompt_logprobs);
                assert_eq!(found.as_ref().map(Vec::len), wanted.as_ref().map(Vec::len));
                for (found, wanted) in found.iter().flatten().zip(wanted.iter().flatten()) {
                    let found = found.as_ref().map(|found| found.logprob);
                    assert!((found.unwrap_or(0.0) - wanted.unwrap_or(0.0)).abs() < 1e-4, "{found:?} {wanted:?}");
                    assert_eq!(found.is_some(), wanted.is_some());
                }
            }
            let token = outcome.token.expect("these logits are finite");
            assert_eq!(Some(&token), expected.tokens.get(said.len()), "sequence {} at {}", outcome.seat, said.len());
            said.push(token);
            assert_eq!(outcome.finished.is_some(), said.len() == expected.tokens.len());
            if let Some(finished) = outcome.finished {
                assert_eq!(finished.reason, expected.reason);
                assert_eq!(finished.num_generated_tokens as usize, said.len());
                self.is_open[outcome.seat] = false;
                self.num_finished += 1;
            }
        }
    }

    /// Steps until nobody is left; at most `max_steps`.
    fn drain(&mut self, max_steps: usize) {
        for _ in 0..max_steps {
            if !self.scheduler.has_work() {
                assert!(self.is_open.iter().all(|&is_open| !is_open), "everyone finished");
                assert_eq!(self.scheduler.num_blocks_used(), 0, "all memory returned");
                return;
            }
            self.step();
        }
        panic!("not done after {max_steps} steps: {}", self.plan);
    }

    /// `(id, rows)` of the last plan.
    fn rows(&self) -> Vec<(u64, u32)> {
        self.plan.spans.iter().map(|span| (span.id.0, span.num_rows)).collect()
    }
}

#[test]
fn a_prompt_is_computed_in_pieces_within_the_budget() {
    let mut world = World::small(20, 4);
    world.submit(ask(&[0, 1, 2, 3, 0, 1, 2, 3, 0, 1], 2));
    for rows in [4, 4, 2, 1] {
        world.step();
        assert_eq!(world.rows(), [(0, rows)]);
    }
    assert_eq!(world.said[0].len(), 2);
    world.drain(1);
}

#[test]
fn decoding_comes_before_prompts() {
    let mut world = World::small(20, 4);
    // The later one is short and gets on while the earlier one is not through.
    world.submit(ask(&[0, 1], 9));
    world.step();
    world.submit(ask(&[3; 9], 2));
    world.submit(ask(&[2], 5));
    for rows in [vec![(0, 1), (1, 3)], vec![(0, 1), (1, 3)], vec![(0, 1), (1, 3)], vec![(0, 1), (1, 1), (2, 1)]] {
        world.step();
        assert_eq!(world.rows(), rows);
    }
    world.drain(20);
}

#[test]
fn a_decode_has_its_row_even_behind_a_long_prompt() {
    let mut world = World::small(20, 3);
    world.submit(ask(&[0; 3], 1));
    // The first choice computes the prompt; the second is admitted late, and stands before the sequence that came after it.
    world.submit(Ask { num_choices: 2, report: ReportParams::default(), ..ask(&[1, 2, 3, 1, 2], 4) });
    world.submit(ask(&[2], 6));
    world.drain(30);
    assert_eq!(world.num_finished, 4);
}

#[test]
fn preempted_sequence_keeps_its_generated_tokens() {
    // Six positions: each wants five, so that the later one has to give way.
    let mut world = World::small(3, 8);
    world.submit(ask(&[0, 1], 3));
    world.submit(ask(&[2, 3], 3));
    world.step();
    assert_eq!(world.said.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1]);
    world.step();
    world.step();
    assert_eq!(
        world.scheduler.counters().preemptions,
        0,
        "the later one stands still as long as nobody needs its block"
    );
    world.drain(10);

    let mut world = World::small(4, 8);
    world.submit(ask(&[0, 1], 6));
    world.submit(ask(&[2, 3], 5));
    world.drain(20);
    assert!(world.scheduler.counters().preemptions > 0);
    assert_eq!(world.said.iter().map(Vec::len).collect::<Vec<_>>(), [6, 5]);
}

#[test]
fn a_prompt_that_was_computed_before_costs_one_row() {
    let mut world = World::small(20, 100);
    world.submit(ask(&[0, 1, 2, 3, 0], 1));
    world.drain(2);
    world.submit(ask(&[0, 1, 2, 3, 0], 1));
    world.step();
    assert_eq!(world.rows(), [(1, 1)]);
    // All of it would be cached, but the last token is computed for its logits, in a block of its own.
    world.submit(ask(&[0, 1, 2, 3], 1));
    world.step();
    assert_eq!(world.rows(), [(2, 2)]);
    assert_eq!(world.scheduler.counters().prefix_hit_tokens, 4 + 2);
}

#[test]
fn blocks_are_shared_only_once_they_are_computed() {
    let mut world = World::small(20, 100);
    world.submit(ask(&[0, 1, 2, 3, 0], 1));
    world.submit(ask(&[0, 1, 2, 3, 0], 1));
    world.step();
    assert_eq!(world.rows(), [(0, 5), (1, 5)]);
}

#[test]
fn choices_wait_for_the_first_and_share_its_prompt() {
    let mut world = World::small(20, 4);
    let sampling = SamplingParams { temperature: 1.0, seed: 3, ..SamplingParams::default() };
    world.submit(Ask { num_choices: 3, sampling, ..ask(&[0, 1, 2, 3, 0, 1, 2], 4) });
    world.step();
    assert_eq!(world.rows(), [(0, 4)]);
    world.step();
    assert_eq!(world.rows(), [(0, 3)], "there is room for one row, but the others wait");
    world.step();
    assert_eq!(world.rows(), [(0, 1), (1, 1), (2, 1)]);
    world.drain(10);
}

#[test]
fn a_choice_takes_over_when_the_first_is_dropped() {
    let mut world = World::small(20, 4);
    let ids = world.submit(Ask { num_choices: 3, ..ask(&[0, 1, 2, 3, 0, 1, 2], 2) });
    world.step();
    world.cancel(ids[0]);
    world.step();
    assert_eq!(world.rows(), [(1, 3)], "two blocks of the prompt were there, and the third still waits");
    world.drain(10);
}

#[test]
fn without_a_cache_every_choice_computes_the_prompt() {
    let mut world = World::small(20, 100);
    let config =
        EngineConfig { max_step_tokens: 100, max_sequences: 8, prefix_cache: false, ..EngineConfig::default() };
    world.scheduler = Scheduler::new(&config, &world.spec);
    world.submit(Ask { num_choices: 2, ..ask(&[0, 1, 2, 3, 0], 2) });
    world.step();
    assert_eq!(world.rows(), [(0, 5), (1, 5)]);
    world.drain(2);
}

#[test]
fn prompt_logprobs_take_as_many_logits_as_there_are() {
    let mut world = World::small(20, 100);
    world.spec.max_logit_rows = 3;
    let config = EngineConfig { max_step_tokens: 100, max_sequences: 8, max_queued: 8, ..EngineConfig::default() };
    world.scheduler = Scheduler::new(&config, &world.spec);
    let report = ReportParams { prompt_logprobs: Some(0), ..ReportParams::default() };
    world.submit(Ask { report, ..ask(&[0, 1, 2, 3, 0, 1, 2, 3], 2) });
    world.submit(ask(&[1, 1], 2));
    // Two of eight wait for the decoding sequence's logit from the second step on.
    for rows in [vec![(0, 3)], vec![(0, 3)], vec![(0, 2), (1, 2)], vec![(0, 1), (1, 1)]] {
        world.step();
        assert_eq!(world.rows(), rows);
    }
    assert_eq!(world.num_finished, 2);
    // Cached as they are, their logits are not.
    world.submit(Ask { report, ..ask(&[0, 1, 2, 3, 0, 1, 2, 3], 1) });
    world.drain(5);
    assert_eq!(world.scheduler.counters().prefix_hit_tokens, 0);
}

#[test]
fn waiting_sequences_are_admitted_in_order_and_not_before_there_are_blocks() {
    let mut world = World::small(4, 100);
    world.submit(ask(&[0; 5], 2));
    world.submit(ask(&[1; 5], 2));
    world.submit(ask(&[2], 1));
    world.step();
    assert_eq!(world.rows(), [(0, 5)], "the second finds one block, and the third does not overtake it");
    world.drain(6);
    assert_eq!(world.scheduler.counters().preemptions, 0);
}

/// Steps after the one that submits `count` newcomers to `num_running` decoding sequences until each of them runs.
fn steps_until_all_run(newcomers: Newcomers, num_running: u32, count: u32) -> u32 {
    let mut world = World::small(100, 100);
    let config = EngineConfig { max_step_tokens: 100, max_sequences: 50, newcomers, ..EngineConfig::default() };
    world.scheduler = Scheduler::new(&config, &world.spec);
    // All at once: nobody runs, so nobody waits.
    (0..num_running).for_each(|_| drop(world.submit(ask(&[0, 1], 90))));
    world.step();
    assert_eq!(world.scheduler.running().len() as u32, num_running);
    (0..count).for_each(|_| drop(world.submit(ask(&[3], 90))));
    (0..50)
        .find(|_| {
            world.step();
            world.scheduler.num_waiting() == 0
        })
        .expect("nobody waits for ever")
}

#[test]
fn newcomers_join_when_they_are_many_enough_or_have_waited_long_enough() {
    let newcomers = Newcomers { waiting_served_ratio: 0.5, max_waiting_steps: 7 };
    assert_eq!(steps_until_all_run(newcomers, 4, 2), 0, "two are half of four");
    assert_eq!(steps_until_all_run(newcomers, 5, 2), 0, "and of five, rounded down");
    assert_eq!(steps_until_all_run(newcomers, 4, 1), 7, "one waits until seven steps had no newcomer");
    assert_eq!(steps_until_all_run(newcomers, 1, 1), 0, "half of one is nobody");
    assert_eq!(steps_until_all_run(Newcomers { max_waiting_steps: 0, ..newcomers }, 4, 1), 0);
    assert_eq!(steps_until_all_run(Newcomers::AT_ONCE, 4, 1), 0);
}

#[test]
fn choices_and_preempted_sequences_are_no_newcomers() {
    let newcomers = Newcomers { waiting_served_ratio: 3.0, max_waiting_steps: 1000 };
    let config = EngineConfig { max_step_tokens: 8, max_sequences: 8, newcomers, ..EngineConfig::default() };
    let mut world = World::small(20, 8);
    world.scheduler = Scheduler::new(&config, &world.spec);
    world.submit(Ask { num_choices: 2, ..ask(&[0, 1, 2, 3, 0], 4) });
    world.step();
    assert_eq!(world.rows(), [(0, 5)], "the second choice waits for the prompt");
    world.step();
    assert_eq!(world.rows(), [(0, 1), (1, 1)], "and no longer");
    world.drain(10);

    let mut world = World::small(4, 8);
    world.scheduler = Scheduler::new(&config, &world.spec);
    world.submit(ask(&[0, 1], 6));
    world.submit(ask(&[2, 3], 5));
    world.drain(20);
    assert!(world.scheduler.counters().preemptions > 0);
}

/// Prints the seed of a schedule that fails.
struct SeedOnPanic(u64);

impl Drop for SeedOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failing schedule: seed {}", self.0);
        }
    }
}

fn random_ask(rng: &mut Rng, spec: &ModelSpec, earlier: &[Vec<TokenId>]) -> Ask {
    let room = (spec.num_blocks * spec.block_tokens) as usize;
    let vocab_size = spec.vocab_size as u32;
    let mut prompt =
        if earlier.is_empty() || rng.u8(..3) == 0 { Vec::new() } else { earlier[rng.usize(..earlier.len())].clone() };
    prompt.truncate(rng.usize(..=prompt.len()));
    prompt.extend((0..rng.usize(1..8)).map(|_| TokenId(rng.u32(..vocab_size))));
    prompt.truncate(room - 1);
    let mut sampling = SamplingParams { seed: rng.u64(..), ..SamplingParams::default() };
    if rng.u8(..4) == 0 {
        sampling.watermark = Some(Watermark { gamma: 0.5, delta: 1.0 });
    }
    if rng.bool() {
        sampling.temperature = 0.2 + rng.f32();
        sampling.top_k = rng.u32(..3);
        sampling.top_p = if rng.bool() { 1.0 } else { 0.8 };
        sampling.min_p = if rng.bool() { 0.0 } else { 0.1 };
    }
    if rng.bool() {
        sampling.repetition_penalty = 1.3;
        sampling.frequency_penalty = 0.2;
    }
    let whims = Whims { state: rng.u32(..1009), vocab_size: spec.vocab_size as u32 };
    Ask {
        max_tokens: rng.u32(1..=12.min((room - prompt.len()) as u32)),
        prompt,
        num_choices: if rng.u8(..4) == 0 { rng.u32(2..4) } else { 1 },
        sampling,
        min_tokens: rng.u32(..3),
        stop_tokens: if rng.u8(..3) == 0 { vec![TokenId(rng.u32(..vocab_size))] } else { Vec::new() },
        report: ReportParams {
            logprobs: rng.bool(),
            top_n: rng.u8(..3),
            prompt_logprobs: (rng.u8(..5) == 0).then_some(2),
        },
        constraint: (rng.u8(..3) == 0).then(|| Box::new(whims) as Box<dyn TokenConstraint>),
    }
}

/// Random limits, requests and cancellations, from `seed`; returns what happened.
fn random_schedule(seed: u64) -> (Counters, usize) {
    let _print = SeedOnPanic(seed);
    let mut rng = Rng::with_seed(seed);
    let spec = ModelSpec {
        vocab_size: rng.usize(2..5),
        max_positions: 1000,
        num_blocks: rng.u32(3..25),
        block_tokens: rng.u32(1..5),
        max_step_rows: rng.usize(1..20),
        max_logit_rows: rng.usize(1..8),
        num_adapters: 0,
    };
    let config = EngineConfig {
        max_step_tokens: rng.u32(1..20),
        max_sequences: rng.u32(1..8),
        max_queued: 100,
        prefix_cache: rng.u8(..4) > 0,
        newcomers: match rng.u8(..3) {
            0 => Newcomers { waiting_served_ratio: rng.f32() * 2.0, max_waiting_steps: rng.u32(..9) },
            _ => Newcomers::AT_ONCE,
        },
        speculate: if rng.bool() { rng.u32(1..7) } else { 0 },
    };
    let mut world = World::new(config, spec.clone());
    // Rows are free, cost a little, or all there is.
    let costs: [fn(u32) -> Duration; 3] =
        [|_| Duration::from_millis(9), world.took, |rows| Duration::from_millis(rows.into())];
    world.took = costs[rng.usize(..3)];
    let mut prompts = Vec::new();
    let mut num_tokens = 0;
    for _ in 0..120 {
        let open: Vec<usize> = (0..world.is_open.len()).filter(|&id| world.is_open[id]).collect();
        if open.len() < 12 && rng.u8(..3) == 0 {
            let ask = random_ask(&mut rng, &spec, &prompts);
            prompts.push(ask.prompt.clone());
            num_tokens += ask.num_choices as usize * (ask.prompt.len() + ask.max_tokens as usize);
            world.submit(ask);
        }
        if !open.is_empty() && rng.u8(..12) == 0 {
            world.cancel(SequenceId(open[rng.usize(..open.len())] as u64));
        }
        if world.scheduler.has_work() {
            world.step();
        }
    }
    // The earliest sequence computes a token in every step and never loses one.
    world.drain(num_tokens + 1);
    (world.scheduler.counters(), world.num_finished)
}

#[test]
fn random_schedules_say_what_each_sequence_says_alone() {
    let (mut preemptions, mut hits, mut finished) = (0, 0, 0);
    let (mut drafted, mut accepted) = (0, 0);
    for seed in 0..400 {
        let (counters, num_finished) = random_schedule(seed);
        preemptions += counters.preemptions;
        hits += counters.prefix_hit_tokens;
        finished += num_finished;
        drafted += counters.drafted_tokens;
        accepted += (0..).zip(counters.samples_by_accepted).map(|(accepted, times)| accepted * times).sum::<u64>();
    }
    // Otherwise these schedules show nothing.
    assert!(preemptions > 1000 && hits > 10_000 && finished > 4000, "{preemptions} {hits} {finished}");
    assert!(accepted > 1000 && drafted > accepted + 1000, "{accepted} of {drafted}");
}
