//! Canonical weights: what a matrix means, independent of any kernel's layout.

use crate::{BackendError, DType, HostTensor};

/// How a backend keeps a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// In floats; rounded to nearest even when the file's precision is another.
    Dense(DType),
    /// In eight bits with one scale by output feature: `scale = max |w| / 127`, `code = round(w / scale)` to nearest even. Rows that
    /// meet it are quantised in the same way, each with a scale of its own.
    Int8,
}

impl From<DType> for WeightFormat {
    fn from(dtype: DType) -> Self {
        Self::Dense(dtype)
    }
}

impl WeightFormat {
    /// Every format there is.
    pub const ALL: [Self; 4] = [Self::Dense(DType::F32), Self::Dense(DType::F16), Self::Dense(DType::BF16), Self::Int8];

    /// Bytes of a `[out_features, in_features]` matrix, scales included.
    pub fn matrix_bytes(self, out_features: u64, in_features: u64) -> u64 {
        match self {
            Self::Dense(dtype) => out_features * in_features * dtype.size_bytes() as u64,
            Self::Int8 => out_features * (in_features + 8),
        }
    }
}

impl std::fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dense(dtype) => dtype.fmt(f),
            Self::Int8 => f.write_str("int8"),
        }
    }
}

/// A dense matrix `[out_features, in_features]` and the format a backend shall keep it in.
///
/// Several matrices of one input (q, k, v; gate, up) are joined by packing them as one list: their rows lie one after the other.
#[derive(Debug, Clone)]
pub struct DenseWeight<'a> {
    tensor: HostTensor<'a>,
    stored_as: WeightFormat,
}

impl<'a> DenseWeight<'a> {
    /// Fails when `tensor` is not a matrix with at least one row and one column.
    pub fn new(tensor: HostTensor<'a>, stored_as: impl Into<WeightFormat>) -> Result<Self, BackendError> {
        let stored_as = stored_as.into();
        match tensor.shape() {
            [rows, cols] if *rows > 0 && *cols > 0 => Ok(Self { tensor, stored_as }),
            other => Err(BackendError::Shape {
                what: "a linear weight",
                expected: "[out, in]".into(),
                found: other.to_vec(),
            }),
        }
    }

    /// Rows: features going out.
    pub fn out_features(&self) -> usize {
        self.tensor.shape()[0]
    }

    /// Columns: features coming in.
    pub fn in_features(&self) -> usize {
        self.tensor.shape()[1]
    }

    /// The numbers as they were read.
    pub fn tensor(&self) -> &HostTensor<'a> {
        &self.tensor
    }

    /// The format to keep.
    pub fn stored_as(&self) -> WeightFormat {
        self.stored_as
    }
}
