//! One step's work, in device-neutral indices.

/// Index into a model's vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(pub u32);

/// Index of a block of KV positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u32);

/// Index of an adapter of a loaded model; the model without one has no index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdapterId(pub u16);

/// Rows of one sequence in a step.
///
/// ```text
/// positions of the sequence:  0 ........ context_len - num_rows ........ context_len
///                             |-- in the KV cache already --|-- this step's rows --|
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First row in the batch.
    pub first_row: u32,
    /// Rows of this sequence, at least one. They are consecutive positions, the last is `context_len - 1`.
    pub num_rows: u32,
    /// Positions the last row attends to, itself included.
    pub context_len: u32,
    /// Where this sequence's blocks begin in [`StepBatch::block_tables`].
    pub first_block: u32,
    /// Blocks listed there: enough for `context_len` positions.
    pub num_blocks: u32,
    /// What its rows are computed with beside the model.
    pub adapter: Option<AdapterId>,
}

/// One step's work. Rows of all sequences lie end to end: `rows = sum(span.num_rows)`.
///
/// Reused from step to step, so that planning allocates nothing once the vectors have grown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepBatch {
    /// `[rows]`.
    pub token_ids: Vec<TokenId>,
    /// `[rows]` position of each row in its sequence.
    pub positions: Vec<u32>,
    /// `[rows]` `block * block_tokens + offset`: where this row's key and value go.
    pub slots: Vec<u32>,
    /// One per sequence, in row order.
    pub spans: Vec<Span>,
    /// Block tables of the spans, end to end.
    pub block_tables: Vec<BlockId>,
    /// Rows whose logits are wanted, ascending.
    pub logit_rows: Vec<u32>,
}

impl StepBatch {
    /// Rows of the step.
    pub fn num_rows(&self) -> usize {
        self.token_ids.len()
    }

    /// Empties every list and keeps the memory.
    pub fn clear(&mut self) {
        self.token_ids.clear();
        self.positions.clear();
        self.slots.clear();
        self.spans.clear();
        self.block_tables.clear();
        self.logit_rows.clear();
    }

    /// Adds `tokens` of one sequence, beginning at `first_position`, whose blocks are `blocks`; returns their span, which has no adapter yet.
    ///
    /// Panics when `blocks` does not cover the last position: a plan like that is a bug of the caller.
    pub fn push_span(
        &mut self,
        tokens: &[TokenId],
        first_position: u32,
        blocks: &[BlockId],
        block_tokens: u32,
    ) -> &mut Span {
        assert!(!tokens.is_empty(), "a span has at least one row");
        let context_len = first_position + tokens.len() as u32;
        assert!(
            blocks.len() as u64 * u64::from(block_tokens) >= u64::from(context_len),
            "blocks must cover the context"
        );
        let span = Span {
            first_row: self.token_ids.len() as u32,
            num_rows: tokens.len() as u32,
            context_len,
            first_block: self.block_tables.len() as u32,
            num_blocks: blocks.len() as u32,
            adapter: None,
        };
        self.token_ids.extend_from_slice(tokens);
        self.block_tables.extend_from_slice(blocks);
        for position in first_position..context_len {
            self.positions.push(position);
            let BlockId(block) = blocks[(position / block_tokens) as usize];
            self.slots.push(block * block_tokens + position % block_tokens);
        }
        let index = self.spans.len();
        self.spans.push(span);
        &mut self.spans[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_lie_end_to_end_and_slots_follow_the_blocks() {
        let mut batch = StepBatch::default();
        batch.push_span(&[TokenId(7)], 4, &[BlockId(9), BlockId(2)], 4);
        let adapter = Some(AdapterId(1));
        batch.push_span(&[TokenId(1), TokenId(2), TokenId(3)], 2, &[BlockId(5), BlockId(0)], 4).adapter = adapter;
        assert_eq!(batch.num_rows(), 4);
        assert_eq!(batch.positions, [4, 2, 3, 4]);
        assert_eq!(batch.slots, [8, 22, 23, 0]);
        let rows = Span { first_row: 1, num_rows: 3, context_len: 5, first_block: 2, num_blocks: 2, adapter };
        assert_eq!(batch.spans[1], rows);
        assert_eq!(batch.spans[0].adapter, None);
    }
}
