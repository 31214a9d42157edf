//! Tensors in host memory, as they are read from files.

use std::borrow::Cow;
use std::fmt;

use half::{bf16, f16};

use crate::BackendError;

/// Element type of stored numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    BF16,
}

impl DType {
    /// Bytes of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::BF16 => 2,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "float32",
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
        })
    }
}

/// A row-major tensor in host memory: little-endian bytes, borrowed (a mapped file) or owned.
#[derive(Debug, Clone)]
pub struct HostTensor<'a> {
    dtype: DType,
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
}

impl<'a> HostTensor<'a> {
    /// Fails when `bytes` is not exactly what `shape` and `dtype` need.
    pub fn new(dtype: DType, shape: Vec<usize>, bytes: impl Into<Cow<'a, [u8]>>) -> Result<Self, BackendError> {
        let bytes = bytes.into();
        let expected =
            shape.iter().try_fold(dtype.size_bytes(), |size, &dim| size.checked_mul(dim)).unwrap_or(usize::MAX);
        if expected != bytes.len() {
            return Err(BackendError::Size { shape, dtype, expected, found: bytes.len() });
        }
        Ok(Self { dtype, shape, bytes })
    }

    /// An owned f32 tensor. Panics when `values` does not fill `shape`: both come from code, not from files.
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> HostTensor<'static> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        HostTensor::new(DType::F32, shape, bytes).expect("shape and values belong together")
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Little-endian elements.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All elements as f32; exact for every [`DType`].
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.bytes.len() / self.dtype.size_bytes()];
        self.read_f32(0, &mut values);
        values
    }

    /// Elements from `first` on, as f32, until `out` is full; exact for every [`DType`]. Panics past the end.
    pub fn read_f32(&self, first: usize, out: &mut [f32]) {
        let size = self.dtype.size_bytes();
        let bytes = &self.bytes[first * size..(first + out.len()) * size];
        match self.dtype {
            DType::F32 => {
                for (value, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *value = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
            DType::F16 => {
                for (value, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *value = f16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
            DType::BF16 => {
                for (value, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *value = bf16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_must_fill_the_shape() {
        let error = HostTensor::new(DType::F16, vec![2, 3], vec![0u8; 11]).unwrap_err();
        assert!(error.to_string().contains("needs 12 bytes, has 11"), "{error}");
        assert!(HostTensor::new(DType::F32, vec![usize::MAX, 2], vec![0u8; 8]).is_err());
    }

    #[test]
    fn halves_convert_exactly() {
        let halves: Vec<u8> = [1.5f32, -0.25, 65504.0].iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        assert_eq!(HostTensor::new(DType::F16, vec![3], halves).unwrap().to_f32(), [1.5, -0.25, 65504.0]);
        let brains: Vec<u8> = [1.5f32, -3e38].iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
        let tensor = HostTensor::new(DType::BF16, vec![2], brains).unwrap();
        assert_eq!(tensor.to_f32(), [1.5, bf16::from_f32(-3e38).to_f32()]);
    }
}
