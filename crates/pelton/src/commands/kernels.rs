//! `pelton kernels`: measures, and prints a table or JSON.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use pelton_cpu::CpuBackend;
use pelton_cpu::measure::{Extent, KernelReport, MeasurePlan, measure};
use serde::Serialize;

use super::bench::{command, unix_seconds};
use crate::args::kernels::KernelsArgs;

/// Time for all rounds.
const FULL_TIME: Duration = Duration::from_secs(15);
const QUICK_TIME: Duration = Duration::from_secs(1);

/// Steps of the progress line.
const BAR_STEPS: u64 = 1000;

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    pelton_version: &'static str,
    command: Vec<String>,
    began_unix_s: u64,
    #[serde(flatten)]
    kernels: &'a KernelReport,
}

pub fn run(args: &KernelsArgs) -> Result<ExitCode> {
    let began_unix_s = unix_seconds();
    let backend = CpuBackend::new(args.compute.config())?;
    let (extent, time) = if args.quick { (Extent::Quick, QUICK_TIME) } else { (Extent::Full, FULL_TIME) };
    let plan = MeasurePlan { extent, time: args.duration.unwrap_or(time) };
    // Drawn on standard error, and only when that is a terminal.
    let bar = ProgressBar::new(BAR_STEPS);
    if let Ok(style) = ProgressStyle::with_template("measuring [{bar:32}] {elapsed} {msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    let kernels = measure(&backend, &plan, &mut |progress| {
        bar.set_position((BAR_STEPS as f64 * progress.share) as u64);
        bar.set_message(progress.what.to_owned());
    })?;
    bar.finish_and_clear();
    let mut out = std::io::stdout().lock();
    // A reader that has seen enough (`| head`) is no error.
    let _ = if args.json {
        let command = command(std::env::args());
        let report = Report { pelton_version: env!("CARGO_PKG_VERSION"), command, began_unix_s, kernels: &kernels };
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)
    } else {
        write!(out, "{kernels}")
    };
    Ok(ExitCode::SUCCESS)
}
