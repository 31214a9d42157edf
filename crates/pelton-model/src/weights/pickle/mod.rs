//! A PyTorch file of tensors: a zip archive with a pickle that describes them and their bytes beside it.
//!
//! ```text
//! <archive>/data.pkl      dict: name -> storage, offset, shape, strides
//! <archive>/byteorder     "little"
//! <archive>/data/<key>    bytes of a storage, not compressed
//! ```
//!
//! Source: `torch/serialization.py`, the format since torch 1.6. Several tensors may share a storage, and a tensor may take its elements in
//! any order. Checksums are not looked at: torch can be told not to write them, and safetensors has none.

mod machine;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use rawzip::{CompressionMethod, RECOMMENDED_BUFFER_SIZE, ReaderAt, ZipLocator};

use crate::files::Blob;
use crate::weights::safetensors::ElementType;
use crate::weights::shard::Entry;
use machine::RawTensor;

/// Ending of such files.
pub(crate) const ENDING: &str = ".bin";
/// Begin of a zip archive.
const ZIP: &[u8] = b"PK\x03\x04";
/// Largest pickle. One tensor takes some 300 bytes of it.
const MAX_PICKLE_BYTES: u64 = 16 << 20;
/// Most members of an archive: a storage each.
const MAX_MEMBERS: usize = 100_000;

/// A file that is no PyTorch file of tensors.
#[derive(Debug, thiserror::Error)]
pub enum PickleError {
    /// Not the format that torch writes since 1.6.
    #[error(
        "{file} is not a zip archive, which torch writes since version 1.6; for older files load it with torch.load(file, \
         weights_only=True) and save it again, best as safetensors"
    )]
    NotZip {
        /// Which file.
        file: String,
    },
    /// The archive is damaged, or not one of tensors.
    #[error("{file} is broken: {cause}")]
    Archive {
        /// Which file.
        file: String,
        /// What is wrong.
        cause: String,
    },
    /// The pickle is damaged, or holds something else than tensors.
    #[error("the pickle in {file} cannot be read: {cause}")]
    Pickle {
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
        source: io::Error,
    },
}

/// The tensors of `blob`, the file called `name`.
pub(crate) fn entries(name: &str, blob: &Blob<'_>) -> Result<BTreeMap<String, Entry>, PickleError> {
    let file = || name.to_owned();
    let io = |source| PickleError::Io { file: file(), source };
    let mut begin = [0; ZIP.len()];
    if blob.len() < ZIP.len() as u64 {
        return Err(PickleError::NotZip { file: file() });
    }
    blob.read_at(0, &mut begin).map_err(io)?;
    if begin != *ZIP {
        return Err(PickleError::NotZip { file: file() });
    }
    let broken = |cause| PickleError::Archive { file: file(), cause };
    let archive = Archive::read(blob).map_err(broken)?;
    if let Some(order) = archive.member("byteorder") {
        let order = archive.bytes(blob, order, 16).map_err(broken)?;
        if order != b"little" {
            return Err(broken(format!("its byte order is {}, expected little", String::from_utf8_lossy(&order))));
        }
    }
    let pickle = archive.member("data.pkl").expect("an archive has one");
    let pickle = archive.bytes(blob, pickle, MAX_PICKLE_BYTES).map_err(broken)?;
    let cannot = |cause| PickleError::Pickle { file: file(), cause };
    let mut entries = BTreeMap::new();
    for (tensor, raw) in machine::state_dict(&pickle).map_err(cannot)? {
        let entry = archive.entry(raw).map_err(|cause| cannot(format!("{tensor}: {cause}")))?;
        if entries.insert(tensor.to_owned(), entry).is_some() {
            return Err(cannot(format!("{tensor} stands there twice")));
        }
    }
    Ok(entries)
}

/// Where each member lies.
struct Archive {
    /// What stands in front of members' names, with a closing slash.
    prefix: String,
    members: BTreeMap<String, Range<u64>>,
}

