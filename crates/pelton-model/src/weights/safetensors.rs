//! The header of a safetensors file, checked against the file's real length.
//!
//! ```text
//! | u64 n | n bytes of JSON: name -> { dtype, shape, data_offsets: [begin, end) } | data |
//! ```
//!
//! Source: the format description of the safetensors library, whose rules are kept: offsets count from the data's begin, tensors
//! cover the data without gap and without overlap, names are unique. A bit that flips in the header breaks one of them.

use std::collections::BTreeMap;
use std::fmt;

use pelton_backend::DType;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::files::Blob;
use crate::weights::shard::Entry;

/// Largest header, as in the safetensors library.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Bytes in front of the header.
const PREFIX_BYTES: u64 = 8;

/// A file that is no whole safetensors file.
#[derive(Debug, thiserror::Error)]
pub enum SafetensorsError {
    /// Cut off, for instance by a download that was interrupted.
    #[error("{file} is truncated: header says {expected} bytes, file has {found}")]
    Truncated {
        /// Which file.
        file: String,
        /// Bytes that the header accounts for.
        expected: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// More bytes than the header accounts for.
    #[error("{file} has {found} bytes, its header accounts for {expected}")]
    Trailing {
        /// Which file.
        file: String,
        /// Bytes that the header accounts for.
        expected: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// The header's length is beyond all measure: not this format.
    #[error("{file} is not a safetensors file: its header would have {found} bytes, limit is {limit}")]
    HeaderTooLarge {
        /// Which file.
        file: String,
        /// The stated length.
        found: u64,
        /// The largest that is read.
        limit: u64,
    },
    /// The header is not what the format says.
    #[error("{file} has a broken header: {cause}")]
    Header {
        /// Which file.
        file: String,
        /// What is wrong.
        cause: String,
    },
    /// The operating system refused.
    #[error("cannot read {file}: {source}")]
    Io {
        /// Which file.
        file: String,
        /// Its reason.
        source: std::io::Error,
    },
}

/// Element type as a file states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ElementType {
    /// Numbers that are served as they are.
    Float(DType),
    /// Eight-bit floats with four bits of exponent and three of fraction, without infinities.
    F8E4M3,
    /// Signed bytes.
    I8,
    /// Bytes.
    U8,
    /// Signed words of 32 bits.
    I32,
    /// Signed words of 64 bits.
    I64,
    /// Any other, by its name in the file.
    Other(String),
}

impl ElementType {
    /// The type that safetensors calls `name`.
    pub(crate) fn named(name: &str) -> Self {
        match name {
            "F32" => Self::Float(DType::F32),
            "F16" => Self::Float(DType::F16),
            "BF16" => Self::Float(DType::BF16),
            "F8_E4M3" => Self::F8E4M3,
            "I8" => Self::I8,
            "U8" => Self::U8,
            "I32" => Self::I32,
            "I64" => Self::I64,
            other => Self::Other(other.to_owned()),
        }
    }

