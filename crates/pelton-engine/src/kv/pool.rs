//! Which blocks are free, in the order they will be used again, and how many sequences share the others.

use pelton_backend::BlockId;

/// Reference counts, and the free blocks as a doubly linked list, so that a block in the middle can be taken back.
#[derive(Debug)]
pub(crate) struct BlockPool {
    /// Sequences that own the block; zero means that it is in the free list.
    num_owners: Vec<u32>,
    /// Neighbours in the free list; the last entry is the list's head and tail.
    links: Vec<Link>,
    num_free: u32,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
}

/// When a freed block is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// First: nothing in it is worth keeping.
    First,
    /// After all that are free now.
    Last,
}

impl BlockPool {
    /// All blocks are free, in the order of their ids.
    pub(crate) fn new(num_blocks: u32) -> Self {
        let around = num_blocks + 1;
        let links =
            (0..around).map(|at| Link { previous: (at + num_blocks) % around, next: (at + 1) % around }).collect();
        Self { num_owners: vec![0; num_blocks as usize], links, num_free: num_blocks }
    }

    pub(crate) fn num_blocks(&self) -> u32 {
        self.num_owners.len() as u32
    }

    pub(crate) fn num_free(&self) -> u32 {
        self.num_free
    }

    pub(crate) fn is_free(&self, block: BlockId) -> bool {
        self.num_owners[block.0 as usize] == 0
    }

    /// The free block to be used next, with one owner from now on.
    pub(crate) fn take(&mut self) -> Option<BlockId> {
        let first = self.links[self.num_owners.len()].next;
        if self.num_free == 0 {
            return None;
        }
        self.unlink(first);
        self.num_owners[first as usize] = 1;
        Some(BlockId(first))
    }

    /// Adds an owner; a free block is free no more.
    pub(crate) fn share(&mut self, block: BlockId) {
        if self.is_free(block) {
            self.unlink(block.0);
        }
        self.num_owners[block.0 as usize] += 1;
    }

    /// Removes an owner; after the last one the block is free.
    pub(crate) fn release(&mut self, block: BlockId, reuse: Reuse) {
        let owners = &mut self.num_owners[block.0 as usize];
        assert!(*owners > 0, "block {} is released more often than taken", block.0);
        *owners -= 1;
        if *owners == 0 {
            let ends = self.num_owners.len() as u32;
            let previous = match reuse {
                Reuse::First => ends,
                Reuse::Last => self.links[ends as usize].previous,
            };
            self.link_after(previous, block.0);
        }
    }

    fn link_after(&mut self, previous: u32, block: u32) {
        let next = self.links[previous as usize].next;
        self.links[block as usize] = Link { previous, next };
        self.links[previous as usize].next = block;
        self.links[next as usize].previous = block;
        self.num_free += 1;
    }

    fn unlink(&mut self, block: u32) {
        let Link { previous, next } = self.links[block as usize];
        self.links[previous as usize].next = next;
        self.links[next as usize].previous = previous;
        self.num_free -= 1;
    }

    /// Panics unless the owners are those of `owners` and the free list holds exactly the blocks without one.
    #[cfg(test)]
    pub(crate) fn check_integrity(&self, owners: &[u32]) {
        assert_eq!(self.num_owners, owners, "owners of blocks");
        let mut free = Vec::new();
        let mut at = self.links[self.num_owners.len()].next;
        while at != self.num_blocks() {
            assert!(free.len() < self.num_owners.len(), "the free list is a ring");
            assert_eq!(self.links[self.links[at as usize].next as usize].previous, at, "links of block {at}");
            free.push(at);
            at = self.links[at as usize].next;
        }
        assert_eq!(free.len(), self.num_free as usize, "length of the free list");
        free.sort_unstable();
        let unowned: Vec<u32> = (0..self.num_blocks()).filter(|&block| self.is_free(BlockId(block))).collect();
        assert_eq!(free, unowned, "free list and blocks without owner");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_in_the_order_asked_for() {
        let mut pool = BlockPool::new(4);
        let taken: Vec<BlockId> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(taken, [BlockId(0), BlockId(1), BlockId(2), BlockId(3)]);
        assert_eq!(pool.num_free(), 0);
        for (block, reuse) in [(2, Reuse::Last), (0, Reuse::Last), (3, Reuse::First), (1, Reuse::Last)] {
            pool.release(BlockId(block), reuse);
        }
        pool.check_integrity(&[0; 4]);
        let taken: Vec<BlockId> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(taken, [BlockId(3), BlockId(2), BlockId(0), BlockId(1)]);
    }

    #[test]
    fn a_free_block_can_be_shared_again_and_is_free_after_its_last_owner() {
        let mut pool = BlockPool::new(3);
        pool.share(BlockId(1));
        pool.share(BlockId(1));
        pool.check_integrity(&[0, 2, 0]);
        pool.release(BlockId(1), Reuse::Last);
        assert!(!pool.is_free(BlockId(1)));
        pool.release(BlockId(1), Reuse::Last);
        pool.check_integrity(&[0; 3]);
    }

    #[test]
    #[should_panic(expected = "released more often than taken")]
    fn releasing_a_free_block_is_noticed() {
        BlockPool::new(1).release(BlockId(0), Reuse::First);
    }
}
