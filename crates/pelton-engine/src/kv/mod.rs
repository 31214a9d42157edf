//! Which sequence has which KV blocks: ids only, no bytes.
//!
//! Every block is *owned* by one or more sequences, or free; a free block may be *cached*: what is in it can be found until the
//! block is needed for something else. Cached blocks are used up in the order they became free (least recently used first).
mod pool;
mod prefix;
mod table;

use pelton_backend::{AdapterId, BlockId, TokenId};

pub(crate) use table::BlockTable;

use pool::{BlockPool, Reuse};
use prefix::{NodeId, PrefixCache};

/// All blocks of the model's KV cache.
#[derive(Debug)]
pub(crate) struct KvBlocks {
    pool: BlockPool,
    /// `None` when nothing shall be found again.
    prefix: Option<PrefixCache>,
    block_tokens: u32,
}

/// Leading blocks of a sequence that are computed already. Reused from look-up to look-up.
#[derive(Debug, Default)]
pub(crate) struct PrefixHits {
    blocks: Vec<(BlockId, NodeId)>,
    /// How many of them nobody owns: owning them takes from the free blocks.
    num_free: u32,
}

impl PrefixHits {
    pub(crate) fn clear(&mut self) {
        self.blocks.clear();
        self.num_free = 0;
    }

    pub(crate) fn num_blocks(&self) -> u32 {
        self.blocks.len() as u32
    }

    pub(crate) fn num_free(&self) -> u32 {
        self.num_free
    }
}

impl KvBlocks {
    pub(crate) fn new(num_blocks: u32, block_tokens: u32, prefix_cache: bool) -> Self {
        let prefix = prefix_cache.then(|| PrefixCache::new(num_blocks, block_tokens));
        Self { pool: BlockPool::new(num_blocks), prefix, block_tokens }
    }

    pub(crate) fn block_tokens(&self) -> u32 {
        self.block_tokens
    }

    pub(crate) fn has_prefix_cache(&self) -> bool {
        self.prefix.is_some()
    }

    /// Blocks that nobody owns.
    pub(crate) fn num_free(&self) -> u32 {
        self.pool.num_free()
    }

    pub(crate) fn num_used(&self) -> u32 {
        self.pool.num_blocks() - self.pool.num_free()
    }

    /// Blocks that hold `num_tokens` positions.
    pub(crate) fn blocks_for(&self, num_tokens: u32) -> u32 {
        num_tokens.div_ceil(self.block_tokens)
    }

    /// Finds the leading full blocks of `tokens` that are computed already, with the same adapter.
    pub(crate) fn find_prefix(&self, adapter: Option<AdapterId>, tokens: &[TokenId], hits: &mut PrefixHits) {
        hits.clear();
        let Some(prefix) = &self.prefix else { return };
        let mut parent = NodeId::root(adapter);
        for block_tokens in tokens.chunks_exact(self.block_tokens as usize) {
            let Some((block, node)) = prefix.find(parent, block_tokens) else { return };
            hits.blocks.push((block, node));
            hits.num_free += u32::from(self.pool.is_free(block));
            parent = node;
        }
    }

    /// Begins `table` with the blocks of `hits`.
    pub(crate) fn adopt(&mut self, table: &mut BlockTable, hits: &PrefixHits) {
        debug_assert!(table.blocks().is_empty(), "a prefix comes first");
        for &(block, node) in &hits.blocks {
            self.pool.share(block);
            table.push(block);
            table.set_published(table.num_blocks(), Some(node));
        }
    }

    /// Adds one block to `table`; false when none is free.
    pub(crate) fn grow(&mut self, table: &mut BlockTable) -> bool {
        let Some(block) = self.pool.take() else { return false };
        if let Some(prefix) = &mut self.prefix {
            prefix.forget(block);
        }
        table.push(block);
        true
    }

    /// Lets others find the full blocks of `table` among the first `num_computed` of `tokens`.
    pub(crate) fn publish(&mut self, table: &mut BlockTable, tokens: &[TokenId], num_computed: u32) {
        let Some(prefix) = &mut self.prefix else { return };
        let size = self.block_tokens as usize;
        for index in table.num_published()..num_computed / self.block_tokens {
            let at = index as usize;
            let block_tokens = &tokens[at * size..][..size];
            let node = table.chain().and_then(|parent| prefix.publish(parent, block_tokens, table.blocks()[at]));
            table.set_published(index + 1, node);
        }
    }

