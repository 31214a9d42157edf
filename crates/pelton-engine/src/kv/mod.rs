//! Which sequence has which KV blocks: ids only, no bytes.
mod prefix;
mod table;

pub(crate) use table::BlockTable;
