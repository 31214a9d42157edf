//! The project's own chores. `cargo xtask check` is the whole test command: continuous integration calls it and nothing else.
#![forbid(unsafe_code)]

mod clients;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};

const HELP: &str = "\
Usage: cargo xtask COMMAND

Commands:
  check     format, house rules, clippy, all tests, real clients against a real server, docs
  tidy      only the house rules that a machine can check
  clients   only the tests with real clients (Python packages and curl), against a server that they start
";

fn main() -> ExitCode {
    let command = std::env::args().nth(1);
    let result = match command.as_deref() {
        Some("check") => check(),
        Some("tidy") => tidy::check(&root()),
        Some("clients") => clients::check(&root()),
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check() -> Result<()> {
    print_cpu();
    let root = root();
    let begin = Instant::now();
    stage("format", || run(cargo().args(["fmt", "--all", "--check"])))?;
    stage("house rules", || tidy::check(&root))?;
    stage("clippy", || {
        run(cargo().args(["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"]))
    })?;
    stage("tests", || run(cargo().args(["test", "--workspace", "--all-features"])))?;
    stage("real clients", || clients::check(&root))?;
    stage("docs", || run(cargo().args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings")))?;
    println!("\nall checks passed in {:.0} s", begin.elapsed().as_secs_f64());
    Ok(())
}

/// Runs one part of the check under a heading, and says how long it took.
fn stage(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("\n== {name}");
    let begin = Instant::now();
    work().with_context(|| format!("{name} failed"))?;
    println!("== {name}: {:.0} s", begin.elapsed().as_secs_f64());
    Ok(())
}

/// A kernel test that silently fell back to scalar proves nothing, so the log opens with what the CPU has.
fn print_cpu() {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |key: &str| {
        info.lines().find(|line| line.starts_with(key)).and_then(|line| line.split_once(": ")).map(|(_, value)| value)
    };
    let wanted = ["avx2", "fma", "f16c", "avx512", "amx"];
    let flags = field("flags").unwrap_or("unknown").split(' ');
    let flags: Vec<_> = flags.filter(|flag| wanted.iter().any(|want| flag.starts_with(want))).collect();
    println!("CPU: {}; {}", field("model name").unwrap_or("unknown"), flags.join(" "));
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

/// The workspace's root: this crate's folder is one below.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies inside the workspace").to_path_buf()
}
