//! The report as JSON for programs: everything of the stored results but their rows, and the formulas of the numbers in it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::report::Report;
use crate::tables;

/// Version of this form, raised when a key changes its meaning or goes.
pub const FORMAT: u32 = 1;

/// Writes the report. Keys and units of summaries are those of the stored results. The rows are dropped first: they may be many.
pub fn json(mut report: Report) -> Result<String, serde_json::Error> {
    let metrics: BTreeMap<&str, Value> = tables::metrics_shown(&report)
        .into_iter()
        .map(|metric| (metric.name(), json!({ "unit": metric.unit(), "formula": metric.formula() })))
        .collect();
    report.drop_rows();
    let mut tests = Vec::new();
    for test in report.tests() {
        let mut object = Map::new();
        object.insert("name".to_owned(), json!(test.name));
        if let Value::Object(stored) = serde_json::to_value(&test.results)? {
            object.extend(stored);
        }
        for run in object.get_mut("runs").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Value::Object(run) = run {
                run.retain(|key, _| !["rows", "dropped_us"].contains(&key.as_str()));
            }
        }
        tests.push(Value::Object(object));
    }
    let whole = json!({ "report_format": FORMAT, "tests": tests, "metrics": metrics });
    Ok(serde_json::to_string_pretty(&whole)? + "\n")
}
