//! What a machine can do for a decoder.
//!
//! Reading order: `batch` says what one step computes, `weight`, `grouped`, `adapter` and `host` what is loaded, `spec` the parameters of
//! operations, `backend` the operations themselves, `workers` the threads it lends. This crate holds no implementation and knows no model.
#![forbid(unsafe_code)]

mod adapter;
mod backend;
mod batch;
#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
mod grouped;
mod host;
mod spec;
mod weight;
mod workers;

pub use adapter::{AdapterMatrices, AdapterWeight};
pub use backend::Backend;
pub use batch::{AdapterId, BlockId, Span, StepBatch, TokenId};
pub use error::BackendError;
pub use grouped::{Bits, Group, GroupedRow, GroupedWeight, IntGroups};
pub use host::{DType, HostTensor};
pub use spec::{Act, AttendSpec, HeadNorms, KvFormat, KvSpec, MemoryReport, Norm, RopeSpec, RouteSpec, alibi_slope};
pub use weight::{DenseWeight, WeightFormat};
pub use workers::{CallerAlone, Workers};
