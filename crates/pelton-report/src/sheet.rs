//! The report as CSV, for spreadsheets and data frames: a line for each run, or one for each request.

use pelton_bench::{Metric, Part};

use crate::report::Report;

/// Why a sheet could not be made.
#[derive(Debug, thiserror::Error)]
#[error("table cannot be written: {0}")]
pub struct SheetError(#[from] csv::Error);

/// One line for each run, with every number of its summary; units are in the heads. What a run does not have is empty.
pub fn runs(report: &Report) -> Result<String, SheetError> {
    let mut out = csv::Writer::from_writer(Vec::new());
    let mut head: Vec<String> =
        ["test", "server", "model", "api", "load", "level", "repeat", "began_unix_s", "wall_s", "from_s", "to_s"]
            .map(str::to_owned)
            .to_vec();
    for count in COUNTS {
        head.push(format!("requests_{}", count.0));
    }
    for metric in Metric::ALL {
        let name = metric.name().replace('-', "_");
        if !metric.has_distribution() {
            head.push(if metric.unit().is_empty() { format!("{name}_share") } else { name });
        } else {
            let unit = metric.unit().replace('/', "_per_");
            head.extend(NUMBERS.iter().map(|(number, _)| format!("{name}_{number}_{unit}")));
            head.push(format!("{name}_values"));
        }
    }
    head.extend(["client_busy_share", "client_waiting_share", "notes"].map(str::to_owned));
    out.write_record(&head)?;
    for told in report.runs() {
        let (results, run, summary) = (&told.test.results, told.run, &told.run.summary);
        let level = crate::report::level(&run.case);
        let mut line = vec![
            told.test.name.clone(),
            results.plan.target.url.clone(),
            told.test.model().to_owned(),
            results.server.api.name().to_owned(),
            run.case.to_string(),
            level.map_or_else(String::new, |(_, level)| level.to_string()),
            run.repeat.to_string(),
            run.began_unix_s.to_string(),
            run.wall_s.to_string(),
            summary.rates.from_s.to_string(),
            summary.rates.to_s.to_string(),
        ];
        line.extend(COUNTS.iter().map(|(_, count)| count(&summary.requests).to_string()));
        for metric in Metric::ALL {
            if !metric.has_distribution() {
                line.push(metric.value(summary).map_or_else(String::new, |value| value.to_string()));
                continue;
            }
            let values = metric.distribution(summary);
            line.extend(NUMBERS.iter().map(|(_, which)| values.map_or_else(String::new, |v| which(v).to_string())));
            line.push(values.map_or_else(String::new, |values| values.count.to_string()));
        }
        let client = summary.client.as_ref();
        line.push(client.map_or_else(String::new, |client| client.busy.to_string()));
        line.push(client.map_or_else(String::new, |client| client.waiting.to_string()));
        line.push(summary.notes.join("; "));
        out.write_record(&line)?;
    }
    text(out)
}

/// One line for each request of every run.
pub fn rows(report: &Report) -> Result<String, SheetError> {
    let mut out = csv::Writer::from_writer(Vec::new());
    out.write_record([
        "test",
        "load",
        "repeat",
        "index",
        "turn",
        "user",
        "part",
        "intended_s",
        "start_s",
        "connect_ms",
        "first_byte_ms",
        "first_token_ms",
        "last_token_ms",
        "end_ms",
        "chunks",
        "prompt_tokens",
        "prompt_tokens_reported",
        "wished_tokens",
        "output_tokens",
        "status",
        "finish_reason",
        "error",
        "message",
    ])?;
    let ms = |us: Option<u32>| us.map_or_else(String::new, |us| (f64::from(us) / 1e3).to_string());
    let s = |us: u64| (us as f64 / 1e6).to_string();
    for told in report.runs() {
        for row in &told.run.rows {
            let part = match row.part {
                Part::Warmup => "warmup",
                Part::Measured => "measured",
                Part::Cooldown => "cooldown",
            };
            let failure = row.failure.as_ref();
            out.write_record([
                told.test.name.clone(),
                told.run.case.to_string(),
                told.run.repeat.to_string(),
                row.index.to_string(),
                row.turn.to_string(),
                row.user.to_string(),
                part.to_owned(),
                s(row.intended_us),
                s(row.start_us),
                ms(row.connect_us),
                ms(row.first_byte_us),
                ms(row.arrivals.first().map(|arrival| arrival.at_us)),
                ms(row.arrivals.last().map(|arrival| arrival.at_us)),
                ms(Some(row.end_us)),
                row.arrivals.iter().map(|arrival| u64::from(arrival.events)).sum::<u64>().to_string(),
                row.prompt_tokens.to_string(),
                row.prompt_tokens_reported.map_or_else(String::new, |tokens| tokens.to_string()),
                row.wished_tokens.to_string(),
                row.output_tokens.to_string(),
                row.status.map_or_else(String::new, |status| status.to_string()),
                row.finish_reason.clone().unwrap_or_default(),
                failure.map_or_else(String::new, |failure| failure.kind.to_string()),
                failure.map_or_else(String::new, |failure| failure.message.clone()),
            ])?;
        }
    }
    text(out)
}

type Count = fn(&pelton_bench::Counts) -> u64;

const COUNTS: [(&str, Count); 8] = [
    ("started", |counts| counts.started),
    ("warmup", |counts| counts.warmup),
    ("cooldown", |counts| counts.cooldown),
    ("measured", |counts| counts.measured),
    ("complete", |counts| counts.complete),
    ("failed", |counts| counts.failed),
    ("dropped", |counts| counts.dropped),
    ("late", |counts| counts.late),
];

type Number = fn(&pelton_bench::Distribution) -> f64;

const NUMBERS: [(&str, Number); 8] = [
    ("mean", |values| values.mean),
    ("min", |values| values.min),
    ("p50", |values| values.p50),
    ("p90", |values| values.p90),
    ("p95", |values| values.p95),
    ("p99", |values| values.p99),
    ("p999", |values| values.p999),
    ("max", |values| values.max),
];

fn text(out: csv::Writer<Vec<u8>>) -> Result<String, SheetError> {
    let bytes = out.into_inner().map_err(|error| csv::Error::from(error.into_error()))?;
    // Every cell was a string.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
