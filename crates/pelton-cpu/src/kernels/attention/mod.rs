//! Causal attention over paged keys and values: writing this step's, then attending.
//!
//! Work is cut into (tile of rows, key/value head): a long prefill becomes many units beside those of many short decodes. The query
//! heads of a group and the rows of a tile share each read of keys and values.
//!
//! A query walks its context in chunks of whole blocks, about [`CHUNK_TOKENS`] positions from a multiple of that on, with online
//! softmax (Milakov and Gimelshein 2018): one maximum, one correction, one sum by chunk. Where chunks begin, and the order of every sum
//! inside, follow from the position alone, so a query's result does not depend on the rows beside it: prefilled in one
//! piece, in several or decoded, it has the same bits.

mod tile;

use pelton_backend::{AttendSpec, BlockId};

use crate::isa::{Isa, Kernel};
use crate::kv::{Blocks, KvCache, KvElement, Layout};
use crate::lanes::{CACHE_LINE, LANES, Lanes, exp};
use crate::pieces::rows_per_piece;
use crate::pool::{Pool, SharedMut};
use crate::scratch::Scratches;
use crate::step::{Step, TILE_ROWS, Tile};

use tile::{mix_chunk, score_block};

/// Positions that share one softmax correction, where blocks are not larger.
const CHUNK_TOKENS: usize = 64;

/// One layer's attention. `qkv` is `[rows, (num_heads + 2 * num_kv_heads) * head_dim]`.
pub(crate) struct Attend<'a> {
    pub step: &'a Step,
    pub qkv: &'a [f32],
    pub layer: usize,
    pub spec: &'a AttendSpec,
}

/// Writes keys and values of all rows, then fills `out`, `[rows, num_heads * head_dim]`. Panics when sizes do not fit together.
pub(crate) fn attend(
    isa: Isa,
    pool: &Pool,
    scratches: &Scratches,
    args: &Attend<'_>,
    kv: &mut KvCache,
    out: &mut [f32],
) {
    let &Attend { step, qkv, spec, .. } = args;
    let num_rows = step.batch.num_rows();
    assert!(step.rows_lie_apart, "spans must lie end to end, and rows have slots of their own");
    assert!(spec.num_kv_heads > 0 && spec.num_heads.is_multiple_of(spec.num_kv_heads));
    assert_eq!(qkv.len(), num_rows * qkv_cols(spec), "rows of queries, keys and values");
    assert_eq!(out.len(), num_rows * spec.num_heads * spec.head_dim, "rows of attention results");
    let layout = kv.layout;
    assert_eq!((layout.num_kv_heads, layout.head_dim), (spec.num_kv_heads, spec.head_dim), "the cache's heads");
    for span in &step.batch.spans {
        let table = &step.batch.block_tables[span.first_block as usize..][..span.num_blocks as usize];
        assert!(table.len() * layout.block_tokens >= span.context_len as usize, "blocks must cover the context");
        assert!(table.iter().all(|&BlockId(block)| (block as usize) < layout.num_blocks), "blocks must exist");
    }

    match &mut kv.blocks {
        Blocks::F32(blocks) => {
            write(pool, args, layout, blocks.as_mut_slice());
            attend_all(isa, pool, scratches, args, layout, blocks.as_ptr(), out);
        }
        Blocks::F16(blocks) => {
            write(pool, args, layout, blocks.as_mut_slice());
            attend_all(isa, pool, scratches, args, layout, blocks.as_ptr(), out);
        }
        Blocks::Bf16(blocks) => {
            write(pool, args, layout, blocks.as_mut_slice());
            attend_all(isa, pool, scratches, args, layout, blocks.as_ptr(), out);
        }
    }
}

