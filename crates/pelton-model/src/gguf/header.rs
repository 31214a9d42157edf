//! What a GGUF file says of itself: metadata by key, and its tensors.
//!
//! ```text
//! | "GGUF" | u32 version | u64 tensors | u64 keys | keys: text, u32 type, value | tensors: text, u32 dims, u64 each, u32 kind, u64 offset | padding | data |
//! ```
//!
//! Numbers are little-endian, a text is a u64 of bytes and UTF-8, an array is a u32 of its elements' type, a u64 of how many, and they. Offsets count from
//! the data's begin. Source: `docs/gguf.md` of ggml, versions 2 and 3, which differ in nothing that is read here.
//!
//! Arrays stay where they are: a tokenizer's are most of the header, and are walked when asked for. So memory is bounded by the header's
//! bytes, and what a count claims is never believed before that many elements were seen.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::gguf::kind::Kind;

const MAGIC: &[u8] = b"GGUF";
const VERSIONS: std::ops::RangeInclusive<u32> = 2..=3;
/// Longest name of a key or a tensor.
const MAX_NAME_BYTES: usize = 65_535;
/// Dimensions of a tensor.
const MAX_DIMS: u32 = 4;
/// Arrays within arrays.
const MAX_DEPTH: usize = 4;
/// Where data begins when the file does not say otherwise.
const ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 20;

/// Why bytes are no header.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// They end before it does.
    Ends,
    /// In words.
    Broken(String),
}

impl From<String> for Problem {
    fn from(cause: String) -> Self {
        Self::Broken(cause)
    }
}

/// A header, its bytes, and where things are in it.
#[derive(Debug)]
pub(super) struct Header {
    bytes: Vec<u8>,
    metadata: BTreeMap<String, Value>,
    /// By name.
    pub(super) tensors: BTreeMap<String, TensorInfo>,
    /// From the begin of the file.
    pub(super) data_begin: u64,
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TensorInfo {
    /// Number of its format.
    pub(super) kind: u32,
    /// Outermost first, as everywhere but in the file.
    pub(super) shape: Vec<usize>,
    /// From the data's begin.
    pub(super) offset: u64,
}

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    /// Where it lies.
    Text(Range<usize>),
    Array {
        element: u32,
        count: usize,
        bytes: Range<usize>,
    },
}

/// Types of values.
const UINT8: u32 = 0;
const INT8: u32 = 1;
const UINT16: u32 = 2;
const INT16: u32 = 3;
const UINT32: u32 = 4;
const INT32: u32 = 5;
const FLOAT32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const UINT64: u32 = 10;
const INT64: u32 = 11;
const FLOAT64: u32 = 12;

impl Header {
    /// Reads the header at the begin of `bytes`, which may go on beyond it.
    pub(super) fn parse(bytes: Vec<u8>) -> Result<Self, (Problem, Vec<u8>)> {
        let mut reader = Reader { bytes: &bytes, place: 0 };
        match read(&mut reader) {
            Ok((metadata, tensors, data_begin)) => Ok(Self { bytes, metadata, tensors, data_begin }),
            Err(problem) => Err((problem, bytes)),
        }
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.metadata.contains_key(key)
    }

    /// A whole number; of an array, its only or common element.
    pub(super) fn integer(&self, key: &str) -> Option<i64> {
        match self.metadata.get(key)? {
            Value::Unsigned(value) => i64::try_from(*value).ok(),
            Value::Signed(value) => Some(*value),
            Value::Array { .. } => {
                let all = self.integers(key)?;
                let first = *all.first()?;
                all.iter().all(|&value| value == first).then_some(first)
            }
            _ => None,
        }
    }

    pub(super) fn float(&self, key: &str) -> Option<f64> {
        match self.metadata.get(key)? {
            Value::Float(value) => Some(*value),
            _ => self.integer(key).map(|value| value as f64),
        }
    }

    pub(super) fn bool(&self, key: &str) -> Option<bool> {
        match self.metadata.get(key)? {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key)? {
            Value::Text(range) => Some(self.utf8(range)),
            _ => None,
        }
    }

