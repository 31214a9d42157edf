//! Load tests one after another, and how they end together.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use pelton_bench::results::Results;
use pelton_bench::watch::{Blind, Control, Sight, Watch};
use pelton_bench::{BenchPlan, Outcome};
use pelton_live::Line;
use pelton_report::recipes::notes;

use super::command;
use super::interrupts::stop_at_interrupt;
use crate::commands::output::OutputFile;

/// Runs plans, shown as one test of so many runs.
pub struct Series {
    watch: Box<dyn Watch>,
    control: Control,
    of: usize,
}

/// Why a series is over before its last plan.
pub enum Cut {
    /// The user has seen enough.
    Interrupted,
    /// The next load test could not be made.
    Failed(anyhow::Error),
}

impl Series {
    /// Interrupts end it from now on.
    pub fn new(of: usize, quiet: bool) -> anyhow::Result<Self> {
        let control = Control::default();
        stop_at_interrupt(&control, 2)?;
        let watch: Box<dyn Watch> = if quiet { Box::new(Blind) } else { Box::new(Line::new()) };
        Ok(Self { watch, control, of })
    }

    /// Says what comes next.
    pub fn tell(&mut self, what: &str) {
        self.watch.see(Sight::Series(what));
    }

    /// The load test number `n`, from 0. What was interrupted has its results all the same.
    pub fn run(&mut self, n: usize, plan: &BenchPlan) -> Result<Results, Cut> {
        if self.control.is_stopped() {
            return Err(Cut::Interrupted);
        }
        let mut watch = OfSeries { inner: self.watch.as_mut(), n, of: self.of };
        match pelton_bench::run(plan, command(std::env::args()), &mut watch, &self.control) {
            Ok(results) => Ok(results),
            Err(_) if self.control.is_stopped() => Err(Cut::Interrupted),
            Err(error) => Err(Cut::Failed(error.into())),
        }
    }
}

/// Shows the one run of a plan as a run of the series.
struct OfSeries<'a> {
    inner: &'a mut dyn Watch,
    n: usize,
    of: usize,
}

impl Watch for OfSeries<'_> {
    fn see(&mut self, sight: Sight<'_>) {
        match sight {
            // A plan that is the whole series counts its runs itself.
            Sight::Begins { case, limits, .. } if self.of > 1 => {
                self.inner.see(Sight::Begins { case, limits, n: self.n, of: self.of });
            }
            other => self.inner.see(other),
        }
    }
}

/// What a series gave, and how it ended.
pub struct Measured {
    pub results: Vec<Results>,
    pub cut: Option<Cut>,
}

impl Measured {
    /// Runs all plans, and stores what each gave: several load tests in one file would be no results, so each has a file of its own.
    pub fn by(plans: &[BenchPlan], output: Option<&Path>, quiet: bool) -> anyhow::Result<Self> {
        let files = match output {
            Some(path) => {
                (0..plans.len()).map(|n| OutputFile::create(&numbered(path, n, plans.len())).map(Some)).collect()
            }
            None => Ok(plans.iter().map(|_| None).collect::<Vec<_>>()),
        }?;
        let mut series = Series::new(plans.len(), quiet)?;
        let mut results = Vec::new();
        for ((n, plan), file) in plans.iter().enumerate().zip(files) {
            match series.run(n, plan) {
                Err(cut) => return Ok(Self { results, cut: Some(cut) }),
                Ok(measured) => {
                    if let Some(file) = file {
                        file.write_json(&measured)?;
                    }
                    results.push(measured);
                }
            }
        }
        Ok(Self { results, cut: None })
    }

    /// Prints what the reader should know of the numbers above, and says how it went.
    pub fn conclude(self, allow_client_limit: bool) -> anyhow::Result<ExitCode> {
        let notes = notes(&self.results);
        if !notes.is_empty() {
            print(&format_args!(
                "\nNotes\n{}\n",
                notes.iter().map(|note| format!("- {note}")).collect::<Vec<_>>().join("\n")
            ));
        }
        conclude(self.results.iter(), self.cut, allow_client_limit)
    }
}

/// The exit code of all together, or the error that ended them early.
pub fn conclude<'a>(
    measured: impl Iterator<Item = &'a Results>,
    cut: Option<Cut>,
    allow_client_limit: bool,
) -> anyhow::Result<ExitCode> {
    let outcomes: Vec<Outcome> = measured.map(Results::outcome).collect();
    if let Some(Cut::Failed(error)) = cut {
        return Err(match outcomes.len() {
            0 => error,
            n => error.context(format!("load test {} could not be made; what came before it is told", n + 1)),
        });
    }
    let code = if outcomes.is_empty() || outcomes.contains(&Outcome::NothingMeasured) {
        Outcome::NothingMeasured
    } else if outcomes.contains(&Outcome::ClientLimited) && !allow_client_limit {
        eprintln!(
            "warning: the client, not the server, was the limit of some runs (see the notes); the exit code is 4"
        );
        Outcome::ClientLimited
    } else {
        Outcome::Met
    };
    Ok(ExitCode::from(code.exit_code()))
}

/// `run.json` for one, `run-2.json` for the second of several.
fn numbered(path: &Path, n: usize, of: usize) -> PathBuf {
    if of == 1 {
        return path.to_owned();
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let ending = path.extension().map(|ending| format!(".{}", ending.to_string_lossy())).unwrap_or_default();
    path.with_file_name(format!("{stem}-{}{ending}", n + 1))
}

/// A reader that has seen enough (`| head`) is no error.
pub fn print(text: &dyn std::fmt::Display) {
    let _ = write!(std::io::stdout().lock(), "{text}");
}
