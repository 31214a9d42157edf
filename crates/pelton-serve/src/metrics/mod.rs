//! What the server counts: one record per request and the engine's gauges, rendered under two naming tables.
//!
//! Nothing here is global, so that several servers can live in one process, and nothing waits: adding is a few atomic additions, rendering
//! reads atomics.

mod histogram;
mod record;
mod registry;
mod speculation;
mod tgi;
mod vllm;

pub use record::{Outcome, RequestRecord};
pub(crate) use registry::{CacheShape, Counters, Metrics};
