//! A step as the CPU takes it: the batch, and its attention cut into tiles of rows.

use pelton_backend::StepBatch;

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
        let (tiles, sorted_slots) = (Vec::with_capacity(max_rows), Vec::with_capacity(max_rows));
        Self { batch, tiles, rows_lie_apart: false, sorted_slots }
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
