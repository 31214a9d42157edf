//! One file per subcommand; each joins the other crates and computes nothing.

pub mod bench;
pub mod serve;