    /// An array of texts.
    pub(super) fn texts(&self, key: &str) -> Option<Vec<&str>> {
        let Value::Array { element: STRING, count, bytes } = self.metadata.get(key)? else { return None };
        let mut reader = Reader { bytes: &self.bytes[..bytes.end], place: bytes.start };
        (0..*count).map(|_| reader.text().ok().map(|range| self.utf8(&range))).collect()
    }

    /// An array of whole numbers.
    pub(super) fn integers(&self, key: &str) -> Option<Vec<i64>> {
        self.array(key, |value| match value {
            Value::Unsigned(value) => i64::try_from(value).ok(),
            Value::Signed(value) => Some(value),
            _ => None,
        })
    }

    /// An array of numbers.
    pub(super) fn floats(&self, key: &str) -> Option<Vec<f64>> {
        self.array(key, |value| match value {
            Value::Float(value) => Some(value),
            _ => None,
        })
    }

    fn array<T>(&self, key: &str, each: impl Fn(Value) -> Option<T>) -> Option<Vec<T>> {
        let Value::Array { element, count, bytes } = self.metadata.get(key)? else { return None };
        let mut reader = Reader { bytes: &self.bytes[..bytes.end], place: bytes.start };
        (0..*count).map(|_| each(reader.value(*element, MAX_DEPTH).ok()?)).collect()
    }

    fn utf8(&self, range: &Range<usize>) -> &str {
        std::str::from_utf8(&self.bytes[range.clone()]).expect("texts were checked when they were read")
    }
}

type Parts = (BTreeMap<String, Value>, BTreeMap<String, TensorInfo>, u64);

fn read(reader: &mut Reader<'_>) -> Result<Parts, Problem> {
    let magic = reader.take(MAGIC.len())?;
    if magic != MAGIC {
        return Err(Problem::Broken("it does not begin with GGUF".to_owned()));
    }
    let version = reader.u32()?;
    if !VERSIONS.contains(&version) {
        return Err(Problem::Broken(match VERSIONS.contains(&version.swap_bytes()) {
            true => "it is big-endian; only little-endian files are read".to_owned(),
            false => format!("it is of version {version}, and versions 2 and 3 are read; convert the model again"),
        }));
    }
    let (num_tensors, num_keys) = (reader.u64()?, reader.u64()?);
    let mut metadata = BTreeMap::new();
    for _ in 0..num_keys {
        let key = reader.name()?;
        let kind = reader.u32()?;
        let value = reader.value(kind, 0)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(Problem::Broken(format!("key {key} stands there twice")));
        }
    }
    let mut tensors = BTreeMap::new();
    for _ in 0..num_tensors {
        let name = reader.name()?;
        let num_dims = reader.u32()?;
        if num_dims > MAX_DIMS {
            return Err(Problem::Broken(format!("tensor {name} has {num_dims} dimensions, limit is {MAX_DIMS}")));
        }
        let mut shape = Vec::with_capacity(num_dims as usize);
        for _ in 0..num_dims {
            let dim = reader.u64()?;
            shape.push(usize::try_from(dim).map_err(|_| format!("tensor {name} has a dimension of {dim}"))?);
        }
        shape.reverse();
        let info = TensorInfo { kind: reader.u32()?, shape, offset: reader.u64()? };
        if tensors.insert(name.clone(), info).is_some() {
            return Err(Problem::Broken(format!("tensor {name} stands there twice")));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => ALIGNMENT,
        Some(&Value::Unsigned(alignment)) if alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT => alignment,
        Some(other) => {
            let expected = format!("a power of two up to {MAX_ALIGNMENT}");
            return Err(Problem::Broken(format!("general.alignment is {other:?}, expected {expected}")));
        }
    };
    Ok((metadata, tensors, (reader.place as u64).next_multiple_of(alignment)))
}

