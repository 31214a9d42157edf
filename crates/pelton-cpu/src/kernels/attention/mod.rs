//! Causal attention over paged keys and values: writing this step's, then attending.
//!
//! Work is cut into (tile of rows, key/value head): a long prefill becomes many units beside those of many short decodes. The query
//! heads of a group and the rows of a tile share each read of keys and values.
//!
//! A query walks its context in chunks of [`CHUNK_TOKENS`] positions with online softmax (Milakov and Gimelshein 2018): one maximum, one
//! correction, one sum by chunk. Where chunks begin, and the order of every sum inside, follow from the position alone, so a query's
//! result does not depend on the rows beside it: prefilled in one piece, in several or decoded, it has the same bits.
//!
//! What was tried on two cores of a Zen 5 EPYC (530 GFLOP/s in f32, 1,060 in bf16 products, memory 47 GB/s in most runs), 32 query heads on 4 of 64,
//! keys and values in bf16, versions taking turns:
//!
//! | version | decode, 8 x 4,096 tokens, GB/s | prefill of 2,048, GFLOP/s |
//! | --- | --- | --- |
//! | floats, all of the next chunk asked for while keys are scored | 28 | 349 |
//! | pairs of bf16, the same | 29 | 560 |
//! | the same, values asked for while values are mixed | 34 | 560 |
//! | the same, strips asked for one after the other | 33 | 550 |
//! | other prefetch hints / no asking | 28 to 32 / 18 | |
//!
//! Lines come through the queue of the first cache, however they are asked for: what is asked for at once is waited for, and during the softmax
//! nothing comes. Decoding is therefore at 70 to 75 % of memory, though its arithmetic takes half the time. On AVX2, sets of four queries with one
//! vector instead of two with two gain 9 % in decoding; halves of pairs that are converted one after the other, 25 % in prefill.

mod products;
mod tile;
mod write;

use std::ops::Range;

use half::bf16;
use pelton_backend::{AttendSpec, BlockId, alibi_slope};

use crate::isa::{Avx512Bf16, Isa, Kernel, Proof, Task};
use crate::kv::{Blocks, KvCache, KvElement, Layout, STRIP_TOKENS};
use crate::lanes::{LANES, Lanes, exp, soft_cap};
use crate::pool::{Pool, SharedMut};
use crate::scratch::Scratches;
use crate::step::{Step, TILE_ROWS, Tile};

use products::{Floats, Products};
use tile::{Scores, Weights, mix_strips, score_strips};
use write::write;

/// Positions that share one softmax correction.
const CHUNK_TOKENS: usize = 64;

/// Strips of a chunk.
const CHUNK_STRIPS: usize = CHUNK_TOKENS / STRIP_TOKENS;

/// Most queries of a register tile.
const MAX_QUERIES: usize = 8;

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
    assert_ne!(spec.window, Some(0), "a query sees its own position");
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
            attend_all(pool, scratches, args, layout, blocks.as_ptr(), out, |unit| isa.run(unit));
        }
        Blocks::F16(blocks) => {
            write(pool, args, layout, blocks.as_mut_slice());
            attend_all(pool, scratches, args, layout, blocks.as_ptr(), out, |unit| isa.run(unit));
        }
        Blocks::Bf16(blocks) => {
            write(pool, args, layout, blocks.as_mut_slice());
            match isa.bf16() {
                Some(isa) => attend_all(pool, scratches, args, layout, blocks.as_ptr(), out, |unit| isa.run(unit)),
                None => attend_all(pool, scratches, args, layout, blocks.as_ptr(), out, |unit| isa.run(unit)),
            }
        }
        Blocks::Int8(blocks) => {
            write(pool, args, layout, blocks.as_mut_slice());
            attend_all(pool, scratches, args, layout, blocks.as_ptr(), out, |unit| isa.run(unit));
        }
    }
}

