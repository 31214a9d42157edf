//! Which rows a step computes: pure bookkeeping, without a clock, a channel or a model.
//!
//! One rule: a sequence has tokens known and tokens computed, and a step lets the second chase the first within the token budget.
//! Prompts, pieces of prompts, prefix hits and coming back after preemption are gaps of any size; decoding is a gap of one.
mod plan;
mod policy;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use pelton_model::ModelSpec;

use crate::drafting::StepCost;
use crate::event::{FinishReason, Foretold, SampledToken, SequenceError};
use crate::kv::{KvBlocks, PrefixHits};
use crate::sequence::{Sequence, SequenceId};
use crate::start::{EngineConfig, MAX_SPECULATE, Newcomers};

use plan::PlannedSpan;
pub(crate) use plan::StepPlan;

/// What was sampled in a step, in the order of its spans. Reused from step to step.
#[derive(Debug, Default)]
pub(crate) struct StepSamples {
    /// Of each span that samples one, and one more for each draft that was right; an error comes last.
    pub(crate) tokens: Vec<Result<SampledToken, SequenceError>>,
    /// How many of them are of which span; none of those that do not sample.
    pub(crate) num_tokens: Vec<u32>,
    /// `num_prompt_logits` of each span.
    pub(crate) prompt_logprobs: Vec<Foretold>,
}

/// What a step meant for one sequence that sampled.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) seat: usize,
    /// With the first token.
    pub(crate) started: Option<Started>,
    /// Without one the sequence is over.
    pub(crate) token: Result<SampledToken, SequenceError>,
    pub(crate) finished: Option<Finished>,
}

#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) num_cached_tokens: u32,
    pub(crate) prompt_logprobs: Option<Vec<Option<Foretold>>>,
}

#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) reason: FinishReason,
    pub(crate) num_prompt_tokens: u32,
    pub(crate) num_generated_tokens: u32,
    pub(crate) num_cached_tokens: u32,
    pub(crate) num_preemptions: u32,
    pub(crate) num_drafted_tokens: u32,
    pub(crate) num_accepted_tokens: u32,
}

/// Counts since the start.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counters {
    pub(crate) prefix_queried_tokens: u64,
    pub(crate) prefix_hit_tokens: u64,
    pub(crate) preemptions: u64,
    /// Spans with drafts.
    pub(crate) drafts: u64,
    pub(crate) drafted_tokens: u64,
    /// Spans that sampled, by the drafts accepted.
    pub(crate) samples_by_accepted: [u64; MAX_SPECULATE as usize + 1],
}

/// All sequences and all blocks.
#[derive(Debug)]
pub(crate) struct Scheduler {
    max_rows: u32,
    max_logits: u32,
    max_sequences: usize,
    newcomers: Newcomers,
    /// Steps since a newcomer joined.
    steps_without_newcomer: u32,
    max_drafts: u32,
    step_cost: StepCost,
    kv: KvBlocks,
    /// Sequences with blocks, in order of arrival.
    running: Vec<Sequence>,
    /// Sequences without, in order of arrival.
    waiting: VecDeque<Sequence>,
    counters: Counters,
    hits: PrefixHits,
}

/// What is left of a step's limits, while it is planned.
struct Budget {
    rows: u32,
    logits: u32,
}

impl Scheduler {
    pub(crate) fn new(config: &EngineConfig, spec: &ModelSpec) -> Self {
        let max_rows = config.max_step_tokens.min(u32::try_from(spec.max_step_rows).unwrap_or(u32::MAX));
        let max_logits = u32::try_from(spec.max_logit_rows).unwrap_or(u32::MAX);
        Self {
            max_rows,
            max_logits,
            // Everyone who runs has a row and a logit in each step: nobody is left out, whatever the others do.
            max_sequences: config.max_sequences.min(max_rows).min(max_logits) as usize,
            newcomers: config.newcomers,
            steps_without_newcomer: 0,
            max_drafts: config.speculate,
            step_cost: StepCost::new(),
            kv: KvBlocks::new(spec.num_blocks, spec.block_tokens, config.prefix_cache),
            running: Vec::new(),
            waiting: VecDeque::new(),
            counters: Counters::default(),
            hits: PrefixHits::default(),
        }
    }

    /// Takes a sequence in; it waits.
    pub(crate) fn add(&mut self, mut sequence: Sequence) {
        if self.max_drafts > 0 {
            sequence.enable_drafts();
        }
        policy::insert_waiting(&mut self.waiting, sequence);
    }

