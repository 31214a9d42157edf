//! How a test is divided among several processes, and what of it is kept.

use serde::{Deserialize, Serialize};

/// Most processes that share one test.
pub const MAX_SHARDS: u32 = 10_000;

/// What one process does of a test, and what it keeps. The default is all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scale {
    /// This process's share of the load.
    pub shard: Option<Shard>,
    /// Seconds since 1970-01-01 UTC at which the first run begins; `None` begins at once.
    pub start_at_unix_s: Option<f64>,
    /// Which rows are kept.
    pub keep: KeepRows,
}

/// Share number `index` of `of` equal shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// From 0.
    pub index: u32,
    /// How many there are.
    pub of: u32,
}

/// Which rows are stored with the results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeepRows {
    /// Every request's.
    #[default]
    All,
    /// Those of failed requests; histograms hold the latencies of the others.
    Failed,
    /// None; histograms hold the latencies.
    None,
}

impl Scale {
    /// Says what no test can have.
    pub(super) fn check(&self) -> Result<(), String> {
        if let Some(Shard { index, of }) = self.shard
            && (of == 0 || of > MAX_SHARDS || index >= of)
        {
            return Err(format!("shard must be I/N with I below N and N in 1..={MAX_SHARDS}, given {index}/{of}"));
        }
        match self.start_at_unix_s {
            Some(at) if !at.is_finite() || at < 0.0 => Err(format!("start time must be a unix time, given {at}")),
            _ => Ok(()),
        }
    }
}

impl Shard {
    /// All of a test.
    pub const WHOLE: Shard = Shard { index: 0, of: 1 };
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

impl std::str::FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not I/N, such as 0/4");
        let (index, of) = text.split_once('/').ok_or_else(bad)?;
        Ok(Self { index: index.parse().map_err(|_| bad())?, of: of.parse().map_err(|_| bad())? })
    }
}
