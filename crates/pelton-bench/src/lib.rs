//! Load tests of text-generation servers, over the wire only: it knows no engine.
//!
//! One direction: a [`BenchPlan`] says what; the workload makes prompts and `arrival` the start times; `executor` starts requests when they
//! are due; `client` speaks a dialect and notes when bytes arrived; `recorder` keeps one row for each request; `stats` computes after
//! the run; [`results`] is what is kept. Other crates tell it ([`watch`] is their view while it goes on). Nothing is computed during a run
//! that can be computed before or after it.
#![forbid(unsafe_code)]

mod answers;
mod arrival;
pub mod batches;
mod client;
mod executor;
pub mod interrupt;
mod machine;
pub mod merge;
mod metric;
mod open_files;
mod outcome;
mod plan;
mod recorder;
pub mod results;
mod scrape;
pub mod search;
pub mod slo;
mod stats;
pub mod watch;
mod workload;

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use arrival::Arrival;
pub use machine::Machine;
pub use metric::Metric;
pub use outcome::Outcome;
pub use plan::{
    Api, BenchPlan, Case, DEFAULT_INPUT_TOKENS, DEFAULT_OUTPUT_TOKENS, DatasetPlan, FilesPlan, Fim, Goals, KeepRows,
    Lengths, Limits, Load, MAX_DURATION, MAX_PREFIX_GROUPS, MAX_REQUESTS, MAX_TOKENS, MAX_TURNS, MAX_USERS,
    MIN_METRICS_INTERVAL, MetricsPlan, MetricsSource, OpenBounds, PromptMix, Provider, Scale, SearchAxis, SearchPlan,
    Shape, Shard, Source, Stage, Starts, TargetPlan, TensorRole, ThinkTime, Users, Warmup, Waves, WorkloadPlan,
};
pub use recorder::{Arrival as TokenArrival, CountedBy, ErrorKind, Failure, Part, Row, ServerTimes};
pub use scrape::{ServerMetrics, ServerSample};
pub use stats::{
    CaseEstimates, ClientCost, ClientLimit, Counts, Difference, Distribution, ErrorSummary, Estimate, Histograms,
    Interval, PromptCheck, Rates, Resampled, Summary, compare, estimate,
};

use client::probe::Questions;
use client::{Client, Target};
use results::{Results, RunResult, Server};
use scrape::Scraper;
use search::{Next, Search, SearchEnd, Searching, Trial};
use watch::{Control, Sight, Watch};
use workload::Workload;
use workload::count::{Counter, Local, SAMPLE};
pub use workload::trace::date as unix_time;

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
    /// [`Control::stop`] was called while the server was asked and prompts were made.
    #[error("stopped before the first run began: there are no results")]
    Stopped,
    /// The runtime could not begin.
    #[error("runtime cannot be started: {0}")]
    Runtime(std::io::Error),
    /// Latencies cannot be put into a histogram.
    #[error("histogram: {0}")]
    Histogram(String),
    /// The clock of the open loop could not begin.
    #[error("thread cannot be started: {0}")]
    Thread(std::io::Error),
}

impl From<Failure> for BenchError {
    fn from(failure: Failure) -> Self {
        let hint = match failure.kind {
            ErrorKind::Connect => "; does a server listen there, and is the address right?",
            _ => "",
        };
        BenchError::Server(format!("{}: {}{hint}", failure.kind, failure.message))
    }
}

/// Runs a load test on the calling thread. `command` is stored in the results; `watch` sees it go on, `control` ends it early. Signals are
/// the caller's ([`interrupt`]).
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
    open_files::allow(plan.max_in_flight())?;
    let target = Target::resolve(&plan.target)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(BenchError::Runtime)?;
    let has_begun = Cell::new(false);
    let test = async {
        tokio::select! {
            biased;
            () = stopped_before(&has_begun, control) => Err(BenchError::Stopped),
            results = measure(plan, target, command, watch, control, &has_begun) => results,
        }
    };
    tokio::task::LocalSet::new().block_on(&runtime, test).map_err(|error| match error {
        BenchError::Server(problem) => BenchError::Server(format!("{}: {problem}", plan.target.url)),
        error => error,
    })
}

