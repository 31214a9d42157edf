//! What is read of the server's own metrics meanwhile.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{MAX_DURATION, seconds};

/// Shortest time between two readings: shorter ones would load the server they look at.
pub const MIN_METRICS_INTERVAL: Duration = Duration::from_millis(10);

/// What is read of the server's own metrics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricsPlan {
    /// Where they are.
    pub source: MetricsSource,
    /// Time between two readings.
    #[serde(with = "seconds", rename = "interval_s")]
    pub interval: Duration,
}

/// Where a server's metrics are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MetricsSource {
    /// `/metrics` of the measured server, or port 8002 of a Triton server, if it answers.
    Auto,
    /// At this address.
    Url(String),
    /// They are not read.
    Off,
}

impl Default for MetricsPlan {
    /// Once a second, where they usually are.
    fn default() -> Self {
        Self { source: MetricsSource::Auto, interval: Duration::from_secs(1) }
    }
}

impl MetricsPlan {
    /// Refuses what cannot be meant.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.interval < MIN_METRICS_INTERVAL || self.interval > MAX_DURATION {
            return Err(format!(
                "metrics interval must be in {MIN_METRICS_INTERVAL:?}..={MAX_DURATION:?}, given {:?}",
                self.interval
            ));
        }
        Ok(())
    }
}
