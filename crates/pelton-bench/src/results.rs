//! What a load test leaves behind: rows and summaries, with everything that is needed to repeat it. Stored as JSON and read back.

use std::io::{Read, Write};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::machine::Machine;
use crate::plan::{Api, BenchPlan, Case, Provider};
use crate::recorder::Row;
use crate::scrape::ServerMetrics;
use crate::stats::Summary;

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
    /// `/info`, or else `/v1/models`, as answered; for KServe `server` (`/v2`) and `model` (`/v2/models/M`).
    pub info: Value,
    /// Whether the server was asked to go on after the end of text.
    pub ignores_end_of_text: bool,
}

/// How the number of prompt tokens was made right.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PromptMaking {
    /// What counted tokens.
    pub counted_by: TokenSource,
    /// Tokens that the server adds to each prompt, as a request before the run showed.
    pub overhead: i64,
}

/// What counts the tokens of a prompt before the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenSource {
    /// A tokenizer file.
    Tokenizer,
    /// The server's `/tokenize`.
    Server,
    /// Nothing: each word is taken for one token.
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
    /// What it showed.
    pub summary: Summary,
    /// The server's own metrics meanwhile, if it has any.
    pub server_metrics: Option<ServerMetrics>,
    /// Intended starts that were dropped, in microseconds after the beginning of the run.
    pub dropped_us: Vec<u64>,
    /// Every started request.
    pub rows: Vec<Row>,
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
        serde_json::from_str(&text).map_err(|error| {
            #[derive(Deserialize)]
            struct Head {
                #[serde(default = "first")]
                format: u64,
                pelton_version: String,
            }
            fn first() -> u64 {
                1
            }
            match serde_json::from_str::<Head>(&text) {
                Ok(head) if head.format != u64::from(FORMAT) => {
                    ReadError::Format { found: head.format, by: head.pelton_version }
                }
                _ => ReadError::Json(error),
            }
        })
    }

    /// Whether at least one measured request of each run has a complete answer.
    pub fn has_results(&self) -> bool {
        !self.runs.is_empty() && self.runs.iter().all(|run| run.summary.requests.complete > 0)
    }
}
