//! pelton: serves text-generation models and measures how they are served. This crate wires the others and computes nothing.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod demo;
mod env;
mod logging;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Command};

fn main() -> ExitCode {
    let args = Args::parse();
    let result = match args.command {
        Command::Serve(args) => commands::serve::run(*args),
        Command::Bench(args) => commands::bench::run(*args),
        Command::Eval(args) => commands::eval::run(&args),
        Command::Quantize(args) => commands::quantize::run(&args),
        Command::Kernels(args) => commands::kernels::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
