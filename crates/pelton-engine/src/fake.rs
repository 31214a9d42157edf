//! A model that answers a script at a stated cost; for tests of everything around models.

use std::time::{Duration, Instant};

use pelton_backend::{AdapterId, StepBatch, TokenId};
use pelton_model::{Logits, Model, ModelError, ModelSpec};

/// What a [`FakeModel`] says and what it costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeConfig {
    /// Columns of a row of logits.
    pub vocab_size: usize,
    /// The row at position `p` of a sequence makes `script[(p + 1) % script.len()]` certain: the token at position `q` of any
    /// sequence, if it is sampled, is `script[q % script.len()]`. With adapter `a` the script is told from `a + 1` places further on. Nothing else
    /// plays a part. Not empty, all in the vocabulary.
    pub script: Vec<TokenId>,
    /// What a step costs, whatever is in it.
    pub step_cost: Duration,
    /// What each row adds.
    pub row_cost: Duration,
    /// Blocks of the KV cache (which is not there: only ids are counted).
    pub num_blocks: u32,
    /// Positions in a block.
    pub block_tokens: u32,
    /// Positions of a sequence.
    pub max_positions: usize,
    /// Rows of a step.
    pub max_step_rows: usize,
    /// Rows of a step whose logits can be asked for.
    pub max_logit_rows: usize,
    /// Adapters that sequences may ask for.
    pub num_adapters: usize,
    /// The step (counted from 0) that fails.
    pub fail_at_step: Option<u64>,
}

impl Default for FakeConfig {
    /// Two hundred and fifty-six tokens told in order, at no cost; room for 256 sequences of 1024 tokens.
    fn default() -> Self {
        Self {
            vocab_size: 256,
            script: (0..256).map(TokenId).collect(),
            step_cost: Duration::ZERO,
            row_cost: Duration::ZERO,
            num_blocks: 16_384,
            block_tokens: 16,
            max_positions: 4096,
            max_step_rows: 2048,
            max_logit_rows: 256,
            num_adapters: 0,
            fail_at_step: None,
        }
    }
}

/// Logit of the scripted token; all others are zero. Its probability is 1 within f32 for any vocabulary below 10^17 tokens.
const CERTAIN: f32 = 64.0;

/// How much of a cost is waited for by spinning: more than a sleep oversleeps on an idle machine (about 60 us on Linux, whose
/// timer slack is 50 us).
const SPIN: Duration = Duration::from_micros(100);

/// A model without weights.
#[derive(Debug)]
pub struct FakeModel {
    config: FakeConfig,
    spec: ModelSpec,
    /// `[max_logit_rows, vocab_size]`, grown as rows are asked for; zero but for one entry in each row.
    logits: Vec<f32>,
    /// The entry of each row that is not zero.
    certain: Vec<usize>,
    num_steps: u64,
}

impl FakeModel {
    /// Panics when the script is empty or leaves the vocabulary: both come from code.
    pub fn new(config: FakeConfig) -> Self {
        assert!(!config.script.is_empty(), "the script has at least one token");
        assert!(
            config.script.iter().all(|token| (token.0 as usize) < config.vocab_size),
            "the script leaves the vocabulary"
        );
        let spec = ModelSpec {
            vocab_size: config.vocab_size,
            max_positions: config.max_positions,
            num_blocks: config.num_blocks,
            block_tokens: config.block_tokens,
            max_step_rows: config.max_step_rows,
            max_logit_rows: config.max_logit_rows,
            num_adapters: config.num_adapters,
        };
        Self { config, spec, logits: Vec::new(), certain: Vec::new(), num_steps: 0 }
    }
}

impl Model for FakeModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&mut self, batch: &StepBatch) -> Result<Logits<'_>, ModelError> {
        let started = Instant::now();
        assert!(batch.num_rows() <= self.spec.max_step_rows, "the step has more rows than the model has room for");
        assert!(
            batch.logit_rows.len() <= self.spec.max_logit_rows,
            "the step asks for more logits than there is room for"
        );
        let step = self.num_steps;
        self.num_steps += 1;
        if self.config.fail_at_step == Some(step) {
            return Err(ModelError::Failed(format!("scripted failure at step {step}")));
        }
        let vocab_size = self.config.vocab_size;
        let mut spans = batch.spans.iter().peekable();
        for (index, &row) in batch.logit_rows.iter().enumerate() {
            let position = batch.positions[row as usize] as usize;
            // Rows ascend, and so do spans.
            while spans.next_if(|span| span.first_row + span.num_rows <= row).is_some() {}
            let shift = spans.peek().and_then(|span| span.adapter).map_or(0, |AdapterId(id)| usize::from(id) + 1);
            let token = self.config.script[(position + 1 + shift) % self.config.script.len()].0 as usize;
            if index == self.certain.len() {
                self.logits.resize((index + 1) * vocab_size, 0.0);
                self.certain.push(token);
            }
            let row = &mut self.logits[index * vocab_size..][..vocab_size];
            row[self.certain[index]] = 0.0;
            row[token] = CERTAIN;
            self.certain[index] = token;
        }
        let rows = u32::try_from(batch.num_rows()).unwrap_or(u32::MAX);
        wait_until(started, self.config.step_cost + self.config.row_cost * rows);
        Ok(Logits::from(&self.logits[..batch.logit_rows.len() * vocab_size]))
    }
}

/// Returns `cost` after `started`: sleeps through most of it and spins at the end.
fn wait_until(started: Instant, cost: Duration) {
    if cost.is_zero() {
        return;
    }
    if let Some(sleep) = cost.saturating_sub(started.elapsed()).checked_sub(SPIN)
        && !sleep.is_zero()
    {
        std::thread::sleep(sleep);
    }
    while started.elapsed() < cost {
        std::hint::spin_loop();
    }
}
