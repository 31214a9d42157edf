//! A step as the CPU takes it: the batch, its attention cut into tiles of rows, and its rows by adapter.

use std::ops::Range;

use pelton_backend::{AdapterId, StepBatch};

/// Rows of a span that attend together, sharing each read of keys and values.
pub(crate) const TILE_ROWS: usize = 16;

/// One step's work, taken over from a [`StepBatch`].
pub struct Step {
    pub(crate) batch: StepBatch,
    /// Costliest first, so that no thread begins a long tile when the others are done.
    pub(crate) tiles: Vec<Tile>,
    /// Whether rows can attend side by side; without it there are no tiles. See [`Step::compare_rows`].
    pub(crate) rows_lie_apart: bool,
    /// Room in which slots are compared.
    sorted_slots: Vec<u32>,
    /// Adapters of the step, each once, ascending.
    pub(crate) adapted: Vec<Adapted>,
    /// Their rows, those of one adapter in order.
    pub(crate) adapted_rows: Vec<u32>,
    /// Room in which spans are sorted.
    adapted_spans: Vec<(AdapterId, u32)>,
}

/// An adapter of the step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Adapted {
    pub adapter: AdapterId,
    /// Its part of [`Step::adapted_rows`].
    pub rows: Range<usize>,
}

/// Consecutive rows of one span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tile {
    pub span: usize,
    pub first_row: usize,
    pub num_rows: usize,
    /// Position of the last row plus one.
    pub context_len: usize,
}

impl Step {
    pub(crate) fn new(max_rows: usize) -> Self {
        let batch = StepBatch {
            token_ids: Vec::with_capacity(max_rows),
            positions: Vec::with_capacity(max_rows),
            slots: Vec::with_capacity(max_rows),
            spans: Vec::with_capacity(max_rows),
            block_tables: Vec::new(),
            logit_rows: Vec::with_capacity(max_rows),
        };
        Self {
            batch,
            tiles: Vec::with_capacity(max_rows),
            rows_lie_apart: false,
            sorted_slots: Vec::with_capacity(max_rows),
            adapted: Vec::new(),
            adapted_rows: Vec::new(),
            adapted_spans: Vec::new(),
        }
    }

    pub(crate) fn begin(&mut self, batch: &StepBatch) {
        // `clone_from` keeps the vectors' memory.
        self.batch.token_ids.clone_from(&batch.token_ids);
        self.batch.positions.clone_from(&batch.positions);
        self.batch.slots.clone_from(&batch.slots);
        self.batch.spans.clone_from(&batch.spans);
        self.batch.block_tables.clone_from(&batch.block_tables);
        self.batch.logit_rows.clone_from(&batch.logit_rows);
        self.tiles.clear();
        self.sort_adapted();
        self.rows_lie_apart = self.compare_rows();
        if !self.rows_lie_apart {
            return;
        }
        for (index, span) in batch.spans.iter().enumerate() {
            let (first_row, num_rows) = (span.first_row as usize, span.num_rows as usize);
            let computed = span.context_len as usize - num_rows;
            for first in (0..num_rows).step_by(TILE_ROWS) {
                let rows = TILE_ROWS.min(num_rows - first);
                self.tiles.push(Tile {
                    span: index,
                    first_row: first_row + first,
                    num_rows: rows,
                    context_len: computed + first + rows,
                });
            }
        }
        self.tiles.sort_unstable_by_key(|tile| std::cmp::Reverse(tile.num_rows * tile.context_len));
    }

    /// Gathers the rows of each adapter.
    fn sort_adapted(&mut self) {
        let Self { batch, adapted, adapted_rows, adapted_spans, .. } = self;
        adapted.clear();
        adapted_rows.clear();
        adapted_spans.clear();
        let spans = batch.spans.iter().enumerate();
        adapted_spans.extend(spans.filter_map(|(index, span)| Some((span.adapter?, index as u32))));
        adapted_spans.sort_unstable();
        for spans in adapted_spans.chunk_by(|a, b| a.0 == b.0) {
            let first = adapted_rows.len();
            for &(_, index) in spans {
                let span = &batch.spans[index as usize];
                adapted_rows.extend(span.first_row..span.first_row + span.num_rows);
            }
            adapted.push(Adapted { adapter: spans[0].0, rows: first..adapted_rows.len() });
        }
    }