/// The bytes of each of `tensors`, from the file's begin; they lie within `len` and do not overlap.
pub(super) fn ranges(header: &Header, len: u64) -> Result<BTreeMap<String, Range<u64>>, String> {
    let mut ranges = Vec::with_capacity(header.tensors.len());
    for (name, TensorInfo { kind, shape, offset }) in &header.tensors {
        let kind = Kind::numbered(*kind).map_err(|kind| format!("tensor {name} is stored as {kind}"))?;
        let size = kind.size_bytes(shape).ok_or_else(|| {
            format!("tensor {name} has shape {shape:?}, which does not go into blocks of {}", kind.block_elements())
        })?;
        let begin = header.data_begin.checked_add(*offset);
        let end = begin.and_then(|begin| begin.checked_add(size));
        match (begin, end) {
            (Some(begin), Some(end)) if end <= len => ranges.push((begin, end, name)),
            _ => return Err(format!("tensor {name} has {size} bytes at {offset}, beyond the file's end at {len}")),
        }
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        if pair[0].1 > pair[1].0 {
            return Err(format!("tensors {} and {} overlap", pair[0].2, pair[1].2));
        }
    }
    Ok(ranges.into_iter().map(|(begin, end, name)| (name.clone(), begin..end)).collect())
}

struct Reader<'a> {
    bytes: &'a [u8],
    place: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Problem> {
        let taken = self.bytes[self.place..].get(..len).ok_or(Problem::Ends)?;
        self.place += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let taken = self.bytes[self.place..].first_chunk().ok_or(Problem::Ends)?;
        self.place += N;
        Ok(*taken)
    }

    fn u32(&mut self) -> Result<u32, Problem> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Problem> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Where a text lies.
    fn text(&mut self) -> Result<Range<usize>, Problem> {
        let len = usize::try_from(self.u64()?).map_err(|_| Problem::Ends)?;
        let text = self.take(len)?;
        if std::str::from_utf8(text).is_err() {
            return Err(Problem::Broken(format!("a text at byte {} is not UTF-8", self.place - len)));
        }
        Ok(self.place - len..self.place)
    }

    fn name(&mut self) -> Result<String, Problem> {
        let range = self.text()?;
        if range.len() > MAX_NAME_BYTES {
            return Err(Problem::Broken(format!("a name has {} bytes, limit is {MAX_NAME_BYTES}", range.len())));
        }
        Ok(String::from_utf8_lossy(&self.bytes[range]).into_owned())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value, Problem> {
        Ok(match kind {
            UINT8 => Value::Unsigned(u8::from_le_bytes(self.array()?).into()),
            INT8 => Value::Signed(i8::from_le_bytes(self.array()?).into()),
            UINT16 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            INT16 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            UINT32 => Value::Unsigned(self.u32()?.into()),
            INT32 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            FLOAT32 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            BOOL => Value::Bool(u8::from_le_bytes(self.array()?) != 0),
            STRING => Value::Text(self.text()?),
            UINT64 => Value::Unsigned(self.u64()?),
            INT64 => Value::Signed(i64::from_le_bytes(self.array()?)),
            FLOAT64 => Value::Float(f64::from_le_bytes(self.array()?)),
            ARRAY if depth >= MAX_DEPTH => {
                return Err(Problem::Broken(format!("arrays lie in arrays, limit is {MAX_DEPTH} deep")));
            }
            ARRAY => {
                let element = self.u32()?;
                let count = usize::try_from(self.u64()?).map_err(|_| Problem::Ends)?;
                let begin = self.place;
                match fixed_size(element) {
                    Some(size) => {
                        self.take(count.checked_mul(size).ok_or(Problem::Ends)?)?;
                    }
                    None => {
                        for _ in 0..count {
                            self.value(element, depth + 1)?;
                        }
                    }
                }
                Value::Array { element, count, bytes: begin..self.place }
            }
            _ => return Err(Problem::Broken(format!("a value of type {kind} at byte {}", self.place))),
        })
    }
}

/// Bytes of a value, where all of its type have as many.
fn fixed_size(kind: u32) -> Option<usize> {
    match kind {
        UINT8 | INT8 | BOOL => Some(1),
        UINT16 | INT16 => Some(2),
        UINT32 | INT32 | FLOAT32 => Some(4),
        UINT64 | INT64 | FLOAT64 => Some(8),
        _ => None,
    }
}
