//! Every number by name: its unit, its formula, and where it stands in a summary.

use serde::{Deserialize, Serialize};

use crate::results::RunResult;
use crate::stats::{Distribution, Summary, of_requests};

/// One number, or one kind of number, of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Time to first token.
    Ttft,
    /// Inter-token latency.
    Itl,
    /// Gap between chunks.
    ChunkGap,
    /// Time per output token.
    Tpot,
    /// End-to-end latency.
    E2e,
    /// Time to first token from the real start.
    ServiceTtft,
    /// End-to-end latency from the real start.
    ServiceE2e,
    /// Real minus intended start.
    Lateness,
    /// Tokens of an answer.
    OutputTokens,
    /// Complete answers per second.
    RequestsPerSecond,
    /// Tokens that arrived per second.
    OutputTokensPerSecond,
    /// Prompt tokens read per second.
    InputTokensPerSecond,
    /// Mean number of running requests.
    Concurrency,
    /// Share of failed requests.
    ErrorRate,
    /// Share of starts that were dropped.
    DropRate,
    /// Answers per second that met every target.
    Goodput,
    /// Share of requests that met every target.
    Attainment,
}

impl Metric {
    /// All of them, in the order of reports.
    pub const ALL: [Metric; 17] = [
        Metric::Ttft,
        Metric::Itl,
        Metric::ChunkGap,
        Metric::Tpot,
        Metric::E2e,
        Metric::ServiceTtft,
        Metric::ServiceE2e,
        Metric::Lateness,
        Metric::OutputTokens,
        Metric::RequestsPerSecond,
        Metric::OutputTokensPerSecond,
        Metric::InputTokensPerSecond,
        Metric::Concurrency,
        Metric::ErrorRate,
        Metric::DropRate,
        Metric::Goodput,
        Metric::Attainment,
    ];

