//! A model's weights: one file or many, tensors by name, all contradictions found before the first is read.

use std::collections::BTreeMap;

use pelton_backend::{DType, HostTensor};
use serde::Deserialize;

use crate::files::{FilesError, ModelFiles, is_plain};
use crate::gguf::GgufError;
use crate::spec::TensorSpec;
use crate::weights::arrange::arrange;
use crate::weights::pickle::{self, PickleError};
use crate::weights::safetensors::{ElementType, SafetensorsError};
use crate::weights::shard::{Bytes, Entry, Shard};
use crate::weights::{Codebook, TensorSource};

/// How weight files of a format are called.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FileFormat {
    /// The weights, where they are one file.
    pub(crate) single: &'static str,
    /// The list of files, where they are several.
    pub(crate) index: &'static str,
    /// The end of every file's name.
    pub(crate) ending: &'static str,
}

/// What is looked for, in this order, as Transformers does.
pub(crate) const FORMATS: [FileFormat; 2] = [
    FileFormat { single: "model.safetensors", index: "model.safetensors.index.json", ending: ".safetensors" },
    FileFormat { single: "pytorch_model.bin", index: "pytorch_model.bin.index.json", ending: pickle::ENDING },
];
/// Shards stay open while a model is loaded; the largest released models have about 200.
const MAX_SHARDS: usize = 512;
/// Problems listed in one message.
const MAX_LISTED: usize = 8;

