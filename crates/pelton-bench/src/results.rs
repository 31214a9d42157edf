//! What a load test leaves behind: rows and summaries, with everything that is needed to repeat it. Stored as JSON and read back.

use std::io::{Read, Write};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::machine::Machine;
use crate::plan::{Api, BenchPlan, Case, KeepRows, Provider};
use crate::recorder::Row;
use crate::scrape::ServerMetrics;
use crate::search::Search;
use crate::slo::Verdict;
use crate::stats::{CaseEstimates, Histograms, Summary};

/// Version of the stored form; another one is refused when read.
pub const FORMAT: u32 = 2;

/// A whole load test.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// See [`FORMAT`].
    pub format: u32,
    /// Version of pelton that measured.
    pub pelton_version: String,
    /// The command as typed; secrets replaced by the caller.
    pub command: Vec<String>,
    /// Seconds since 1970-01-01 UTC at the first run's beginning.
    pub began_unix_s: u64,
    /// The machine that measured.
    pub machine: Machine,
    /// What was asked for.
    pub plan: BenchPlan,
    /// The measured server.
    pub server: Server,
    /// How prompts were made.
    pub prompts: PromptMaking,
    /// One for each case, and each repetition of it.
    pub runs: Vec<RunResult>,
    /// What a search found, if one was asked for.
    pub search: Option<Search>,
    /// What repetitions of each case say together.
    #[serde(default)]
    pub estimates: Vec<CaseEstimates>,
}

/// What the server said of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Server {
    /// The dialect spoken.
    pub api: Api,
    /// The program that serves, as named or as found by asking; `None` if it cannot be told.
    pub provider: Option<Provider>,
    /// The model's name in requests; empty for TGI.
    pub model: String,
    /// `/info`, or `/v1/info` of happy_vllm, or else `/v1/models`, as answered; for KServe `server` (`/v2`) and `model` (`/v2/models/M`).
    pub info: Value,
    /// `/v1/launch_arguments` of happy_vllm and servers like it; null elsewhere.
    #[serde(default)]
    pub launch_arguments: Value,
    /// Whether the server was asked to go on after the end of text.
    pub ignores_end_of_text: bool,
}

impl Server {
    /// The model's name: as in requests, or as the server tells it.
    pub fn name(&self) -> &str {
        let told = || self.info.get("model_id").and_then(Value::as_str).unwrap_or_default();
        if self.model.is_empty() { told() } else { &self.model }
    }
}

/// How the number of prompt tokens was made right.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PromptMaking {
    /// What counted tokens.
    pub counted_by: TokenSource,
    /// Tokens that the server adds to each prompt, as a request before the run showed.
    pub overhead: i64,
    /// Share of prompt tokens that a prefix cache without limits is expected to find once it is warm, 0 to 1.
    pub expected_hit_share: f64,
    /// Where prompts come from and what was left out, for the reader.
    pub notes: Vec<String>,
}

/// What counts the tokens of a prompt before the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenSource {
    /// A tokenizer file.
    Tokenizer,
    /// The server's `/tokenize`.
    Server,
    /// The server's reports of prompts it was sent before the run.
    Usage,
    /// Nothing: each word is taken for one token, four bytes of other texts.
    Guess,
}

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunResult {
    /// The load.
    pub case: Case,
    /// Which repetition of the case, from 0.
    pub repeat: u32,
    /// Seconds since 1970-01-01 UTC at the beginning, to lay runs and other records beside each other.
    pub began_unix_s: f64,
    /// Length of the run in seconds.
    pub wall_s: f64,
    /// Whether the user ended it early.
    pub is_interrupted: bool,
    /// What it showed.
    pub summary: Summary,
    /// How it stands to each target of the plan.
    #[serde(default)]
    pub verdicts: Vec<Verdict>,
    /// Histograms of its latencies, if rows were left out.
    pub histograms: Option<Histograms>,
    /// The server's own metrics meanwhile, if it has any.
    pub server_metrics: Option<ServerMetrics>,
    /// Intended starts that were dropped, in microseconds after the beginning of the run.
    pub dropped_us: Vec<u64>,
    /// Every started request.
    pub rows: Vec<Row>,
}

impl RunResult {
    /// Leaves out rows that shall not be kept; histograms take their place.
    pub(crate) fn keep(&mut self, keep: KeepRows) -> Result<(), String> {
        if keep == KeepRows::All {
            return Ok(());
        }
        self.histograms = Some(Histograms::of(self)?);
        self.rows.retain(|row| keep == KeepRows::Failed && row.failure.is_some());
        self.rows.shrink_to_fit();
        Ok(())
    }
}

/// Why stored results cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Not JSON, or not these results.
    #[error("not results of a load test: {0}")]
    Json(#[from] serde_json::Error),
    /// Written by another version.
    #[error(
        "results have format {found}, this pelton reads format {FORMAT}: measure again, or use the pelton that wrote them ({by})"
    )]
    Format {
        /// As stored; 1 before it was stored.
        found: u64,
        /// Version that wrote them.
        by: String,
    },
}

/// What every stored form has.
#[derive(Deserialize)]
struct Head {
    #[serde(default = "first_format")]
    format: u64,
    pelton_version: String,
}

/// It was not written then.
fn first_format() -> u64 {
    1
}

impl Results {
    /// Writes everything as one JSON object.
    pub fn write_json(&self, mut out: impl Write) -> Result<(), serde_json::Error> {
        serde_json::to_writer(&mut out, self)?;
        out.write_all(b"\n").and_then(|()| out.flush()).map_err(serde_json::Error::io)
    }

    /// Reads what [`write_json`](Self::write_json) wrote.
    pub fn read_json(mut from: impl Read) -> Result<Self, ReadError> {
        let mut text = String::new();
        from.read_to_string(&mut text).map_err(serde_json::Error::io)?;
        let read = serde_json::from_str(&text);
        if let Ok(Self { format: FORMAT, .. }) = read {
            return read.map_err(ReadError::Json);
        }
        // Another format may be unreadable, or readable and mean something else.
        match serde_json::from_str::<Head>(&text) {
            Ok(head) if head.format != u64::from(FORMAT) => {
                Err(ReadError::Format { found: head.format, by: head.pelton_version })
            }
            _ => read.map_err(ReadError::Json),
        }
    }

    /// Whether the user ended it early.
    pub fn is_interrupted(&self) -> bool {
        self.runs.iter().any(|run| run.is_interrupted)
    }

    /// Whether at least one measured request of each run has a complete answer.
    pub fn has_results(&self) -> bool {
        !self.runs.is_empty() && self.runs.iter().all(|run| run.summary.requests.complete > 0)
    }
}
