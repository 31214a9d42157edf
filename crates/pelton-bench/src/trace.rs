//! Recorded traces: when requests came, and how long they were. JSON lines of two layouts, which may be mixed.
//!
//! - Mooncake: `{"timestamp": 1500, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2]}`. The time is in milliseconds; each
//!   hash id names a block of [`BLOCK_TOKENS`] prompt tokens, and equal ids are equal text.
//! - Plain: `{"timestamp": 1.5, "input_tokens": 6758, "output_tokens": 500}`. The time is in seconds.
//!
//! Other members are ignored. Times count from the earliest; lines need not be in order.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use crate::BenchError;
use crate::plan::MAX_REQUESTS;

/// Prompt tokens of one block that a hash id names (the last block of a prompt may be shorter).
pub const BLOCK_TOKENS: u32 = 512;

/// Requests in order of time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// At least one, at most [`MAX_REQUESTS`].
    pub requests: Vec<TraceRequest>,
}

/// One recorded request.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceRequest {
    /// After the first request.
    pub at: Duration,
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// Tokens of the answer.
    pub output_tokens: u32,
    /// Names of the prompt's blocks; empty where the trace has none.
    pub hash_ids: Vec<u64>,
}

#[derive(Deserialize)]
struct Line {
    timestamp: f64,
    input_length: Option<u32>,
    output_length: Option<u32>,
    input_tokens: Option<u32>,
    output_tokens: Option<u32>,
    #[serde(default)]
    hash_ids: Vec<u64>,
}

impl Trace {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, BenchError> {
        let refuse = |text: String| BenchError::Plan(format!("trace {}: {text}", path.display()));
        let file = std::fs::File::open(path).map_err(|error| refuse(error.to_string()))?;
        Self::read(BufReader::new(file)).map_err(refuse)
    }

    /// Reads lines. Errors name the line.
    pub fn read(lines: impl BufRead) -> Result<Self, String> {
        let mut timed = Vec::new();
        for (index, line) in lines.lines().enumerate() {
            let refuse = |text: String| format!("line {}: {text}", index + 1);
            let line = line.map_err(|error| refuse(error.to_string()))?;
            if line.trim().is_empty() {
                continue;
            }
            let line: Line = serde_json::from_str(&line).map_err(|error| refuse(error.to_string()))?;
            timed.push(line.request().map_err(refuse)?);
            if timed.len() as u64 > MAX_REQUESTS {
                return Err(format!("requests must be at most {MAX_REQUESTS}"));
            }
        }
        timed.sort_by(|a, b| a.0.total_cmp(&b.0));
        let first = timed.first().ok_or("there is no request")?.0;
        let requests = timed.into_iter().map(|(at_s, request)| {
            let at = Duration::try_from_secs_f64(at_s - first).map_err(|_| format!("timestamp {at_s} s is too far"))?;
            Ok(TraceRequest { at, ..request })
        });
        Ok(Self { requests: requests.collect::<Result<_, String>>()? })
    }
}

impl Line {
    /// Its time in seconds, and the request without it.
    fn request(self) -> Result<(f64, TraceRequest), String> {
        let (at_s, input, output) = match (self.input_length, self.input_tokens) {
            (Some(input), _) => (self.timestamp / 1000.0, input, self.output_length),
            (None, Some(input)) => (self.timestamp, input, self.output_tokens),
            (None, None) => return Err("neither input_length nor input_tokens".to_owned()),
        };
        let output = output.ok_or("the answer's length is missing")?;
        if !at_s.is_finite() || input == 0 || output == 0 {
            return Err(format!("timestamp {}, prompt of {input} and answer of {output} tokens", self.timestamp));
        }
        let request =
            TraceRequest { at: Duration::ZERO, input_tokens: input, output_tokens: output, hash_ids: self.hash_ids };
        Ok((at_s, request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_are_read_and_put_in_order() {
        let text = r#"{"timestamp": 3000, "input_length": 600, "output_length": 5, "hash_ids": [7, 8]}

{"timestamp": 1.5, "input_tokens": 10, "output_tokens": 2, "model": "x"}
"#;
        let request = |ms, input_tokens, output_tokens, hash_ids: &[u64]| TraceRequest {
            at: Duration::from_millis(ms),
            input_tokens,
            output_tokens,
            hash_ids: hash_ids.to_vec(),
        };
        let trace = Trace::read(text.as_bytes()).expect("a trace");
        assert_eq!(trace.requests, [request(0, 10, 2, &[]), request(1500, 600, 5, &[7, 8])]);
    }

    #[test]
    fn what_is_no_trace_is_refused_with_its_line() {
        let refused = [
            ("", "there is no request"),
            ("{\"timestamp\": 0}\n", "line 1: neither input_length"),
            ("\n{oops\n", "line 2: "),
            (r#"{"timestamp": 0, "input_tokens": 5}"#, "line 1: the answer's length is missing"),
            (r#"{"timestamp": 0, "input_tokens": 0, "output_tokens": 1}"#, "prompt of 0"),
        ];
        for (text, words) in refused {
            let error = Trace::read(text.as_bytes()).expect_err(text);
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }
}
