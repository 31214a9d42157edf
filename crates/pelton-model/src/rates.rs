//! How fast a model computes, without engine, text and HTTP: the time of prefills and of decode steps by batch size and length.
//!
//! Steps are those an engine would plan: prompts cut by the token budget, one row for each decoding sequence, block tables over the
//! paged KV cache, logits for the rows that would be sampled. Sampling is not part of it. Cases are interleaved in rounds and their
//! medians compared, since machines are noisy.

use std::fmt;
use std::time::{Duration, Instant};

use pelton_backend::{BlockId, StepBatch, TokenId};
use serde::Serialize;

use crate::memory::MemoryPlan;
use crate::model::{Model, ModelError};

/// Sequences of one step at most.
const MAX_BATCH: usize = 4096;

/// Tokens of a prompt, and steps that follow, at most.
const MAX_TOKENS: usize = 1 << 20;

/// Tokens of a step at most.
const MAX_STEP_TOKENS: usize = 65_536;

/// Steps of each case before the first round.
const WARM_UP_STEPS: usize = 2;

/// What to measure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RatePlan {
    /// Sequences that decode together; one case for each number and length.
    pub batch: Vec<usize>,
    /// Lengths of prompts: a prefill of each, and decoding behind each.
    pub input_tokens: Vec<usize>,
    /// Decode steps of a case in one round.
    pub output_tokens: usize,
    /// Tokens a prefill step computes.
    pub step_tokens: usize,
}

/// A plan that asks for nothing or for absurdly much.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} is {found}, expected 1 to {limit}")]
pub struct RatePlanError {
    /// Which number.
    pub name: &'static str,
    /// Its value.
    pub found: usize,
    /// The largest it may be.
    pub limit: usize,
}

impl RatePlan {
    /// Whether every number is within its limits.
    pub fn check(&self) -> Result<(), RatePlanError> {
        let within = |name, found: usize, limit: usize| {
            if (1..=limit).contains(&found) { Ok(()) } else { Err(RatePlanError { name, found, limit }) }
        };
        within("number of batch sizes", self.batch.len(), 64)?;
        within("number of input lengths", self.input_tokens.len(), 64)?;
        self.batch.iter().try_for_each(|&batch| within("batch", batch, MAX_BATCH))?;
        self.input_tokens.iter().try_for_each(|&tokens| within("input tokens", tokens, MAX_TOKENS))?;
        within("output tokens", self.output_tokens, MAX_TOKENS)?;
        within("tokens of a step", self.step_tokens, MAX_STEP_TOKENS)
    }

    /// Positions of the longest sequence.
    pub fn max_positions(&self) -> usize {
        self.input_tokens.iter().copied().max().unwrap_or(0) + self.output_tokens
    }

    /// Sequences of the largest batch.
    pub fn max_batch(&self) -> usize {
        self.batch.iter().copied().max().unwrap_or(0)
    }

    /// Rows of the largest step.
    pub fn max_step_rows(&self) -> usize {
        self.step_tokens.max(self.max_batch())
    }

    /// Blocks of the longest sequence.
    fn sequence_blocks(&self, block_tokens: usize) -> usize {
        self.max_positions().div_ceil(block_tokens)
    }

    /// Blocks of the KV cache that are used.
    pub fn num_blocks(&self, block_tokens: usize) -> usize {
        self.max_batch() * self.sequence_blocks(block_tokens)
    }

    fn cases(&self) -> Vec<RateCase> {
        let mut cases = Vec::new();
        for &input_tokens in &self.input_tokens {
            cases.push(RateCase::Prefill { input_tokens });
            cases.extend(self.batch.iter().map(|&batch| RateCase::Decode { batch, input_tokens }));
        }
        cases
    }
}

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "case", rename_all = "lowercase")]
pub enum RateCase {
    /// One prompt, in steps of the token budget.
    Prefill {
        /// Its length.
        input_tokens: usize,
    },
    /// Steps in which every sequence gets one token.
    Decode {
        /// Sequences.
        batch: usize,
        /// Tokens each of them has before the first step.
        input_tokens: usize,
    },
}

/// The time of one step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RateRow {
    /// Counted from 0.
    pub round: usize,
    /// What was timed.
    #[serde(flatten)]
    pub case: RateCase,
    /// Counted from 0 within the case and the round.
    pub step: usize,
    /// Rows of the step.
    pub rows: usize,
    /// Its time.
    pub time_us: f64,
}

