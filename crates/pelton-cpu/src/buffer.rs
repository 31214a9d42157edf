//! Memory of weights, activations and caches: zeroed, page-aligned, in huge pages.

use half::{bf16, f16};
use memmap2::{Advice, MmapMut};
use pelton_backend::BackendError;

use crate::memory;

/// Readable elements behind the end of a [`Buffer`]: vectors may be loaded from its last element on.
pub(crate) const SLACK: usize = 32;

/// What x86 maps as one; less memory than that is given without looking whether it is there.
const HUGE_PAGE: usize = 2 << 20;

/// Types of which every bit pattern, also all zeros, is a value.
///
/// # Safety
/// As said; and no padding, alignment at most a page.
pub(crate) unsafe trait Plain: Copy + Send + Sync + 'static {}

// SAFETY: every bit pattern is a float.
unsafe impl Plain for f32 {}
// SAFETY: every bit pattern is a number.
unsafe impl Plain for i8 {}
// SAFETY: as above.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: a transparent u16.
unsafe impl Plain for f16 {}
// SAFETY: a transparent u16.
unsafe impl Plain for bf16 {}

/// A fixed number of elements, all bits zero at first.
pub(crate) struct Buffer<T> {
    memory: MmapMut,
    len: usize,
    element: std::marker::PhantomData<T>,
}

impl<T: Plain> Buffer<T> {
    /// Refuses what the machine cannot give at the moment.
    pub(crate) fn new(what: &'static str, len: usize) -> Result<Self, BackendError> {
        let bytes = len.checked_add(SLACK).and_then(|len| len.checked_mul(size_of::<T>())).unwrap_or(usize::MAX);
        let refused = |available_bytes| BackendError::OutOfMemory { what, needed_bytes: bytes as u64, available_bytes };
        let large = bytes >= HUGE_PAGE;
        if large {
            let available_bytes = memory::report().available_bytes;
            if bytes as u64 > available_bytes || bytes > isize::MAX as usize {
                return Err(refused(available_bytes));
            }
        }
        let memory = MmapMut::map_anon(bytes).map_err(|_| refused(memory::report().available_bytes))?;
        if large {
            // Small pages work too, only slower.
            let _ = memory.advise(Advice::HugePage);
        }
        Ok(Self { memory, len, element: std::marker::PhantomData })
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: the mapping holds more than `len` elements, is aligned to a page and initialised, as zeros are values of `T`.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as in `as_slice`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().cast(), self.len) }
    }

    /// The slice as bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[..self.len * size_of::<T>()]
    }

    /// To the first element; [`SLACK`] elements more than the slice has may be read.
    pub(crate) fn as_ptr(&self) -> *const T {
        self.memory.as_ptr().cast()
    }
}

/// `[rows, cols]` f32 activations in host memory. The number of rows is that of the step; capacity is fixed.
pub struct Rows {
    data: Buffer<f32>,
    num_rows: usize,
    max_rows: usize,
    cols: usize,
}

impl Rows {
    pub(crate) fn new(max_rows: usize, cols: usize) -> Result<Self, BackendError> {
        let data = Buffer::new("activations", max_rows.saturating_mul(cols))?;
        Ok(Self { data, num_rows: 0, max_rows, cols })
    }

    pub(crate) fn num_rows(&self) -> usize {
        self.num_rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// Panics when there is no room: the caller planned a larger step than it allocated for.
    pub(crate) fn set_num_rows(&mut self, num_rows: usize) {
        assert!(num_rows <= self.max_rows, "{num_rows} rows do not fit a buffer of {}", self.max_rows);
        self.num_rows = num_rows;
    }

    pub(crate) fn values(&self) -> &[f32] {
        &self.data.as_slice()[..self.num_rows * self.cols]
    }

    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        &mut self.data.as_mut_slice()[..self.num_rows * self.cols]
    }
}

/// Norm weights, biases and tables, in f32.
pub struct Param(Buffer<f32>);

impl Param {
    pub(crate) fn new(data: &pelton_backend::HostTensor<'_>) -> Result<Self, BackendError> {
        let mut values = Buffer::new("a parameter", data.bytes().len() / data.dtype().size_bytes())?;
        data.read_f32(0, values.as_mut_slice());
        Ok(Self(values))
    }

    pub(crate) fn values(&self) -> &[f32] {
        self.0.as_slice()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_machine_has_is_refused_with_both_numbers() {
        let Err(error) = Buffer::<f32>::new("a test", 1 << 48) else { panic!("must not fit") };
        assert!(error.to_string().starts_with("out of memory: a test needs 1125899906842"), "{error}");
        assert!(Buffer::<f32>::new("a test", usize::MAX).is_err());
    }

    #[test]
    fn buffers_begin_as_zeros_also_when_empty() {
        assert!(Buffer::<f32>::new("a test", 1000).unwrap().as_slice().iter().all(|&x| x == 0.0));
        assert!(Buffer::<f32>::new("a test", 0).unwrap().as_slice().is_empty());
    }
}
