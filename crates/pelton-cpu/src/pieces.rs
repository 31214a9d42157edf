//! How work is cut for this machine's pool, where it does not depend on the kernel.

/// Elements that make a piece of row-wise work: some microseconds for the cheapest operation, so that handing it out costs little,
/// and a few rows computed by the caller alone.
const PIECE_ELEMENTS: usize = 16_384;

/// Rows of `cols` columns in a piece of row-wise work; at least one.
pub(crate) fn rows_per_piece(cols: usize) -> usize {
    (PIECE_ELEMENTS / cols.max(1)).max(1)
}
