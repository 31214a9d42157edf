//! One request as the suite measures it: seconds, tokens, three speeds.

use pelton_bench::{CountedBy, Row};
use serde_json::{Value, json};

/// More gaps than this make a typical gap.
const MIN_CHUNKS: usize = 10;

/// A complete answer. Times are seconds after its start.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// Tokens of the prompt, as the server counts them where it does.
    pub prompt_length: f64,
    /// Tokens of the answer. The suite counts chunks; the two differ where a chunk holds several tokens.
    pub response_length: f64,
    /// To the end.
    pub total_time: f64,
    /// To the first token.
    pub time_to_first_token: f64,
    /// Median of the gaps between chunks; 0 without any.
    pub median_gap: f64,
    /// Time to first token, and what unusually long gaps lasted beyond the usual: above median + 3 deviations, if there are more than ten chunks.
    pub waiting_time: f64,
}

impl Query {
    /// Of a request with a complete, streamed answer.
    pub fn of(row: &Row) -> Option<Self> {
        let seconds = |us: u32| f64::from(us) / 1e6;
        let first = row.arrivals.first().filter(|_| row.failure.is_none())?;
        let gaps: Vec<f64> = row.arrivals.windows(2).map(|pair| seconds(pair[1].at_us - pair[0].at_us)).collect();
        let time_to_first_token = seconds(first.at_us);
        let limit = median(&gaps) + 3.0 * deviation(&gaps);
        let stalls: f64 = gaps.iter().filter(|gap| **gap > limit).map(|gap| gap - limit).sum();
        Some(Self {
            prompt_length: f64::from(row.prompt_tokens_reported.unwrap_or(row.prompt_tokens)),
            response_length: f64::from(row.output_tokens),
            total_time: seconds(row.end_us),
            time_to_first_token,
            median_gap: median(&gaps),
            waiting_time: time_to_first_token + if row.arrivals.len() > MIN_CHUNKS { stalls } else { 0.0 },
        })
    }

    /// Tokens per second from the start.
    pub fn speed_from_beginning(&self) -> f64 {
        self.response_length / self.total_time
    }

    /// Tokens per second from the first token; none if all came at once.
    pub fn speed_from_first_token(&self) -> Option<f64> {
        let time = self.total_time - self.time_to_first_token;
        (time > 0.0).then(|| self.response_length / time)
    }

    /// Tokens per second without the waiting.
    pub fn speed_without_waiting(&self) -> Option<f64> {
        let time = self.total_time - self.waiting_time;
        (time > 0.0).then(|| self.response_length / time)
    }

    /// With the names of the suite, the prompt's text left out as there.
    pub fn to_json(&self) -> Value {
        json!({
            "prompt": "",
            "prompt_length": self.prompt_length,
            "response_length": self.response_length,
            "total_query_time": self.total_time,
            "time_to_first_token": self.time_to_first_token,
            "completion_time_from_first_token": self.total_time - self.time_to_first_token,
            "median_time_between_tokens": self.median_gap,
            "total_waiting_time": self.waiting_time,
            "speed_from_beginning": self.speed_from_beginning(),
            "speed_from_first_token": self.speed_from_first_token(),
            "speed_without_waiting_time": self.speed_without_waiting(),
        })
    }
}

/// Whether the answers' tokens were really counted.
pub fn counts_tokens(row: &Row) -> bool {
    row.counted_by != CountedBy::Chunks
}

/// The `q` quantile with linear interpolation; 0 of nothing, as the suite has it.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = q * last as f64;
    let low = at.floor() as usize;
    sorted[low] + (sorted[(low + 1).min(last)] - sorted[low]) * (at - low as f64)
}

/// The middle.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// Arithmetic mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// Sample standard deviation; 0 of fewer than two.
fn deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (values.len() - 1) as f64).sqrt()
}
