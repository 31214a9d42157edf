//! Perplexity: how well a model predicts a text, token by token.
//!
//! The text is cut into windows of `context` tokens, each `stride` tokens after the one before. Every token is predicted once, by the
//! first window that reaches it, so that all but the tokens of the first window have at least `context - stride` tokens before them.
//! Windows know nothing of each other. (The usual procedure: "Perplexity of fixed-length models" in the documentation of Transformers.)

use std::ops::Range;

use pelton_backend::{BlockId, StepBatch, TokenId};
use serde::{Deserialize, Serialize};

use crate::model::{Model, ModelError};

/// How a text is cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PerplexityPlan {
    /// Tokens of a window, those of `prefix` included.
    pub context: usize,
    /// New tokens of each window after the first.
    pub stride: usize,
    /// Tokens before every window, not predicted: the beginning of text, where a tokenizer adds one.
    pub prefix: Vec<u32>,
}

/// A plan or a text that cannot be measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PerplexityError {
    /// The window has no room for what it must hold.
    #[error("context is {found} tokens, expected {least} to {most}")]
    Context {
        /// The context asked for.
        found: usize,
        /// Prefix, one token to predict from and one to predict.
        least: usize,
        /// What the model was loaded for.
        most: usize,
    },
    /// Windows must advance, and may not skip tokens.
    #[error(
        "stride is {found} tokens, expected 1 to {most}, the context without its prefix and one token to predict from"
    )]
    Stride {
        /// The stride asked for.
        found: usize,
        /// The most.
        most: usize,
    },
    /// Nothing to predict.
    #[error("the text has {found} tokens, expected at least {least}")]
    Text {
        /// Its tokens.
        found: usize,
        /// One to predict, and one before it where there is no prefix.
        least: usize,
    },
    /// A token that the model has no row for: another model's tokenizer.
    #[error("the text holds token {found}, the model knows {vocab_size}")]
    Token {
        /// The id.
        found: u32,
        /// Ids that there are.
        vocab_size: usize,
    },
}

/// What was measured of one window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WindowScore {
    /// Tokens predicted.
    pub tokens: usize,
    /// Sum of their negative log-probabilities.
    pub nats: f64,
}

/// Sums over all windows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PerplexityScore {
    /// In the order of the text.
    pub windows: Vec<WindowScore>,
}

/// A mean and how far it may be off, from the spread between windows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Half of the interval that holds the true mean 95 times of 100, if windows are independent; not a number with one window.
    pub half_width: f64,
}

impl PerplexityPlan {
    /// Pieces of a text of `num_tokens` tokens: which tokens a window reads, and how many of them, the last, it is asked for.
    fn windows(&self, num_tokens: usize) -> impl Iterator<Item = (Range<usize>, usize)> {
        let room = self.context - self.prefix.len();
        let unscored = usize::from(self.prefix.is_empty());
        // Ends of the windows; each scores what lies between the end before and its own.
        let ends = (0..).map(move |window| (room + window * self.stride).min(num_tokens));
        let mut scored_to = unscored;
        ends.map_while(move |end| {
            let scored = end.checked_sub(scored_to).filter(|&scored| scored > 0)?;
            scored_to = end;
            Some((end.saturating_sub(room)..end, scored))
        })
    }

    /// Windows of a text of `num_tokens` tokens.
    pub fn num_windows(&self, num_tokens: usize) -> usize {
        self.windows(num_tokens).count()
    }

    /// Tokens of such a text that are not predicted.
    pub fn num_unscored(&self) -> usize {
        usize::from(self.prefix.is_empty())
    }

    /// Whether `tokens` can be measured with a model that has room for `max_positions`.
    pub fn check(&self, tokens: &[u32], vocab_size: usize, max_positions: usize) -> Result<(), PerplexityError> {
        let (prefix, unscored) = (self.prefix.len(), self.num_unscored());
        let least = prefix + unscored + 1;
        if !(least..=max_positions).contains(&self.context) {
            return Err(PerplexityError::Context { found: self.context, least, most: max_positions });
        }
        let most = self.context - prefix - unscored;
        if !(1..=most).contains(&self.stride) {
            return Err(PerplexityError::Stride { found: self.stride, most });
        }
        if tokens.len() <= unscored {
            return Err(PerplexityError::Text { found: tokens.len(), least: unscored + 1 });
        }
        match self.prefix.iter().chain(tokens).find(|&&token| token as usize >= vocab_size) {
            Some(&found) => Err(PerplexityError::Token { found, vocab_size }),
            None => Ok(()),
        }
    }