/// Weights that are not the model's.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file could not be reached.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// A file is damaged.
    #[error(transparent)]
    Safetensors(#[from] SafetensorsError),
    /// A file is damaged, or holds more than tensors.
    #[error(transparent)]
    Pickle(#[from] PickleError),
    /// A GGUF file is damaged, or cannot be served.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// Neither one file nor an index.
    #[error("there is none of {}", FORMATS.iter().flat_map(|format| [format.single, format.index]).collect::<Vec<_>>().join(", "))]
    NoWeights,
    /// The index cannot be used.
    #[error("{file} is broken: {cause}")]
    Index {
        /// Which file.
        file: &'static str,
        /// What is wrong.
        cause: String,
    },
    /// The index names files that are not there.
    #[error("{file} names files that are not there ({count}): {names}")]
    MissingShards {
        /// The index.
        file: &'static str,
        /// How many.
        count: usize,
        /// The first of them.
        names: String,
    },
    /// One tensor in two files.
    #[error("tensor {tensor} stands in {first} and in {second}")]
    Duplicate {
        /// Which tensor.
        tensor: String,
        /// One file.
        first: String,
        /// The other.
        second: String,
    },
    /// Numbers that no tensor of its kind can hold.
    #[error("{tensor}: {cause}")]
    Values {
        /// Which tensor, or the module it belongs to.
        tensor: String,
        /// What is wrong with them.
        cause: String,
    },
    /// Tensors missing, left over, or of another shape or type than the configuration says.
    #[error("the checkpoint does not fit config.json ({count} wrong): {problems}")]
    Mismatch {
        /// How many tensors are wrong.
        count: usize,
        /// The first of them, each with what is expected and what was found.
        problems: String,
    },
}

/// All tensors of a model, by name.
#[derive(Debug)]
pub struct Checkpoint {
    shards: Vec<Shard>,
    /// Name to index of its shard.
    places: BTreeMap<String, usize>,
}

/// One tensor, its bytes mapped (or held) until it is dropped.
#[derive(Debug)]
pub struct Tensor {
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Bytes,
}

impl Tensor {
    /// One that was made in memory. `bytes` must fill the shape.
    pub(super) fn made(dtype: DType, shape: Vec<usize>, bytes: Vec<u8>) -> Self {
        Self::of(dtype, shape, Bytes::Owned(bytes))
    }

    /// One of `bytes`, which must fill the shape.
    pub(crate) fn of(dtype: DType, shape: Vec<usize>, bytes: Bytes) -> Self {
        Self { dtype, shape, bytes }
    }

    /// A matrix with its numbers rounded to those of `codebook`.
    pub(crate) fn rounded(&self, codebook: Codebook) -> Self {
        let host = self.host();
        let mut values = host.to_f32();
        codebook.round(&mut values, self.shape.last().copied().unwrap_or(1));
        Self::made(DType::F32, self.shape.clone(), values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// The numbers, borrowed.
    pub fn host(&self) -> HostTensor<'_> {
        HostTensor::new(self.dtype, self.shape.clone(), self.bytes.as_slice())
            .expect("bytes fill the shape: the header was checked, or they were made for it")
    }
}

/// What an index says.
#[derive(Debug)]
pub(crate) struct Index {
    format: &'static FileFormat,
    /// Tensor to file.
    weight_map: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: BTreeMap<String, String>,
}

impl Index {
    /// The index of `format`; `None` when there is no such file.
    pub(crate) fn read(files: &ModelFiles, format: &'static FileFormat) -> Result<Option<Self>, CheckpointError> {
        let Some(bytes) = files.read(format.index)? else { return Ok(None) };
        let RawIndex { weight_map } = serde_json::from_slice(&bytes)
            .map_err(|error| CheckpointError::Index { file: format.index, cause: error.to_string() })?;
        Ok(Some(Self { format, weight_map }))
    }

    /// Names of the files, each once: some, not too many, all of them plain.
    pub(crate) fn shards(&self) -> Result<Vec<&str>, CheckpointError> {
        let FileFormat { index, ending, .. } = self.format;
        let broken = |cause: String| Err(CheckpointError::Index { file: index, cause });
        let mut names: Vec<&str> = self.weight_map.values().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        if names.is_empty() {
            return broken("its weight_map is empty".to_owned());
        }
        if names.len() > MAX_SHARDS {
            return broken(format!("it names {} files, limit is {MAX_SHARDS}", names.len()));
        }
        // An index that names itself, or another index, is no way to a tensor.
        match names.iter().find(|name| !is_plain(name) || !name.ends_with(ending)) {
            Some(name) => broken(format!("{name:?} is not the name of a *{ending} file")),
            None => Ok(names),
        }
    }

    fn open(&self, files: &ModelFiles) -> Result<Checkpoint, CheckpointError> {
        let file = self.format.index;
        let mut shards = Vec::new();
        let mut missing = Vec::new();
        for name in self.shards()? {
            match files.open(name)? {
                Some(blob) => shards.push(Shard::open(name, blob)?),
                None => missing.push(name.to_owned()),
            }
        }
        if !missing.is_empty() {
            let names = listed(&missing, ", ");
            return Err(CheckpointError::MissingShards { file, count: missing.len(), names });
        }
        let checkpoint = Checkpoint::of(shards)?;
        for (tensor, shard) in &self.weight_map {
            if checkpoint.places.get(tensor).is_none_or(|&index| checkpoint.shards[index].name != *shard) {
                return Err(CheckpointError::Index { file, cause: format!("tensor {tensor} is not in {shard}") });
            }
        }
        Ok(checkpoint)
    }
}

impl Checkpoint {
    /// Opens the weights of the first format there is, one file or the shards that its index names, or else the one safetensors file there
    /// is, whatever its name (quantisers put theirs into it), and checks every header.
    pub fn open(files: &ModelFiles) -> Result<Self, CheckpointError> {
        for format in &FORMATS {
            if let Some(blob) = files.open(format.single)? {
                return Self::of(vec![Shard::open(format.single, blob)?]);
            }
            if let Some(index) = Index::read(files, format)? {
                return index.open(files);
            }
        }
        if let [name] = &files.names_ending(FORMATS[0].ending)?[..]
            && let Some(blob) = files.open(name)?
        {
            return Self::of(vec![Shard::open(name, blob)?]);
        }
        Err(CheckpointError::NoWeights)
    }

    /// Opens one file of weights and checks its header; `None` when there is no such file.
    pub(crate) fn open_file(files: &ModelFiles, name: &str) -> Result<Option<Self>, CheckpointError> {
        match files.open(name)? {
            Some(blob) => Self::of(vec![Shard::open(name, blob)?]).map(Some),
            None => Ok(None),
        }
    }

    fn of(shards: Vec<Shard>) -> Result<Self, CheckpointError> {
        let mut places = BTreeMap::new();
        for (index, shard) in shards.iter().enumerate() {
            for tensor in shard.entries.keys() {
                if let Some(first) = places.insert(tensor.clone(), index) {
                    return Err(CheckpointError::Duplicate {
                        tensor: tensor.clone(),
                        first: shards[first].name.clone(),
                        second: shard.name.clone(),
                    });
                }
            }
        }
        Ok(Self { shards, places })
    }

    /// Whether there is a tensor whose name begins so.
    pub fn has_any(&self, beginning: &str) -> bool {
        self.places.range(beginning.to_owned()..).next().is_some_and(|(name, _)| name.starts_with(beginning))
    }

    /// The type in which most numbers of `tensors` are stored; `None` when there are none.
    pub fn prevailing_dtype<'a>(&self, tensors: impl Iterator<Item = &'a TensorSpec>) -> Option<DType> {
        let mut counts: [(DType, u64); 3] = [(DType::F32, 0), (DType::F16, 0), (DType::BF16, 0)];
        for tensor in tensors {
            if let Some((_, Entry { element: ElementType::Float(dtype), .. })) = self.entry(&tensor.name)
                && let Some((_, count)) = counts.iter_mut().find(|(candidate, _)| candidate == dtype)
            {
                *count += tensor.num_elements();
            }
        }
        counts.into_iter().filter(|(_, count)| *count > 0).max_by_key(|(_, count)| *count).map(|(dtype, _)| dtype)
    }

    /// Checks the headers against what a model needs: every tensor of `wanted` is there with its shape and a type that can be read, and
    /// no other is, unless `tolerated` says so. `problems` are those found before, told together with the others.
    pub fn check<'a>(
        &self,
        wanted: impl Iterator<Item = &'a TensorSpec>,
        tolerated: impl Fn(&str) -> bool,
        mut problems: Vec<String>,
    ) -> Result<(), CheckpointError> {
        let mut unread: BTreeMap<&str, &Entry> = self
            .shards
            .iter()
            .flat_map(|shard| shard.entries.iter().map(|(name, entry)| (name.as_str(), entry)))
            .collect();
        for spec in wanted {
            let (name, shape) = (&spec.name, spec.stored_shape());
            match unread.remove(name.as_str()) {
                None => problems.push(format!("{name} is missing, expected {shape:?}")),
                Some(entry) if entry.shape != shape => {
                    problems.push(format!("{name} has shape {:?}, expected {shape:?}", entry.shape));
                }
                Some(Entry { element: ElementType::Float(_), .. }) => {}
                Some(Entry { element, .. }) => {
                    problems.push(format!("{name} has type {element}, expected float32, float16 or bfloat16"));
                }
            }
        }
        unread.retain(|name, _| !tolerated(name));
        problems.extend(unread.keys().map(|name| format!("{name} belongs to no part of the model")));
        if problems.is_empty() {
            return Ok(());
        }
        Err(CheckpointError::Mismatch { count: problems.len(), problems: listed(&problems, "; ") })
    }

    /// One tensor that [`Checkpoint::check`] has found in order, arranged as the model uses it.
    pub fn tensor(&self, wanted: &TensorSpec) -> Result<Tensor, CheckpointError> {
        match self.entry(&wanted.name) {
            Some((shard, entry @ Entry { element: ElementType::Float(dtype), shape, .. }))
                if *shape == wanted.stored_shape() =>
            {
                let stored = shard.bytes(entry)?;
                let bytes = arrange(stored.as_slice(), shape, dtype.size_bytes(), &wanted.stored).map(Bytes::Owned);
                Ok(Tensor { dtype: *dtype, shape: wanted.shape.clone(), bytes: bytes.unwrap_or(stored) })
            }
            _ => Err(CheckpointError::Mismatch {
                count: 1,
                problems: format!("{} is not there as {:?}", wanted.name, wanted.stored_shape()),
            }),
        }
    }

    /// Names of all tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Type and shape of a tensor.
    pub(crate) fn stored(&self, name: &str) -> Option<(&ElementType, &[usize])> {
        self.entry(name).map(|(_, entry)| (&entry.element, entry.shape.as_slice()))
    }

    /// Bytes of a tensor; none of one that is not there.
    pub(crate) fn bytes(&self, name: &str) -> Result<Bytes, CheckpointError> {
        match self.entry(name) {
            Some((shard, entry)) => Ok(shard.bytes(entry)?),
            None => Ok(Bytes::Memory(&[])),
        }
    }

    fn entry(&self, name: &str) -> Option<(&Shard, &Entry)> {
        let shard = &self.shards[*self.places.get(name)?];
        Some((shard, &shard.entries[name]))
    }
}