    /// Frees a sequence that nobody listens to any more and returns it; `None` when it is over already.
    pub(crate) fn cancel(&mut self, id: SequenceId) -> Option<Sequence> {
        if let Ok(index) = self.running.binary_search_by_key(&id, |sequence| sequence.id) {
            let mut sequence = self.running.remove(index);
            self.kv.give_back(&mut sequence.table);
            return Some(sequence);
        }
        let index = self.waiting.binary_search_by_key(&id, |sequence| sequence.id).ok()?;
        self.waiting.remove(index)
    }

    pub(crate) fn has_work(&self) -> bool {
        !(self.running.is_empty() && self.waiting.is_empty())
    }

    pub(crate) fn running(&self) -> &[Sequence] {
        &self.running
    }

    pub(crate) fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn num_blocks_used(&self) -> u32 {
        self.kv.num_used()
    }

    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    /// Decides the next step: rows for everyone who runs, as the budget and the blocks allow, then newcomers, then drafts.
    ///
    /// When there is work, there is at least one row. Nothing but [`Scheduler::commit`] may come next.
    pub(crate) fn plan(&mut self, plan: &mut StepPlan) {
        plan.clear();
        let mut budget = Budget { rows: self.max_rows, logits: self.max_logits };
        let preemptions_before = self.counters.preemptions;
        // Gaps of one come first: each has a row and a logit put aside, whatever stands before it.
        let mut num_decodes = self.running.iter().filter(|sequence| sequence.gap() == 1).count() as u32;
        let mut index = 0;
        while index < self.running.len() {
            num_decodes -= u32::from(self.running[index].gap() == 1);
            let wanted = chunk(&self.running[index], budget.rows - num_decodes, budget.logits - num_decodes);
            let num_rows = self.cover(index, wanted, &mut num_decodes);
            if num_rows > 0 {
                self.push(plan, &mut budget, index, num_rows, false);
            }
            index += 1;
        }
        // Whoever just lost its blocks would only take them back.
        if self.counters.preemptions == preemptions_before {
            self.admit(plan, &mut budget);
        }
        if self.max_drafts > 0 {
            self.draft(plan, &mut budget);
        }
        plan.lay_out(&self.running, self.kv.block_tokens());
    }

    /// Books the step: computed rows, sampled tokens, finished sequences. `samples` is used up; `outcomes` gets one entry for each
    /// token that was sampled.
    pub(crate) fn commit(&mut self, plan: &StepPlan, samples: &mut StepSamples, outcomes: &mut Vec<Outcome>) {
        outcomes.clear();
        let mut tokens = samples.tokens.drain(..);
        let mut prompt_logprobs = samples.prompt_logprobs.drain(..);
        let mut any_over = false;
        for (span, num_tokens) in plan.spans.iter().zip(samples.num_tokens.drain(..)) {
            let sequence = &mut self.running[span.running_index];
            assert_eq!(sequence.id, span.id, "a plan is committed before anything else happens");
            for logprob in prompt_logprobs.by_ref().take(span.num_prompt_logits as usize) {
                sequence.push_prompt_logprob(logprob);
            }
            assert_eq!(num_tokens > 0, span.samples, "who samples has a token");
            outcomes.extend(tokens.by_ref().take(num_tokens as usize).map(|token| sequence.take_sample(token)));
            any_over |= sequence.is_over();
            // What was computed for other tokens than were sampled does not count: the next steps write over it.
            let num_accepted = num_tokens.saturating_sub(1);
            sequence.drop_drafts();
            sequence.advance(span.num_rows - span.num_drafts + num_accepted);
            sequence.publish_to(&mut self.kv);
            if span.num_drafts > 0 {
                let num_known = sequence.num_known();
                self.kv.shrink(&mut sequence.table, num_known);
            }
            if span.samples {
                self.counters.drafts += u64::from(span.num_drafts > 0);
                self.counters.drafted_tokens += u64::from(span.num_drafts);
                self.counters.samples_by_accepted[num_accepted as usize] += 1;
            }
        }
        if any_over {
            let kv = &mut self.kv;
            self.running.retain_mut(|sequence| {
                if sequence.is_over() {
                    kv.give_back(&mut sequence.table);
                }
                !sequence.is_over()
            });
        }
    }