    /// Bytes of one element; `None` for types this program has not heard of.
    pub(crate) fn size_bytes(&self) -> Option<u64> {
        match self {
            Self::Float(dtype) => Some(dtype.size_bytes() as u64),
            Self::F8E4M3 | Self::I8 | Self::U8 => Some(1),
            Self::I32 => Some(4),
            Self::I64 => Some(8),
            Self::Other(name) => match name.as_str() {
                "BOOL" | "F8_E5M2" | "F8_E8M0" => Some(1),
                "U16" | "I16" => Some(2),
                "U32" => Some(4),
                "U64" | "F64" | "C64" => Some(8),
                _ => None,
            },
        }
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float(dtype) => dtype.fmt(f),
            Self::F8E4M3 => f.write_str("F8_E4M3"),
            Self::I8 => f.write_str("I8"),
            Self::U8 => f.write_str("U8"),
            Self::I32 => f.write_str("I32"),
            Self::I64 => f.write_str("I64"),
            Self::Other(name) => f.write_str(name),
        }
    }
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// The header's entries in file order; unlike a map, it sees names that stand twice.
struct RawHeader(Vec<(String, RawEntry)>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<BTreeMap<String, String>>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(RawHeader(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// The tensors of `blob`, the file called `name`.
pub(crate) fn entries(name: &str, blob: &Blob<'_>) -> Result<BTreeMap<String, Entry>, SafetensorsError> {
    let file = || name.to_owned();
    let found = blob.len();
    if found < PREFIX_BYTES {
        return Err(SafetensorsError::Truncated { file: file(), expected: PREFIX_BYTES, found });
    }
    let io = |source| SafetensorsError::Io { file: name.to_owned(), source };
    let mut prefix = [0; PREFIX_BYTES as usize];
    blob.read_at(0, &mut prefix).map_err(io)?;
    let header_bytes = u64::from_le_bytes(prefix);
    if header_bytes > MAX_HEADER_BYTES {
        return Err(SafetensorsError::HeaderTooLarge { file: file(), found: header_bytes, limit: MAX_HEADER_BYTES });
    }
    let data_begin = PREFIX_BYTES + header_bytes;
    if data_begin > found {
        return Err(SafetensorsError::Truncated { file: file(), expected: data_begin, found });
    }
    let mut header = vec![0; header_bytes as usize];
    blob.read_at(PREFIX_BYTES, &mut header).map_err(io)?;
    let (entries, data_bytes) =
        parse_header(&header, data_begin).map_err(|cause| SafetensorsError::Header { file: file(), cause })?;
    let expected = data_begin.saturating_add(data_bytes);
    match found.cmp(&expected) {
        std::cmp::Ordering::Less => Err(SafetensorsError::Truncated { file: file(), expected, found }),
        std::cmp::Ordering::Greater => Err(SafetensorsError::Trailing { file: file(), expected, found }),
        std::cmp::Ordering::Equal => Ok(entries),
    }
}

/// The entries, with offsets from the begin of the file, and the bytes of data they cover; or what is wrong, in words.
fn parse_header(header: &[u8], data_begin: u64) -> Result<(BTreeMap<String, Entry>, u64), String> {
    let RawHeader(mut raw) = serde_json::from_slice(header).map_err(|error| error.to_string())?;
    raw.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut entries = BTreeMap::new();
    let mut covered = 0;
    for (name, RawEntry { dtype, shape, data_offsets: (begin, end) }) in raw {
        if begin != covered || end < begin {
            return Err(format!("tensor {name} lies at {begin}..{end}, expected to begin at {covered}"));
        }
        covered = end;
        let element = ElementType::named(&dtype);
        if let Some(size) = element.size_bytes() {
            let needed = shape.iter().try_fold(size, |bytes, &dim| bytes.checked_mul(dim as u64));
            if needed != Some(end - begin) {
                return Err(format!("tensor {name} of type {dtype} and shape {shape:?} has {} bytes", end - begin));
            }
        }
        let place = |offset: u64| data_begin.checked_add(offset).ok_or_else(|| format!("tensor {name} ends at {end}"));
        let entry = Entry { element, shape, begin: place(begin)?, end: place(end)?, strides: None };
        if entries.insert(name.clone(), entry).is_some() {
            return Err(format!("tensor {name} stands there twice"));
        }
    }
    Ok((entries, covered))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::weights::shard::Shard;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
    }

    fn open(bytes: Vec<u8>) -> Result<Shard, SafetensorsError> {
        let blob = Blob::Memory(bytes.leak());
        Ok(Shard { name: "model.safetensors".to_owned(), entries: entries("model.safetensors", &blob)?, blob })
    }

    const TWO: &str = r#"{"__metadata__":{"format":"pt"},
        "b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"BF16","shape":[1,2],"data_offsets":[8,12]}}"#;

    #[test]
    fn tensors_are_found_by_name() {
        let shard = open(file(TWO, &[7; 12])).unwrap();
        assert_eq!(shard.entries["a"].element, ElementType::Float(DType::BF16));
        assert_eq!(shard.entries["a"].shape, [1, 2]);
        assert_eq!(shard.bytes(&shard.entries["b"]).unwrap().as_slice(), [7; 8]);
    }

    #[test]
    fn a_file_on_disk_reads_as_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        // Data that is longer than a page and does not begin on one.
        let header = r#"{"a":{"dtype":"U8","shape":[5000],"data_offsets":[0,5000]},"b":{"dtype":"F16","shape":[3],"data_offsets":[5000,5006]},
            "empty":{"dtype":"F32","shape":[0],"data_offsets":[5006,5006]}}"#;
        let data: Vec<u8> = (0..5006u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, file(header, &data)).unwrap();
        let on_disk = File::open(&path).unwrap();
        let len = on_disk.metadata().unwrap().len();
        let shard = Shard::open("model.safetensors", Blob::File { file: on_disk, len }).unwrap();
        assert_eq!(shard.bytes(&shard.entries["a"]).unwrap().as_slice(), &data[..5000]);
        assert_eq!(shard.bytes(&shard.entries["b"]).unwrap().as_slice(), &data[5000..]);
        assert!(shard.bytes(&shard.entries["empty"]).unwrap().as_slice().is_empty());
    }

    #[test]
    fn every_truncation_is_refused() {
        let whole = file(TWO, &[7; 12]);
        for len in 0..whole.len() {
            let error = open(whole[..len].to_vec()).unwrap_err();
            assert!(matches!(error, SafetensorsError::Truncated { .. }), "{len}: {error}");
        }
        let error = open(whole[..whole.len() - 5].to_vec()).unwrap_err();
        let (says, has) = (whole.len(), whole.len() - 5);
        assert_eq!(
            error.to_string(),
            format!("model.safetensors is truncated: header says {says} bytes, file has {has}")
        );
        assert!(matches!(open([whole, vec![0]].concat()), Err(SafetensorsError::Trailing { .. })));
    }

    #[test]
    fn absurd_header_lengths_are_refused_before_memory_is_asked_for() {
        for length in [MAX_HEADER_BYTES + 1, u64::MAX, u64::MAX - 7] {
            let mut bytes = file(TWO, &[7; 12]);
            bytes[..8].copy_from_slice(&length.to_le_bytes());
            assert!(matches!(open(bytes), Err(SafetensorsError::HeaderTooLarge { .. })));
        }
    }

    #[test]
    fn contradictions_in_the_header_are_refused() {
        for (header, part) in [
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#, "expected to begin at 0"),
            (
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
                "tensor b lies at 4..12",
            ),
            (r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, "shape [3] has 8 bytes"),
            (r#"{"a":{"dtype":"F32","shape":[18446744073709551615,4],"data_offsets":[0,8]}}"#, "has 8 bytes"),
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, "lies at 8..0"),
            (r#"{"a":{"dtype":"X9","shape":[2],"data_offsets":[0,18446744073709551615]}}"#, "ends at"),
            (
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
                "tensor a stands there twice",
            ),
            (r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, "invalid"),
            (r#"{"a":{"dtype":"F32","shape":[1]}}"#, "data_offsets"),
            ("[]", "an object of tensors"),
            ("", "EOF"),
        ] {
            let error = open(file(header, &[0; 8])).unwrap_err().to_string();
            assert!(error.contains("broken header") && error.contains(part), "{error}");
        }
    }

    #[test]
    fn no_flipped_bit_reads_beyond_the_file() {
        let whole = file(TWO, &[7; 12]);
        let mut opened = 0;
        for bit in 0..(whole.len() - 12) * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            // A flip may leave a valid file (a letter of a name); then every tensor still has the bytes its shape asks for.
            if let Ok(shard) = open(bytes) {
                opened += 1;
                for entry in shard.entries.values() {
                    let len = shard.bytes(entry).unwrap().as_slice().len();
                    let dims: usize = entry.shape.iter().product();
                    assert!(entry.element.size_bytes().is_none_or(|size| size as usize * dims == len));
                }
            }
        }
        assert!(opened > 0 && opened < whole.len() * 4, "{opened}");
    }
}
