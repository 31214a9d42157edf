//! Results as tables for spreadsheets.

use pelton_bench::Metric;
use pelton_bench::results::Results;

/// Every number of every run: a line for each run and [`Metric`]. Cells that do not apply are empty.
pub(crate) fn statistics(results: &Results) -> Result<Vec<u8>, csv::Error> {
    let mut sheet = csv::Writer::from_writer(Vec::new());
    sheet.write_record([
        "load", "repeat", "metric", "unit", "count", "mean", "min", "p50", "p90", "p95", "p99", "max", "value",
    ])?;
    for run in &results.runs {
        let load = run.case.to_string();
        let repeat = run.repeat.to_string();
        for metric in Metric::ALL {
            let mut line = vec![load.clone(), repeat.clone(), metric.name().to_owned(), metric.unit().to_owned()];
            match (metric.distribution(&run.summary), metric.value(&run.summary)) {
                (Some(values), _) => {
                    line.push(values.count.to_string());
                    let numbers = [values.mean, values.min, values.p50, values.p90, values.p95, values.p99, values.max];
                    line.extend(numbers.map(|number| number.to_string()));
                    line.push(String::new());
                }
                (None, Some(value)) => {
                    line.extend(std::iter::repeat_n(String::new(), 8));
                    line.push(value.to_string());
                }
                (None, None) => continue,
            }
            sheet.write_record(line)?;
        }
    }
    finish(sheet)
}

/// Failed requests by run and kind, with the first words of each.
pub(crate) fn failures(results: &Results) -> Result<Vec<u8>, csv::Error> {
    let mut sheet = csv::Writer::from_writer(Vec::new());
    sheet.write_record(["load", "repeat", "kind", "count", "example"])?;
    for run in &results.runs {
        for (kind, error) in &run.summary.errors {
            let (load, repeat) = (run.case.to_string(), run.repeat.to_string());
            sheet.write_record([&load, &repeat, kind, &error.count.to_string(), &error.example])?;
        }
    }
    finish(sheet)
}

fn finish(sheet: csv::Writer<Vec<u8>>) -> Result<Vec<u8>, csv::Error> {
    sheet.into_inner().map_err(|error| error.into_error().into())
}
