//! Load tests of text-generation servers, over the wire only: it knows no engine.
//!
//! One direction: a [`BenchPlan`] says what; the workload makes prompts and `arrival` the start times; `executor` starts requests when they
//! are due; `client` speaks a dialect and notes when bytes arrived; `recorder` keeps one row for each request; `stats` computes after
//! the run; [`results`] is what is kept. Other crates tell it ([`watch`] is their view while it goes on). Nothing is computed during a run that can be computed before or after it.
#![forbid(unsafe_code)]

mod answers;
mod arrival;
mod client;
mod executor;
mod machine;
mod metric;
mod plan;
mod recorder;
pub mod results;
mod scrape;
mod stats;
pub mod watch;
mod workload;

use std::path::PathBuf;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

pub use arrival::Arrival;
pub use machine::Machine;
pub use metric::Metric;
pub use plan::{
    Api, BenchPlan, Case, Limits, Load, MAX_DURATION, MAX_REQUESTS, MAX_USERS, PromptMix, Provider, TargetPlan,
    TensorRole, Warmup, WorkloadPlan,
};
pub use recorder::{Arrival as TokenArrival, CountedBy, ErrorKind, Failure, Part, Row, ServerTimes};
pub use scrape::{ServerMetrics, ServerSample};
pub use stats::{ClientCost, Counts, Distribution, ErrorSummary, PromptCheck, Rates, Summary};

use client::probe::Questions;
use client::{Client, Target};
use results::{PromptMaking, Results, RunResult, Server, TokenSource};
use watch::{Control, Sight, Watch};
use workload::Workload;
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
    /// The server answers none of the questions by which a dialect is known.
    #[error("the server tells neither /info (TGI), /v1/models (OpenAI) nor /v2 (KServe): name its dialect with --api")]
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

/// Runs a load test on the calling thread. `command` is stored in the results; `watch` sees it go on, `control` ends it early.
///
/// # Errors
/// Only what prevents the test: an impossible plan, a server that cannot be reached or asked. Requests that fail are rows.
pub fn run(
    plan: &BenchPlan,
    command: Vec<String>,
    watch: &mut dyn Watch,
    control: &Control,
) -> Result<Results, BenchError> {
    plan.check()?;
    let target = Target::resolve(&plan.target)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(BenchError::Runtime)?;
    tokio::task::LocalSet::new().block_on(&runtime, measure(plan, target, command, watch, control))
}

async fn measure(
    plan: &BenchPlan,
    target: Target,
    command: Vec<String>,
    watch: &mut dyn Watch,
    control: &Control,
) -> Result<Results, BenchError> {
    watch.see(Sight::Preparing("asking the server what it is and how it counts tokens"));
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
    let mut client = Client::new(target, &plan.target, &found, lengthening)?;
    if let Some(path) = &plan.workload.tokenizer {
        client = client.counting(Local::load(path)?.into_model());
    }
    let client = Rc::new(client);
    let began_unix_s = unix_now();

    let mut runs = Vec::new();
    let cases = plan.cases();
    let of = cases.len();
    for (n, case) in cases.into_iter().enumerate() {
        // Another seed for each run: the prompts of the one before may be in the server's prefix cache.
        let workload = WorkloadPlan { seed: plan.workload.seed.wrapping_add(n as u64), ..plan.workload.clone() };
        let prompts = Prompts::new(&words, &workload)?;
        let asked = Rc::new(Workload::synthetic(prompts, workload.output_tokens));
        watch.see(Sight::Begins { case: &case, limits: &plan.limits, n, of });
        let began_unix_s = unix_now();
        let timeout = plan.target.timeout;
        let result =
            executor::run(case, Rc::clone(&client), asked, workload.seed, timeout, &plan.limits, watch, control).await;
        let mut run = result?;
        let counting = client.settle(&mut run.rows);
        let mut summary = stats::summarise(plan, &case, &mut run);
        summary.notes.extend(counting);
        let interrupted = run.interrupted;
        let result = RunResult {
            case,
            repeat: 0,
            began_unix_s,
            wall_s: run.wall.as_secs_f64(),
            summary,
            server_metrics: None,
            dropped_us: run.dropped_us,
            rows: run.rows,
        };
        watch.see(Sight::Ends(&result));
        runs.push(result);
        if interrupted {
            break;
        }
    }
    Ok(Results {
        format: results::FORMAT,
        pelton_version: env!("CARGO_PKG_VERSION").to_owned(),
        command,
        began_unix_s: began_unix_s as u64,
        machine: Machine::here(),
        plan: plan.clone(),
        server: Server {
            api: found.api,
            provider: found.provider,
            ignores_end_of_text: client.ignores_end_of_text(),
            model: found.model,
            info: found.info,
        },
        prompts: PromptMaking { counted_by, overhead: words.overhead() },
        runs,
    })
}

/// Seconds since 1970-01-01 UTC.
fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
