//! Load tests of text-generation servers, over the wire only: it knows no engine.
//!
//! One direction: a [`BenchPlan`] says what; the workload makes prompts and `arrival` the start times; `executor` starts requests when they
//! are due; `client` speaks a dialect and notes when bytes arrived; `recorder` keeps one row for each request; `stats` computes after
//! the run; [`report`] tells. Nothing is computed during a run that can be computed before or after it.
#![forbid(unsafe_code)]

mod arrival;
mod client;
mod executor;
mod machine;
mod plan;
mod progress;
mod recorder;
pub mod report;
mod stats;
mod workload;

use std::path::PathBuf;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

pub use arrival::Arrival;
pub use machine::Machine;
pub use plan::{
    Api, BenchPlan, Case, Limits, Load, MAX_DURATION, MAX_REQUESTS, MAX_USERS, PromptMix, TargetPlan, Warmup,
    WorkloadPlan,
};
pub use recorder::{Arrival as TokenArrival, CountedBy, ErrorKind, Failure, Part, Row};
pub use stats::{ClientCost, Counts, Distribution, ErrorSummary, PromptCheck, Rates, Summary};

use client::probe::Questions;
use client::{Client, Lengthening, Target};
use progress::Progress;
use report::{PromptMaking, Report, RunReport, Server, TokenSource};
use workload::count::{Local, Remote};
use workload::synthetic::{Prompts, Words};

/// Why a load test could not be run. What happens to single requests is in their rows instead.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The plan asks for something impossible.
    #[error("{0}")]
    Plan(String),
    /// Prompts of the wished length cannot be made.
    #[error("{0}")]
    Prompts(String),
    /// The tokenizer cannot be used.
    #[error("tokenizer {}: {source}", path.display())]
    Tokenizer {
        /// As given.
        path: PathBuf,
        /// Why.
        source: pelton_text::TextError,
    },
    /// The server cannot be reached, or refused a question before the run.
    #[error("server: {0}")]
    Server(String),
    /// The server answers neither `/info` nor `/v1/models`.
    #[error("the server tells neither /info (TGI) nor /v1/models (OpenAI): name its dialect with --api")]
    UnknownApi,
    /// OpenAI requests need a model's name, and the server lists none.
    #[error("the server lists no model at /v1/models: name one with --model")]
    NoModel,
    /// The runtime could not begin.
    #[error("runtime cannot be started: {0}")]
    Runtime(std::io::Error),
    /// The clock of the open loop could not begin.
    #[error("thread cannot be started: {0}")]
    Thread(std::io::Error),
}

impl From<Failure> for BenchError {
    fn from(failure: Failure) -> Self {
        BenchError::Server(format!("{}: {}", failure.kind, failure.message))
    }
}

/// Runs a load test on the calling thread. `command` is stored in the report; `show_progress` draws a line on the error stream.
///
/// # Errors
/// Only what prevents the test: an impossible plan, a server that cannot be reached or asked. Requests that fail are rows.
pub fn run(plan: &BenchPlan, command: Vec<String>, show_progress: bool) -> Result<Report, BenchError> {
    plan.check()?;
    let target = Target::resolve(&plan.target)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(BenchError::Runtime)?;
    tokio::task::LocalSet::new().block_on(&runtime, measure(plan, target, command, show_progress))
}

async fn measure(
    plan: &BenchPlan,
    target: Target,
    command: Vec<String>,
    show_progress: bool,
) -> Result<Report, BenchError> {
    let mut questions = Questions::new(target.clone(), plan.target.timeout);
    let found = questions.find(plan).await?;
    let (mut words, counted_by) = match &plan.workload.tokenizer {
        Some(path) => (Words::calibrate(&mut Local::load(path)?).await?, TokenSource::Tokenizer),
        None => match questions.tokenize_form(&found).await? {
            Some(form) => {
                let mut remote = Remote { questions: &mut questions, form, model: &found.model };
                (Words::calibrate(&mut remote).await?, TokenSource::Server)
            }
            None => (Words::guessed(), TokenSource::Guess),
        },
    };
    let (sample, counted) = words.sample();
    let (lengthening, row) = questions.lengthening(plan, &found, &sample).await?;
    if let Some(reported) = row.prompt_tokens_reported
        && counted_by != TokenSource::Guess
    {
        words.learn_overhead(counted, reported);
    }
    let client = Client::new(target, &plan.target, found.api, &plan.workload, &found.model, lengthening);
    let client = Rc::new(client);
    let began_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());

    let mut runs = Vec::new();
    for (n, case) in plan.cases().into_iter().enumerate() {
        // Another seed for each run: the prompts of the one before may be in the server's prefix cache.
        let workload = WorkloadPlan { seed: plan.workload.seed.wrapping_add(n as u64), ..plan.workload.clone() };
        let prompts = Rc::new(Prompts::new(&words, &workload)?);
        let mut progress = Progress::new(&case.to_string(), show_progress);
        let timeout = plan.target.timeout;
        let result =
            executor::run(case, Rc::clone(&client), prompts, workload.seed, timeout, &plan.limits, &mut progress).await;
        progress.clear();
        let mut run = result?;
        let summary = stats::summarise(plan, &case, &mut run);
        let interrupted = run.interrupted;
        let wall_s = run.wall.as_secs_f64();
        runs.push(RunReport { case, wall_s, summary, dropped_us: run.dropped_us, rows: run.rows });
        if interrupted {
            break;
        }
    }
    Ok(Report {
        pelton_version: env!("CARGO_PKG_VERSION"),
        command,
        began_unix_s,
        machine: Machine::here(),
        plan: plan.clone(),
        server: Server {
            api: found.api,
            ignores_end_of_text: lengthening != Lengthening::None,
            model: found.model,
            info: found.info,
        },
        prompts: PromptMaking { counted_by, overhead: words.overhead() },
        runs,
    })
}