    /// Predicts `tokens`, which [`PerplexityPlan::check`] has found in order, and calls `after_window` after each window.
    ///
    /// The model needs blocks for `context` tokens. Panics when it has fewer.
    pub fn measure(
        &self,
        model: &mut dyn Model,
        tokens: &[u32],
        after_window: &mut dyn FnMut(&WindowScore),
    ) -> Result<PerplexityScore, ModelError> {
        let spec = model.spec();
        let (vocab_size, block_tokens) = (spec.vocab_size, spec.block_tokens);
        let step_rows = spec.max_step_rows.min(spec.max_logit_rows);
        let blocks: Vec<BlockId> = (0..(self.context as u32).div_ceil(block_tokens)).map(BlockId).collect();
        let mut batch = StepBatch::default();
        let mut window = Vec::with_capacity(self.context);
        let mut score = PerplexityScore { windows: Vec::new() };
        for (range, scored) in self.windows(tokens.len()) {
            window.clear();
            window.extend(self.prefix.iter().chain(&tokens[range]).copied().map(TokenId));
            // Row `i` predicts token `i + 1`; the last row predicts nothing that is known.
            let first_scored = window.len() - scored;
            let mut nats = 0.0;
            for (piece, rows) in window[..window.len() - 1].chunks(step_rows).enumerate() {
                let begin = piece * step_rows;
                batch.clear();
                batch.push_span(rows, begin as u32, &blocks, block_tokens);
                let wanted = (first_scored - 1).saturating_sub(begin)..rows.len();
                batch.logit_rows.extend(wanted.clone().map(|row| row as u32));
                let logits = model.forward(&batch)?;
                for (logits, row) in logits.chunks_exact(vocab_size).zip(wanted) {
                    nats += surprise(logits, window[begin + row + 1]);
                }
            }
            let window = WindowScore { tokens: scored, nats };
            after_window(&window);
            score.windows.push(window);
        }
        Ok(score)
    }
}

/// Negative log-probability of `token`, in nats.
fn surprise(logits: &[f32], TokenId(token): TokenId) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - most).exp()).sum();
    sum.ln() - f64::from(logits[token as usize] - most)
}

impl PerplexityScore {
    /// Tokens predicted.
    pub fn tokens(&self) -> usize {
        self.windows.iter().map(|window| window.tokens).sum()
    }

    /// Negative log-probability of a token on average; its exponential is the perplexity.
    pub fn nats(&self) -> Estimate {
        estimate(self.windows.iter().map(|window| (window.tokens, window.nats)))
    }

    /// How much more a token costs here than in `other`, window by window, so that what makes a text hard cancels out. `None` when the
    /// windows are not the same.
    pub fn nats_above(&self, other: &Self) -> Option<Estimate> {
        let pairs = || self.windows.iter().zip(&other.windows);
        if self.windows.len() != other.windows.len() || pairs().any(|(a, b)| a.tokens != b.tokens) {
            return None;
        }
        Some(estimate(pairs().map(|(a, b)| (a.tokens, a.nats - b.nats))))
    }
}