impl Archive {
    fn read(blob: &Blob<'_>) -> Result<Self, String> {
        let words = |error: rawzip::Error| error.to_string();
        let mut buffer = vec![0; RECOMMENDED_BUFFER_SIZE];
        let archive = ZipLocator::new()
            .locate_in_reader(blob, &mut buffer, blob.len())
            .map_err(|(_, error)| format!("it has no end, as of a download that was interrupted ({error})"))?;
        let mut members = BTreeMap::new();
        let mut entries = archive.entries(&mut buffer);
        while let Some(record) = entries.next_entry().map_err(words)? {
            let name = std::str::from_utf8(record.file_path().as_bytes())
                .map_err(|_| "a member's name is not UTF-8".to_owned())?
                .to_owned();
            if record.compression_method() != CompressionMethod::STORE {
                return Err(format!(
                    "member {name} is compressed ({}), and only plain bytes are read; save it with torch.save",
                    record.compression_method()
                ));
            }
            if record.flags().is_encrypted() {
                return Err(format!("member {name} is encrypted"));
            }
            let (begin, end) = archive.get_entry(record.wayfinder()).map_err(words)?.compressed_data_range();
            if end > blob.len() || end - begin != record.uncompressed_size_hint() {
                return Err(format!("member {name} lies at {begin}..{end} of {} bytes", blob.len()));
            }
            if members.len() == MAX_MEMBERS {
                return Err(format!("it has more than {MAX_MEMBERS} members"));
            }
            if members.insert(name.clone(), begin..end).is_some() {
                return Err(format!("member {name} stands there twice"));
            }
        }
        let pickles: Vec<&str> = members.keys().filter_map(|name| name.strip_suffix("data.pkl")).collect();
        match pickles[..] {
            [prefix] if prefix.ends_with('/') => Ok(Self { prefix: prefix.to_owned(), members }),
            _ => Err("it has no data.pkl in one folder, as torch.save writes it".to_owned()),
        }
    }

    fn member(&self, name: &str) -> Option<&Range<u64>> {
        self.members.get(&format!("{}{name}", self.prefix))
    }

    /// The whole of a small member.
    fn bytes(&self, blob: &Blob<'_>, member: &Range<u64>, limit: u64) -> Result<Vec<u8>, String> {
        let len = member.end - member.start;
        if len > limit {
            return Err(format!("its description has {len} bytes, limit is {limit}"));
        }
        let mut bytes = vec![0; len as usize];
        blob.read_at(member.start, &mut bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    /// Where a tensor lies; it has no more elements than its storage, all of them within.
    fn entry(&self, raw: RawTensor<'_>) -> Result<Entry, String> {
        let RawTensor { storage, element, offset, shape, mut strides } = raw;
        let key = storage.key;
        let member = self.member(&format!("data/{key}")).ok_or_else(|| format!("there is no storage {key}"))?;
        let element = ElementType::named(element);
        let size = element.size_bytes().expect("types of tensors have a size");
        let stored = (member.end - member.start) / size;
        let contradiction =
            || format!("shape {shape:?}, strides {strides:?}, offset {offset} in a storage of {stored} elements");
        let count =
            shape.iter().try_fold(1u64, |count, &dim| count.checked_mul(dim as u64)).ok_or_else(contradiction)?;
        // Where the last element is, from the first.
        let last = shape.iter().zip(&strides).try_fold(0u64, |last, (&dim, &stride)| {
            last.checked_add((dim.max(1) as u64 - 1).checked_mul(stride as u64)?)
        });
        let last = last.ok_or_else(contradiction)?;
        let begin = match offset.checked_add(last) {
            _ if count == 0 => {
                return Ok(Entry { element, shape, begin: member.start, end: member.start, strides: None });
            }
            // More elements than the storage has would repeat some, and need memory that no file has paid for.
            Some(place) if place < stored && count <= stored => member.start + offset * size,
            _ => return Err(contradiction()),
        };
        let mut row_major = 1;
        let mut plain = true;
        for (&dim, stride) in shape.iter().zip(&mut strides).rev() {
            if dim == 1 {
                // It leads nowhere, and may be any number.
                *stride = 0;
            } else {
                plain &= *stride == row_major;
            }
            row_major *= dim;
        }
        Ok(Entry { element, begin, end: begin + (last + 1) * size, strides: (!plain).then_some(strides), shape })
    }
}

/// For the fuzzer: reads an archive and the elements of its tensors.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz(bytes: &[u8]) {
    for entry in entries("fuzzed.bin", &Blob::Memory(bytes)).unwrap_or_default().into_values() {
        let span = &bytes[entry.begin as usize..entry.end as usize];
        if let (Some(strides), Some(size)) = (&entry.strides, entry.element.size_bytes()) {
            crate::weights::shard::gather(span, &entry.shape, strides, size as usize);
        }
    }
}

/// For the fuzzer: runs a pickle.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz_state_dict(bytes: &[u8]) {
    let _ = machine::state_dict(bytes);
}