fn qkv_cols(spec: &AttendSpec) -> usize {
    (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
}

/// Attends; `run` walks in code compiled for the instruction set.
fn attend_all<T: KvElement>(
    pool: &Pool,
    scratches: &Scratches,
    args: &Attend<'_>,
    layout: Layout,
    blocks: *const T,
    out: &mut [f32],
    run: impl Fn(Unit<'_, T>) + Sync,
) {
    let spec = args.spec;
    let out = SharedMut::new(out);
    let blocks = CachePointer(blocks);
    let group = spec.num_heads / spec.num_kv_heads;
    let padded_dim = spec.head_dim.next_multiple_of(LANES);
    let max_queries = (TILE_ROWS * group).next_multiple_of(MAX_QUERIES);
    let query_len = spec.head_dim.next_multiple_of(2);
    scratches.reserve_floats(max_queries * (query_len + padded_dim + 2));
    pool.run(args.step.tiles.len() * spec.num_kv_heads, |worker, unit| {
        let tile = args.step.tiles[unit / spec.num_kv_heads];
        let span = args.step.batch.spans[tile.span];
        let num_queries = (tile.num_rows * group).next_multiple_of(MAX_QUERIES);
        let mut scratch = scratches.of(worker);
        let memory = scratch.floats(num_queries * (query_len + padded_dim + 2));
        let (queries, memory) = memory.split_at_mut(num_queries * query_len);
        let (mixed, memory) = memory.split_at_mut(num_queries * padded_dim);
        let (largest, sums) = memory.split_at_mut(num_queries);
        mixed.fill(0.0);
        largest.fill(f32::NEG_INFINITY);
        sums.fill(0.0);
        run(Unit {
            args,
            layout,
            tile,
            kv_head: unit % spec.num_kv_heads,
            group,
            table: &args.step.batch.block_tables[span.first_block as usize..][..span.num_blocks as usize],
            blocks,
            queries,
            mixed,
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

/// Whether `queries` times two vectors of sums fit the registers.
#[inline(always)]
fn in_pairs<L: Lanes>(queries: usize) -> bool {
    L::TILES.wide || L::TILES.vectors && queries <= 2
}

/// A tile of rows at one key/value head. Query `i` is row `i / group`, head `i % group` of the group.
///
/// Queries go through a chunk in sets of [`MAX_QUERIES`], or of the power of two that holds those left over; the places of a set that no
/// query is left for repeat the last one, and nobody reads their results.
struct Unit<'a, T> {
    args: &'a Attend<'a>,
    layout: Layout,
    tile: Tile,
    kv_head: usize,
    /// Query heads for each key/value head.
    group: usize,
    table: &'a [BlockId],
    blocks: CachePointer<T>,
    /// By set: `[head_dim / 2][queries of the set]` of [`Products::Two`], times the scale of scores.
    queries: &'a mut [f32],
    /// `[queries][head_dim up to whole vectors]`: values mixed so far, not yet divided by `sums`.
    mixed: &'a mut [f32],
    /// `[queries]`: largest score so far.
    largest: &'a mut [f32],
    /// `[queries]`: sum of exponentials so far.
    sums: &'a mut [f32],
    out: SharedMut<'a, f32>,
}

/// The strips of a chunk; the next chunk's to be asked for meanwhile.
struct Chunk<T> {
    /// Position of the first.
    first: usize,
    strips: [*const T; CHUNK_STRIPS],
    ahead: [*const T; CHUNK_STRIPS],
}

/// Positions of a chunk that a query sees.
#[derive(Clone, Copy)]
struct Seen {
    from: usize,
    to: usize,
}

impl Seen {
    fn is_empty(self) -> bool {
        self.from >= self.to
    }
}

impl<T: KvElement> Kernel for Unit<'_, T> {
    #[inline(always)]
    fn run<L: Lanes>(self, isa: L) {
        self.walk(Floats(isa));
    }
}

impl Task<Avx512Bf16> for Unit<'_, bf16> {
    #[inline(always)]
    fn run(self, isa: Avx512Bf16) {
        self.walk(isa);
    }
}

impl<T: KvElement> Unit<'_, T> {
    /// All of it, chunk by chunk.
    #[inline(always)]
    fn walk<P: Products<T>>(mut self, products: P) {
        let num_queries = self.tile.num_rows * self.group;
        for i in (0..num_queries).step_by(self.set_len::<P::Lanes>(0)) {
            self.lay_out(products, i, self.set_len::<P::Lanes>(i));
        }
        let first = self.visible(0).start / CHUNK_TOKENS * CHUNK_TOKENS;
        let mut chunk = Chunk { first, strips: self.strips(first), ahead: [std::ptr::null(); CHUNK_STRIPS] };
        while chunk.first < self.tile.context_len {
            chunk.ahead = self.strips(chunk.first + CHUNK_TOKENS);
            let mut i = 0;
            while i < num_queries {
                let len = self.set_len::<P::Lanes>(i);
                let tiles = P::Lanes::TILES;
                if tiles.wide && len == 8 {
                    self.walk_set::<P, 8>(products, i, &chunk);
                } else if tiles.vectors && len == 4 {
                    self.walk_set::<P, 4>(products, i, &chunk);
                } else if tiles.vectors && len == 2 {
                    self.walk_set::<P, 2>(products, i, &chunk);
                } else {
                    self.walk_set::<P, 1>(products, i, &chunk);
                }
                i += len;
            }
            chunk.first += CHUNK_TOKENS;
            chunk.strips = chunk.ahead;
        }
        for i in 0..num_queries {
            self.finish(products.lanes(), i);
        }
    }

    /// Queries of the set that begins with query `i`.
    #[inline(always)]
    fn set_len<L: Lanes>(&self, i: usize) -> usize {
        let largest = match L::TILES {
            tiles if tiles.wide => MAX_QUERIES,
            tiles if tiles.vectors => 4,
            _ => 1,
        };
        (self.tile.num_rows * self.group - i).next_power_of_two().min(largest)
    }

    /// Positions that the queries of `row` of the tile see, or of the last row for those after it.
    #[inline(always)]
    fn visible(&self, row: usize) -> Range<usize> {
        let row = row.min(self.tile.num_rows - 1);
        let end = self.tile.context_len + 1 - self.tile.num_rows + row;
        let start = match self.args.spec.window {
            Some(window) => end.saturating_sub(window as usize),
            None => 0,
        };
        start..end
    }

    /// Those in the chunk that begins at position `first`.
    #[inline(always)]
    fn seen(&self, row: usize, first: usize) -> Seen {
        let Range { start, end } = self.visible(row);
        let (from, to) = (start.saturating_sub(first), end.saturating_sub(first));
        Seen { from: from.min(CHUNK_TOKENS), to: to.min(CHUNK_TOKENS) }
    }

    /// Gathers the set of `len` queries that begins with query `i`.
    #[inline(always)]
    fn lay_out<P: Products<T>>(&mut self, products: P, i: usize, len: usize) {
        let (spec, group) = (self.args.spec, self.group);
        let twos = spec.head_dim.div_ceil(2);
        let set: *mut P::Two = self.queries[2 * i * twos..][..2 * len * twos].as_mut_ptr().cast();
        for place in 0..len {
            let query = (i + place).min(self.tile.num_rows * group - 1);
            let (row, head) = (self.tile.first_row + query / group, self.kv_head * group + query % group);
            let query = &self.args.qkv[row * qkv_cols(spec) + head * spec.head_dim..][..spec.head_dim];
            for first in (0..twos).step_by(LANES) {
                let numbers = products.twos(query, 2 * first, spec.scale);
                for (two, &number) in (first..twos).zip(&numbers) {
                    // SAFETY: the set has `twos * len` places, each of at most two floats.
                    unsafe { set.add(two * len + place).write(number) };
                }
            }
        }
    }

    /// The strips of the chunk that begins at position `first`; those past the context are the last one again.
    fn strips(&self, first: usize) -> [*const T; CHUNK_STRIPS] {
        let mut strips = [std::ptr::null(); CHUNK_STRIPS];
        for (strip, address) in strips.iter_mut().enumerate() {
            let position = (first + strip * STRIP_TOKENS).min(self.tile.context_len - 1);
            let BlockId(block) = self.table[position / self.layout.block_tokens];
            let offset = position % self.layout.block_tokens;
            let at = self.layout.strip(self.args.layer, block as usize, self.kv_head, offset);
            // SAFETY: `strip` lies within the cache.
            *address = unsafe { self.blocks.0.add(at) };
        }
        strips
    }

    /// Takes the set of `Q` queries that begins with query `i` through a chunk.
    #[inline(always)]
    fn walk_set<P: Products<T>, const Q: usize>(&mut self, products: P, i: usize, chunk: &Chunk<T>) {
        let isa = products.lanes();
        // Positions of the chunk that each query sees.
        let mut seen = [Seen { from: 0, to: 0 }; Q];
        let mut sees_any = false;
        // Counted on: a division for each query would show.
        let (mut row, mut head) = (i / self.group, i % self.group);
        for seen in &mut seen {
            *seen = self.seen(row, chunk.first);
            sees_any |= !seen.is_empty();
            head += 1;
            if head == self.group {
                (row, head) = (row + 1, 0);
            }
        }
        if !sees_any {
            return;
        }
        // Queries ascend by row, so the last one sees furthest.
        let most = seen[Q - 1].to;
        let head_dim = self.args.spec.head_dim;
        let mut scores = [[0.0; CHUNK_TOKENS]; Q];
        let query_len = head_dim.next_multiple_of(2);
        let queries = self.queries[i * query_len..][..Q * query_len].as_ptr().cast();
        let pairs = in_pairs::<P::Lanes>(Q);
        let mut strip = 0;
        while strip * STRIP_TOKENS < most {
            let first = strip * STRIP_TOKENS;
            // SAFETY: laid out by `lay_out` for this set; whole strips; within the chunk.
            unsafe {
                if pairs && (strip + 1) * STRIP_TOKENS < most {
                    let strips = [chunk.strips[strip], chunk.strips[strip + 1]];
                    // The first set asks for all.
                    let ahead = if i == 0 { Some([chunk.ahead[strip], chunk.ahead[strip + 1]]) } else { None };
                    score_strips::<P, T, Q, 2>(products, queries, head_dim, strips, ahead, first, &mut scores);
                    strip += 2;
                } else {
                    let ahead = if i == 0 { Some([chunk.ahead[strip]]) } else { None };
                    let strips = [chunk.strips[strip]];
                    score_strips::<P, T, Q, 1>(products, queries, head_dim, strips, ahead, first, &mut scores);
                    strip += 1;
                }
            }
        }
        self.scale(isa, 0, &chunk.strips, &mut scores);
        self.adjust(isa, i, chunk.first, &mut scores);
        let corrections = self.soften(isa, i, &seen, &mut scores);
        self.scale(isa, STRIP_TOKENS, &chunk.strips, &mut scores);
        for scores in &mut scores {
            products.weights(scores);
        }
        let weights = Weights { weights: &scores, corrections: &corrections };
        self.mix(products, i, &seen, weights, chunk);
    }

    /// Multiplies by the scales of keys (`first` 0) or of values (`first` 16), where there are any. Those of positions that nobody has written
    /// meet lanes that nobody uses.
    #[inline(always)]
    fn scale<L: Lanes>(&self, isa: L, first: usize, strips: &[*const T; CHUNK_STRIPS], scores: &mut [Scores]) {
        if T::SCALES_LEN == 0 {
            return;
        }
        for (strip, at) in strips.iter().zip((0..CHUNK_TOKENS).step_by(STRIP_TOKENS)) {
            // SAFETY: at the end of a strip are two times sixteen scales.
            let scales = unsafe { isa.load(strip.add(self.layout.scales()).cast::<f32>().add(first)) };
            for scores in scores.iter_mut() {
                let v = isa.mul(isa.read(scores, at), scales);
                isa.write(scores, at, v);
            }
        }
    }

    /// Applies what the model does to scores before the softmax.
    #[inline(always)]
    fn adjust<L: Lanes>(&self, isa: L, i: usize, first_position: usize, scores: &mut [Scores]) {
        if let Some(cap) = self.args.spec.softcap {
            for scores in scores.iter_mut() {
                for at in (0..CHUNK_TOKENS).step_by(LANES) {
                    let capped = soft_cap(isa, cap, isa.read(scores, at));
                    isa.write(scores, at, capped);
                }
            }
        }
        if let Some(max_exponent) = self.args.spec.alibi {
            let mut lanes = [0.0; LANES];
            for (lane, number) in lanes.iter_mut().enumerate() {
                *number = lane as f32;
            }
            let lanes = isa.read(&lanes, 0);
            for (place, scores) in scores.iter_mut().enumerate() {
                let (row, head) = ((i + place) / self.group, self.kv_head * self.group + (i + place) % self.group);
                let slope = isa.splat(alibi_slope(head, self.args.spec.num_heads, max_exponent));
                let own_position = self.visible(row).end - 1;
                for at in (0..CHUNK_TOKENS).step_by(LANES) {
                    let ahead = isa.splat((first_position + at) as f32 - own_position as f32);
                    let v = isa.fma(slope, isa.add(ahead, lanes), isa.read(scores, at));
                    isa.write(scores, at, v);
                }
            }
        }
    }

    /// Turns scores into exponentials, zero outside of what is `seen`, and gives what earlier chunks' must be multiplied by.
    #[inline(always)]
    fn soften<L: Lanes, const Q: usize>(
        &mut self,
        isa: L,
        i: usize,
        seen: &[Seen; Q],
        scores: &mut [Scores; Q],
    ) -> [f32; LANES] {
        let minus_infinity = isa.splat(f32::NEG_INFINITY);
        // Queries that see nothing of this chunk keep what they have: `e^0`.
        let mut before = [0.0; LANES];
        let mut now = [0.0; LANES];
        for place in 0..Q {
            let scores = &mut scores[place];
            if seen[place].is_empty() {
                continue;
            }
            let Seen { from, to } = seen[place];
            if to - from < CHUNK_TOKENS {
                for at in (0..CHUNK_TOKENS).step_by(LANES) {
                    let kept = isa.keep_first(to.saturating_sub(at).min(LANES), isa.read(scores, at), minus_infinity);
                    isa.write(scores, at, isa.keep_first(from.saturating_sub(at).min(LANES), minus_infinity, kept));
                }
            }
            before[place] = self.largest[i + place];
            let mut largest = isa.splat(before[place]);
            for at in (0..CHUNK_TOKENS).step_by(LANES) {
                largest = isa.max(isa.read(scores, at), largest);
            }
            now[place] = isa.largest(largest);
            self.largest[i + place] = now[place];
        }
        let corrections = isa.to_array(exp(isa, isa.sub(isa.read(&before, 0), isa.read(&now, 0))));
        for place in 0..Q {
            let scores = &mut scores[place];
            if seen[place].is_empty() {
                continue;
            }
            let mut sum = isa.splat(0.0);
            for at in (0..CHUNK_TOKENS).step_by(LANES) {
                let e = exp(isa, isa.sub(isa.read(scores, at), isa.splat(now[place])));
                isa.write(scores, at, e);
                sum = isa.add(sum, e);
            }
            self.sums[i + place] = self.sums[i + place] * corrections[place] + isa.sum(sum);
        }
        corrections
    }

    /// Corrects `mixed` and adds the chunk's values, weighted, position by position.
    #[inline(always)]
    fn mix<P: Products<T>, const Q: usize>(
        &mut self,
        products: P,
        i: usize,
        seen: &[Seen; Q],
        weights: Weights<'_>,
        chunk: &Chunk<T>,
    ) {
        // Side by side as far as all of them see; the sums rest in `mixed` where one goes on alone. A window's begin is each one's own.
        // A pair that one of them sees whole is not taken apart.
        let (first, last) = (seen[0], seen[Q - 1]);
        let common = match first.from == last.from {
            true if first.to == last.to => first.from..first.to,
            true => first.from..(first.to & !1).max(first.from),
            false => 0..0,
        };
        // The first set asks for what comes next.
        let ahead = if i == 0 { Some(&chunk.ahead) } else { None };
        self.mix_set::<P, Q>(products, i, weights, &chunk.strips, ahead, common.clone());
        for place in 0..Q {
            let alone = seen[place].from.max(common.end)..seen[place].to;
            if !alone.is_empty() {
                let weights = Weights { weights: &weights.weights[place..], corrections: &[1.0] };
                self.mix_set::<P, 1>(products, i + place, weights, &chunk.strips, None, alone);
            }
        }
    }

    /// `positions` of the chunk for queries `i..i + Q`, all of `head_dim`.
    #[inline(always)]
    fn mix_set<P: Products<T>, const Q: usize>(
        &mut self,
        products: P,
        i: usize,
        weights: Weights<'_>,
        strips: &[*const T; CHUNK_STRIPS],
        ahead: Option<&[*const T; CHUNK_STRIPS]>,
        positions: Range<usize>,
    ) {
        let head_dim = self.args.spec.head_dim;
        let padded_dim = head_dim.next_multiple_of(LANES);
        let pairs = in_pairs::<P::Lanes>(Q);
        let mut d = 0;
        while d < padded_dim {
            let values = self.values(strips, d);
            let values_ahead = ahead.map(|strips| self.values(strips, d));
            let ahead = values_ahead.as_ref();
            let mixed = &mut self.mixed[i * padded_dim + d..];
            let strides = (head_dim, padded_dim);
            // SAFETY: strips are whole; a vector may be read past a head's end because the next position, strip or the buffer's slack
            // follows, and those lanes are padding.
            unsafe {
                if pairs && padded_dim - d >= 2 * LANES {
                    mix_strips::<P, T, Q, 2>(products, weights, &values, ahead, positions.clone(), strides, mixed);
                    d += 2 * LANES;
                } else {
                    mix_strips::<P, T, Q, 1>(products, weights, &values, ahead, positions.clone(), strides, mixed);
                    d += LANES;
                }
            }
        }
    }

    /// Where values lie in each strip, from dimension `d` on.
    #[inline(always)]
    fn values(&self, strips: &[*const T; CHUNK_STRIPS], d: usize) -> [*const T; CHUNK_STRIPS] {
        let mut values = *strips;
        for values in &mut values {
            *values = values.wrapping_add(self.layout.keys_len() + d * T::PAIRED);
        }
        values
    }

    /// Divides and hands out query `i`.
    #[inline(always)]
    fn finish<L: Lanes>(&mut self, isa: L, i: usize) {
        let (spec, group) = (self.args.spec, self.group);
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
