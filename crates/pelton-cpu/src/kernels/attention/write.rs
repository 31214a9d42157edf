//! Keys and values of a step into the cache.
//!
//! A unit of work is some heads of some rows. Positions that follow each other share the cache lines of their strip, which two threads
//! would take from each other; so a unit has whole strips of rows (unless a prompt goes on inside one) of as few heads as are worth it.
//! Cut by rows alone, two at a time, this took twice as long (CodeGen-350M, prompts of 32 tokens).

use super::{Attend, qkv_cols};
use crate::kv::{KvElement, Layout, STRIP_TOKENS};
use crate::pieces::rows_per_piece;
use crate::pool::{Pool, SharedMut};

/// Puts this step's keys and values where their slots say.
pub(super) fn write<T: KvElement>(pool: &Pool, args: &Attend<'_>, layout: Layout, blocks: &mut [T]) {
    let spec = args.spec;
    let head_dim = spec.head_dim;
    let slots = &args.step.batch.slots;
    let blocks = SharedMut::new(blocks);
    let rows_per_unit = rows_per_piece(8 * head_dim).next_multiple_of(STRIP_TOKENS);
    // All heads where there are few rows.
    let heads_per_unit = rows_per_piece(8 * head_dim * rows_per_unit.min(slots.len()));
    let head_units = spec.num_kv_heads.div_ceil(heads_per_unit);
    pool.run(slots.len().div_ceil(rows_per_unit) * head_units, |_, unit| {
        let (first_row, first_head) = (unit / head_units * rows_per_unit, unit % head_units * heads_per_unit);
        let rows = slots.iter().enumerate().skip(first_row).take(rows_per_unit);
        let heads = first_head..spec.num_kv_heads.min(first_head + heads_per_unit);
        for (head, (row, &slot)) in heads.flat_map(|head| rows.clone().map(move |row| (head, row))) {
            let (block, offset) = (slot as usize / layout.block_tokens, slot as usize % layout.block_tokens);
            let strip = layout.strip(args.layer, block, head, offset);
            // SAFETY: rows have slots of their own (asserted by `attend`), so nobody else touches the elements of this position, and those
            // of the strip are in the cache (asserted by `strip`; `at` asserts it too).
            let put = |at: usize, x: T| unsafe { *blocks.at(strip + at) = x };
            let token = offset % STRIP_TOKENS;
            let row = &args.qkv[row * qkv_cols(spec) + spec.num_heads * head_dim..][..2 * spec.num_kv_heads * head_dim];
            let (keys, values) = row.split_at(spec.num_kv_heads * head_dim);
            let (key, value) = (&keys[head * head_dim..][..head_dim], &values[head * head_dim..][..head_dim]);
            let (key_scale, value_scale) = (T::scale(key), T::scale(value));
            for (d, &x) in key.iter().enumerate() {
                put(layout.key::<T>(token, d), T::round(x, key_scale));
            }
            for (d, &x) in value.iter().enumerate() {
                put(layout.value::<T>(token, d), T::round(x, value_scale));
            }
            if T::SCALES_LEN > 0 {
                // SAFETY: a strip ends with two times sixteen scales, which `strip_len` counts; these two are this row's.
                unsafe {
                    let scales = blocks.at(strip + layout.scales()).cast::<f32>();
                    scales.add(token).write_unaligned(key_scale);
                    scales.add(STRIP_TOKENS + token).write_unaligned(value_scale);
                }
            }
        }
    });
}
