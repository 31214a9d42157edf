//! pelton: serves text-generation models and measures how they are served. This crate wires the others and computes nothing.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod demo;
mod env;
mod logging;
mod program;
#[cfg(feature = "otlp")]
mod traces;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::args::serve::ServeArgs;
use crate::args::{Args, Command};
use crate::program::Program;

fn main() -> ExitCode {
    let program = Program::called(std::env::args_os().next().as_deref());
    let result = match program {
        Program::Pelton => run(Args::parse().command),
        Program::Launcher => commands::serve::run(ServeArgs::of_launcher(), program),
        Program::Benchmark => commands::bench::benchmark(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Serve(args) => commands::serve::run(*args, Program::Pelton),
        Command::Bench(args) => commands::bench::run(*args),
        Command::Eval(args) => commands::eval::run(&args),
        Command::Quantize(args) => commands::quantize::run(&args),
        Command::Kernels(args) => commands::kernels::run(&args),
    }
}
