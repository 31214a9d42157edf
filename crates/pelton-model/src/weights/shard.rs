//! One weight file of any format: its tensors by name, where their bytes lie, and the bytes of one at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;

use memmap2::{Mmap, MmapOptions};

use crate::files::{Blob, FilesError};
use crate::weights::safetensors::ElementType;
use crate::weights::{CheckpointError, pickle, safetensors};

/// What a file says of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) element: ElementType,
    pub(crate) shape: Vec<usize>,
    /// From the begin of the file, half-open: from the tensor's first element to its last.
    pub(crate) begin: u64,
    pub(crate) end: u64,
    /// Elements from one index of each dimension to the next; `None`: row-major, without gaps.
    pub(crate) strides: Option<Vec<usize>>,
}

/// One file, its tensors known and checked to lie within it.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) name: String,
    pub(crate) entries: BTreeMap<String, Entry>,
    pub(crate) blob: Blob<'static>,
}

/// Bytes of one tensor: mapped until dropped, part of the program, or made in memory.
#[derive(Debug)]
pub(crate) enum Bytes {
    Mapped(Mmap),
    Memory(&'static [u8]),
    Owned(Vec<u8>),
}

impl Bytes {
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Memory(bytes) => bytes,
            Bytes::Owned(bytes) => bytes,
        }
    }
}

impl Shard {
    /// Reads and checks what `blob`, the file called `name`, says of its tensors. The name's ending tells the format.
    pub(crate) fn open(name: &str, blob: Blob<'static>) -> Result<Self, CheckpointError> {
        let entries = if name.ends_with(pickle::ENDING) {
            pickle::entries(name, &blob)?
        } else {
            safetensors::entries(name, &blob)?
        };
        Ok(Self { name: name.to_owned(), entries, blob })
    }

    /// The bytes of one of this shard's entries, row-major; borrowed where they lie so in the file.
    pub(crate) fn bytes(&self, entry: &Entry) -> Result<Bytes, FilesError> {
        let span = span(&self.blob, entry.begin..entry.end)
            .map_err(|source| FilesError::Io { name: self.name.clone(), source })?;
        Ok(match (&entry.strides, entry.element.size_bytes()) {
            (Some(strides), Some(size)) => Bytes::Owned(gather(span.as_slice(), &entry.shape, strides, size as usize)),
            _ => span,
        })
    }
}

/// The bytes of `range`, which lies within `blob`.
pub(crate) fn span(blob: &Blob<'static>, range: Range<u64>) -> std::io::Result<Bytes> {
    match blob {
        Blob::Memory(bytes) => Ok(Bytes::Memory(&bytes[range.start as usize..range.end as usize])),
        // Zero bytes cannot be mapped.
        Blob::File { .. } if range.is_empty() => Ok(Bytes::Memory(&[])),
        Blob::File { file, .. } => map(file, range.start, (range.end - range.start) as usize).map(Bytes::Mapped),
    }
}

/// Maps `len` bytes of `file` from `offset`, read ahead in one go.
///
/// Each tensor is mapped on its own and unmapped when it is packed: a whole file mapped at once would stay resident beside the
/// packed weights and double the memory of loading.
#[allow(unsafe_code)]
fn map(file: &File, offset: u64, len: usize) -> std::io::Result<Mmap> {
    // SAFETY: the mapping is private and read-only, and `offset + len` lies within the file as it was when its header was checked.
    // What remains is the one promise only the operator can keep, that no one truncates or rewrites a checkpoint while it is loaded;
    // the mapping lives no longer than the packing of one tensor.
    unsafe { MmapOptions::new().offset(offset).len(len).populate().map_copy_read_only(file) }
}

/// The elements of `size` bytes that `strides` find in `span`, in row-major order.
pub(super) fn gather(span: &[u8], shape: &[usize], strides: &[usize], size: usize) -> Vec<u8> {
    let num_elements: usize = shape.iter().product();
    let mut gathered = Vec::with_capacity(num_elements * size);
    let mut index = vec![0; shape.len()];
    let mut place = 0;
    for _ in 0..num_elements {
        gathered.extend_from_slice(&span[place * size..(place + 1) * size]);
        // The next index: the last dimension that has one, and those after it from their begin.
        for dim in (0..shape.len()).rev() {
            index[dim] += 1;
            place += strides[dim];
            if index[dim] < shape[dim] {
                break;
            }
            place -= shape[dim] * strides[dim];
            index[dim] = 0;
        }
    }
    gathered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_elements_come_in_order() {
        let span: Vec<u8> = (0..24).collect();
        // [3, 2] of a transposed [2, 3], two bytes each.
        assert_eq!(gather(&span[..12], &[3, 2], &[1, 3], 2), [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]);
        // Every second column of [2, 6], every second row of [4, 3].
        assert_eq!(gather(&span[..11], &[2, 3], &[6, 2], 1), [0, 2, 4, 6, 8, 10]);
        assert_eq!(gather(&span[..9], &[2, 3], &[6, 1], 1), [0, 1, 2, 6, 7, 8]);
        assert_eq!(gather(&span[..1], &[1, 1], &[7, 9], 1), [0]);
        assert_eq!(gather(&span[5..6], &[], &[], 1), [5]);
        assert!(gather(&[], &[0, 3], &[3, 1], 4).is_empty());
    }
}