fn qkv_cols(spec: &AttendSpec) -> usize {
    (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
}

/// Puts this step's keys and values where their slots say.
fn write<T: KvElement>(pool: &Pool, args: &Attend<'_>, layout: Layout, blocks: &mut [T]) {
    let spec = args.spec;
    let (head_dim, block_tokens) = (spec.head_dim, layout.block_tokens);
    let slots = &args.step.batch.slots;
    let blocks = SharedMut::new(blocks);
    let rows_per_unit = rows_per_piece(8 * spec.num_kv_heads * head_dim);
    pool.run(slots.len().div_ceil(rows_per_unit), |_, unit| {
        let first = unit * rows_per_unit;
        for (row, &slot) in slots.iter().enumerate().skip(first).take(rows_per_unit) {
            let (block, offset) = (slot as usize / block_tokens, slot as usize % block_tokens);
            let row = &args.qkv[row * qkv_cols(spec)..][..qkv_cols(spec)];
            let (keys, values) = row[spec.num_heads * head_dim..].split_at(spec.num_kv_heads * head_dim);
            for head in 0..spec.num_kv_heads {
                let at = layout.head_block(args.layer, block, head);
                for (d, &key) in keys[head * head_dim..][..head_dim].iter().enumerate() {
                    // SAFETY: rows have slots of their own (asserted by `attend`), so nobody else touches this element.
                    unsafe { *blocks.at(at + d * block_tokens + offset) = T::round(key) };
                }
                for (d, &value) in values[head * head_dim..][..head_dim].iter().enumerate() {
                    // SAFETY: as above.
                    unsafe { *blocks.at(at + layout.half_len() + offset * head_dim + d) = T::round(value) };
                }
            }
        }
    });
}

fn attend_all<T: KvElement>(
    isa: Isa,
    pool: &Pool,
    scratches: &Scratches,
    args: &Attend<'_>,
    layout: Layout,
    blocks: *const T,
    out: &mut [f32],
) {
    let spec = args.spec;
    let chunk = Chunk::new(&layout);
    let out = SharedMut::new(out);
    let blocks = CachePointer(blocks);
    let padded_dim = spec.head_dim.next_multiple_of(LANES);
    let floats_by_query = padded_dim + chunk.scores + 2;
    let group = spec.num_heads / spec.num_kv_heads;
    scratches.reserve_floats(TILE_ROWS * group * floats_by_query);
    pool.run(args.step.tiles.len() * spec.num_kv_heads, |worker, unit| {
        let tile = args.step.tiles[unit / spec.num_kv_heads];
        let span = args.step.batch.spans[tile.span];
        let num_queries = tile.num_rows * group;
        let mut scratch = scratches.of(worker);
        let memory = scratch.floats(num_queries * floats_by_query);
        let (mixed, memory) = memory.split_at_mut(num_queries * padded_dim);
        let (scores, memory) = memory.split_at_mut(num_queries * chunk.scores);
        let (largest, sums) = memory.split_at_mut(num_queries);
        mixed.fill(0.0);
        largest.fill(f32::NEG_INFINITY);
        sums.fill(0.0);
        isa.run(Unit {
            args,
            layout,
            chunk,
            tile,
            kv_head: unit % spec.num_kv_heads,
            table: &args.step.batch.block_tables[span.first_block as usize..][..span.num_blocks as usize],
            blocks,
            mixed,
            scores,
            largest,
            sums,
            out,
        });
    });
}

/// The cache while it is only read.
#[derive(Clone, Copy)]
struct CachePointer<T>(*const T);

// SAFETY: it is the cache's memory, which is `Sync`; nobody writes while units read it (`write` has returned).
unsafe impl<T: Sync> Sync for CachePointer<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Send for CachePointer<T> {}

/// The stretch of context between two softmax corrections.
#[derive(Clone, Copy)]
struct Chunk {
    blocks: usize,
    /// Scores of one block: its positions, up to whole vectors.
    block_scores: usize,
    /// Scores of a chunk.
    scores: usize,
}

impl Chunk {
    fn new(layout: &Layout) -> Self {
        let blocks = (CHUNK_TOKENS / layout.block_tokens).max(1);
        let block_scores = layout.block_tokens.next_multiple_of(LANES);
        Self { blocks, block_scores, scores: blocks * block_scores }
    }
}

/// A tile of rows at one key/value head. Query `i` is row `i / group`, head `i % group` of the group.
struct Unit<'a, T> {
    args: &'a Attend<'a>,
    layout: Layout,
    chunk: Chunk,
    tile: Tile,
    kv_head: usize,
    table: &'a [BlockId],
    blocks: CachePointer<T>,
    /// `[queries][head_dim up to whole vectors]`: values mixed so far, not yet divided by `sums`.
    mixed: &'a mut [f32],
    /// `[queries][chunk.scores]`: scores of a chunk, then their exponentials.
    scores: &'a mut [f32],
    /// `[queries]`: largest score so far.
    largest: &'a mut [f32],
    /// `[queries]`: sum of exponentials so far.
    sums: &'a mut [f32],
    out: SharedMut<'a, f32>,
}

/// Queries, and vectors of a head, that a register tile mixes side by side.
const TOGETHER: usize = 4;

/// Most queries that a register tile scores.
const MAX_QUERIES: usize = 8;

