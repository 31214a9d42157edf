//! What one step computes, and for whom.

use std::fmt;

use pelton_backend::StepBatch;

use crate::sequence::{Sequence, SequenceId};

/// One step's work. Reused from step to step.
#[derive(Debug, Default)]
pub(crate) struct StepPlan {
    /// For the model.
    pub(crate) batch: StepBatch,
    /// Whose rows these are, in row order: one for each span of the batch.
    pub(crate) spans: Vec<PlannedSpan>,
}

/// One sequence's part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlannedSpan {
    pub(crate) id: SequenceId,
    /// Where the engine thread keeps the sequence's stream.
    pub(crate) seat: usize,
    /// Index among the running sequences, until the step is committed.
    pub(crate) running_index: usize,
    pub(crate) num_rows: u32,
    /// Drafted tokens among them: the last rows.
    pub(crate) num_drafts: u32,
    /// Position of the prompt token that the first of the prompt's logits foretell.
    pub(crate) first_foretold: u32,
    /// Logits wanted for the prompt's log-probabilities; they come before the one for sampling.
    pub(crate) num_prompt_logits: u32,
    /// Whether the newest token is among the rows, so that a token is sampled; then one more from each draft's row, as long as
    /// drafts are accepted.
    pub(crate) samples: bool,
    /// Whether this is the sequence's first step.
    pub(crate) is_first: bool,
}

impl StepPlan {
    pub(super) fn clear(&mut self) {
        self.batch.clear();
        self.spans.clear();
    }

    /// Adds a span for the next `num_rows` rows of `sequence`; returns how many logits that takes.
    pub(super) fn push(&mut self, sequence: &Sequence, running_index: usize, num_rows: u32, is_first: bool) -> u32 {
        let computed = sequence.num_computed();
        let end = computed + num_rows;
        let samples = end == sequence.num_known();
        let sampled_row = end - u32::from(samples);
        let first_wanted =
            sequence.first_wanted_prompt_row().map_or(sampled_row, |row| row.max(computed)).min(sampled_row);
        let num_prompt_logits = sampled_row - first_wanted;
        self.spans.push(PlannedSpan {
            id: sequence.id,
            seat: sequence.seat,
            running_index,
            num_rows,
            num_drafts: 0,
            first_foretold: first_wanted + 1,
            num_prompt_logits,
            samples,
            is_first,
        });
        num_prompt_logits + u32::from(samples)
    }

    /// Writes the batch, once all spans are decided. `running` as the spans have it.
    pub(super) fn lay_out(&mut self, running: &[Sequence], block_tokens: u32) {
        for span in &self.spans {
            let sequence = &running[span.running_index];
            let computed = sequence.num_computed();
            let tokens = &sequence.tokens_with(span.num_drafts)[computed as usize..][..span.num_rows as usize];
            let rows = self.batch.push_span(tokens, computed, sequence.table.blocks(), block_tokens);
            rows.adapter = sequence.group.adapter;
            // The last rows of a span are those whose logits are wanted.
            let end = self.batch.num_rows() as u32;
            self.batch.logit_rows.extend(end - span.num_logits()..end);
        }
    }
}

impl PlannedSpan {
    /// Rows whose logits are wanted: the last ones of the span.
    pub(crate) fn num_logits(&self) -> u32 {
        self.num_prompt_logits + u32::from(self.samples) + self.num_drafts
    }

    /// Whether it computes sampled tokens and nothing else.
    pub(super) fn is_decode(&self) -> bool {
        self.samples && self.num_rows == 1 + self.num_drafts
    }
}

impl fmt::Display for StepPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows, {} logits:", self.batch.num_rows(), self.batch.logit_rows.len())?;
        for (span, rows) in self.spans.iter().zip(&self.batch.spans) {
            let first = rows.context_len - rows.num_rows;
            write!(f, " #{} {}..{}{}", span.id.0, first, rows.context_len, if span.samples { "!" } else { "" })?;
            if span.num_drafts > 0 {
                write!(f, "{}?", span.num_drafts)?;
            }
        }
        Ok(())
    }
}
