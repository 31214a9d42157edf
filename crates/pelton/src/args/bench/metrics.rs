//! Flags that say what is read of the server's own metrics.

use std::time::Duration;

use clap::Args;
use pelton_bench::{MetricsPlan, MetricsSource};

use crate::args::duration::duration;

#[derive(Debug, Args)]
#[command(next_help_heading = "Server metrics")]
pub struct MetricsArgs {
    /// The server's page of Prometheus metrics, read while it is measured: running and waiting requests, use of the KV cache,
    /// tokens. Without it /metrics of the server is tried, or port 8002 for Triton; a server that has none is measured all the
    /// same. The names of TGI, vLLM (old and new), SGLang, llama.cpp and Triton are understood.
    #[arg(long, value_name = "URL", conflicts_with = "no_server_metrics")]
    pub server_metrics: Option<String>,

    /// Read no metrics of the server.
    #[arg(long)]
    pub no_server_metrics: bool,

    /// Time between two readings, at least 10ms. Each costs the server the making of a page: some take several milliseconds.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration, conflicts_with = "no_server_metrics")]
    pub metrics_interval: Duration,
}

impl MetricsArgs {
    pub fn plan(self) -> MetricsPlan {
        let source = match (self.no_server_metrics, self.server_metrics) {
            (true, _) => MetricsSource::Off,
            (false, Some(url)) => MetricsSource::Url(url),
            (false, None) => MetricsSource::Auto,
        };
        MetricsPlan { source, interval: self.metrics_interval }
    }
}
