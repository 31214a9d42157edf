//! The blocks of one sequence, in order of position.

use pelton_backend::{AdapterId, BlockId};

use super::prefix::NodeId;

/// Append only, until all blocks are given back, but for blocks at the end that nothing was computed in for good.
#[derive(Debug, Default)]
pub(crate) struct BlockTable {
    /// What its blocks are computed with beside the model.
    adapter: Option<AdapterId>,
    blocks: Vec<BlockId>,
    /// Leading full blocks that the prefix cache knows, or was offered.
    num_published: u32,
    /// The last of them; `None` when a block could not be published, so that nothing after it can be.
    chain: Option<NodeId>,
}

impl BlockTable {
    pub(crate) fn new(adapter: Option<AdapterId>) -> Self {
        Self { adapter, ..Self::default() }
    }

    pub(crate) fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    pub(crate) fn num_blocks(&self) -> u32 {
        self.blocks.len() as u32
    }

    pub(super) fn push(&mut self, block: BlockId) {
        self.blocks.push(block);
    }

    /// The last block, which must not be published.
    pub(super) fn pop(&mut self) -> Option<BlockId> {
        assert!(self.num_published < self.num_blocks(), "others may use what is published");
        self.blocks.pop()
    }

    pub(super) fn num_published(&self) -> u32 {
        self.num_published
    }

    /// Where the next published block hangs.
    pub(super) fn chain(&self) -> Option<NodeId> {
        if self.num_published == 0 { Some(NodeId::root(self.adapter)) } else { self.chain }
    }

    pub(super) fn set_published(&mut self, num_published: u32, chain: Option<NodeId>) {
        self.num_published = num_published;
        self.chain = chain;
    }

    /// Empties the table, from the last block on.
    pub(super) fn drain_tail_first(&mut self) -> impl Iterator<Item = BlockId> + '_ {
        self.num_published = 0;
        self.chain = None;
        self.blocks.drain(..).rev()
    }
}
