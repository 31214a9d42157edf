//! Flags of `pelton kernels`.

use std::time::Duration;

use clap::Args;

use super::compute::ComputeArgs;
use super::duration::duration;

#[derive(Debug, Args)]
pub struct KernelsArgs {
    /// Print JSON instead of the table: the same figures, in bytes, operations and seconds.
    #[arg(long)]
    pub json: bool,

    /// Small sizes, which sit in caches, in about two seconds: shows that everything works; the shares mean little.
    #[arg(long)]
    pub quick: bool,

    /// Time for all rounds of measuring. More time steadies the medians. The first round is finished whatever it takes; making the
    /// weights comes before. Default: 15s, with --quick 1s.
    #[arg(long, value_parser = duration)]
    pub duration: Option<Duration>,

    #[command(flatten)]
    pub compute: ComputeArgs,
}
