//! The report as Markdown: tables that can be pasted, and links to pictures beside it if there are any.

use std::fmt::Write;

use crate::charts::Charts;
use crate::compare::Comparison;
use crate::facts;
use crate::report::Report;
use crate::tables::{self, Table};

/// Writes the report. With `charts`, links to `NAME.svg` of each are written too: whoever calls puts the pictures there.
pub fn markdown(report: &Report, charts: Option<&Charts>) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write_all(&mut out, report, charts);
    out
}

fn write_all(out: &mut String, report: &Report, charts: Option<&Charts>) -> std::fmt::Result {
    let is_one = report.tests().len() == 1;
    writeln!(out, "# {}\n", if is_one { "Load test" } else { "Comparison of load tests" })?;
    for test in report.tests() {
        if !is_one {
            writeln!(out, "**{}**\n", cell(&test.name))?;
        }
        for (name, text) in facts::all(test) {
            let text = if name == "command" { format!("`{}`", text.replace('`', "'")) } else { cell(&text) };
            writeln!(out, "- {name}: {text}")?;
        }
        writeln!(out)?;
    }
    let notes = report.notes();
    if !notes.is_empty() {
        writeln!(out, "Before trusting the numbers:\n")?;
        for (note, runs) in notes {
            let runs = if runs.is_empty() { runs } else { format!(" ({runs})") };
            writeln!(out, "- {}{}", cell(&note), cell(&runs))?;
        }
        writeln!(out)?;
    }
    table(out, "##", &tables::overview(report))?;
    let more = [tables::intervals(report), tables::targets(report), tables::errors(report)];
    for more in more.iter().filter(|table| !table.rows.is_empty()) {
        table(out, "##", more)?;
    }
    for test in report.tests() {
        let mut search = tables::search(&test.results);
        if !search.rows.is_empty() {
            search.title = if is_one { search.title } else { format!("{}: {}", search.title, test.name) };
            table(out, "##", &search)?;
        }
    }
    if !is_one {
        let comparison = Comparison::of(report);
        writeln!(out, "## Comparison\n\n{}\n", comparison.note())?;
        for one in comparison.tables() {
            table(out, "###", &one)?;
        }
    }
    if let Some(charts) = charts {
        let (of_runs, others): (Vec<_>, Vec<_>) = charts.all().partition(|chart| {
            charts
                .runs
                .iter()
                .any(|run| run.time.name == chart.name || run.requests.as_ref().is_some_and(|r| r.name == chart.name))
        });
        writeln!(out, "## Charts\n")?;
        for chart in others {
            writeln!(out, "![{}]({}.svg)\n", chart.title, chart.name)?;
        }
        writeln!(out, "<details><summary>Run by run</summary>\n")?;
        for chart in of_runs {
            writeln!(out, "![{}]({}.svg)\n", chart.title, chart.name)?;
        }
        writeln!(out, "</details>\n")?;
    }
    writeln!(out, "## Run by run\n")?;
    for told in report.runs() {
        writeln!(out, "### {}\n", cell(&told.name()))?;
        for (name, text) in tables::whole_run(told.run) {
            writeln!(out, "- {name}: {}", cell(&text))?;
        }
        writeln!(out)?;
        let values = tables::distributions(told.run);
        if !values.rows.is_empty() {
            rows(out, &values)?;
        }
    }
    writeln!(out, "<details><summary>How each number is computed</summary>\n")?;
    for metric in tables::metrics_shown(report) {
        writeln!(out, "- **{}** (`{}`): {}", metric.title(), metric.name(), cell(metric.formula()))?;
    }
    writeln!(out, "\n</details>")
}

fn table(out: &mut String, level: &str, table: &Table) -> std::fmt::Result {
    writeln!(out, "{level} {}\n", cell(&table.title))?;
    rows(out, table)
}

/// Columns padded, so that the text can be read as it stands too.
fn rows(out: &mut String, table: &Table) -> std::fmt::Result {
    let cells = |row: &[String]| row.iter().map(|text| cell(text)).collect::<Vec<_>>();
    let all: Vec<Vec<String>> = std::iter::once(&table.head).chain(&table.rows).map(|row| cells(row)).collect();
    let widths: Vec<usize> =
        (0..table.head.len()).map(|n| all.iter().map(|row| row[n].chars().count()).max().unwrap_or(0).max(3)).collect();
    for (line, row) in all.iter().enumerate() {
        out.push('|');
        for (n, (text, &width)) in row.iter().zip(&widths).enumerate() {
            if n < table.words { write!(out, " {text:<width$} |")? } else { write!(out, " {text:>width$} |")? }
        }
        out.push('\n');
        if line == 0 {
            out.push('|');
            for (n, &width) in widths.iter().enumerate() {
                if n < table.words {
                    write!(out, " {:-<width$} |", "")?
                } else {
                    write!(out, " {:->width$}: |", "", width = width - 1)?
                }
            }
            out.push('\n');
        }
    }
    writeln!(out)
}

/// Text that stays one cell, and plain text.
fn cell(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '|' | '*' | '_' | '`' | '<' | '[' | '\\' => out.extend(['\\', char]),
            char if char.is_control() => out.push(' '),
            char => out.push(char),
        }
    }
    out
}