impl ReaderAt for Blob<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let len = self.len().saturating_sub(offset).min(buffer.len() as u64) as usize;
        Blob::read_at(self, offset, &mut buffer[..len])?;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::PathBuf;

    use super::*;
    use crate::weights::safetensors;
    use crate::weights::shard::Shard;

    fn path(name: &str) -> PathBuf {
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/formats/pickle")).join(name)
    }

    fn fixture(name: &str) -> Vec<u8> {
        std::fs::read(path(name)).unwrap()
    }

    fn open(bytes: &[u8]) -> Result<BTreeMap<String, Entry>, PickleError> {
        entries("x.bin", &Blob::Memory(bytes))
    }

    fn refusal(bytes: &[u8]) -> String {
        open(bytes).unwrap_err().to_string()
    }

    /// Every tensor's bytes, row-major.
    fn values(shard: &Shard) -> BTreeMap<String, (ElementType, Vec<usize>, Vec<u8>)> {
        let value = |entry: &Entry| {
            (entry.element.clone(), entry.shape.clone(), shard.bytes(entry).unwrap().as_slice().to_vec())
        };
        shard.entries.iter().map(|(name, entry)| (name.clone(), value(entry))).collect()
    }

    #[test]
    fn every_type_and_every_view_has_the_bytes_that_torch_sees() {
        let wanted = fixture("views.safetensors").leak();
        let wanted = Blob::Memory(wanted);
        let entries = safetensors::entries("views.safetensors", &wanted).unwrap();
        let wanted = values(&Shard { name: "views.safetensors".to_owned(), entries, blob: wanted });
        let file = File::open(path("views.bin")).unwrap();
        let len = file.metadata().unwrap().len();
        for blob in [Blob::File { file, len }, Blob::Memory(fixture("views.bin").leak())] {
            let found = Shard::open("views.bin", blob).unwrap();
            let strided = found.entries.values().filter(|entry| entry.strides.is_some()).count();
            assert_eq!(strided, 8, "{:?}", found.entries);
            let found = values(&found);
            assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
            for (name, value) in &found {
                assert_eq!(value, &wanted[name], "{name}");
            }
        }
    }

    #[test]
    fn other_files_are_refused_by_what_they_are() {
        assert!(
            refusal(&fixture("legacy.bin"))
                .contains("x.bin is not a zip archive, which torch writes since version 1.6")
        );
        assert!(refusal(b"").contains("not a zip archive"));
        assert!(refusal(&fixture("compressed.bin")).contains("is compressed (8 (DEFLATE))"));
        assert!(refusal(&fixture("big_endian.bin")).contains("its byte order is big, expected little"));
        let error = refusal(&fixture("code.bin"));
        assert!(error.contains("the pickle in x.bin cannot be read: it asks for __builtin__.print"), "{error}");
    }

    #[test]
    fn every_truncation_is_refused() {
        let whole = fixture("views.bin");
        for len in 0..whole.len() {
            open(&whole[..len]).unwrap_err();
        }
        assert!(refusal(&whole[..whole.len() / 2]).contains("as of a download that was interrupted"));
    }

    /// Whatever bit flips, the answer is an error or tensors that lie within the file and take no more memory.
    #[test]
    fn no_flipped_bit_reads_beyond_the_file() {
        let small = archive(&tensor(b"K\x00K\x02K\x02\x86K\x01K\x02\x86"), 16);
        let large = fixture("views.bin");
        let flips = (0..small.len() * 8)
            .map(|bit| (&small, bit))
            .chain((0..large.len() * 8).step_by(25).map(|bit| (&large, bit)));
        let (mut opened, mut refused) = (0, 0);
        for (whole, bit) in flips {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let Ok(entries) = open(&bytes) else {
                refused += 1;
                continue;
            };
            opened += 1;
            let shard = Shard { name: String::new(), entries, blob: Blob::Memory(bytes.leak()) };
            for (element, shape, bytes) in values(&shard).into_values() {
                assert!(bytes.len() <= whole.len());
                assert_eq!(bytes.len() as u64, element.size_bytes().unwrap() * shape.iter().product::<usize>() as u64);
            }
        }
        assert!(opened > 100 && refused > 100, "{opened} {refused}");
    }

    /// An archive as torch writes it, of one storage of `storage` bytes.
    fn archive(pickle: &[u8], storage: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut archive = rawzip::ZipArchiveWriter::new(&mut bytes);
        let storage = vec![7; storage];
        for (name, data) in [("a/data.pkl", pickle), ("a/data/0", &storage)] {
            let (mut entry, config) =
                archive.new_file(name).compression_method(CompressionMethod::STORE).start().unwrap();
            let mut writer = config.wrap(&mut entry);
            io::Write::write_all(&mut writer, data).unwrap();
            let (_, output) = writer.finish().unwrap();
            entry.finish(output).unwrap();
        }
        archive.finish().unwrap();
        bytes
    }

    /// A state dict of one float32 tensor `t`; `sizes` is the pickle of offset, shape and strides.
    fn tensor(sizes: &[u8]) -> Vec<u8> {
        let storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0" as &[u8];
        let begin = [b"}X\x01\0\0\0tctorch._utils\n_rebuild_tensor_v2\n(" as &[u8], storage, b"0X\x03\0\0\0cpuK\x04tQ"]
            .concat();
        [&begin, sizes, b"\x89}tRs."].concat()
    }

    #[test]
    fn tensors_beyond_their_storage_are_refused() {
        let opened = |sizes: &[u8], storage| open(&archive(&tensor(sizes), storage));
        assert_eq!(opened(b"K\x00K\x04\x85K\x01\x85", 16).unwrap()["t"].shape, [4]);
        let big = b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f" as &[u8];
        for sizes in [
            // One too many, by length, offset or stride; none at all; repeated; too large to count.
            b"K\x00K\x05\x85K\x01\x85".to_vec(),
            b"K\x01K\x04\x85K\x01\x85".to_vec(),
            b"K\x00K\x02\x85K\x04\x85".to_vec(),
            b"K\x04K\x01\x85K\x01\x85".to_vec(),
            b"K\x00M\xff\xff\x85K\x00\x85".to_vec(),
            [b"K\x00", big, b"\x85K\x01\x85"].concat(),
            [b"K\x00", big, b"\x85K\x00\x85"].concat(),
            [b"K\x00", big, big, b"\x86K\x01K\x01\x86"].concat(),
            [b"K\x00K\x02\x85", big, b"\x85"].concat(),
            [big, b"K\x01\x85K\x01\x85"].concat(),
        ] {
            let error = opened(&sizes, 16).unwrap_err().to_string();
            assert!(error.contains("t: shape") && error.contains("in a storage of 4 elements"), "{error}");
        }
        // A dimension of one goes nowhere, whatever its stride.
        let one = opened(&[b"K\x03K\x01\x85", big, b"\x85"].concat(), 16).unwrap();
        assert_eq!((one["t"].end - one["t"].begin, &one["t"].strides), (4, &None));
        let error = opened(b"K\x00K\x01\x85K\x01K\x01\x86", 16).unwrap_err().to_string();
        assert!(error.contains("1 dimensions and 2 strides"), "{error}");
        let error =
            opened(b"K\x00(K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01tK\x01\x85", 16).unwrap_err().to_string();
        assert!(error.contains("9 dimensions, limit is 8"), "{error}");
    }

    #[test]
    fn archives_of_something_else_are_refused() {
        let error = refusal(&archive(b"}X\x01\0\0\0tctorch._utils\n_rebuild_tensor_v2\n(", 0));
        assert!(error.contains("it ends in the middle"), "{error}");
        let elsewhere = tensor(b"K\x00K\x04\x85K\x01\x85");
        let place = elsewhere.windows(5).position(|window| window == b"\x01\x00\x00\x000").unwrap();
        let elsewhere = [&elsewhere[..place + 4], b"1", &elsewhere[place + 5..]].concat();
        assert!(refusal(&archive(&elsewhere, 16)).contains("t: there is no storage 1"));
        let other = archive(b"}.", 0);
        let other = String::from_utf8_lossy(&other).replace("data.pkl", "data.txt").into_bytes();
        let error = refusal(&other);
        assert!(error.contains("is broken"), "{error}");
    }
}
