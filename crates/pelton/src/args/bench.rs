//! Flags of `pelton bench`.

pub mod engine;
pub mod goals;
pub mod load;
pub mod metrics;
pub mod recipe;
pub mod report;
pub mod scale;
pub mod target;
pub mod workload;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use pelton_bench::{BenchPlan, SearchAxis, SearchPlan};

/// Measure a text-generation server under load.
///
/// Closed loop (--users): each of N users sends a request, waits for the whole answer, sends the next. It shows what N people
/// see, and cannot overload the server. Open loop (--rate): requests start at their times whatever the server does, as in the real
/// world; latencies count from those times, so that a stall is not hidden.
///
/// `pelton bench engine` measures the model alone, without a server.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, after_long_help = EXAMPLES)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub command: Option<BenchCommand>,

    #[command(flatten)]
    pub test: TestArgs,
}

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    Engine(Box<engine::EngineArgs>),
    /// Make a report that people of this field know: k6's table of text-generation-inference, the model card of happy_vllm, llm_bench's
    /// summary, ... One command each, against any server.
    #[command(subcommand)]
    Recipe(Box<recipe::Recipe>),
    /// Tell stored load tests: as text, tables, charts, or one HTML page.
    Report(report::ReportArgs),
    /// Set stored load tests side by side, with confidence intervals of their differences.
    Compare(report::CompareArgs),
    /// Print the formula of each number.
    Explain(report::ExplainArgs),

    Merge(scale::MergeArgs),
}

/// Everything about one load test.
#[derive(Debug, Args)]
pub struct TestArgs {
    #[command(flatten)]
    pub target: target::TargetArgs,

    #[command(flatten)]
    pub load: load::LoadArgs,

    #[command(flatten)]
    pub workload: workload::WorkloadArgs,

    #[command(flatten)]
    pub goals: goals::GoalArgs,

    #[command(flatten)]
    pub scale: scale::ScaleArgs,

    #[command(flatten)]
    pub metrics: metrics::MetricsArgs,

    #[command(flatten)]
    pub output: OutputArgs,
}

impl TestArgs {
    /// Refuses flags that contradict each other by their values.
    pub fn check(&self) -> Result<(), String> {
        let is_rate = self.goals.search.is_some_and(|search| search.axis == SearchAxis::Rate);
        if is_rate && self.load.requests_per_user.is_some() {
            return Err("--requests-per-user needs users, and --search rate has none: leave one of them out".to_owned());
        }
        self.load.check()
    }

    pub fn plan(self) -> BenchPlan {
        let goals = self.goals.goals();
        let load = match &goals.search {
            Some(SearchPlan { axis: SearchAxis::Rate, from, .. }) => self.load.rate_of_search(*from),
            _ => self.load.load(),
        };
        BenchPlan {
            target: self.target.plan(),
            workload: self.workload.plan(load.trace()),
            metrics: self.metrics.plan(),
            load,
            limits: self.load.limits(),
            warmup: self.load.warmup,
            cooldown: self.load.cooldown,
            goals,
            scale: self.scale.scale(),
        }
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// File for everything as JSON: plan, machine, server, summary, and one row for each request with the time of every arrival.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// File for the report as one HTML page with interactive charts; see also `pelton bench report`.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,

    /// How the test is shown while it runs, on the terminal of standard error. The view needs a terminal; without one the line is taken.
    #[arg(long, value_enum, default_value = "line", conflicts_with = "quiet")]
    pub ui: Ui,

    /// Serve a page to a browser on which runs are started, watched, changed and stopped, as Locust does; nothing runs until someone
    /// starts it there, and Ctrl-C ends. The flags of load and duration are what its form begins with, and the others hold for every run.
    /// Whoever reaches the page can send load to the server, so the default address can be reached from this machine alone.
    #[arg(
        long,
        value_name = "ADDR",
        num_args = 0..=1,
        default_missing_value = "127.0.0.1:8089",
        conflicts_with_all = ["ui", "search"],
    )]
    pub web: Option<String>,

    /// No progress line.
    #[arg(long, short)]
    pub quiet: bool,
}

/// What shows a test while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ui {
    /// One line of progress
    Line,
    /// A view that fills the terminal, with curves, percentiles, errors and keys
    Terminal,
}

const EXAMPLES: &str = "\
Examples:
  pelton bench --url http://127.0.0.1:3000 --users 8 --duration 30s --input-tokens 512 --output-tokens 128 --output run.json
  pelton bench --url http://127.0.0.1:3000 --users 1,8,32 --duration 1m --warmup 5s
  pelton bench --url http://127.0.0.1:3000 --rate 20 --arrival poisson --requests 500
  pelton bench --url http://127.0.0.1:3000 --users 8 --duration 5m --ui terminal
  pelton bench --url http://127.0.0.1:3000 --web
  pelton bench --url http://127.0.0.1:3000 --users 0 --stages 30s:50,2m:50,10s:0
  pelton bench --url http://127.0.0.1:3000 --users 8 --slo 'ttft:p95<500ms' --slo 'error-rate<1%'
  pelton bench --url http://127.0.0.1:3000 --search users:1..256 --slo 'ttft:p95<500ms' --slo 'itl:p99<60ms' --duration 1m --warmup 10s

Exit code: 0 if all is well; 1 if a run has no complete answer or the test could not be made; 2 for wrong flags; 3 if a target (--slo) was
missed, or a search found no load that meets them; 4 if the client, not the server, was the limit (--allow-client-limit makes that a
warning). 4 comes before 3: such verdicts cannot be trusted. A share (--shard) leaves 3 and 4 to merge. Failed requests alone
change nothing: add --slo 'error-rate<1%'.";
