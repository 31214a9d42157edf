//! What shows a load test while it runs.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::process::ExitCode;

use anyhow::Context;
use pelton_bench::results::Results;
use pelton_bench::watch::{Blind, Control, Watch};
use pelton_bench::{BenchPlan, Case, MAX_DURATION, Starts, Users};
use pelton_live::{Download, Form, Line, TerminalView, WebPage};
use pelton_report::console::Console;

use super::report;
use crate::args::bench::{TestArgs, Ui};

/// Shows a test in the chosen way, or by the line where there is no terminal.
pub fn watcher(quiet: bool, ui: Ui, plan: &BenchPlan, control: &Control) -> Box<dyn Watch> {
    if quiet {
        return Box::new(Blind);
    }
    if ui == Ui::Terminal {
        match TerminalView::open(plan, control.clone()) {
            Ok(view) => return Box::new(view),
            Err(error) => eprintln!("no terminal view: {error}"),
        }
    }
    Box::new(Line::new())
}

/// Serves the page, runs what it orders, prints each report, and keeps the last results in the files asked for.
pub fn page(address: &str, args: TestArgs) -> anyhow::Result<ExitCode> {
    let has_duration = args.load.duration.is_some();
    let (output, html) = (args.output.output.clone(), args.output.html.clone());
    let plan = args.plan();
    plan.check()?;
    let page = WebPage::open(address, &plan, form(&plan, has_duration), vec![HTML])?;
    let bound = page.address();
    eprintln!("pelton bench: open http://{bound} in a browser; Ctrl-C ends");
    if !bound.ip().is_loopback() {
        eprintln!("warning: everyone who reaches {bound} can start load there: there is no password");
    }
    let write = |results: &Results| -> anyhow::Result<()> {
        if let Some(path) = &output {
            let told = || format!("{} cannot be written", path.display());
            results.write_json(BufWriter::new(File::create(path).with_context(told)?)).with_context(told)?;
        }
        if let Some(path) = &html {
            let text = report::page(report::name_of(path), results.clone());
            std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))?;
        }
        Ok(())
    };
    page.run(&plan, &super::command(std::env::args()), &mut |result| match result {
        Ok(results) => {
            let _ = write!(std::io::stdout().lock(), "{}", Console(results));
            if let Err(error) = write(results) {
                eprintln!("error: {error:#}");
            }
        }
        Err(error) => eprintln!("error: {error}"),
    });
    Ok(ExitCode::SUCCESS)
}

/// The report as a page of its own.
const HTML: Download = Download {
    name: "report.html",
    kind: "text/html; charset=utf-8",
    write: |results| Ok(report::page("run".to_owned(), results.clone()).into_bytes()),
};

/// The first load of the plan. A length that nobody gave is none: the page has a button to stop.
fn form(plan: &BenchPlan, has_duration: bool) -> Form {
    let duration = plan.limits.duration;
    let mut form = Form {
        duration_s: (has_duration && duration < MAX_DURATION).then_some(duration.as_secs_f64()),
        ..Form::default()
    };
    match plan.load.cases.first() {
        Some(Case::Closed { users: Users::Constant(users) | Users::Steered { from: users }, .. }) => {
            form.users = Some(*users);
        }
        Some(Case::Open { starts: Starts::Rate { rate, .. }, .. }) => form.rate = Some(*rate),
        _ => {}
    }
    form
}