/// Returns when the test shall end and no run has begun; what has begun ends by itself and keeps its results.
async fn stopped_before(has_begun: &Cell<bool>, control: &Control) {
    control.stopped().await;
    if has_begun.get() {
        std::future::pending::<()>().await;
    }
}

async fn measure(
    plan: &BenchPlan,
    target: Target,
    command: Vec<String>,
    watch: &mut dyn Watch,
    control: &Control,
    has_begun: &Cell<bool>,
) -> Result<Results, BenchError> {
    watch.see(Sight::Preparing("asking the server what it is and how it counts tokens"));
    let mut questions = Questions::new(target.clone(), plan.target.timeout);
    let found = questions.find(plan).await?;
    watch.see(Sight::Found { api: found.api, model: &found.model });
    let launch_arguments = questions.launch_arguments(found.api).await?;
    let (lengthening, row) = questions.lengthening(plan, &found, SAMPLE).await?;
    let mut client = Client::new(target, &plan.target, &found, lengthening)?;
    if let Some(path) = &plan.workload.tokenizer {
        client = client.counting(Local::load(path)?.into_model());
    }
    let ignores_end_of_text = client.ignores_end_of_text();
    let client = Rc::new(client);
    let (tokenizer, reported) = (plan.workload.tokenizer.as_deref(), row.prompt_tokens_reported);
    let mut counter = Counter::choose(tokenizer, &mut questions, &found, &client, reported).await?;
    let requests = plan.limits.requests;
    let (workload, prompts) = Workload::prepare(&plan.workload, requests, &mut counter, reported, watch).await?;
    let metrics = scrape::Page::find(plan, found.api).await;
    if let Some(at) = plan.scale.start_at_unix_s {
        watch.see(Sight::Preparing("waiting for the start time"));
        wait_until(at, control).await;
    }
    let mut tester =
        Tester { plan, client, workload, metrics, watch, control, runs: Vec::new(), is_interrupted: false };
    let began_unix_s = unix_now();
    has_begun.set(true);
    let search = match &plan.goals.search {
        Some(search) => Some(tester.search(search).await?),
        None => {
            tester.run_cases().await?;
            None
        }
    };
    let runs = tester.runs;
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
            ignores_end_of_text,
            model: found.model,
            info: found.info,
            launch_arguments,
        },
        prompts,
        estimates: stats::bootstrap::estimate_cases(&runs),
        search,
        runs,
    })
}

/// What every run of a test needs, and what they gave.
struct Tester<'a> {
    plan: &'a BenchPlan,
    client: Rc<Client>,
    workload: Workload,
    /// The server's page, if it has one; or why there is none.
    metrics: Result<Option<scrape::Page>, String>,
    watch: &'a mut dyn Watch,
    control: &'a Control,
    runs: Vec<RunResult>,
    is_interrupted: bool,
}

