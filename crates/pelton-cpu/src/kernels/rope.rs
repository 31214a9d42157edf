//! Rotary embedding of queries and keys, in place.

use pelton_backend::RopeSpec;

use crate::isa::{Isa, Kernel};
use crate::lanes::{LANES, Lanes};
use crate::pieces::rows_per_piece;
use crate::pool::Pool;

/// Rotates the query and key heads of each row of `qkv` by `positions[row]`. `table` is `[positions, rotary_dim]`, cosines first.
pub(crate) fn rope(isa: Isa, pool: &Pool, positions: &[u32], qkv: &mut [f32], table: &[f32], spec: &RopeSpec) {
    let cols = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim;
    assert_eq!(qkv.len(), positions.len() * cols, "rows of queries, keys and values have {cols} columns");
    assert!(
        spec.rotary_dim.is_multiple_of(2) && spec.rotary_dim <= spec.head_dim,
        "a rotary width of {} does not fit heads of {}",
        spec.rotary_dim,
        spec.head_dim
    );
    let rows = rows_per_piece(cols);
    pool.run_pieces(qkv, rows * cols, |_, index, qkv| {
        for (row, &position) in qkv.chunks_exact_mut(cols).zip(&positions[index * rows..]) {
            let angles = &table[position as usize * spec.rotary_dim..][..spec.rotary_dim];
            isa.run(Rotate { row, angles, spec });
        }
    });
}

struct Rotate<'a> {
    row: &'a mut [f32],
    /// Cosines, then as many sines.
    angles: &'a [f32],
    spec: &'a RopeSpec,
}

impl Kernel for Rotate<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, isa: L) {
        let half = self.spec.rotary_dim / 2;
        let (cosines, sines) = self.angles.split_at(half);
        let heads = self.spec.num_heads + self.spec.num_kv_heads;
        for head in self.row.chunks_exact_mut(self.spec.head_dim).take(heads) {
            let (first, second) = head[..self.spec.rotary_dim].split_at_mut(half);
            for at in (0..half).step_by(LANES) {
                let (cosine, sine) = (isa.read(cosines, at), isa.read(sines, at));
                let (a, b) = (isa.read(first, at), isa.read(second, at));
                let minus_b = isa.sub(isa.splat(0.0), b);
                isa.write(first, at, isa.fma(a, cosine, isa.mul(minus_b, sine)));
                isa.write(second, at, isa.fma(b, cosine, isa.mul(a, sine)));
            }
        }
    }
}
