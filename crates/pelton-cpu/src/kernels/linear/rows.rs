//! Rows of a linear, laid out as register tiles read them.
//!
//! ```text
//! [tile][step][tile rows]     step: one input feature, or as many as one word holds
//! ```
//!
//! A tile then reads one line after the other. Rows as they come lie a power of two apart in many models: a dozen of them would
//! fight for the same few places of the nearest cache. Rows that fill up the last tile hold leftovers.

use crate::pool::{Pool, SharedMut};

/// Steps that one unit of work lays out.
const PIECE_STEPS: usize = 512;

/// Words of `num_rows` rows of `steps` steps in tiles of `tile_rows`.
pub(super) fn packed_len(num_rows: usize, steps: usize, tile_rows: usize) -> usize {
    num_rows.next_multiple_of(tile_rows) * steps
}

/// Steps that are read at a time: a cache line of each row is read once, and what is written stays near meanwhile.
const STRIP: usize = 16;

/// Fills `packed` ([`packed_len`] words), where `read(row, first_step, words)` gives consecutive steps of one row.
pub(super) fn pack_rows<W: Copy + Default + Send>(
    pool: &Pool,
    num_rows: usize,
    steps: usize,
    tile_rows: usize,
    packed: &mut [W],
    read: impl Fn(usize, usize, &mut [W]) + Sync,
) {
    assert_eq!(packed.len(), packed_len(num_rows, steps, tile_rows));
    let pieces_by_tile = steps.div_ceil(PIECE_STEPS);
    let packed = SharedMut::new(packed);
    pool.run(num_rows.div_ceil(tile_rows) * pieces_by_tile, |_, piece| {
        let (tile, first_step) = (piece / pieces_by_tile, piece % pieces_by_tile * PIECE_STEPS);
        let num_steps = PIECE_STEPS.min(steps - first_step);
        // SAFETY: pieces do not overlap, and each is handed out once.
        let words = unsafe { packed.slice((tile * steps + first_step) * tile_rows, num_steps * tile_rows) };
        let first_row = tile * tile_rows;
        let rows = tile_rows.min(num_rows - first_row);
        lay_out(rows, tile_rows, words, |row, step, words| read(first_row + row, first_step + step, words));
    });
}

/// Lays `rows` rows side by side in `words`, which are steps of one tile; `read(row, step, words)` counts from the first of them.
pub(super) fn lay_out<W: Copy + Default>(
    rows: usize,
    tile_rows: usize,
    words: &mut [W],
    read: impl Fn(usize, usize, &mut [W]),
) {
    let mut strip = [W::default(); STRIP];
    for (index, words) in words.chunks_mut(STRIP * tile_rows).enumerate() {
        let strip = &mut strip[..words.len() / tile_rows];
        for row in 0..rows {
            read(row, index * STRIP, strip);
            for (words, &word) in words.chunks_exact_mut(tile_rows).zip(&*strip) {
                words[row] = word;
            }
        }
    }
}