    /// The name typed for it.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Ttft => "ttft",
            Metric::Itl => "itl",
            Metric::ChunkGap => "chunk-gap",
            Metric::Tpot => "tpot",
            Metric::E2e => "e2e",
            Metric::ServiceTtft => "service-ttft",
            Metric::ServiceE2e => "service-e2e",
            Metric::Lateness => "lateness",
            Metric::OutputTokens => "output-tokens",
            Metric::RequestsPerSecond => "requests-per-second",
            Metric::OutputTokensPerSecond => "output-tokens-per-second",
            Metric::InputTokensPerSecond => "input-tokens-per-second",
            Metric::Concurrency => "concurrency",
            Metric::ErrorRate => "error-rate",
            Metric::DropRate => "drop-rate",
            Metric::Goodput => "goodput",
            Metric::Attainment => "attainment",
        }
    }

    /// The name read in reports.
    pub fn title(self) -> &'static str {
        match self {
            Metric::Ttft => "time to first token",
            Metric::Itl => "inter-token latency",
            Metric::ChunkGap => "chunk gap",
            Metric::Tpot => "time per output token",
            Metric::E2e => "end to end",
            Metric::ServiceTtft => "service: first token",
            Metric::ServiceE2e => "service: end to end",
            Metric::Lateness => "lateness of starts",
            Metric::OutputTokens => "tokens of an answer",
            Metric::RequestsPerSecond => "requests per second",
            Metric::OutputTokensPerSecond => "output tokens per second",
            Metric::InputTokensPerSecond => "input tokens per second",
            Metric::Concurrency => "requests running",
            Metric::ErrorRate => "failed",
            Metric::DropRate => "dropped",
            Metric::Goodput => "requests per second that met the targets",
            Metric::Attainment => "requests that met the targets",
        }
    }

    /// The unit; empty for pure numbers. Shares are 0 to 1.
    pub fn unit(self) -> &'static str {
        match self {
            Metric::Ttft
            | Metric::Itl
            | Metric::ChunkGap
            | Metric::Tpot
            | Metric::E2e
            | Metric::ServiceTtft
            | Metric::ServiceE2e
            | Metric::Lateness => "ms",
            Metric::OutputTokens => "tokens",
            Metric::RequestsPerSecond | Metric::Goodput => "requests/s",
            Metric::OutputTokensPerSecond | Metric::InputTokensPerSecond => "tokens/s",
            Metric::Concurrency => "requests",
            Metric::ErrorRate | Metric::DropRate | Metric::Attainment => "",
        }
    }

    /// How it is computed, in full.
    pub fn formula(self) -> &'static str {
        match self {
            Metric::Ttft => {
                "arrival of the first chunk that holds text or tokens - intended start; one value for each measured request with a complete \
                 streamed answer. Role-only and empty chunks do not count. In a closed loop the intended start is the start."
            }
            Metric::Itl => {
                "gaps between tokens of one answer, all answers pooled: a chunk of k tokens that arrives g after the chunk before gives k \
                 gaps of g / k. Tokens of a chunk come from its token ids, from usage, or from a tokenizer."
            }
            Metric::ChunkGap => {
                "gaps between chunks with text as they became readable, all answers pooled; chunks of one read are 0 apart. Equal to the \
                 inter-token latency only where each chunk is one token."
            }
            Metric::Tpot => "(last arrival - first arrival) / (n - 1); one value for each answer with n > 1 tokens.",
            Metric::E2e => {
                "last byte of the answer - intended start; one value for each measured request with a complete answer."
            }
            Metric::ServiceTtft => {
                "as ttft, from the moment at which the request was really sent: hides what waited in the client. Open loop only."
            }
            Metric::ServiceE2e => "as e2e, from the moment at which the request was really sent. Open loop only.",
            Metric::Lateness => {
                "real start - intended start of every measured request: what the client, not the server, added. Open loop only."
            }
            Metric::OutputTokens => "tokens of each complete answer, as the server or a tokenizer counts them.",
            Metric::RequestsPerSecond => "answers that became complete inside the measured window / its length.",
            Metric::OutputTokensPerSecond => {
                "tokens that arrived inside the measured window / its length, whichever request they belong to."
            }
            Metric::InputTokensPerSecond => {
                "prompt tokens of requests whose first token arrived inside the measured window / its length."
            }
            Metric::Concurrency => {
                "sum of the time that requests were under way inside the measured window / its length (Little: rate x mean latency)."
            }
            Metric::ErrorRate => {
                "measured requests without a complete answer / measured requests. They are in no latency."
            }
            Metric::DropRate => {
                "starts that found too many running / all starts due; a conversation is one start. Open loop only."
            }
            Metric::Goodput => {
                "good answers that became complete inside the measured window / its length. An answer is good if it is complete and the \
                 request meets every target that judges requests: by its own value, and for itl and chunk-gap by the target's aggregate \
                 over its own gaps."
            }
            Metric::Attainment => "good measured requests / (measured requests + starts dropped inside the window).",
        }
    }

    /// Whether it has one value for each request or gap; else it has one for the whole run.
    pub fn has_distribution(self) -> bool {
        matches!(
            self,
            Metric::Ttft
                | Metric::Itl
                | Metric::ChunkGap
                | Metric::Tpot
                | Metric::E2e
                | Metric::ServiceTtft
                | Metric::ServiceE2e
                | Metric::Lateness
                | Metric::OutputTokens
        )
    }

    /// Its values in a run, if it has one for each request or gap.
    pub fn distribution(self, summary: &Summary) -> Option<&Distribution> {
        match self {
            Metric::Ttft => summary.ttft_ms.as_ref(),
            Metric::Itl => summary.itl_ms.as_ref(),
            Metric::ChunkGap => summary.chunk_gap_ms.as_ref(),
            Metric::Tpot => summary.tpot_ms.as_ref(),
            Metric::E2e => summary.e2e_ms.as_ref(),
            Metric::ServiceTtft => summary.service_ttft_ms.as_ref(),
            Metric::ServiceE2e => summary.service_e2e_ms.as_ref(),
            Metric::Lateness => summary.lateness_ms.as_ref(),
            Metric::OutputTokens => summary.output_tokens.as_ref(),
            _ => None,
        }
    }

    /// The values behind [`distribution`](Self::distribution), in the order of the rows; none if it has none in this run, or if the run's
    /// rows were not kept.
    pub fn values(self, run: &RunResult) -> Vec<f64> {
        if self.has_distribution() { of_requests(run, self).concat() } else { Vec::new() }
    }

    /// Its value in a run, if it has one for the whole of it.
    pub fn value(self, summary: &Summary) -> Option<f64> {
        let share = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        let requests = &summary.requests;
        match self {
            Metric::RequestsPerSecond => Some(summary.rates.requests_per_s),
            Metric::OutputTokensPerSecond => Some(summary.rates.output_tokens_per_s),
            Metric::InputTokensPerSecond => Some(summary.rates.input_tokens_per_s),
            Metric::Concurrency => Some(summary.rates.concurrency),
            Metric::ErrorRate => share(requests.failed, requests.measured),
            Metric::DropRate => share(requests.dropped, requests.started - requests.follow_ups + requests.dropped),
            Metric::Goodput => Some(summary.goodput.as_ref()?.requests_per_s),
            Metric::Attainment => Some(summary.goodput.as_ref()?.attainment),
            _ => None,
        }
    }
}

impl std::str::FromStr for Metric {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Metric::ALL.into_iter().find(|metric| metric.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Metric::ALL.iter().map(|metric| metric.name()).collect();
            format!("{text:?} is no metric; there are {}", names.join(", "))
        })
    }
}
