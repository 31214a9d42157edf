//! The report as JSON for programs: everything of the stored results but their rows, and the formulas of the numbers in it.

use std::collections::BTreeMap;

use pelton_bench::results::{Results, RunResult};
use serde_json::{Map, Value, json};

use crate::report::Report;
use crate::tables;

/// Version of this form, raised when a key changes its meaning or goes.
pub const FORMAT: u32 = 1;

/// Writes the report. Keys and units of summaries are those of the stored results.
pub fn json(report: &Report) -> Result<String, serde_json::Error> {
    let mut tests = Vec::new();
    for test in report.tests() {
        let mut object = Map::new();
        object.insert("name".to_owned(), json!(test.name));
        // Without rows first: they may be many, and would be turned into values just to be thrown away.
        let bare =
            Results { runs: test.results.runs.iter().map(without_rows).collect(), ..without_runs(&test.results) };
        if let Value::Object(stored) = serde_json::to_value(&bare)? {
            object.extend(stored);
        }
        if let Some(Value::Array(runs)) = object.get_mut("runs") {
            for run in runs.iter_mut().filter_map(Value::as_object_mut) {
                run.remove("rows");
                run.remove("dropped_us");
            }
        }
        tests.push(Value::Object(object));
    }
    let formulas: BTreeMap<&str, Value> = tables::metrics_shown(report)
        .into_iter()
        .map(|metric| (metric.name(), json!({ "unit": metric.unit(), "formula": metric.formula() })))
        .collect();
    let whole = json!({ "report_format": FORMAT, "tests": tests, "metrics": formulas });
    Ok(serde_json::to_string_pretty(&whole)? + "\n")
}

fn without_rows(run: &RunResult) -> RunResult {
    let RunResult { repeat, began_unix_s, wall_s, .. } = *run;
    RunResult {
        case: run.case.clone(),
        repeat,
        began_unix_s,
        wall_s,
        summary: run.summary.clone(),
        verdicts: run.verdicts.clone(),
        histograms: None,
        server_metrics: run.server_metrics.clone(),
        dropped_us: Vec::new(),
        rows: Vec::new(),
    }
}

fn without_runs(results: &Results) -> Results {
    Results {
        command: results.command.clone(),
        machine: results.machine.clone(),
        plan: results.plan.clone(),
        server: results.server.clone(),
        prompts: results.prompts.clone(),
        pelton_version: results.pelton_version.clone(),
        estimates: results.estimates.clone(),
        search: results.search.clone(),
        runs: Vec::new(),
        ..*results
    }
}