    /// Frees what `table` has beyond `num_tokens` positions: nothing of it was published.
    pub(crate) fn shrink(&mut self, table: &mut BlockTable, num_tokens: u32) {
        while table.num_blocks() > self.blocks_for(num_tokens)
            && let Some(block) = table.pop()
        {
            self.pool.release(block, Reuse::First);
        }
    }

    /// Frees all of `table`. The tail goes first: what comes later in a sequence is less likely to be asked for again, and of no
    /// use without what came before.
    pub(crate) fn give_back(&mut self, table: &mut BlockTable) {
        for block in table.drain_tail_first() {
            let cached = self.prefix.as_ref().is_some_and(|prefix| prefix.knows(block));
            self.pool.release(block, if cached { Reuse::Last } else { Reuse::First });
        }
    }

    /// Panics unless every block is free, cached or owned as often as `tables` say.
    #[cfg(test)]
    pub(crate) fn check_integrity<'a>(&self, tables: impl Iterator<Item = &'a BlockTable>) {
        let mut owners = vec![0; self.pool.num_blocks() as usize];
        for block in tables.flat_map(|table| table.blocks()) {
            owners[block.0 as usize] += 1;
        }
        self.pool.check_integrity(&owners);
        if let Some(prefix) = &self.prefix {
            prefix.check_integrity();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(ids: &[u32]) -> Vec<TokenId> {
        ids.iter().copied().map(TokenId).collect()
    }

    #[test]
    fn only_computed_full_blocks_are_found() {
        let mut kv = KvBlocks::new(4, 2, true);
        let (mut table, mut hits) = (BlockTable::default(), PrefixHits::default());
        let prompt = tokens(&[5, 6, 7, 8, 9]);
        while table.num_blocks() < 3 {
            assert!(kv.grow(&mut table));
        }
        kv.find_prefix(None, &prompt, &mut hits);
        assert_eq!(hits.num_blocks(), 0);
        kv.publish(&mut table, &prompt, 3);
        kv.find_prefix(None, &prompt, &mut hits);
        assert_eq!((hits.num_blocks(), hits.num_free()), (1, 0));
        kv.publish(&mut table, &prompt, 5);
        kv.find_prefix(None, &prompt, &mut hits);
        assert_eq!((hits.num_blocks(), hits.num_free()), (2, 0));
        kv.check_integrity([&table].into_iter());
    }

    #[test]
    fn freed_blocks_stay_cached_until_they_are_needed_tail_first() {
        let mut kv = KvBlocks::new(3, 2, true);
        let (mut table, mut hits) = (BlockTable::default(), PrefixHits::default());
        let prompt = tokens(&[5, 6, 7, 8]);
        assert!(kv.grow(&mut table) && kv.grow(&mut table));
        kv.publish(&mut table, &prompt, 4);
        kv.give_back(&mut table);
        kv.find_prefix(None, &prompt, &mut hits);
        assert_eq!((hits.num_blocks(), hits.num_free()), (2, 2));

        let mut other = BlockTable::default();
        assert!(kv.grow(&mut other), "the block that was never used");
        assert!(kv.grow(&mut other), "the tail");
        kv.find_prefix(None, &prompt, &mut hits);
        assert_eq!(hits.num_blocks(), 1);
        kv.adopt(&mut table, &hits);
        assert!(!kv.grow(&mut other), "the head is owned again");
        kv.check_integrity([&table, &other].into_iter());
    }

    #[test]
    fn without_a_cache_nothing_is_found() {
        let mut kv = KvBlocks::new(2, 1, false);
        let (mut table, mut hits) = (BlockTable::default(), PrefixHits::default());
        assert!(kv.grow(&mut table));
        kv.publish(&mut table, &tokens(&[1]), 1);
        kv.find_prefix(None, &tokens(&[1]), &mut hits);
        assert_eq!(hits.num_blocks(), 0);
    }
}