/// The medians of one case.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RateSummary {
    /// What was timed.
    #[serde(flatten)]
    pub case: RateCase,
    /// Median time: of a whole prompt, or of a decode step.
    pub time_ms: f64,
    /// The shortest.
    pub least_time_ms: f64,
    /// Prompts, or steps.
    pub samples: usize,
    /// Prompt tokens, or generated tokens of all sequences, over the median time.
    pub tokens_per_s: f64,
    /// For decoding: bytes of weights, keys and values that a step reads, on average.
    pub step_bytes: Option<f64>,
    /// For decoding: these bytes over the median time, as a share of what memory gives.
    pub bandwidth_share: Option<f64>,
}

/// A measurement under way.
#[derive(Debug)]
pub struct Rates {
    plan: RatePlan,
    rounds: usize,
    rows: Vec<RateRow>,
    random: fastrand::Rng,
    batch: StepBatch,
    tokens: Vec<TokenId>,
}

impl Rates {
    /// Fails when a number of `plan` is outside its limits.
    pub fn new(plan: RatePlan) -> Result<Self, RatePlanError> {
        plan.check()?;
        let random = fastrand::Rng::with_seed(0);
        Ok(Self { plan, rounds: 0, rows: Vec::new(), random, batch: StepBatch::default(), tokens: Vec::new() })
    }

    /// Steps of one round.
    pub fn round_steps(&self) -> usize {
        let steps = |case| match case {
            RateCase::Prefill { input_tokens } => input_tokens.div_ceil(self.plan.step_tokens),
            RateCase::Decode { .. } => self.plan.output_tokens,
        };
        self.plan.cases().into_iter().map(steps).sum()
    }

    /// Computes the first steps of each case, untimed: memory is touched, caches and clocks are as they will be.
    ///
    /// Panics, as [`Rates::round`], when `model` was given less room than the plan says it needs.
    pub fn warm_up(&mut self, model: &mut dyn Model) -> Result<(), ModelError> {
        for case in self.plan.cases() {
            for step in 0..WARM_UP_STEPS {
                self.step(model, case, step)?;
            }
        }
        Ok(())
    }

    /// Times every case once; `after_step` is called after each step.
    pub fn round(&mut self, model: &mut dyn Model, after_step: &mut dyn FnMut()) -> Result<(), ModelError> {
        for case in self.plan.cases() {
            let mut step = 0;
            while let Some(time) = self.step(model, case, step)? {
                let (round, rows) = (self.rounds, self.batch.num_rows());
                self.rows.push(RateRow { round, case, step, rows, time_us: 1e6 * time.as_secs_f64() });
                after_step();
                step += 1;
            }
        }
        self.rounds += 1;
        Ok(())
    }

    /// The time of every step so far.
    pub fn rows(&self) -> &[RateRow] {
        &self.rows
    }

    /// Medians, beside what a step must read by `memory` and what reading costs. Cases without a round are left out.
    pub fn summaries(&self, memory: &MemoryPlan, read_bytes_per_s: f64) -> Vec<RateSummary> {
        self.plan.cases().into_iter().filter_map(|case| self.summary(case, memory, read_bytes_per_s)).collect()
    }

    fn summary(&self, case: RateCase, memory: &MemoryPlan, read_bytes_per_s: f64) -> Option<RateSummary> {
        let rows = || self.rows.iter().filter(|row| row.case == case);
        let mut times_us: Vec<f64> = match case {
            // The steps of a prompt differ; its whole time does not.
            RateCase::Prefill { .. } => (0..self.rounds)
                .map(|round| rows().filter(|row| row.round == round).map(|row| row.time_us).sum())
                .collect(),
            RateCase::Decode { .. } => rows().map(|row| row.time_us).collect(),
        };
        times_us.sort_unstable_by(f64::total_cmp);
        let time_us = times_us.get(times_us.len() / 2)?.max(1e-3);
        let (tokens, step_bytes) = match case {
            RateCase::Prefill { input_tokens } => (input_tokens, None),
            RateCase::Decode { batch, input_tokens } => {
                // The first step reads one position more than the prompt has, its own; the last as many more as there are steps.
                let context = input_tokens as f64 + (1 + self.plan.output_tokens) as f64 / 2.0;
                let kv = batch as f64 * context * memory.position_bytes() as f64;
                (batch, Some(memory.step_weights_bytes() as f64 + kv))
            }
        };
        Some(RateSummary {
            case,
            time_ms: time_us / 1e3,
            least_time_ms: times_us[0] / 1e3,
            samples: times_us.len(),
            tokens_per_s: 1e6 * tokens as f64 / time_us,
            step_bytes,
            bandwidth_share: step_bytes.map(|bytes| bytes / (time_us / 1e6) / read_bytes_per_s),
        })
    }

