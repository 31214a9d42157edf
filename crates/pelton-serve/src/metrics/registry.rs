//! Counters and histograms of one server, and the text of `/metrics`.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pelton_engine::EngineGauges;

use super::histogram::Histogram;
use super::{Outcome, RequestRecord, tgi, vllm};
use crate::Limits;

/// Everything counted outside the engine. Counters only grow.
#[derive(Default)]
pub(crate) struct Counters {
    /// Requests taken up, refused ones included.
    pub(crate) requests: AtomicU64,
    /// Prompt tokens of requests whose prompt was computed.
    pub(crate) prompt_tokens: AtomicU64,
    /// Tokens passed on to clients, as they come.
    pub(crate) generated_tokens: AtomicU64,
    /// Requests by [`Outcome`].
    pub(crate) stopped: AtomicU64,
    pub(crate) reached_length: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) failed: AtomicU64,
    /// Refusals before anything was generated.
    pub(crate) overloaded: AtomicU64,
    pub(crate) invalid: AtomicU64,
    pub(crate) bad_template: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, amount: u32) {
        counter.fetch_add(u64::from(amount), Relaxed);
    }
}

/// A histogram over requests: its name and what it reads from a record.
pub(crate) struct Series {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) value: fn(&RequestRecord) -> Option<f64>,
    pub(crate) histogram: Histogram,
}

/// Counters and histograms of one server.
pub(crate) struct Metrics {
    pub(crate) counters: Counters,
    /// Gaps between events of one choice, in seconds.
    pub(crate) token_gaps: Histogram,
    tgi: Vec<Series>,
    vllm: Vec<Series>,
    /// `model_name="...",engine="0"`, escaped.
    vllm_labels: String,
    cache: CacheShape,
}

/// Sizes that the cache info series shows.
#[derive(Clone, Copy)]
pub(crate) struct CacheShape {
    pub(crate) block_tokens: u32,
    pub(crate) num_blocks: u32,
}

impl Metrics {
    pub(crate) fn new(model_name: &str, limits: &Limits, cache: CacheShape) -> Self {
        let model_name = model_name.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        Self {
            counters: Counters::default(),
            token_gaps: Histogram::new(vllm::TOKEN_GAP_BOUNDS),
            tgi: tgi::series(limits),
            vllm: vllm::series(limits),
            vllm_labels: format!("model_name=\"{model_name}\",engine=\"0\""),
            cache,
        }
    }

    /// Counts an ended request. Latencies are those of requests that ended well.
    pub(crate) fn observe(&self, record: &RequestRecord) {
        let counter = match record.outcome {
            Outcome::Stop => &self.counters.stopped,
            Outcome::Length => &self.counters.reached_length,
            Outcome::Cancelled => &self.counters.cancelled,
            Outcome::Failed => &self.counters.failed,
        };
        counter.fetch_add(1, Relaxed);
        if record.is_success() {
            for series in self.tgi.iter().chain(&self.vllm) {
                if let Some(value) = (series.value)(record) {
                    series.histogram.observe(value);
                }
            }
        }
    }

    /// The text of `/metrics`.
    pub(crate) fn render(&self, gauges: &EngineGauges) -> String {
        let mut out = String::with_capacity(64 << 10);
        tgi::render(&self.counters, gauges, self.cache, &mut out);
        for series in &self.tgi {
            histogram(series.name, series.help, "", &series.histogram, &mut out);
        }
        vllm::render(&self.counters, gauges, self.cache, &self.vllm_labels, &mut out);
        for series in &self.vllm {
            histogram(series.name, series.help, &self.vllm_labels, &series.histogram, &mut out);
        }
        for name in vllm::TOKEN_GAP_NAMES {
            histogram(name, "Gap between the tokens of a choice.", &self.vllm_labels, &self.token_gaps, &mut out);
        }
        out
    }
}

fn histogram(name: &str, help: &str, labels: &str, histogram: &Histogram, out: &mut String) {
    header(name, help, "histogram", out);
    histogram.render(name, labels, out);
}

/// `# HELP` and `# TYPE`.
pub(crate) fn header(name: &str, help: &str, kind: &str, out: &mut String) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// One sample; `labels` is empty or `a="b"`.
pub(crate) fn sample(name: &str, labels: &str, value: impl std::fmt::Display, out: &mut String) {
    let _ = match labels {
        "" => writeln!(out, "{name} {value}"),
        labels => writeln!(out, "{name}{{{labels}}} {value}"),
    };
}
