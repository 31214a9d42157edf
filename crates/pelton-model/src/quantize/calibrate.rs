//! What reaches each linear when a model reads a text.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;

use pelton_backend::{Backend, BlockId, DType, StepBatch, TokenId};

use super::factor::Moments;
use super::{QuantizeError, bar};
use crate::decoder::Decoder;
use crate::files::ModelFiles;
use crate::load::{DTypeChoice, KvFormatChoice, LoadOptions, load};
use crate::memory::KvBudget;
use crate::model::Model;
use crate::spec::LayerTensors;
use crate::treatment::Quantize;

/// Positions in a block of keys and values.
const BLOCK_TOKENS: usize = 16;
/// Tokens of a piece where nobody says.
const PIECE: usize = 512;
/// Share of the memory that is free once the model is loaded, for moments.
const MEMORY_SHARE: f64 = 0.5;

/// A text for calibration, in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calibration {
    /// The text.
    pub tokens: Vec<u32>,
    /// Tokens of each piece; pieces know nothing of each other. `None`: what the model can tell apart, 512 at most.
    pub piece: Option<usize>,
}

/// A text that cannot calibrate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CalibrationError {
    /// A format that asks for a text got none.
    #[error("this format needs a calibration text")]
    Missing,
    /// Too few tokens say nothing.
    #[error("the calibration text has {found} tokens, expected at least {least}, one piece")]
    Short {
        /// Its tokens.
        found: usize,
        /// One piece.
        least: usize,
    },
    /// A token that the model has no row for.
    #[error("the calibration text holds token {found}, the model knows {vocab_size}")]
    Token {
        /// The id.
        found: u32,
        /// Ids that there are.
        vocab_size: usize,
    },
    /// The model computed numbers that are none.
    #[error("inputs of a linear of {linear} are not finite: the model overflows on this text")]
    NotFinite {
        /// Its shape.
        linear: String,
    },
}

/// A linear: the block's index, and its own among the linears of the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) layer: usize,
    pub(super) linear: usize,
}

/// What reached each.
pub(super) type Seen = HashMap<Place, Moments>;

/// A loaded model and the text it reads.
pub(super) struct Calibrated<'a, B: Backend> {
    decoder: Decoder<B>,
    tokens: &'a [u32],
    /// Tokens of each piece.
    piece: usize,
}

impl<'a, B: Backend> Calibrated<'a, B> {
    /// Loads the model, which tells `max_positions` apart, in float32.
    pub(super) fn load(
        files: &ModelFiles,
        backend: B,
        text: &'a Calibration,
        max_positions: usize,
    ) -> Result<Self, QuantizeError> {
        let piece = text.piece.unwrap_or(PIECE.min(max_positions));
        let options = LoadOptions {
            dtype: DTypeChoice::Exact(DType::F32),
            quantize: Some(Quantize::Numbers),
            kv_format: KvFormatChoice::Auto,
            block_tokens: BLOCK_TOKENS,
            max_step_rows: piece,
            max_logit_rows: 1,
            max_positions: Some(piece),
            kv_budget: KvBudget::Tokens(piece),
            ..LoadOptions::default()
        };
        let decoder = load(files, backend, &options)?;
        let vocab_size = decoder.spec().vocab_size;
        if text.tokens.len() < piece {
            return Err(CalibrationError::Short { found: text.tokens.len(), least: piece }.into());
        }
        if let Some(&found) = text.tokens.iter().find(|&&token| token as usize >= vocab_size) {
            return Err(CalibrationError::Token { found, vocab_size }.into());
        }
        Ok(Self { decoder, tokens: &text.tokens, piece })
    }

    /// Reads the text, and keeps what reaches the linears of blocks from `first` on, of as many as there is memory for; at least one.
    pub(super) fn see(
        &mut self,
        first: usize,
        layers: &[LayerTensors],
        show_progress: bool,
    ) -> Result<(Range<usize>, Seen), QuantizeError> {
        let room = (self.decoder.backend().memory().available_bytes as f64 * MEMORY_SHARE) as u64;
        let mut needed = 0;
        let mut end = first;
        while end < layers.len() {
            let squares = layers[end].linears().map(|linear| (linear.parts[0].shape[1] as u64).pow(2));
            needed += squares.sum::<u64>() * size_of::<f32>() as u64;
            if end > first && needed > room {
                break;
            }
            for (linear, tensors) in self.decoder.layers[end].linears_mut().zip(layers[end].linears()) {
                linear.inputs = Some(RefCell::new(Moments::new(tensors.parts[0].shape[1])));
            }
            end += 1;
        }
        let pieces = self.tokens.chunks_exact(self.piece);
        let bar = bar(show_progress, pieces.len(), "reading", "pieces");
        let blocks: Vec<BlockId> = (0..self.piece.div_ceil(BLOCK_TOKENS) as u32).map(BlockId).collect();
        let mut batch = StepBatch::default();
        for piece in pieces {
            let tokens: Vec<TokenId> = piece.iter().copied().map(TokenId).collect();
            batch.clear();
            batch.push_span(&tokens, 0, &blocks, BLOCK_TOKENS as u32);
            self.decoder.forward(&batch)?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        let mut seen = Seen::new();
        for layer in first..end {
            for (number, linear) in self.decoder.layers[layer].linears_mut().enumerate() {
                let moments = linear.inputs.take().map(RefCell::into_inner);
                seen.extend(moments.map(|moments| (Place { layer, linear: number }, moments)));
            }
        }
        Ok((first..end, seen))
    }
}