    /// Computes step number `step` of `case`; `None` when the case has no such step. The batch stays for a look at it.
    fn step(&mut self, model: &mut dyn Model, case: RateCase, step: usize) -> Result<Option<Duration>, ModelError> {
        let spec = model.spec();
        let block_tokens = spec.block_tokens;
        let sequence_blocks = self.plan.sequence_blocks(block_tokens as usize);
        let blocks = |sequence: usize, positions: usize| -> Vec<BlockId> {
            let first = sequence * sequence_blocks;
            (first..first + positions.div_ceil(block_tokens as usize)).map(|block| BlockId(block as u32)).collect()
        };
        let vocab_size = spec.vocab_size as u32;
        let mut token = || TokenId(self.random.u32(..vocab_size));
        self.batch.clear();
        match case {
            RateCase::Prefill { input_tokens } => {
                let first = step * self.plan.step_tokens;
                if first >= input_tokens {
                    return Ok(None);
                }
                let end = input_tokens.min(first + self.plan.step_tokens);
                self.tokens.clear();
                self.tokens.extend((first..end).map(|_| token()));
                self.batch.push_span(&self.tokens, first as u32, &blocks(0, end), block_tokens);
                if end == input_tokens {
                    self.batch.logit_rows.push((end - first - 1) as u32);
                }
            }
            RateCase::Decode { batch, input_tokens } => {
                if step >= self.plan.output_tokens {
                    return Ok(None);
                }
                let position = input_tokens + step;
                for sequence in 0..batch {
                    self.batch.push_span(&[token()], position as u32, &blocks(sequence, position + 1), block_tokens);
                    self.batch.logit_rows.push(sequence as u32);
                }
            }
        }
        let start = Instant::now();
        model.forward(&self.batch)?;
        Ok(Some(start.elapsed()))
    }
}

/// Shows summaries as tables for people: prefills, then decoding.
#[derive(Debug)]
pub struct RateTable<'a>(pub &'a [RateSummary]);

