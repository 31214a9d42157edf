//! Traces: when requests came to some server, and how long they and their answers were.
//!
//! Two forms are read. **JSON lines**: `{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}` (Mooncake:
//! the time in milliseconds, one id for each 512 tokens of the prompt; equal ids mean equal text) or
//! `{"timestamp": 27.482, "input_tokens": 6955, "output_tokens": 52}` (the time in seconds). **CSV with a head**: a column of times
//! (seconds, or dates as in the Azure traces), one of prompt tokens, one of answer tokens, under the names in use ([`TIMES`], [`INPUTS`],
//! [`OUTPUTS`]). Lines without tokens in prompt or answer (failed requests in BurstGPT) are left out.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use crate::BenchError;
use crate::plan::{MAX_REQUESTS, MAX_TOKENS};

/// Tokens that one id of a trace stands for.
pub const BLOCK_TOKENS: u32 = 512;

/// Longest line.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Most ids of a whole trace.
const MAX_IDS: usize = 16 << 20;

/// Names of the column of times.
const TIMES: [&str; 4] = ["timestamp", "arrived_at", "arrival_time", "time"];

/// Names of the column of prompt tokens.
const INPUTS: [&str; 6] =
    ["input_length", "input_tokens", "contexttokens", "request tokens", "num_prefill_tokens", "prompt_tokens"];

/// Names of the column of answer tokens.
const OUTPUTS: [&str; 6] =
    ["output_length", "output_tokens", "generatedtokens", "response tokens", "num_decode_tokens", "generated_tokens"];

/// One request of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceEntry {
    /// After the first request.
    pub at: Duration,
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// Tokens of the answer.
    pub output_tokens: u32,
    /// What the prompt consists of, one id for each [`BLOCK_TOKENS`] tokens; empty if the trace does not say.
    pub hash_ids: Vec<u64>,
}

/// Reads a trace, in order of time.
///
/// # Errors
/// [`BenchError::Plan`] with the line that is no request.
pub fn read(path: &Path) -> Result<Vec<TraceEntry>, BenchError> {
    let bad = |why: String| BenchError::Plan(format!("trace {}: {why}", path.display()));
    let mut reader = BufReader::new(File::open(path).map_err(|error| bad(error.to_string()))?);
    let mut entries: Vec<(f64, TraceEntry)> = Vec::new();
    let mut columns = None;
    let (mut line, mut n, mut num_ids) = (String::new(), 0, 0);
    loop {
        line.clear();
        n += 1;
        let bad = |why: String| bad(format!("line {n}: {why}"));
        let read = reader.by_ref().take(MAX_LINE_BYTES).read_line(&mut line).map_err(|error| bad(error.to_string()))?;
        if read as u64 == MAX_LINE_BYTES {
            return Err(bad(format!("longer than {MAX_LINE_BYTES} bytes")));
        }
        let text = line.trim();
        if read == 0 {
            break;
        }
        if text.is_empty() {
            continue;
        }
        let entry = if text.starts_with('{') {
            json(text)
        } else {
            match &columns {
                Some(columns) => csv(text, columns),
                None => {
                    columns = Some(Columns::find(text).map_err(bad)?);
                    continue;
                }
            }
        };
        let (at_s, entry) = entry.map_err(bad)?;
        if entry.input_tokens > MAX_TOKENS || entry.output_tokens > MAX_TOKENS {
            return Err(bad(format!("more than {MAX_TOKENS} tokens")));
        }
        num_ids += entry.hash_ids.len();
        if entries.len() as u64 == MAX_REQUESTS || num_ids > MAX_IDS {
            return Err(bad(format!("more than {MAX_REQUESTS} requests or {MAX_IDS} ids: cut the file")));
        }
        if entry.input_tokens > 0 && entry.output_tokens > 0 {
            entries.push((at_s, entry));
        }
    }
    entries.sort_by(|one, other| one.0.total_cmp(&other.0));
    let Some(first) = entries.first().map(|entry| entry.0) else { return Err(bad("has no request".to_owned())) };
    let after = |at_s: f64| Duration::try_from_secs_f64(at_s - first).map_err(|error| bad(error.to_string()));
    entries.into_iter().map(|(at_s, entry)| Ok(TraceEntry { at: after(at_s)?, ..entry })).collect()
}

/// One line of JSON, and its time in seconds.
fn json(text: &str) -> Result<(f64, TraceEntry), String> {
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
    let line: Line = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let (at_s, input_tokens, output_tokens) = match line {
        Line { input_length: Some(input), output_length: Some(output), .. } => (line.timestamp / 1e3, input, output),
        Line { input_tokens: Some(input), output_tokens: Some(output), .. } => (line.timestamp, input, output),
        _ => return Err("neither input_length and output_length nor input_tokens and output_tokens".to_owned()),
    };
    Ok((at_s, TraceEntry { at: Duration::ZERO, input_tokens, output_tokens, hash_ids: line.hash_ids }))
}

/// Where the numbers stand.
struct Columns {
    time: usize,
    input: usize,
    output: usize,
}