impl TensorSource for Checkpoint {
    fn tensor(&self, wanted: &TensorSpec) -> Result<Tensor, CheckpointError> {
        Checkpoint::tensor(self, wanted)
    }
}

/// The first of `items`, and how many more there are.
pub(crate) fn listed(items: &[String], separator: &str) -> String {
    let mut text = items[..items.len().min(MAX_LISTED)].join(separator);
    if items.len() > MAX_LISTED {
        text += &format!("{separator}and {} more", items.len() - MAX_LISTED);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::iter::once;

    use super::*;
    use crate::spec::Stored;

    const INDEX: &str = FORMATS[0].index;

    /// A file of f32 tensors, each filled with its length's low byte.
    fn shard(tensors: &[(&str, &[usize])]) -> &'static [u8] {
        let mut header = serde_json::Map::new();
        let mut data = Vec::new();
        for (name, shape) in tensors {
            let begin = data.len();
            data.resize(begin + 4 * shape.iter().product::<usize>(), 0);
            let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]});
            header.insert((*name).to_owned(), entry);
        }
        let header = serde_json::Value::Object(header).to_string();
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat().leak()
    }

    fn index(map: serde_json::Value) -> &'static [u8] {
        serde_json::json!({"metadata": {"total_size": 0}, "weight_map": map}).to_string().into_bytes().leak()
    }

    fn wanted(name: &str, shape: &[usize]) -> TensorSpec {
        TensorSpec { name: name.into(), shape: shape.into(), stored: Stored::AsIs }
    }

    #[test]
    fn tensors_come_as_the_model_uses_them() {
        let files = ModelFiles::embedded(&[(FORMATS[0].single, shard(&[("a", &[2, 3])]))]);
        let checkpoint = Checkpoint::open(&files).unwrap();
        let transposed = TensorSpec { stored: Stored::Transposed, ..wanted("a", &[3, 2]) };
        checkpoint.check(once(&transposed), |_| false, Vec::new()).unwrap();
        assert_eq!(checkpoint.tensor(&transposed).unwrap().host().shape(), [3, 2]);
        let error = checkpoint.check(
            once(&TensorSpec { stored: Stored::Transposed, ..wanted("a", &[2, 3]) }),
            |_| false,
            Vec::new(),
        );
        assert!(error.unwrap_err().to_string().ends_with("a has shape [2, 3], expected [3, 2]"));
        let rows = TensorSpec { stored: Stored::Rows([1, 0].into()), ..wanted("a", &[2, 3]) };
        assert_eq!(checkpoint.tensor(&rows).unwrap().host().shape(), [2, 3]);
    }

    #[test]
    fn shards_are_joined_by_the_index() {
        let files = ModelFiles::embedded(&[
            (INDEX, index(serde_json::json!({"a": "1.safetensors", "b": "2.safetensors"}))),
            ("1.safetensors", shard(&[("a", &[2])])),
            ("2.safetensors", shard(&[("b", &[3])])),
        ]);
        let checkpoint = Checkpoint::open(&files).unwrap();
        let all = [wanted("a", &[2]), wanted("b", &[3])];
        checkpoint.check(all.iter(), |_| false, Vec::new()).unwrap();
        assert_eq!(checkpoint.prevailing_dtype(all.iter()), Some(DType::F32));
        assert_eq!(checkpoint.tensor(&all[1]).unwrap().host().shape(), [3]);
        assert!(checkpoint.tensor(&wanted("b", &[2])).is_err());
    }

    #[test]
    fn all_mismatches_are_told_at_once() {
        let integers = r#"{"ids":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#;
        let integers = [&(integers.len() as u64).to_le_bytes()[..], integers.as_bytes(), &[0; 8]].concat().leak();
        let files = ModelFiles::embedded(&[
            (INDEX, index(serde_json::json!({"a": "1.safetensors", "ids": "2.safetensors"}))),
            ("1.safetensors", shard(&[("a", &[2, 3]), ("extra", &[1]), ("rotary_emb.inv_freq", &[4])])),
            ("2.safetensors", integers),
        ]);
        let checkpoint = Checkpoint::open(&files).unwrap();
        let all = [wanted("a", &[3, 2]), wanted("b", &[7]), wanted("ids", &[1])];
        let error = checkpoint.check(all.iter(), |name| name.ends_with("inv_freq"), Vec::new()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the checkpoint does not fit config.json (4 wrong): a has shape [2, 3], expected [3, 2]; b is missing, expected [7]; \
             ids has type I64, expected float32, float16 or bfloat16; extra belongs to no part of the model"
        );
        let many: Vec<TensorSpec> = (0..50).map(|i| wanted(&format!("t{i:02}"), &[1])).collect();
        let error = checkpoint.check(many.iter(), |_| true, Vec::new()).unwrap_err().to_string();
        assert!(error.contains("(50 wrong)") && error.ends_with("and 42 more") && error.contains("t07"), "{error}");
    }

    #[test]
    fn broken_indexes_are_refused() {
        let open =
            |files: &[(&str, &'static [u8])]| Checkpoint::open(&ModelFiles::embedded(files)).unwrap_err().to_string();
        assert_eq!(
            open(&[]),
            "there is none of model.safetensors, model.safetensors.index.json, pytorch_model.bin, pytorch_model.bin.index.json"
        );
        assert!(open(&[(INDEX, b"{}")]).contains("weight_map"));
        assert!(open(&[(INDEX, b"\xff")]).contains("is broken"));
        assert!(open(&[(INDEX, index(serde_json::json!({})))]).contains("is empty"));
        assert!(
            open(&[(INDEX, index(serde_json::json!({"a": INDEX})))]).contains("not the name of a *.safetensors file")
        );
        assert!(open(&[(INDEX, index(serde_json::json!({"a": "../x.safetensors"})))]).contains("not the name"));
        let missing = index(serde_json::json!({"a": "1.safetensors", "b": "2.safetensors", "c": "3.safetensors"}));
        assert_eq!(
            open(&[(INDEX, missing), ("2.safetensors", shard(&[("b", &[1])]))]),
            format!("{INDEX} names files that are not there (2): 1.safetensors, 3.safetensors")
        );
        let wrong = index(serde_json::json!({"a": "1.safetensors", "b": "1.safetensors"}));
        assert!(
            open(&[(INDEX, wrong), ("1.safetensors", shard(&[("a", &[1])]))]).contains("b is not in 1.safetensors")
        );
        let twice = index(serde_json::json!({"a": "1.safetensors", "b": "2.safetensors"}));
        let files = [
            (INDEX, twice),
            ("1.safetensors", shard(&[("a", &[1])])),
            ("2.safetensors", shard(&[("b", &[1]), ("a", &[1])])),
        ];
        assert_eq!(open(&files), "tensor a stands in 1.safetensors and in 2.safetensors");
        let crowd: serde_json::Map<_, _> =
            (0..600).map(|i| (format!("t{i}"), serde_json::json!(format!("{i}.safetensors")))).collect();
        assert!(open(&[(INDEX, index(crowd.into()))]).contains("names 600 files, limit is 512"));
    }
}