impl<T: KvElement> Kernel for Unit<'_, T> {
    #[inline(always)]
    fn run<L: Lanes>(mut self, isa: L) {
        let spec = self.args.spec;
        let group = spec.num_heads / spec.num_kv_heads;
        let block_tokens = self.layout.block_tokens;
        let chunk_tokens = self.chunk.blocks * block_tokens;
        let first_context = self.tile.context_len + 1 - self.tile.num_rows;
        let num_queries = self.tile.num_rows * group;

        for first in (0..self.tile.context_len).step_by(chunk_tokens) {
            // Rows before this one have ended before the chunk begins.
            let first_row = (first + 1).saturating_sub(first_context);
            let first_query = first_row * group;
            // Positions of the chunk that query `i` sees; not 0 from `first_query` on.
            let seen = |i: usize| (first_context + i / group - first).min(chunk_tokens);
            let first_block = first / block_tokens;
            let num_blocks = self.chunk.blocks.min(self.tile.context_len.div_ceil(block_tokens) - first_block);

            let mut keys = [std::ptr::null(); CHUNK_TOKENS];
            for (index, keys) in keys.iter_mut().enumerate().take(num_blocks) {
                let BlockId(block) = self.table[first_block + index];
                let at = self.layout.head_block(self.args.layer, block as usize, self.kv_head);
                // SAFETY: `head_block` lies within the cache.
                *keys = unsafe { self.blocks.0.add(at) };
            }
            let keys = &keys[..num_blocks];

            for (index, &keys) in keys.iter().enumerate() {
                self.ask_for(isa, first_block + self.chunk.blocks + index);
                self.score(isa, first_query..num_queries, keys, index);
            }
            for i in first_query..num_queries {
                self.soften(isa, i, seen(i));
            }
            let half_len = self.layout.half_len();
            let values = |index: usize| keys[index].wrapping_add(half_len);
            self.mix(isa, first_query..num_queries, &values, &seen);
        }
        for i in 0..num_queries {
            self.finish(isa, i, group);
        }
    }
}

