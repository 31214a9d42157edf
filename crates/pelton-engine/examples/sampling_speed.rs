//! What a step costs beside the model: microseconds per row from the logits to the event, by how tokens are chosen.
//!
//! `cargo run --release -p pelton-engine --example sampling_speed`. The model hands out rows made beforehand and notes the time
//! between two of its calls: sampling, bookkeeping, sending. Medians over the steps of a run.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pelton_backend::{StepBatch, TokenId};
use pelton_engine::{EngineConfig, ReportParams, SamplingParams, SequenceRequest, StoppingParams, start};
use pelton_model::{Logits, Model, ModelError, ModelSpec};

const MAX_USERS: usize = 32;
const NUM_STEPS: u32 = 60;

/// Returns the same rows in each step.
struct Rows {
    spec: ModelSpec,
    /// `[MAX_USERS, vocab]`.
    logits: Arc<[f32]>,
    returned_at: Option<Instant>,
    /// Time between two calls, with the rows of the first.
    gaps: Arc<Mutex<Vec<(usize, Duration)>>>,
    num_rows: usize,
}

impl Model for Rows {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&mut self, batch: &StepBatch) -> Result<Logits<'_>, ModelError> {
        if let Some(returned_at) = self.returned_at {
            self.gaps.lock().unwrap().push((self.num_rows, returned_at.elapsed()));
        }
        self.num_rows = batch.logit_rows.len();
        self.returned_at = Some(Instant::now());
        Ok(Logits::from(&self.logits[..self.num_rows * self.spec.vocab_size]))
    }
}

/// Rows as a trained model gives them: a bell of standard deviation 2 and, `peak` above its middle, 64 tokens whose probabilities
/// fall as `1 / rank^2`. Without the peak, no token stands out.
fn make_rows(vocab_size: usize, peak: Option<f32>) -> Arc<[f32]> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut logits: Vec<f32> =
        (0..MAX_USERS * vocab_size).map(|_| (0..4).map(|_| random.f32() - 0.5).sum::<f32>() * 12.0f32.sqrt()).collect();
    if let Some(peak) = peak {
        for row in logits.chunks_exact_mut(vocab_size) {
            for rank in 1..=64 {
                row[random.usize(..vocab_size)] = peak - 2.0 * (rank as f32).ln();
            }
        }
    }
    logits.into()
}

/// Microseconds per row, of the median step.
fn measure(logits: &Arc<[f32]>, num_users: usize, sampling: &SamplingParams, report: ReportParams) -> f64 {
    let gaps = Arc::new(Mutex::new(Vec::new()));
    let spec = ModelSpec {
        vocab_size: logits.len() / MAX_USERS,
        max_positions: 4096,
        num_blocks: 1024,
        block_tokens: 16,
        max_step_rows: 256,
        max_logit_rows: MAX_USERS,
        num_adapters: 0,
    };
    let model = Rows { spec, logits: logits.clone(), returned_at: None, gaps: gaps.clone(), num_rows: 0 };
    let config = EngineConfig {
        max_step_tokens: 256,
        max_sequences: MAX_USERS as u32,
        max_queued: 0,
        prefix_cache: false,
        ..EngineConfig::default()
    };
    let engine = start(Box::new(model), config).expect("the limits are not zero");
    let streams: Vec<_> = (0..num_users)
        .flat_map(|index| {
            let request = SequenceRequest {
                prompt: vec![TokenId(index as u32)],
                adapter: None,
                sampling: SamplingParams { seed: index as u64, ..sampling.clone() },
                stopping: StoppingParams { max_tokens: NUM_STEPS, ..StoppingParams::default() },
                report,
                constraint: None,
                num_choices: 1,
            };
            engine.submit(request).expect("there is room")
        })
        .collect();
    engine.shutdown(Instant::now() + Duration::from_secs(60));
    drop(streams);
    let mut per_row: Vec<f64> = std::mem::take(&mut *gaps.lock().unwrap())
        .into_iter()
        .filter(|&(num_rows, _)| num_rows == num_users)
        .map(|(num_rows, gap)| gap.as_secs_f64() * 1e6 / num_rows as f64)
        .collect();
    per_row.sort_unstable_by(f64::total_cmp);
    per_row[per_row.len() / 2]
}

fn main() {
    let drawn = SamplingParams { temperature: 0.8, ..SamplingParams::default() };
    let top_p = SamplingParams { top_p: 0.9, ..drawn.clone() };
    let top_k = SamplingParams { top_k: 50, ..drawn.clone() };
    let quiet = ReportParams::default();
    let told = ReportParams { logprobs: true, top_n: 5, prompt_logprobs: None };
    println!("microseconds per row              vocabulary   1 user  32 users");
    for vocab_size in [32_000, 151_936] {
        let peaked = make_rows(vocab_size, Some(16.0));
        let flat = make_rows(vocab_size, None);
        let settings = [
            ("greedy", &peaked, SamplingParams::default()),
            ("temperature 0.8", &peaked, drawn.clone()),
            ("temperature 0.8, top-p 0.9", &peaked, top_p.clone()),
            ("temperature 0.8, top-k 50", &peaked, top_k.clone()),
            ("top-p 0.9 of a flat row", &flat, top_p.clone()),
        ];
        for (name, logits, sampling) in &settings {
            for (with, report) in [("", quiet), (", told", told)] {
                let [one, many] = [1, MAX_USERS].map(|num_users| measure(logits, num_users, sampling, report));
                println!("{:<34}{vocab_size:>10} {one:>8.1} {many:>9.1}", format!("{name}{with}"));
            }
        }
    }
    println!("told: with log-probability and the five likeliest tokens");
}
