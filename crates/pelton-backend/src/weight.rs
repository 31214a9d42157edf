//! Canonical weights: what a matrix means, independent of any kernel's layout.

use crate::{BackendError, DType, HostTensor};

/// A dense matrix `[out_features, in_features]` and the precision a backend shall keep it in.
///
/// Several matrices of one input (q, k, v; gate, up) are joined by packing them as one list: their rows lie one after the other.
#[derive(Debug, Clone)]
pub struct DenseWeight<'a> {
    tensor: HostTensor<'a>,
    stored_as: DType,
}

impl<'a> DenseWeight<'a> {
    /// Fails when `tensor` is not a matrix with at least one row and one column.
    pub fn new(tensor: HostTensor<'a>, stored_as: DType) -> Result<Self, BackendError> {
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

    /// The precision to keep; a backend rounds to it (nearest even) when the file's is another.
    pub fn stored_as(&self) -> DType {
        self.stored_as
    }
}
