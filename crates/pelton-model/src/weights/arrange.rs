//! From a tensor's order in its file to the order the model uses.

use crate::spec::Stored;

/// Side of the squares in which a matrix is transposed: their lines stay in the first cache.
const TILE: usize = 32;

/// The elements of a tensor, `element_bytes` each, that lies as `stored` says in the file, where its shape is `shape`; `None`: as they are.
///
/// Panics when the bytes do not fill the shape, the tensor to transpose is no matrix, or the rows are not those of the tensor: the header was checked.
pub(super) fn arrange(bytes: &[u8], shape: &[usize], element_bytes: usize, stored: &Stored) -> Option<Vec<u8>> {
    match stored {
        Stored::AsIs => None,
        Stored::Transposed => {
            let &[rows, columns] = shape else { panic!("only matrices are transposed, this is {shape:?}") };
            Some(transposed(bytes, rows, columns, element_bytes))
        }
        Stored::Rows(rows) => {
            assert_eq!(rows.len(), shape[0], "as many rows as the tensor has");
            let row_bytes = bytes.len() / rows.len();
            Some(rows.iter().flat_map(|&row| &bytes[row as usize * row_bytes..][..row_bytes]).copied().collect())
        }
    }
}

/// `[columns, rows]` of `[rows, columns]`.
fn transposed(bytes: &[u8], rows: usize, columns: usize, element_bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes.len()];
    for first_row in (0..rows).step_by(TILE) {
        for first_column in (0..columns).step_by(TILE) {
            for row in first_row..rows.min(first_row + TILE) {
                for column in first_column..columns.min(first_column + TILE) {
                    let from = (row * columns + column) * element_bytes;
                    let to = (column * rows + row) * element_bytes;
                    out[to..to + element_bytes].copy_from_slice(&bytes[from..from + element_bytes]);
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_are_transposed_at_every_size() {
        for (rows, columns) in [(1, 1), (1, 40), (31, 33), (32, 32), (70, 5)] {
            let bytes: Vec<u8> = (0..rows * columns).flat_map(|i| (i as u16).to_le_bytes()).collect();
            let out = arrange(&bytes, &[rows, columns], 2, &Stored::Transposed).unwrap();
            for (i, number) in out.chunks_exact(2).enumerate() {
                let (column, row) = (i / rows, i % rows);
                assert_eq!(u16::from_le_bytes([number[0], number[1]]) as usize, row * columns + column);
            }
        }
    }

    #[test]
    fn rows_of_matrices_and_numbers_of_biases_change_places() {
        let rows = Stored::Rows([2, 0, 1].into());
        assert_eq!(arrange(&[1, 2, 3, 4, 5, 6], &[3, 2], 1, &rows).unwrap(), [5, 6, 1, 2, 3, 4]);
        assert_eq!(arrange(&[1, 2, 3, 4, 5, 6], &[3], 2, &rows).unwrap(), [5, 6, 1, 2, 3, 4]);
        assert_eq!(arrange(&[1, 2], &[2], 1, &Stored::AsIs), None);
    }
}
