//! How each matrix of a model is kept: in the integers it arrives in, in those asked for, or in numbers.

use std::collections::HashMap;
use std::fmt;

use pelton_backend::{DType, WeightFormat};

use crate::spec::{DecoderTensors, TensorSpec};
use crate::treatment::Treatment;
use crate::weights::{CheckpointError, TensorSource};

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
    /// Matrices are kept as `treatment` says, numbers in `dtype`.
    ///
    /// Matrices that read the same input are joined, which needs one format and, in integers, one order of input features. Where a
    /// checkpoint has them differ, all parts of the join become numbers: nothing is lost but memory.
    pub(crate) fn new(
        tensors: &DecoderTensors,
        source: &dyn TensorSource,
        treatment: Treatment,
        dtype: DType,
    ) -> Result<Self, CheckpointError> {
        let format = |tensor: &TensorSpec, is_vocab: bool| match treatment {
            Treatment::AsTheyCome => source.integers(tensor).map_or(dtype.into(), WeightFormat::from),
            Treatment::Numbers | Treatment::Rounded(_) => dtype.into(),
            Treatment::Integers { vocab, .. } if is_vocab => vocab.into(),
            Treatment::Integers { layers, .. } => layers.into(),
        };
        let mut formats = Self { by_name: HashMap::new(), decoded: Vec::new() };
        for tensor in tensors.vocab() {
            formats.by_name.insert(tensor.name.clone(), format(tensor, true));
        }
        for linear in tensors.linears() {
            let mut kept: Vec<WeightFormat> = linear.parts.iter().map(|part| format(part, false)).collect();
            let alike = kept.windows(2).all(|two| two[0] == two[1]);
            let in_integers = kept.iter().any(|format| matches!(format, WeightFormat::Grouped(_)));
            if !alike || treatment == Treatment::AsTheyCome && in_integers && !source.sorted_alike(&linear.parts)? {
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