/// The mean of `sums` over tokens, with the spread of windows as of a ratio of two sums.
fn estimate(sums: impl Iterator<Item = (usize, f64)> + Clone) -> Estimate {
    let tokens: f64 = sums.clone().map(|(tokens, _)| tokens as f64).sum();
    let mean = sums.clone().map(|(_, nats)| nats).sum::<f64>() / tokens;
    let windows = sums.clone().count() as f64;
    let squares: f64 = sums.map(|(tokens, nats)| (nats - mean * tokens as f64).powi(2)).sum();
    let deviation = (squares * windows / (windows - 1.0)).sqrt() / tokens;
    Estimate { mean, half_width: 1.96 * deviation }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Logits, ModelSpec};

    fn plan(context: usize, stride: usize, prefix: &[u32]) -> PerplexityPlan {
        PerplexityPlan { context, stride, prefix: prefix.to_vec() }
    }

    #[test]
    fn every_token_is_predicted_once_with_enough_before_it() {
        for (context, stride, prefix) in [(8, 3, &[][..]), (8, 7, &[]), (5, 1, &[]), (8, 8 - 1, &[9]), (9, 4, &[9, 9])]
        {
            let plan = plan(context, stride, prefix);
            for num_tokens in 2..50 {
                let mut next = plan.num_unscored();
                for (window, (range, scored)) in plan.windows(num_tokens).enumerate() {
                    assert_eq!(range.end - scored, next);
                    assert!(range.len() + prefix.len() <= context);
                    assert!(window == 0 || scored <= stride);
                    // At least `context - stride` tokens stand before what is predicted, except in the first window.
                    let before = prefix.len() + next - range.start;
                    assert!(window == 0 || before >= context - stride, "{before} tokens before {next}");
                    next = range.end;
                }
                assert_eq!(next, num_tokens);
            }
        }
    }

    /// Predicts `token + 1` with odds of `e` to 1 against each of four tokens, wherever it stands.
    struct Counter {
        spec: ModelSpec,
        logits: Vec<f32>,
        rows_seen: Vec<usize>,
    }

    impl Counter {
        fn new(max_step_rows: usize, max_logit_rows: usize) -> Self {
            let spec = ModelSpec {
                vocab_size: 4,
                max_positions: 64,
                num_blocks: 4,
                block_tokens: 16,
                max_step_rows,
                max_logit_rows,
                num_adapters: 0,
            };
            Self { spec, logits: Vec::new(), rows_seen: Vec::new() }
        }
    }

    impl Model for Counter {
        fn spec(&self) -> &ModelSpec {
            &self.spec
        }

        fn forward(&mut self, batch: &StepBatch) -> Result<Logits<'_>, ModelError> {
            assert!(batch.num_rows() <= self.spec.max_step_rows);
            assert!(batch.logit_rows.len() <= self.spec.max_logit_rows);
            self.rows_seen.push(batch.num_rows());
            self.logits.clear();
            for &row in &batch.logit_rows {
                let TokenId(token) = batch.token_ids[row as usize];
                self.logits.extend((0..4).map(|id| if id == (token + 1) % 4 { 1001.0 } else { 1000.0 }));
            }
            Ok(Logits::from(self.logits.as_slice()))
        }
    }

    #[test]
    fn a_known_model_has_its_known_perplexity() {
        // All right but one of sixty.
        let mut tokens: Vec<u32> = (0..61).map(|i| i % 4).collect();
        tokens[60] = 3;
        let e = std::f64::consts::E;
        let expected = ((e + 3.0).ln() * 60.0 - 59.0) / 60.0;
        for (rows, logit_rows) in [(64, 64), (7, 7), (16, 3), (1, 1)] {
            for plan in [plan(61, 60, &[]), plan(16, 5, &[]), plan(2, 1, &[]), plan(16, 15, &[])] {
                plan.check(&tokens, 4, 64).unwrap();
                let mut seen = 0;
                let score = plan.measure(&mut Counter::new(rows, logit_rows), &tokens, &mut |_| seen += 1).unwrap();
                assert_eq!((score.tokens(), seen), (60, plan.num_windows(61)));
                assert!((score.nats().mean - expected).abs() < 1e-6, "{}", score.nats().mean);
            }
        }
        // With a token before the text its first token is predicted too, wrongly.
        let score = plan(16, 8, &[1]).measure(&mut Counter::new(64, 64), &tokens, &mut |_| ()).unwrap();
        assert_eq!(score.tokens(), 61);
        assert!((score.nats().mean - ((e + 3.0).ln() * 61.0 - 59.0) / 61.0).abs() < 1e-6);
    }

    #[test]
    fn differences_are_taken_window_by_window() {
        let score = |nats: [f64; 3]| PerplexityScore {
            windows: [10, 10, 5].into_iter().zip(nats).map(|(tokens, nats)| WindowScore { tokens, nats }).collect(),
        };
        let (hard, harder) = (score([50.0, 10.0, 2.0]), score([51.0, 11.0, 2.5]));
        let above = harder.nats_above(&hard).unwrap();
        assert!((above.mean - 0.1).abs() < 1e-12 && above.half_width < 1e-12, "{above:?}");
        assert!(hard.nats().half_width > 1.0);
        let other = PerplexityScore { windows: hard.windows[..2].to_vec() };
        assert_eq!(hard.nats_above(&other), None);
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        let message = |plan: PerplexityPlan, tokens: &[u32]| plan.check(tokens, 4, 64).unwrap_err().to_string();
        assert_eq!(message(plan(65, 1, &[]), &[0, 1]), "context is 65 tokens, expected 2 to 64");
        assert_eq!(message(plan(1, 1, &[]), &[0, 1]), "context is 1 tokens, expected 2 to 64");
        assert!(message(plan(8, 8, &[]), &[0, 1]).starts_with("stride is 8 tokens, expected 1 to 7"));
        assert!(message(plan(8, 0, &[]), &[0, 1]).starts_with("stride is 0 tokens"));
        assert_eq!(message(plan(8, 4, &[]), &[0]), "the text has 1 tokens, expected at least 2");
        assert_eq!(message(plan(8, 4, &[1]), &[]), "the text has 0 tokens, expected at least 1");
        assert_eq!(message(plan(8, 4, &[]), &[0, 4]), "the text holds token 4, the model knows 4");
    }
}
