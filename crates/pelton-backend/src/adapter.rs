//! Adapters of low rank as they are loaded: what rows of some sequences get beside a linear's result.

use crate::{AdapterId, BackendError, DType, HostTensor};

/// What one adapter adds to some columns of a linear, `scale * (x A^T) B^T`. Source: Hu et al. 2021 (LoRA).
#[derive(Debug, Clone)]
pub struct AdapterWeight<'a> {
    /// Whose it is.
    pub adapter: AdapterId,
    /// `A`, `[rank, in_features]`.
    pub down: HostTensor<'a>,
    /// `B`, `[columns, rank]`.
    pub up: HostTensor<'a>,
    /// On the product.
    pub scale: f32,
    /// The first of the columns; a matrix joined with others does not begin at zero.
    pub first_column: usize,
}

impl AdapterWeight<'_> {
    /// Features between the two matrices.
    pub fn rank(&self) -> usize {
        self.down.shape()[0]
    }

    /// Columns it adds to.
    pub fn columns(&self) -> usize {
        self.up.shape()[0]
    }
}

/// What all adapters add to one linear, sizes checked.
#[derive(Debug, Clone)]
pub struct AdapterMatrices<'a> {
    in_features: usize,
    out_features: usize,
    weights: Vec<AdapterWeight<'a>>,
    stored_as: DType,
}

impl<'a> AdapterMatrices<'a> {
    /// For a linear `[out_features, in_features]`; kept in `stored_as`. Fails where a matrix does not fit the linear or its other half, and where
    /// two of one adapter meet.
    pub fn new(
        [out_features, in_features]: [usize; 2],
        mut weights: Vec<AdapterWeight<'a>>,
        stored_as: DType,
    ) -> Result<Self, BackendError> {
        for weight in &weights {
            let (down, up) = (weight.down.shape(), weight.up.shape());
            let rank = match *down {
                [rank, found] if rank > 0 && found == in_features => rank,
                _ => return Err(shape("an adapter's first matrix", format!("[rank, {in_features}]"), down)),
            };
            let room = out_features.saturating_sub(weight.first_column);
            match *up {
                [columns, found] if found == rank && (1..=room).contains(&columns) => {}
                _ => return Err(shape("an adapter's second matrix", format!("[1 to {room}, {rank}]"), up)),
            }
        }
        weights.sort_by_key(|weight| (weight.adapter, weight.first_column));
        for two in weights.windows(2) {
            if two[0].adapter == two[1].adapter && two[0].first_column + two[0].columns() > two[1].first_column {
                let (adapter, column) = (two[0].adapter.0, two[1].first_column);
                return Err(BackendError::Unsupported(format!(
                    "two matrices of adapter {adapter} for column {column}"
                )));
            }
        }
        Ok(Self { in_features, out_features, weights, stored_as })
    }

    /// Columns of rows that come in.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Columns of rows that go out.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// By adapter, then by column.
    pub fn weights(&self) -> &[AdapterWeight<'a>] {
        &self.weights
    }

    /// The precision to keep.
    pub fn stored_as(&self) -> DType {
        self.stored_as
    }
}

fn shape(what: &'static str, expected: String, found: &[usize]) -> BackendError {
    BackendError::Shape { what, expected, found: found.to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(adapter: u16, down: [usize; 2], up: [usize; 2], first_column: usize) -> AdapterWeight<'static> {
        let zeros = |shape: [usize; 2]| HostTensor::from_f32(shape.to_vec(), &vec![0.0; shape[0] * shape[1]]);
        let adapter = AdapterId(adapter);
        AdapterWeight { adapter, down: zeros(down), up: zeros(up), scale: 1.0, first_column }
    }

    #[test]
    fn matrices_must_fit_the_linear_and_each_other() {
        let of = |weight| AdapterMatrices::new([10, 6], vec![weight], DType::F32);
        assert!(of(weight(0, [4, 6], [10, 4], 0)).is_ok());
        for (wrong, expected) in [
            (weight(0, [4, 5], [10, 4], 0), "an adapter's first matrix has shape [4, 5], expected [rank, 6]"),
            (weight(0, [0, 6], [10, 0], 0), "an adapter's first matrix has shape [0, 6], expected [rank, 6]"),
            (weight(0, [4, 6], [10, 3], 0), "an adapter's second matrix has shape [10, 3], expected [1 to 10, 4]"),
            (weight(0, [4, 6], [8, 4], 3), "an adapter's second matrix has shape [8, 4], expected [1 to 7, 4]"),
        ] {
            assert_eq!(of(wrong).unwrap_err().to_string(), expected);
        }
        let overlapping =
            vec![weight(0, [1, 6], [5, 1], 4), weight(1, [1, 6], [5, 1], 0), weight(0, [1, 6], [5, 1], 0)];
        let error = AdapterMatrices::new([10, 6], overlapping, DType::F32).unwrap_err().to_string();
        assert_eq!(error, "not supported by this backend: two matrices of adapter 0 for column 4");
    }

    #[test]
    fn weights_are_listed_by_adapter_and_column() {
        let weights = vec![weight(1, [1, 6], [5, 1], 0), weight(0, [1, 6], [5, 1], 5), weight(0, [2, 6], [5, 2], 0)];
        let matrices = AdapterMatrices::new([10, 6], weights, DType::F32).unwrap();
        let listed: Vec<_> = matrices.weights().iter().map(|it| (it.adapter.0, it.first_column, it.rank())).collect();
        assert_eq!(listed, [(0, 0, 2), (0, 5, 1), (1, 0, 1)]);
    }
}