impl Columns {
    fn find(head: &str) -> Result<Self, String> {
        let names: Vec<String> = head.split(',').map(|name| name.trim().to_ascii_lowercase()).collect();
        let find = |what: &str, known: &[&str]| {
            let at = names.iter().position(|name| known.contains(&name.as_str()));
            at.ok_or_else(|| format!("neither JSON nor a head with a column of {what}: one of {}", known.join(", ")))
        };
        Ok(Self {
            time: find("times", &TIMES)?,
            input: find("prompt tokens", &INPUTS)?,
            output: find("answer tokens", &OUTPUTS)?,
        })
    }
}

/// One line of CSV, and its time in seconds.
fn csv(text: &str, columns: &Columns) -> Result<(f64, TraceEntry), String> {
    let cells: Vec<&str> = text.split(',').map(str::trim).collect();
    let cell = |at: usize| cells.get(at).copied().ok_or_else(|| format!("has {} columns", cells.len()));
    let tokens = |at: usize| {
        let text = cell(at)?;
        // Some tools write whole numbers as 17.0.
        text.parse::<f64>()
            .ok()
            .filter(|n| n.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(n))
            .map(|n| n as u32)
            .ok_or_else(|| format!("{text:?} is no number of tokens"))
    };
    let time = cell(columns.time)?;
    let at_s = time.parse().ok().filter(|at: &f64| at.is_finite()).or_else(|| date(time));
    let entry = TraceEntry {
        at: Duration::ZERO,
        input_tokens: tokens(columns.input)?,
        output_tokens: tokens(columns.output)?,
        hash_ids: Vec::new(),
    };
    Ok((at_s.ok_or_else(|| format!("{time:?} is neither seconds nor a date"))?, entry))
}

/// Seconds of `2023-11-16 18:15:46.6805900` since 1970; a `T` may stand between, `Z` or `+00:00` behind.
pub fn date(text: &str) -> Option<f64> {
    let text = text.trim_end_matches('Z').trim_end_matches("+00:00");
    let (day, time) = text.split_once([' ', 'T'])?;
    let [year, month, day] = three(day, '-')?;
    let [hours, minutes, seconds] = three(time, ':')?;
    // Days since 1970-03-01 counted in years that begin in March, where leap days are last (Hinnant, "chrono-compatible low-level
    // date algorithms").
    let year = if month <= 2.0 { year - 1.0 } else { year };
    let day_of_year = ((153.0 * ((month + 9.0) % 12.0) + 2.0) / 5.0).floor() + day - 1.0;
    let days = 365.0 * year + (year / 4.0).floor() - (year / 100.0).floor() + (year / 400.0).floor() + day_of_year;
    Some((days - 719_468.0) * 86_400.0 + hours * 3600.0 + minutes * 60.0 + seconds)
}

fn three(text: &str, separator: char) -> Option<[f64; 3]> {
    let mut parts = text.split(separator).map(|part| part.parse().ok().filter(|n: &f64| n.is_finite()));
    let numbers = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(name: &str, text: &str) -> Result<Vec<TraceEntry>, BenchError> {
        let path = std::env::temp_dir().join(format!("pelton-trace-{}-{name}", std::process::id()));
        std::fs::write(&path, text).expect("can be written");
        let read = read(&path);
        std::fs::remove_file(&path).expect("was written");
        read
    }

    fn entry(ms: u64, input_tokens: u32, output_tokens: u32, hash_ids: &[u64]) -> TraceEntry {
        TraceEntry { at: Duration::from_millis(ms), input_tokens, output_tokens, hash_ids: hash_ids.to_vec() }
    }

    #[test]
    fn json_lines_are_sorted_and_counted_from_the_first() {
        let text = r#"{"timestamp": 5000, "input_length": 600, "output_length": 3, "hash_ids": [1, 7]}
            {"timestamp": 3.0, "input_tokens": 10, "output_tokens": 4}

            {"timestamp": 3500, "input_length": 10, "output_length": 0}"#;
        let read = written("json", text).expect("a trace");
        assert_eq!(read, [entry(0, 10, 4, &[]), entry(2000, 600, 3, &[1, 7])]);
    }

    #[test]
    fn the_columns_of_known_traces_are_found() {
        let azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.6805900,396,109\n";
        assert_eq!(written("azure", azure).expect("a trace"), [entry(0, 374, 44, &[]), entry(4000, 396, 109, &[])]);
        let burst = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n\
                     5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,0,1317,Conversation log\n";
        assert_eq!(written("burst", burst).expect("a trace"), [entry(0, 472, 18, &[])]);
    }

    #[test]
    fn dates_are_seconds() {
        assert_eq!(date("1970-01-01 00:00:00"), Some(0.0));
        assert_eq!(date("2024-02-29T12:30:01.5Z"), Some(1_709_209_801.5));
        assert_eq!(date("2000-03-01 00:00:00"), Some(951_868_800.0));
        assert_eq!(date("yesterday"), None);
    }

    #[test]
    fn a_bad_line_is_named() {
        for (name, text, expected) in [
            ("a", "{\"timestamp\": 1, \"input_length\": 5, \"output_length\": 5}\n{\"timestamp\": 2}", "line 2"),
            ("b", "time,input\n", "column of prompt tokens"),
            ("c", "time,input_length,output_length\nx,1,1\n", "line 2: \"x\" is neither"),
            ("d", "time,input_length,output_length\n1,1.5,1\n", "\"1.5\" is no number of tokens"),
            ("e", "", "no request"),
        ] {
            let error = written(name, text).expect_err("bad").to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
