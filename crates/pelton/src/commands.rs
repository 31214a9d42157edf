//! One file per subcommand; each joins the other crates and computes nothing.

pub mod bench;
mod checkpoint;
mod environment;
pub mod eval;
pub mod kernels;
mod output;
pub mod quantize;
pub mod serve;