    /// Lets waiting sequences run while there are rows, and blocks for all their tokens.
    fn admit(&mut self, plan: &mut StepPlan, budget: &mut Budget) {
        let newcomers_may_join =
            policy::newcomers_may_join(self.newcomers, self.running.len(), &self.waiting, self.steps_without_newcomer);
        self.steps_without_newcomer = self.steps_without_newcomer.saturating_add(1);
        let mut index = 0;
        // Choices of a request stand together: when one waits for a sibling, so do those behind it.
        let mut held_group = None;
        while index < self.waiting.len()
            && self.running.len() < self.max_sequences
            && budget.rows > 0
            && budget.logits > 0
        {
            let candidate = &self.waiting[index];
            let is_newcomer = policy::is_newcomer(candidate);
            if is_newcomer && !newcomers_may_join {
                index += 1;
                continue;
            }
            let group = candidate.group.first;
            if held_group == Some(group)
                || self.kv.has_prefix_cache()
                    && policy::waits_for_sibling(candidate, self.kv.block_tokens(), &self.running, &self.waiting)
            {
                held_group = Some(group);
                index += 1;
                continue;
            }
            if !self.fits(index) {
                return;
            }
            let Some(sequence) = self.waiting.remove(index) else { return };
            let (at, is_first) = self.run(sequence);
            if is_newcomer {
                self.steps_without_newcomer = 0;
            }
            for span in &mut plan.spans {
                span.running_index += usize::from(span.running_index >= at);
            }
            let wanted = chunk(&self.running[at], budget.rows, budget.logits);
            while self.kv.blocks_for(self.running[at].num_computed() + wanted) > self.running[at].table.num_blocks() {
                assert!(self.kv.grow(&mut self.running[at].table), "there are blocks for whoever is admitted");
            }
            self.push(plan, budget, at, wanted, is_first);
        }
    }

    /// Lets who samples draft tokens, as long as the step has rows, logits and free blocks left, and a row is worth its time.
    ///
    /// That is so when the step gets more done in its time with the row than without it: `chance / cost of a row` exceeds
    /// `what the step gets done / cost of the step`, a row that is no draft being worth one. Few sequences draft far, many draft what is
    /// nearly certain, and who guesses badly drafts nothing.
    fn draft(&mut self, plan: &mut StepPlan, budget: &mut Budget) {
        let mut rows: f64 = plan.spans.iter().map(|span| f64::from(span.num_rows)).sum();
        let overhead = self.step_cost.overhead_rows();
        let mut worth = rows;
        for span in plan.spans.iter_mut().filter(|span| span.samples) {
            let sequence = &mut self.running[span.running_index];
            sequence.look_ahead();
            let mut chance = 1.0;
            while span.num_drafts < self.max_drafts.min(budget.rows).min(budget.logits)
                && let Some((draft, next_chance)) = sequence.next_draft()
            {
                chance *= f64::from(next_chance);
                let end = sequence.num_known() + span.num_drafts + 1;
                if chance * (overhead + rows) <= worth
                    || self.kv.blocks_for(end) > sequence.table.num_blocks() && !self.kv.grow(&mut sequence.table)
                {
                    break;
                }
                sequence.push_draft(draft);
                span.num_drafts += 1;
                rows += 1.0;
                worth += chance;
            }
            span.num_rows += span.num_drafts;
            budget.rows -= span.num_drafts;
            budget.logits -= span.num_drafts;
        }
    }

    /// Learns what rows cost from the time that a step took. Pieces of prompts would mislead: their rows have no logits.
    pub(crate) fn observe(&mut self, plan: &StepPlan, took: Duration) {
        if self.max_drafts > 0 && plan.spans.iter().all(PlannedSpan::is_decode) {
            self.step_cost.observe(plan.batch.num_rows() as u32, took);
        }
    }

    /// Whether the waiting sequence at `index` finds blocks for all its tokens beside those that run; its prefix hits are in
    /// `self.hits` then. True for anyone when nobody runs: longer sequences are refused at the door.
    fn fits(&mut self, index: usize) -> bool {
        let promised: u32 = self.running.iter().map(|sequence| self.missing_blocks(sequence)).sum();
        let sequence = &self.waiting[index];
        if sequence.first_wanted_prompt_row().is_some() {
            self.hits.clear();
        } else {
            // The last token is computed again for its logits.
            let known = &sequence.tokens()[..sequence.num_known() as usize - 1];
            self.kv.find_prefix(sequence.group.adapter, known, &mut self.hits);
        }
        let missing = self.missing_blocks(sequence) - self.hits.num_blocks();
        missing + promised + self.hits.num_free() <= self.kv.num_free()
    }