    /// Whether no two units of attention write to one place: spans lie end to end over all rows, and every row has a slot of its own.
    /// A batch is plain data that anybody can fill; threads that write side by side rely on this.
    fn compare_rows(&mut self) -> bool {
        let mut num_rows = 0;
        for span in &self.batch.spans {
            if span.first_row as usize != num_rows || span.num_rows > span.context_len {
                return false;
            }
            num_rows += span.num_rows as usize;
        }
        self.sorted_slots.clone_from(&self.batch.slots);
        self.sorted_slots.sort_unstable();
        num_rows == self.batch.num_rows()
            && self.sorted_slots.len() == self.batch.num_rows()
            && self.sorted_slots.windows(2).all(|pair| pair[0] != pair[1])
    }
}

#[cfg(test)]
mod tests {
    use pelton_backend::{BlockId, TokenId};

    use super::*;

    #[test]
    fn rows_that_would_write_to_one_place_are_noticed() {
        let lie_apart = |change: fn(&mut StepBatch)| {
            let mut batch = StepBatch::default();
            batch.push_span(&[TokenId(1); 3], 2, &[BlockId(7)], 16);
            batch.push_span(&[TokenId(1)], 5, &[BlockId(3)], 16);
            change(&mut batch);
            let mut step = Step::new(4);
            step.begin(&batch);
            assert_eq!(step.tiles.is_empty(), !step.rows_lie_apart);
            step.rows_lie_apart
        };
        assert!(lie_apart(|_| ()));
        assert!(!lie_apart(|batch| batch.slots[3] = batch.slots[1]));
        assert!(!lie_apart(|batch| batch.spans[1].first_row = 2));
        assert!(!lie_apart(|batch| batch.spans[1].num_rows = 2));
        assert!(!lie_apart(|batch| batch.spans[0].context_len = 2));
        assert!(!lie_apart(|batch| batch.slots.truncate(3)));
    }

    #[test]
    fn rows_are_gathered_by_adapter() {
        let mut batch = StepBatch::default();
        for (index, (rows, adapter)) in [(2, Some(5)), (1, None), (3, Some(1)), (1, Some(5))].into_iter().enumerate() {
            let tokens = vec![TokenId(1); rows];
            batch.push_span(&tokens, 0, &[BlockId(index as u32)], 16).adapter = adapter.map(AdapterId);
        }
        let mut step = Step::new(7);
        step.begin(&batch);
        assert_eq!(step.adapted_rows, [3, 4, 5, 0, 1, 6]);
        let adapted = [Adapted { adapter: AdapterId(1), rows: 0..3 }, Adapted { adapter: AdapterId(5), rows: 3..6 }];
        assert_eq!(step.adapted, adapted);
        step.begin(&StepBatch::default());
        assert!(step.adapted.is_empty() && step.adapted_rows.is_empty());
    }

    #[test]
    fn tiles_cover_each_span_and_the_costliest_comes_first() {
        let mut batch = StepBatch::default();
        batch.push_span(&[TokenId(1)], 99, &[BlockId(0), BlockId(1), BlockId(2), BlockId(3)], 32);
        batch.push_span(&[TokenId(1); 20], 12, &[BlockId(4)], 32);
        let mut step = Step::new(21);
        step.begin(&batch);
        assert_eq!(
            step.tiles,
            [
                Tile { span: 1, first_row: 1, num_rows: 16, context_len: 28 },
                Tile { span: 1, first_row: 17, num_rows: 4, context_len: 32 },
                Tile { span: 0, first_row: 0, num_rows: 1, context_len: 100 },
            ]
        );
    }
}