impl<T: KvElement> Unit<'_, T> {
    /// Asks for keys and values of the block at `index` of the table, if there is one: blocks lie anywhere, so nothing else foresees them.
    #[inline(always)]
    fn ask_for<L: Lanes>(&self, isa: L, index: usize) {
        if index >= self.tile.context_len.div_ceil(self.layout.block_tokens) {
            return;
        }
        let BlockId(block) = self.table[index];
        let at = self.layout.head_block(self.args.layer, block as usize, self.kv_head);
        for byte in (0..2 * self.layout.half_len() * size_of::<T>()).step_by(CACHE_LINE) {
            isa.prefetch(self.blocks.0.wrapping_add(at).wrapping_byte_add(byte).cast());
        }
    }

    /// Scores of `queries` against the block that is number `index` of its chunk.
    #[inline(always)]
    fn score<L: Lanes>(&mut self, isa: L, queries: std::ops::Range<usize>, keys: *const T, index: usize) {
        let spec = self.args.spec;
        let group = spec.num_heads / spec.num_kv_heads;
        let mut i = queries.start;
        while i < queries.end {
            let taken = match queries.end - i {
                8.. if L::TILES.wide => 8,
                2.. if L::TILES.vectors => 2,
                _ => 1,
            };
            let mut q = [std::ptr::null(); MAX_QUERIES];
            for (offset, q) in q.iter_mut().enumerate().take(taken) {
                let (row, head) = ((i + offset) / group, self.kv_head * group + (i + offset) % group);
                let at = (self.tile.first_row + row) * qkv_cols(spec) + head * spec.head_dim;
                *q = self.args.qkv[at..at + spec.head_dim].as_ptr();
            }
            for vector in (0..self.chunk.block_scores).step_by(LANES) {
                let keys = keys.wrapping_add(vector);
                let scores = &mut self.scores[i * self.chunk.scores + index * self.chunk.block_scores + vector..];
                let shape = (spec.head_dim, self.layout.block_tokens, self.chunk.scores);
                // SAFETY: as many queries of `head_dim` elements; `head_dim` rows of keys, which may be read a vector past
                // their end because values or the buffer's slack follow.
                unsafe {
                    if L::TILES.wide && taken == 8 {
                        score_block::<L, T, 8>(isa, &q, keys, shape, spec.scale, scores);
                    } else if L::TILES.vectors && taken == 2 {
                        score_block::<L, T, 2>(isa, &q, keys, shape, spec.scale, scores);
                    } else {
                        score_block::<L, T, 1>(isa, &q, keys, shape, spec.scale, scores);
                    }
                }
            }
            i += taken;
        }
    }

    /// Turns the chunk's scores of query `i` into exponentials, zero from position `seen` on, and corrects what was before.
    #[inline(always)]
    fn soften<L: Lanes>(&mut self, isa: L, i: usize, seen: usize) {
        let scores = &mut self.scores[i * self.chunk.scores..][..self.chunk.scores];
        let minus_infinity = isa.splat(f32::NEG_INFINITY);
        let mut largest = isa.splat(self.largest[i]);
        let num_blocks = seen.div_ceil(self.layout.block_tokens);
        for block in 0..num_blocks {
            let in_block = (seen - block * self.layout.block_tokens).min(self.layout.block_tokens);
            for vector in (0..self.chunk.block_scores).step_by(LANES) {
                let at = block * self.chunk.block_scores + vector;
                let kept = in_block.saturating_sub(vector).min(LANES);
                let v = isa.keep_first(kept, isa.read(scores, at), minus_infinity);
                isa.write(scores, at, v);
                largest = isa.max(v, largest);
            }
        }
        let before = self.largest[i];
        let now = isa.largest(largest);
        let mut sum = isa.splat(0.0);
        for at in (0..num_blocks * self.chunk.block_scores).step_by(LANES) {
            let e = exp(isa, isa.sub(isa.read(scores, at), isa.splat(now)));
            isa.write(scores, at, e);
            sum = isa.add(sum, e);
        }
        let correction = isa.to_array(exp(isa, isa.splat(before - now)))[0];
        self.largest[i] = now;
        self.sums[i] = self.sums[i] * correction + isa.sum(sum);
        if correction != 1.0 {
            let padded_dim = self.args.spec.head_dim.next_multiple_of(LANES);
            let mixed = &mut self.mixed[i * padded_dim..][..padded_dim];
            for at in (0..padded_dim).step_by(LANES) {
                let v = isa.mul(isa.read(mixed, at), isa.splat(correction));
                isa.write(mixed, at, v);
            }
        }
    }

    /// Adds the chunk's values, weighted, to `mixed`, position by position.
    #[inline(always)]
    fn mix<L: Lanes>(
        &mut self,
        isa: L,
        queries: std::ops::Range<usize>,
        values: &impl Fn(usize) -> *const T,
        seen: &impl Fn(usize) -> usize,
    ) {
        let mut i = queries.start;
        while i < queries.end {
            // Queries side by side as far as all of them see; the sums rest in `mixed` where one goes on alone.
            let common = seen(i);
            let mut together = 1;
            if L::TILES.vectors && queries.end - i >= TOGETHER {
                together = TOGETHER;
                self.mix_vectors::<L, TOGETHER>(isa, i, values, 0..common);
            } else {
                self.mix_vectors::<L, 1>(isa, i, values, 0..common);
            }
            for i in i + 1..i + together {
                if seen(i) > common {
                    self.mix_vectors::<L, 1>(isa, i, values, common..seen(i));
                }
            }
            i += together;
        }
    }

    /// `positions` of the chunk for queries `i..i + Q`, all of `head_dim`.
    #[inline(always)]
    fn mix_vectors<L: Lanes, const Q: usize>(
        &mut self,
        isa: L,
        i: usize,
        values: &impl Fn(usize) -> *const T,
        positions: std::ops::Range<usize>,
    ) {
        let padded_dim = self.args.spec.head_dim.next_multiple_of(LANES);
        let block_tokens = self.layout.block_tokens;
        let mut at = positions.start;
        while at < positions.end {
            let (block, first) = (at / block_tokens, at % block_tokens);
            let here = first..block_tokens.min(first + positions.end - at);
            at += here.len();
            let weights = &self.scores[i * self.chunk.scores + block * self.chunk.block_scores..];
            let strides = (self.chunk.scores, self.args.spec.head_dim, padded_dim);
            let mut d = 0;
            while d < padded_dim {
                let values = values(block).wrapping_add(d);
                let mixed = &mut self.mixed[i * padded_dim + d..];
                // SAFETY: `here` are positions of the block; a vector may be read past a head's end because the next position, block or
                // the buffer's slack follows, and those lanes are padding.
                unsafe {
                    if L::TILES.wide && padded_dim - d >= TOGETHER * LANES {
                        mix_chunk::<L, T, Q, TOGETHER>(isa, weights, values, here.clone(), strides, mixed);
                        d += TOGETHER * LANES;
                    } else {
                        mix_chunk::<L, T, Q, 1>(isa, weights, values, here.clone(), strides, mixed);
                        d += LANES;
                    }
                }
            }
        }
    }

    /// Divides and hands out query `i`.
    #[inline(always)]
    fn finish<L: Lanes>(&mut self, isa: L, i: usize, group: usize) {
        let spec = self.args.spec;
        let padded_dim = spec.head_dim.next_multiple_of(LANES);
        let mixed = &self.mixed[i * padded_dim..][..padded_dim];
        let (row, head) = (self.tile.first_row + i / group, self.kv_head * group + i % group);
        let at = (row * spec.num_heads + head) * spec.head_dim;
        // SAFETY: tiles share no row (asserted by `attend`), so this row and head belong to this unit alone.
        let out = unsafe { self.out.slice(at, spec.head_dim) };
        let sum = isa.splat(self.sums[i]);
        for d in (0..spec.head_dim).step_by(LANES) {
            isa.write(out, d, isa.div(isa.read(mixed, d), sum));
        }
    }
}
