//! Flags that divide a test among processes, and say what is kept of it.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use pelton_bench::{KeepRows, Scale, Shard, unix_time};

#[derive(Debug, Args)]
#[command(next_help_heading = "Scale")]
pub struct ScaleArgs {
    /// Do share I (from 0) of N of the load, so that N processes, each with the same flags and another I, make the whole: users and
    /// requests are divided, start times dealt out in turn, prompts are others in each. Needs --seed, and for runs that shall
    /// overlap --start-at. `pelton bench merge` joins the results.
    #[arg(long, value_name = "I/N", requires = "seed", requires = "output")]
    pub shard: Option<Shard>,

    /// When the first run begins: seconds since 1970, or a UTC time such as 2026-01-31T12:00:00Z. Everything before it (finding the
    /// server, making prompts) is done meanwhile.
    #[arg(long, value_name = "TIME", value_parser = start_at)]
    pub start_at: Option<f64>,

    /// Which requests' rows are stored. Histograms of the latencies take the place of those left out, and are what merge adds up;
    /// quantiles are then within 0.1 %. A million answers of 100 tokens are some gigabytes of rows, and a megabyte of histograms.
    #[arg(long, value_enum, default_value = "all")]
    pub rows: RowsArg,
}

/// See [`KeepRows`].
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum RowsArg {
    /// Of all requests
    All,
    /// Of failed requests
    Failed,
    /// Of none
    None,
}

impl ScaleArgs {
    pub fn scale(&self) -> Scale {
        let keep = match self.rows {
            RowsArg::All => KeepRows::All,
            RowsArg::Failed => KeepRows::Failed,
            RowsArg::None => KeepRows::None,
        };
        Scale { shard: self.shard, start_at_unix_s: self.start_at, keep }
    }
}

fn start_at(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .or_else(|| unix_time(text))
        .ok_or_else(|| format!("{text:?} is neither seconds since 1970 nor a UTC time such as 2026-01-31T12:00:00Z"))
}

/// Joins the results of processes that shared one test (--shard) into one file of results.
///
/// All shares of one test must be there, once each, of the same plan and seed. Rows get new numbers and one clock, the one of the share
/// that began first; the clocks of the machines must agree. Summaries, verdicts and intervals are computed again.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// Results written with --output.
    #[arg(required = true, value_name = "RESULTS")]
    pub parts: Vec<PathBuf>,

    /// File for the joined results.
    #[arg(long, short, value_name = "FILE")]
    pub output: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_times_are_unix_or_utc() {
        assert_eq!(start_at("1700000000.5"), Ok(1_700_000_000.5));
        assert_eq!(start_at("2024-02-29T12:30:01Z"), Ok(1_709_209_801.0));
        assert!(start_at("noon").is_err());
    }
}
