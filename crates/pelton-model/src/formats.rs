//! How each matrix of a model is kept: in the integers it arrives in, in those asked for, or in numbers.

use std::collections::HashMap;
use std::fmt;

use pelton_backend::{DType, IntGroups, WeightFormat};

use crate::spec::{DecoderTensors, TensorSpec};
use crate::weights::{CheckpointError, TensorSource};

/// How to quantise matrices while they are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantize {
    /// Every matrix, into integers.
    Integers {
        /// Matrices of layers.
        layers: IntGroups,
        /// The embedding and the head.
        vocab: IntGroups,
    },
    /// None, and those that arrive in integers become numbers.
    Decoded,
}

impl Quantize {
    /// Eight bits everywhere.
    pub const INT8: Self = Self::Integers { layers: IntGroups::INT8, vocab: IntGroups::INT8 };
    /// Four bits in layers, eight where tokens come in and logits go out.
    pub const INT4: Self = Self::Integers { layers: IntGroups::INT4, vocab: IntGroups::INT8 };
}

/// The formats a model's matrices are kept in, each once, the one with most bytes first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightFormats {
    /// Those of layers.
    pub layers: Vec<WeightFormat>,
    /// Those of the embedding and the head.
    pub vocab: Vec<WeightFormat>,
}

/// All matrices alike.
impl From<DType> for WeightFormats {
    fn from(dtype: DType) -> Self {
        Self { layers: vec![dtype.into()], vocab: vec![dtype.into()] }
    }
}

impl fmt::Display for WeightFormats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed =
            |formats: &[WeightFormat]| formats.iter().map(WeightFormat::to_string).collect::<Vec<_>>().join(" and ");
        f.write_str(&listed(&self.layers))?;
        if self.layers == self.vocab { Ok(()) } else { write!(f, ", vocabulary {}", listed(&self.vocab)) }
    }
}

/// The format of each matrix, by name.
#[derive(Debug)]
pub(crate) struct MatrixFormats {
    by_name: HashMap<String, WeightFormat>,
    /// Matrices that arrive in integers and are kept in numbers because what they are joined with is not cut alike.
    pub(crate) decoded: Vec<String>,
}

impl MatrixFormats {
    /// Matrices are kept as `quantize` says; without it, in the integers they arrive in, else in `dtype`.
    ///
    /// Matrices that read the same input are joined, which needs one format and, in integers, one order of input features. Where a
    /// checkpoint has them differ, all parts of the join become numbers in `dtype`: nothing is lost but memory.
    pub(crate) fn new(
        tensors: &DecoderTensors,
        source: &dyn TensorSource,
        quantize: Option<Quantize>,
        dtype: DType,
    ) -> Result<Self, CheckpointError> {
        let format = |tensor: &TensorSpec, asked: fn(Quantize) -> Option<IntGroups>| match quantize {
            None => source.integers(tensor).map_or(dtype.into(), WeightFormat::from),
            Some(quantize) => asked(quantize).map_or(dtype.into(), WeightFormat::from),
        };
        let mut formats = Self { by_name: HashMap::new(), decoded: Vec::new() };
        for tensor in tensors.vocab() {
            formats.by_name.insert(tensor.name.clone(), format(tensor, Quantize::vocab));
        }
        for linear in tensors.linears() {
            let mut kept: Vec<WeightFormat> = linear.parts.iter().map(|part| format(part, Quantize::layers)).collect();
            let alike = kept.windows(2).all(|two| two[0] == two[1]);
            let arrive_so = quantize.is_none() && matches!(kept[..], [WeightFormat::Grouped(_), ..]);
            if !alike || arrive_so && !source.sorted_alike(&linear.parts)? {
                kept.fill(dtype.into());
                formats.decoded.extend(linear.parts.iter().map(|part| part.name.clone()));
            }
            formats.by_name.extend(linear.parts.iter().map(|part| part.name.clone()).zip(kept));
        }
        Ok(formats)
    }

    /// That of `tensor`, which is one of the matrices.
    pub(crate) fn of(&self, tensor: &TensorSpec) -> WeightFormat {
        self.by_name[&tensor.name]
    }

    /// Bytes of `tensor` as it is kept.
    pub(crate) fn bytes(&self, tensor: &TensorSpec) -> u64 {
        tensor.matrix_bytes(self.of(tensor))
    }

    /// What there is, for people.
    pub(crate) fn summary(&self, tensors: &DecoderTensors) -> WeightFormats {
        WeightFormats {
            layers: self.distinct(tensors.linears().flat_map(|linear| &linear.parts)),
            vocab: self.distinct(tensors.vocab()),
        }
    }

    fn distinct<'a>(&self, tensors: impl Iterator<Item = &'a TensorSpec>) -> Vec<WeightFormat> {
        let mut found: Vec<(WeightFormat, u64)> = Vec::new();
        for tensor in tensors {
            let (format, bytes) = (self.of(tensor), self.bytes(tensor));
            match found.iter_mut().find(|(known, _)| *known == format) {
                Some((_, sum)) => *sum += bytes,
                None => found.push((format, bytes)),
            }
        }
        found.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
        found.into_iter().map(|(format, _)| format).collect()
    }
}

impl Quantize {
    fn layers(self) -> Option<IntGroups> {
        match self {
            Self::Integers { layers, .. } => Some(layers),
            Self::Decoded => None,
        }
    }

    fn vocab(self) -> Option<IntGroups> {
        match self {
            Self::Integers { vocab, .. } => Some(vocab),
            Self::Decoded => None,
        }
    }
}
