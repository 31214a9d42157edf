//! Flags of `pelton bench`.

pub mod engine;
pub mod load;
pub mod metrics;
pub mod target;
pub mod workload;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use pelton_bench::{BenchPlan, Goals, Scale};

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
    /// Measure the model alone, without a server: prefill and decode rates by batch size and length.
    Engine(Box<engine::EngineArgs>),
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
    pub metrics: metrics::MetricsArgs,

    #[command(flatten)]
    pub output: OutputArgs,
}

impl TestArgs {
    pub fn plan(self) -> BenchPlan {
        let load = self.load.load();
        BenchPlan {
            target: self.target.plan(),
            workload: self.workload.plan(load.trace()),
            metrics: self.metrics.plan(),
            load,
            limits: self.load.limits(),
            warmup: self.load.warmup,
            cooldown: self.load.cooldown,
            goals: Goals::default(),
            scale: Scale::default(),
        }
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// File for everything as JSON: plan, machine, server, summary, and one row for each request with the time of every arrival.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// No progress line.
    #[arg(long, short)]
    pub quiet: bool,
}

const EXAMPLES: &str = "\
Examples:
  pelton bench --url http://127.0.0.1:3000 --users 8 --duration 30s --input-tokens 512 --output-tokens 128 --output run.json
  pelton bench --url http://127.0.0.1:3000 --users 1,8,32 --duration 1m --warmup 5s
  pelton bench --url http://127.0.0.1:3000 --rate 20 --arrival poisson --requests 500

Exit code: 0 if each run has at least one complete answer, else 1. Failed requests alone do not change it.";