    /// Blocks that the known tokens of `sequence` still need.
    fn missing_blocks(&self, sequence: &Sequence) -> u32 {
        self.kv.blocks_for(sequence.num_known()).saturating_sub(sequence.table.num_blocks())
    }

    /// Makes a sequence run, beginning with `self.hits`; returns where it stands now and whether it never ran before.
    fn run(&mut self, mut sequence: Sequence) -> (usize, bool) {
        let is_first = !sequence.was_admitted();
        let num_hit_tokens = self.hits.num_blocks() * self.kv.block_tokens();
        if is_first && self.kv.has_prefix_cache() && sequence.group.report.prompt_logprobs.is_none() {
            self.counters.prefix_queried_tokens += u64::from(sequence.num_known());
            self.counters.prefix_hit_tokens += u64::from(num_hit_tokens);
        }
        self.kv.adopt(&mut sequence.table, &self.hits);
        sequence.admit(num_hit_tokens);
        (policy::insert_running(&mut self.running, sequence), is_first)
    }

    /// Finds blocks for `wanted` more rows of the running sequence at `index`; those that came later may lose theirs. Returns how
    /// many rows there are blocks for. Zero means that the sequence stands still for a step: those before it do not.
    fn cover(&mut self, index: usize, wanted: u32, num_decodes: &mut u32) -> u32 {
        let end = self.running[index].num_computed() + wanted;
        while self.kv.blocks_for(end) > self.running[index].table.num_blocks() {
            if self.kv.grow(&mut self.running[index].table) {
                continue;
            }
            let Some(victim) = policy::victim(&self.running, index) else {
                let sequence = &self.running[index];
                return sequence.table.num_blocks() * self.kv.block_tokens() - sequence.num_computed();
            };
            let mut sequence = self.running.remove(victim);
            *num_decodes -= u32::from(sequence.gap() == 1);
            self.kv.give_back(&mut sequence.table);
            sequence.preempt();
            policy::insert_waiting(&mut self.waiting, sequence);
            self.counters.preemptions += 1;
        }
        wanted
    }

    fn push(&self, plan: &mut StepPlan, budget: &mut Budget, index: usize, num_rows: u32, is_first: bool) {
        budget.rows -= num_rows;
        budget.logits -= plan.push(&self.running[index], index, num_rows, is_first);
    }

    /// Panics when a block is lost, owned wrongly, or a list is out of order.
    #[cfg(test)]
    pub(crate) fn check_integrity(&self) {
        self.kv.check_integrity(self.running.iter().map(|sequence| &sequence.table));
        assert!(self.running.is_sorted_by(|a, b| a.id < b.id), "running in order of arrival");
        assert!(self.waiting.iter().is_sorted_by(|a, b| a.id < b.id), "waiting in order of arrival");
        assert!(self.running.len() <= self.max_sequences);
        for sequence in &self.running {
            assert!(sequence.num_drafts() <= self.max_drafts);
            assert!(sequence.gap() >= 1 && !sequence.is_over(), "whoever runs has something to compute");
            let num_tokens = sequence.num_known() + sequence.num_drafts();
            assert!(sequence.table.num_blocks() <= self.kv.blocks_for(num_tokens), "no block too many");
            let room = sequence.table.num_blocks() * self.kv.block_tokens();
            assert!(sequence.num_computed() <= room, "what is computed is in blocks");
        }
        for sequence in &self.waiting {
            assert!(sequence.table.blocks().is_empty() && sequence.num_computed() == 0, "whoever waits owns nothing");
        }
    }
}

/// Most rows of `sequence` that a step with room for `max_rows` and `max_logits` can compute.
fn chunk(sequence: &Sequence, max_rows: u32, max_logits: u32) -> u32 {
    let num_rows = sequence.gap().min(max_rows);
    if let Some(first_wanted) = sequence.first_wanted_prompt_row() {
        return num_rows.min(first_wanted.saturating_sub(sequence.num_computed()) + max_logits);
    }
    // Without a logit to spare, everything but the newest token.
    if max_logits == 0 { num_rows.min(sequence.gap() - 1) } else { num_rows }
}
