//! How one sequence's tokens are chosen: already checked, no text.

use pelton_backend::TokenId;

use super::Watermark;

/// Sampling of one sequence. Neutral values switch a step off; [`SamplingParams::default`] is greedy.
///
/// Order of application: watermark, logit bias, repetition penalty, frequency and presence penalty, the
/// sequence's constraint, then (unless greedy) temperature,
/// top-k, top-p, min-p, typical-p, draw.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// `0.0` is greedy; greater values divide the logits.
    pub temperature: f32,
    /// Keep the `k` likeliest tokens; `0` keeps all.
    pub top_k: u32,
    /// Keep the likeliest tokens whose probabilities reach `p`; `1.0` keeps all.
    pub top_p: f32,
    /// Drop tokens below `min_p` times the likeliest's probability; `0.0` drops none.
    pub min_p: f32,
    /// Locally typical sampling (Meister et al. 2022): keep the mass `p` nearest to the entropy; `1.0` keeps all.
    pub typical_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or answer (Keskar et al. 2019); `1.0` is neutral.
    pub repetition_penalty: f32,
    /// Subtracted once per earlier occurrence in the answer.
    pub frequency_penalty: f32,
    /// Subtracted once if the token occurs in the answer.
    pub presence_penalty: f32,
    /// Marks the text.
    pub watermark: Option<Watermark>,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Draws depend on this, the choice's index and the token's position alone; never on batch mates.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            watermark: None,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Whether the likeliest token is taken without a draw.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }
}
