//! What a load test leaves behind: rows and summaries, with everything that is needed to repeat it.

pub mod console;
mod rows;

use serde::Serialize;
use serde_json::Value;

use crate::machine::Machine;
use crate::plan::{Api, BenchPlan, Case};
use crate::recorder::Row;
use crate::stats::Summary;

/// A whole load test.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Version of pelton that measured.
    pub pelton_version: &'static str,
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
    /// One for each number of users, or rate.
    pub runs: Vec<RunReport>,
}

/// What the server said of itself.
#[derive(Debug, Serialize)]
pub struct Server {
    /// The dialect spoken.
    pub api: Api,
    /// The model's name in requests; empty for TGI.
    pub model: String,
    /// `/info`, or else `/v1/models`, as answered.
    pub info: Value,
    /// Whether the server was asked to go on after the end of text.
    pub ignores_end_of_text: bool,
}

/// How the number of prompt tokens was made right.
#[derive(Debug, Serialize)]
pub struct PromptMaking {
    /// What counted tokens.
    pub counted_by: TokenSource,
    /// Tokens that the server adds to each prompt, as a request before the run showed.
    pub overhead: i64,
}

/// What counts the tokens of a prompt before the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
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
#[derive(Debug, Serialize)]
pub struct RunReport {
    /// The load.
    pub case: Case,
    /// Length of the run in seconds.
    pub wall_s: f64,
    /// What it showed.
    pub summary: Summary,
    /// Intended starts that were dropped, in microseconds after the beginning of the run.
    pub dropped_us: Vec<u64>,
    /// Every started request.
    pub rows: Vec<Row>,
}

impl Report {
    /// Writes everything as one JSON object.
    pub fn write_json(&self, out: impl std::io::Write) -> Result<(), serde_json::Error> {
        rows::write(self, out)
    }

    /// Whether at least one measured request of each run has a complete answer.
    pub fn has_results(&self) -> bool {
        !self.runs.is_empty() && self.runs.iter().all(|run| run.summary.requests.complete > 0)
    }
}
