//! The server's own metrics, read while it is measured, on the clock of the rows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a server told of itself during one run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerMetrics {
    /// Address of the page.
    pub url: String,
    /// Readings in order of time.
    pub samples: Vec<ServerSample>,
    /// Counters and sums of the whole page just before the run: series as written (`name{label="value"}`) and its value.
    pub before: BTreeMap<String, f64>,
    /// The same just after.
    pub after: BTreeMap<String, f64>,
}

/// One reading, in common terms whatever the server calls them; `None` where it does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerSample {
    /// Microseconds after the beginning of the run.
    pub at_us: u64,
    /// Requests being computed.
    pub running: Option<f64>,
    /// Requests waiting.
    pub waiting: Option<f64>,
    /// Share of the KV cache in use, 0 to 1.
    pub kv_usage: Option<f64>,
    /// Prompt tokens since the server began.
    pub prompt_tokens: Option<f64>,
    /// Generated tokens since the server began.
    pub generated_tokens: Option<f64>,
}
