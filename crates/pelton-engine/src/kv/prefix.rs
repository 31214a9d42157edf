//! Finding computed blocks again by what is in them.

/// One block's place in the tree of prefixes. Never given twice, so that a place cannot be mistaken for an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct NodeId(u64);

impl NodeId {
    /// Before the first block.
    pub(crate) const ROOT: NodeId = NodeId(0);
}
