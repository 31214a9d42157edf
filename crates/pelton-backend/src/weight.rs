//! Canonical weights: what a matrix means, independent of any kernel's layout.

use crate::{BackendError, Bits, DType, Group, HostTensor, IntGroups};

/// How a backend keeps a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// In floats; rounded to nearest even when the file's precision is another.
    Dense(DType),
    /// In integers with scales; rows that meet it are quantised too.
    Grouped(IntGroups),
}

impl From<DType> for WeightFormat {
    fn from(dtype: DType) -> Self {
        Self::Dense(dtype)
    }
}

impl From<IntGroups> for WeightFormat {
    fn from(groups: IntGroups) -> Self {
        Self::Grouped(groups)
    }
}

impl WeightFormat {
    /// [`IntGroups::INT8`].
    pub const INT8: Self = Self::Grouped(IntGroups::INT8);
    /// [`IntGroups::INT4`].
    pub const INT4: Self = Self::Grouped(IntGroups::INT4);

    /// Every kind of format there is, once: what tests walk and measurements show.
    pub const ALL: [Self; 7] = [
        Self::Dense(DType::F32),
        Self::Dense(DType::F16),
        Self::Dense(DType::BF16),
        Self::INT8,
        Self::Grouped(IntGroups { bits: Bits::Eight, group: Group::Of64, zeros: false }),
        Self::INT4,
        Self::Grouped(IntGroups { bits: Bits::Four, group: Group::Of128, zeros: true }),
    ];

    /// Bytes of a `[out_features, in_features]` matrix with what belongs to it: in int8 a scale and a sum for each output feature;
    /// in other groups a half-precision scale (and a byte for the zero point) for each, and a factor for each output feature.
    pub fn matrix_bytes(self, out_features: u64, in_features: u64) -> u64 {
        let row = match self {
            Self::Dense(dtype) => in_features * dtype.size_bytes() as u64,
            Self::INT8 => in_features + 8,
            Self::Grouped(groups) => {
                let num_groups = groups.num_groups(in_features as usize) as u64;
                let codes = (in_features * groups.bits.count() as u64).div_ceil(8);
                codes + num_groups * (2 + u64::from(groups.zeros)) + 4
            }
        };
        out_features * row
    }
}

impl std::fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dense(dtype) => dtype.fmt(f),
            Self::Grouped(groups) => groups.fmt(f),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_count_as_bytes() {
        let zeros = IntGroups { zeros: true, ..IntGroups::INT4 };
        let row = IntGroups { group: Group::Row, ..IntGroups::INT4 };
        for (format, bytes) in [
            (DType::BF16.into(), 2 * 100),
            (WeightFormat::INT8, 100 + 8),
            (WeightFormat::INT4, 50 + 4 * 2 + 4),
            (zeros.into(), 50 + 4 * 3 + 4),
            (row.into(), 50 + 2 + 4),
        ] {
            assert_eq!(format.matrix_bytes(3, 100), 3 * bytes, "{format}");
        }
    }
}
