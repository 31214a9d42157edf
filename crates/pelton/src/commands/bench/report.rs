//! `pelton bench report`, `compare` and `explain`: from stored results to the terminal and files.

use std::fs::File;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use pelton_bench::Metric;
use pelton_bench::results::Results;
use pelton_report::charts::{Chart, Charts, SHARPNESS, png, svg};
use pelton_report::console::{Console, Side};
use pelton_report::{Report, digest, sheet};

use crate::args::bench::report::{CompareArgs, ExplainArgs, FormArgs, FormatArg, ReportArgs};

/// Name of the text beside the pictures.
const MARKDOWN_FILE: &str = "report.md";

/// Tells stored load tests.
pub fn report(args: &ReportArgs) -> Result<ExitCode> {
    let report = read(&args.runs)?;
    let console = |report: &Report| {
        let mut text = String::new();
        for (n, test) in report.tests().iter().enumerate() {
            if report.tests().len() > 1 {
                text.push_str(&format!("{}== {} ==\n", if n > 0 { "\n" } else { "" }, test.name));
            }
            text.push_str(&Console(&test.results).to_string());
        }
        if report.tests().len() > 1 {
            text.push_str(&format!("\n{}", Side(report)));
        }
        text
    };
    tell(report, &args.form, console)
}

/// Sets load tests side by side.
pub fn compare(args: &CompareArgs) -> Result<ExitCode> {
    tell(read(&args.runs)?, &args.form, |report| Side(report).to_string())
}

/// Prints formulas.
pub fn explain(args: &ExplainArgs) -> Result<ExitCode> {
    let metrics = if args.metrics.is_empty() { &Metric::ALL[..] } else { &args.metrics };
    print(pelton_report::explain(metrics).as_bytes());
    Ok(ExitCode::SUCCESS)
}

/// The page of results that were just measured.
pub fn page(name: String, results: Results) -> String {
    pelton_report::html(&Report::new([(name, results)]))
}

fn read(paths: &[PathBuf]) -> Result<Report> {
    let mut named = Vec::new();
    for path in paths {
        let file = File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
        let results = Results::read_json(BufReader::new(file)).with_context(|| path.display().to_string())?;
        named.push((name_of(path), results));
    }
    Ok(Report::new(named))
}

/// Tests are named by their files.
pub fn name_of(path: &Path) -> String {
    path.file_stem().map_or_else(|| path.display().to_string(), |stem| stem.to_string_lossy().into_owned())
}

fn tell(report: Report, form: &FormArgs, console: impl Fn(&Report) -> String) -> Result<ExitCode> {
    let output = form.output.as_deref();
    let format = form.format.or_else(|| output.and_then(FormatArg::of)).unwrap_or(FormatArg::Console);
    if form.rows && format != FormatArg::Csv {
        bail!("--rows belongs to --format csv");
    }
    if form.chart.is_some() && !matches!(format, FormatArg::Svg | FormatArg::Png) {
        bail!("--chart belongs to --format svg or png");
    }
    match format {
        FormatArg::Console => one_file(console(&report), output)?,
        FormatArg::Csv if form.rows => one_file(sheet::rows(&report)?, output)?,
        FormatArg::Csv => one_file(sheet::runs(&report)?, output)?,
        FormatArg::Json => one_file(digest::json(report).context("report cannot be written as JSON")?, output)?,
        FormatArg::Html => one_file(pelton_report::html(&report), output)?,
        FormatArg::Markdown => match output.filter(|path| is_folder(path)) {
            Some(folder) => {
                let charts = Charts::of(&report);
                make_folder(folder)?;
                for chart in charts.all() {
                    write(&folder.join(format!("{}.svg", chart.name)), svg(&chart.figures).as_bytes())?;
                }
                let text = pelton_report::markdown(&report, Some(&charts));
                write(&folder.join(MARKDOWN_FILE), text.as_bytes())?;
            }
            None => one_file(pelton_report::markdown(&report, None), output)?,
        },
        FormatArg::Svg => pictures(&report, form, "svg", |chart| Ok(svg(&chart.figures).into_bytes()))?,
        FormatArg::Png => pictures(&report, form, "png", |chart| Ok(png(&svg(&chart.figures), SHARPNESS)?))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the charts asked for: one to a file, several to a folder.
fn pictures(report: &Report, form: &FormArgs, end: &str, draw: impl Fn(&Chart) -> Result<Vec<u8>>) -> Result<()> {
    let charts = Charts::of(report);
    let names = || charts.all().map(|chart| chart.name.as_str()).collect::<Vec<_>>().join(", ");
    let chosen: Vec<&Chart> =
        charts.all().filter(|chart| form.chart.as_ref().is_none_or(|name| *name == chart.name)).collect();
    if chosen.is_empty() {
        match &form.chart {
            Some(name) => bail!("there is no chart {name:?}; there are {}", names()),
            None => bail!("there is nothing to draw: the results have no rows and one load"),
        }
    }
    let Some(output) = &form.output else {
        bail!("pictures need --output: a folder, or a .{end} file with --chart; there are {}", names());
    };
    if is_folder(output) {
        make_folder(output)?;
        for chart in chosen {
            write(&output.join(format!("{}.{end}", chart.name)), &draw(chart)?)?;
        }
        return Ok(());
    }
    match chosen[..] {
        [chart] => write(output, &draw(chart)?),
        _ => bail!("one file holds one chart: name it with --chart, or give a folder; there are {}", names()),
    }
}

/// A path is a folder if it is one already, or looks like one.
fn is_folder(path: &Path) -> bool {
    path.is_dir() || path.extension().is_none()
}

fn make_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("folder {} cannot be made", path.display()))
}

fn one_file(text: String, output: Option<&Path>) -> Result<()> {
    match output {
        Some(path) => write(path, text.as_bytes()),
        None => {
            print(text.as_bytes());
            Ok(())
        }
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).with_context(|| format!("{} cannot be written", path.display()))
}

/// A reader that has seen enough (`| head`) is no error.
fn print(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}