impl fmt::Display for RateTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<10}{:>14}{:>14}{:>14}{:>9}", "prefill", "prompt tokens", "ms", "tokens/s", "samples")?;
        for summary in self.0 {
            if let RateCase::Prefill { input_tokens } = summary.case {
                let RateSummary { time_ms, tokens_per_s, samples, .. } = summary;
                writeln!(f, "{:<10}{input_tokens:>14}{time_ms:>14.2}{tokens_per_s:>14.1}{samples:>9}", "")?;
            }
        }
        writeln!(f)?;
        writeln!(
            f,
            "{:<10}{:>14}{:>7}{:>14}{:>14}{:>9}{:>14}{:>17}",
            "decode", "context tokens", "batch", "ms a step", "tokens/s", "samples", "MB a step", "share of memory"
        )?;
        for summary in self.0 {
            if let RateCase::Decode { batch, input_tokens } = summary.case {
                let RateSummary { time_ms, tokens_per_s, samples, .. } = summary;
                let megabytes = summary.step_bytes.unwrap_or(0.0) / 1e6;
                let share = format!("{:.0} %", 100.0 * summary.bandwidth_share.unwrap_or(0.0));
                writeln!(
                    f,
                    "{:<10}{input_tokens:>14}{batch:>7}{time_ms:>14.2}{tokens_per_s:>14.1}{samples:>9}{megabytes:>14.1}{share:>17}",
                    ""
                )?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use pelton_backend::{DType, KvSpec, MemoryReport};

    use super::*;
    use crate::model::{Logits, ModelSpec};

    /// Remembers what it was asked.
    struct Asked {
        spec: ModelSpec,
        batches: Vec<StepBatch>,
        logits: Vec<f32>,
    }

    impl Asked {
        fn new(plan: &RatePlan) -> Self {
            let spec = ModelSpec {
                vocab_size: 10,
                max_positions: plan.max_positions(),
                num_blocks: plan.num_blocks(4) as u32,
                block_tokens: 4,
                max_step_rows: plan.max_step_rows(),
                max_logit_rows: plan.max_batch(),
                num_adapters: 0,
            };
            Self { spec, batches: Vec::new(), logits: Vec::new() }
        }
    }

    impl Model for Asked {
        fn spec(&self) -> &ModelSpec {
            &self.spec
        }

        fn forward(&mut self, batch: &StepBatch) -> Result<Logits<'_>, ModelError> {
            assert!(batch.num_rows() <= self.spec.max_step_rows && batch.logit_rows.len() <= self.spec.max_logit_rows);
            assert!(batch.slots.iter().all(|&slot| slot < self.spec.num_blocks * self.spec.block_tokens));
            let mut slots = batch.slots.clone();
            slots.sort_unstable();
            slots.dedup();
            assert_eq!(slots.len(), batch.num_rows(), "each row has a slot of its own");
            self.batches.push(batch.clone());
            Ok(self.logits.as_slice().into())
        }
    }

    fn plan() -> RatePlan {
        RatePlan { batch: vec![1, 3], input_tokens: vec![10], output_tokens: 2, step_tokens: 4 }
    }

    fn memory() -> MemoryPlan {
        MemoryPlan {
            weights_bytes: 1100,
            lookup_bytes: 100,
            format: DType::BF16.into(),
            num_adapters: 0,
            adapters_bytes: 0,
            positions_bytes: 0,
            max_positions: 12,
            workspace_bytes: 0,
            max_step_rows: 4,
            kv: KvSpec { num_layers: 1, num_kv_heads: 1, head_dim: 2, block_tokens: 4, format: DType::BF16.into() },
            num_blocks: 9,
            memory: MemoryReport { total_bytes: 0, available_bytes: 0 },
        }
    }

    #[test]
    fn steps_are_those_an_engine_would_plan() {
        let mut rates = Rates::new(plan()).unwrap();
        let mut model = Asked::new(&plan());
        let mut steps = 0;
        rates.round(&mut model, &mut || steps += 1).unwrap();
        assert_eq!((steps, rates.round_steps(), rates.rows().len()), (7, 7, 7));
        let rows: Vec<usize> = model.batches.iter().map(StepBatch::num_rows).collect();
        assert_eq!(rows, [4, 4, 2, 1, 1, 3, 3]);
        let logit_rows: Vec<&[u32]> = model.batches.iter().map(|batch| &batch.logit_rows[..]).collect();
        assert_eq!(logit_rows, [&[][..], &[], &[1], &[0], &[0], &[0, 1, 2], &[0, 1, 2]]);
        let contexts: Vec<u32> = model.batches.iter().map(|batch| batch.spans[0].context_len).collect();
        assert_eq!(contexts, [4, 8, 10, 11, 12, 11, 12]);
        assert_eq!(model.batches[6].spans[2].num_blocks, 3);
    }

    #[test]
    fn medians_and_shares_follow_from_the_rows() {
        let mut rates = Rates::new(plan()).unwrap();
        let mut row = |round, case, step, time_us| rates.rows.push(RateRow { round, case, step, rows: 1, time_us });
        let (prefill, decode) =
            (RateCase::Prefill { input_tokens: 10 }, RateCase::Decode { batch: 3, input_tokens: 10 });
        for (round, times) in
            [[300.0, 400.0, 300.0], [1000.0, 1000.0, 1000.0], [400.0, 500.0, 600.0]].iter().enumerate()
        {
            for (step, &time) in times.iter().enumerate() {
                row(round, prefill, step, time);
            }
            row(round, decode, 0, 100.0);
            row(round, decode, 1, 200.0);
        }
        rates.rounds = 3;
        let summaries = rates.summaries(&memory(), 20e6);
        assert_eq!(summaries.len(), 2);
        assert_eq!((summaries[0].case, summaries[0].samples, summaries[0].time_ms), (prefill, 3, 1.5));
        assert!((summaries[0].tokens_per_s - 10.0 / 1.5e-3).abs() < 1e-6);
        assert_eq!((summaries[0].step_bytes, summaries[0].bandwidth_share), (None, None));
        let decoded = summaries[1];
        assert_eq!((decoded.case, decoded.samples, decoded.time_ms, decoded.least_time_ms), (decode, 6, 0.2, 0.1));
        // 11 and 12 positions of 8 bytes for each of three sequences.
        assert_eq!(decoded.step_bytes, Some(1000.0 + 3.0 * 11.5 * 8.0));
        assert!((decoded.tokens_per_s - 15_000.0).abs() < 1e-6);
        assert!((decoded.bandwidth_share.unwrap() - 1276.0 / 200e-6 / 20e6).abs() < 1e-9);
        let table = RateTable(&summaries).to_string();
        assert!(table.contains("1.50") && table.contains("6666.7") && table.contains("32 %"), "{table}");
    }

    #[test]
    fn nothing_and_absurdly_much_are_refused() {
        for (change, message) in [
            ((|plan| plan.batch[0] = 0) as fn(&mut RatePlan), "batch is 0, expected 1 to 4096"),
            (|plan| plan.batch[1] = 5000, "batch is 5000, expected 1 to 4096"),
            (|plan| plan.input_tokens.clear(), "number of input lengths is 0, expected 1 to 64"),
            (|plan| plan.output_tokens = 0, "output tokens is 0, expected 1 to 1048576"),
            (|plan| plan.step_tokens = 100_000, "tokens of a step is 100000, expected 1 to 65536"),
        ] {
            let mut plan = plan();
            change(&mut plan);
            assert_eq!(Rates::new(plan).unwrap_err().to_string(), message);
        }
    }
}
