//! Finding computed blocks again by what is in them.
//!
//! Full blocks form a tree: a block's keys and values depend on its tokens and on everything before. A look-up goes by hash, and a
//! find is compared with the tokens themselves and with its parent, so that a collision costs a miss and never a wrong answer.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use pelton_backend::{AdapterId, BlockId, TokenId};

/// One block's place in the tree of prefixes. Never given twice, so that a place cannot be mistaken for an earlier one: when a
/// block is forgotten, those below it are not found any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct NodeId(u64);

impl NodeId {
    /// The largest root.
    const LAST_ROOT: NodeId = NodeId(1 + u16::MAX as u64);

    /// Before the first block. What another adapter computed is no prefix, so each has a tree of its own.
    pub(crate) fn root(adapter: Option<AdapterId>) -> Self {
        Self(adapter.map_or(0, |AdapterId(id)| 1 + u64::from(id)))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Node {
    id: NodeId,
    parent: NodeId,
    hash: u64,
}

/// The tree of full blocks. The keyed hash keeps prompts from colliding on purpose.
#[derive(Debug)]
pub(crate) struct PrefixCache<S = RandomState> {
    hasher: S,
    by_hash: HashMap<u64, BlockId>,
    /// By block id.
    nodes: Vec<Option<Node>>,
    /// `[num_blocks, block_tokens]`: tokens of the blocks that have a node.
    tokens: Vec<TokenId>,
    block_tokens: usize,
    last_id: u64,
}

impl PrefixCache {
    pub(crate) fn new(num_blocks: u32, block_tokens: u32) -> Self {
        Self::with_hasher(num_blocks, block_tokens, RandomState::new())
    }
}

impl<S: BuildHasher> PrefixCache<S> {
    fn with_hasher(num_blocks: u32, block_tokens: u32, hasher: S) -> Self {
        let (num_blocks, block_tokens) = (num_blocks as usize, block_tokens as usize);
        Self {
            hasher,
            by_hash: HashMap::with_capacity(num_blocks),
            nodes: vec![None; num_blocks],
            tokens: vec![TokenId(0); num_blocks * block_tokens],
            block_tokens,
            last_id: NodeId::LAST_ROOT.0,
        }
    }

    /// The block that holds `tokens` after `parent`.
    pub(crate) fn find(&self, parent: NodeId, tokens: &[TokenId]) -> Option<(BlockId, NodeId)> {
        self.find_hashed(self.hash(parent, tokens), parent, tokens)
    }

    /// Makes computed `block` known as `tokens` after `parent`. If another block is known as that already, that one stays and its
    /// place is returned. `None` when a different block sits on the same hash.
    pub(crate) fn publish(&mut self, parent: NodeId, tokens: &[TokenId], block: BlockId) -> Option<NodeId> {
        let hash = self.hash(parent, tokens);
        if let Some((_, id)) = self.find_hashed(hash, parent, tokens) {
            return Some(id);
        }
        if self.by_hash.contains_key(&hash) {
            return None;
        }
        self.last_id += 1;
        let id = NodeId(self.last_id);
        self.by_hash.insert(hash, block);
        self.nodes[block.0 as usize] = Some(Node { id, parent, hash });
        self.tokens[block.0 as usize * self.block_tokens..][..self.block_tokens].copy_from_slice(tokens);
        Some(id)
    }

    /// Whether `block` can be found.
    pub(crate) fn knows(&self, block: BlockId) -> bool {
        self.nodes[block.0 as usize].is_some()
    }

    /// `block` is used for something else.
    pub(crate) fn forget(&mut self, block: BlockId) {
        if let Some(node) = self.nodes[block.0 as usize].take() {
            self.by_hash.remove(&node.hash);
        }
    }

    fn hash(&self, parent: NodeId, tokens: &[TokenId]) -> u64 {
        debug_assert_eq!(tokens.len(), self.block_tokens, "only full blocks are cached");
        self.hasher.hash_one((parent, tokens))
    }

    fn find_hashed(&self, hash: u64, parent: NodeId, tokens: &[TokenId]) -> Option<(BlockId, NodeId)> {
        let block = *self.by_hash.get(&hash)?;
        let node = self.nodes[block.0 as usize]?;
        let found = &self.tokens[block.0 as usize * self.block_tokens..][..self.block_tokens];
        (node.parent == parent && found == tokens).then_some((block, node.id))
    }

    /// Panics unless hashes and nodes belong together.
    #[cfg(test)]
    pub(crate) fn check_integrity(&self) {
        let known = self.nodes.iter().flatten().count();
        assert_eq!(self.by_hash.len(), known, "hashes and nodes");
        for (hash, block) in &self.by_hash {
            let node = self.nodes[block.0 as usize].expect("a hash leads to a node");
            assert_eq!(node.hash, *hash, "hash of block {}", block.0);
            assert!(node.id.0 > node.parent.0 && node.id.0 <= self.last_id, "ids grow towards the leaves");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasherDefault, Hasher};

    use super::*;

    const ROOT: NodeId = NodeId(0);
    const A: [TokenId; 2] = [TokenId(1), TokenId(2)];
    const B: [TokenId; 2] = [TokenId(1), TokenId(3)];

    #[test]
    fn blocks_are_found_by_tokens_and_by_everything_before() {
        let mut cache = PrefixCache::new(4, 2);
        let a = cache.publish(ROOT, &A, BlockId(3)).unwrap();
        let ab = cache.publish(a, &B, BlockId(0)).unwrap();
        assert_eq!(cache.find(ROOT, &A), Some((BlockId(3), a)));
        assert_eq!(cache.find(a, &B), Some((BlockId(0), ab)));
        assert_eq!(cache.find(ROOT, &B), None);
        assert_eq!(cache.find(a, &A), None);
        cache.check_integrity();
    }

    #[test]
    fn each_adapter_has_a_tree_of_its_own() {
        let mut cache = PrefixCache::new(8, 2);
        let roots = [None, Some(AdapterId(0)), Some(AdapterId(1)), Some(AdapterId(u16::MAX))].map(NodeId::root);
        for (root, block) in roots.into_iter().zip(0..) {
            assert_eq!(cache.find(root, &A), None);
            let node = cache.publish(root, &A, BlockId(block)).unwrap();
            cache.publish(node, &B, BlockId(block + 4)).unwrap();
        }
        for (root, block) in roots.into_iter().zip(0..) {
            let (found, node) = cache.find(root, &A).unwrap();
            assert_eq!((found, cache.find(node, &B).unwrap().0), (BlockId(block), BlockId(block + 4)));
        }
        cache.check_integrity();
    }

    #[test]
    fn the_first_of_two_equal_blocks_stays() {
        let mut cache = PrefixCache::new(4, 2);
        let first = cache.publish(ROOT, &A, BlockId(1)).unwrap();
        assert_eq!(cache.publish(ROOT, &A, BlockId(2)), Some(first));
        assert!(cache.knows(BlockId(1)) && !cache.knows(BlockId(2)));
        cache.check_integrity();
    }

    #[test]
    fn what_hung_below_a_forgotten_block_is_not_found_below_its_successor() {
        let mut cache = PrefixCache::new(4, 2);
        let a = cache.publish(ROOT, &A, BlockId(0)).unwrap();
        cache.publish(a, &B, BlockId(1)).unwrap();
        cache.forget(BlockId(0));
        let again = cache.publish(ROOT, &A, BlockId(2)).unwrap();
        assert_ne!(again, a);
        assert_eq!(cache.find(again, &B), None);
        cache.check_integrity();
    }

    #[derive(Default)]
    struct AlwaysSeven;

    impl Hasher for AlwaysSeven {
        fn finish(&self) -> u64 {
            7
        }
        fn write(&mut self, _: &[u8]) {}
    }

    #[test]
    fn a_collision_is_a_miss() {
        let mut cache = PrefixCache::with_hasher(4, 2, BuildHasherDefault::<AlwaysSeven>::default());
        let a = cache.publish(ROOT, &A, BlockId(0)).unwrap();
        assert_eq!(cache.find(ROOT, &B), None);
        assert_eq!(cache.find(a, &A), None);
        assert_eq!(cache.publish(ROOT, &B, BlockId(1)), None);
        assert_eq!(cache.find(ROOT, &A), Some((BlockId(0), a)));
        cache.check_integrity();
    }
}
