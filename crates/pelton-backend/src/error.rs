//! What can go wrong between the host and a backend.

/// Errors of loading; a step that was planned within the stated limits cannot fail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// The machine cannot give that much memory.
    #[error("out of memory: {what} needs {needed_bytes} bytes, {available_bytes} are available")]
    OutOfMemory {
        /// What was to be stored.
        what: &'static str,
        /// Bytes asked for.
        needed_bytes: u64,
        /// Bytes the machine could still give.
        available_bytes: u64,
    },
    /// Bytes and shape of a tensor contradict each other.
    #[error("tensor of shape {shape:?} and type {dtype} needs {expected} bytes, has {found}")]
    Size {
        /// The stated shape.
        shape: Vec<usize>,
        /// The stated type.
        dtype: crate::DType,
        /// Bytes that shape and type ask for.
        expected: usize,
        /// Bytes that are there.
        found: usize,
    },
    /// A tensor has a shape that the operation cannot use.
    #[error("{what} has shape {found:?}, expected {expected}")]
    Shape {
        /// Which tensor.
        what: &'static str,
        /// What is wanted, in words.
        expected: String,
        /// The shape found.
        found: Vec<usize>,
    },
    /// A number of a list is out of bounds.
    #[error("{what}: number {index} is {found}, limit is {limit}")]
    Value {
        /// Which list.
        what: &'static str,
        /// The number's place in it.
        index: usize,
        /// The number.
        found: u64,
        /// The largest that may be.
        limit: u64,
    },
    /// The backend has no kernel for this.
    #[error("not supported by this backend: {0}")]
    Unsupported(String),
}