impl Tester<'_> {
    /// Each case as often as wished. The first repetition of all comes before the second of any.
    async fn run_cases(&mut self) -> Result<(), BenchError> {
        let cases = &self.plan.load.cases;
        let of = cases.len() * self.plan.goals.repeats as usize;
        for repeat in 0..self.plan.goals.repeats {
            for case in cases {
                if self.is_over() {
                    return Ok(());
                }
                self.run(case.clone(), repeat, of).await?;
            }
        }
        Ok(())
    }

    /// Whether no further run shall begin: a run was ended early, or the wish came behind the last one.
    fn is_over(&self) -> bool {
        self.is_interrupted || (!self.runs.is_empty() && self.control.is_stopped())
    }

    /// Runs levels until the highest that meets the targets is known.
    async fn search(&mut self, plan: &SearchPlan) -> Result<Search, BenchError> {
        let began = Instant::now();
        let mut searching = Searching::new(plan);
        loop {
            let (level, step) = match searching.next() {
                Next::Try(level, step) => (level, step),
                Next::End(end) => return Ok(searching.result(end)),
            };
            if self.is_over() {
                return Ok(searching.result(SearchEnd::Interrupted));
            }
            if self.runs.len() >= plan.max_runs as usize {
                return Ok(searching.result(SearchEnd::Runs));
            }
            if began.elapsed() >= plan.max_time {
                return Ok(searching.result(SearchEnd::Time));
            }
            let remaining = searching.remaining();
            // Runs last about as long as those before did; the first is guessed by its limit.
            let each = began.elapsed().checked_div(self.runs.len() as u32).unwrap_or(self.plan.limits.duration);
            let left = (each * remaining as u32).min(plan.max_time.saturating_sub(began.elapsed()));
            let state = searching.state();
            self.watch
                .see(Sight::Series(&format!("about {remaining} more, {:.0} s left; {state}", left.as_secs_f64())));
            // Plans are checked: there is a case.
            let like = &self.plan.load.cases[0];
            let (run, of) = (self.runs.len(), self.runs.len() + remaining);
            let result = self.run(search::case(plan.axis, level, like), searching.runs_of(level), of).await?;
            let ok = result.verdicts.iter().all(|verdict| verdict.ok);
            if self.is_interrupted {
                return Ok(searching.result(SearchEnd::Interrupted));
            }
            searching.add(Trial { level, run, step, ok });
        }
    }

    /// One run, the next of probably `of`; its result becomes the last of `runs`.
    async fn run(&mut self, case: Case, repeat: u32, of: usize) -> Result<&RunResult, BenchError> {
        let (plan, n) = (self.plan, self.runs.len());
        // Another seed for each run: the prompts of the one before may be in the server's prefix cache.
        let seed = plan.workload.seed.wrapping_add(n as u64);
        self.watch.see(Sight::Begins { case: &case, limits: &plan.limits, n, of });
        let scraper = match &self.metrics {
            Ok(Some(page)) => Some(Scraper::start(page)?),
            _ => None,
        };
        let began_unix_s = unix_now();
        let job = executor::Job {
            case: case.clone(),
            limits: plan.limits.clone(),
            shard: plan.scale.shard.unwrap_or(Shard::WHOLE),
            seed,
            timeout: plan.target.timeout,
            client: Rc::clone(&self.client),
            workload: Rc::new(self.workload.reseeded(seed)),
            metrics: scraper.as_ref().map(Scraper::latest),
        };
        let mut run = executor::run(job, self.watch, self.control).await?;
        let counting = self.client.settle(&mut run.rows);
        let mut summary = stats::summarise(plan, &case, &mut run);
        summary.notes.extend(counting);
        if run.is_steered {
            summary.notes.push("the number of users was changed by hand while the run went on".to_owned());
        }
        let (server_metrics, note) = scraper.map(|scraper| scraper.finish(run.began)).unzip();
        summary.notes.extend(note.flatten().or_else(|| self.metrics.clone().err()));
        self.is_interrupted = run.interrupted;
        let mut result = RunResult {
            case,
            repeat,
            began_unix_s,
            wall_s: run.wall.as_secs_f64(),
            is_interrupted: run.interrupted,
            verdicts: plan.goals.slos.iter().map(|slo| slo.judge(&summary)).collect(),
            summary,
            histograms: None,
            server_metrics,
            dropped_us: run.dropped_us,
            rows: run.rows,
        };
        self.watch.see(Sight::Ends(&result));
        result.keep(plan.scale.keep).map_err(BenchError::Histogram)?;
        self.runs.push(result);
        Ok(&self.runs[n])
    }
}

/// Waits until a unix time, or until the test shall end.
async fn wait_until(at_unix_s: f64, control: &Control) {
    let wait = Duration::try_from_secs_f64(at_unix_s - unix_now()).unwrap_or_default();
    tokio::select! {
        () = tokio::time::sleep(wait) => {}
        () = control.stopped() => {}
    }
}

/// Seconds since 1970-01-01 UTC.
fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
