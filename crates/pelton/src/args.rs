//! What can be typed. Each flag of `serve` has the name and the environment variable that text-generation-inference gave it.

pub mod bench;
pub mod compute;
mod duration;
pub mod eval;
pub mod hub;
pub mod kernels;
pub mod quantize;
pub mod serve;

use clap::{Parser, Subcommand};

/// Serves text-generation models and measures how they are served.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model over HTTP: text-generation-inference and OpenAI APIs on one port.
    ///
    /// Without --model-id the small code model inside this binary is served, so that everything can be tried at once.
    Serve(Box<serve::ServeArgs>),
    /// Measure a running server: virtual users or a rate of requests, latencies per token, one table and a file of raw rows.
    Bench(Box<bench::BenchArgs>),
    /// Measure how well a model predicts: what formats of weights cost in quality.
    Eval(eval::EvalArgs),
    /// Write a checkpoint with smaller weights (GPTQ, AWQ, int8, int4) that this and other servers load.
    Quantize(Box<quantize::QuantizeArgs>),
    /// Measure this machine and the kernels on it: memory bandwidth, arithmetic peaks, and each kernel's share of what limits it.
    Kernels(kernels::KernelsArgs),
}
