//! Wire types of every dialect: what servers and clients exchange, and nothing that acts on it.
//!
//! Every type reads and writes, so that the server and the load generator share one description of the wire. Readers are tolerant
//! (unknown fields are ignored, fields that some servers leave out have defaults); writers follow each dialect's rules of presence. Type errors
//! are best shown with `serde_path_to_error`, which knows the path of the offending field; texts here are written for that.
#![forbid(unsafe_code)]

pub mod kserve;
mod object;
pub mod openai;
pub mod sse;
pub mod tgi;
pub mod vertex;

pub use object::Object;
