//! What single requests add to a metric.

use super::{gaps, late_ms, service_ms, tpot};
use crate::metric::Metric;
use crate::recorder::{Part, Row};
use crate::results::RunResult;

/// The values of each measured request that the metric counts, whichever way it ended; rows must be there.
pub fn of_requests(run: &RunResult, metric: Metric) -> Vec<Vec<f64>> {
    let measured = run.rows.iter().filter(|row| row.part == Part::Measured);
    match metric {
        Metric::ErrorRate => measured.map(|row| vec![f64::from(u8::from(row.failure.is_some()))]).collect(),
        _ if metric.distribution(&run.summary).is_none() => Vec::new(),
        Metric::Lateness => measured.map(|row| of_row(row, metric)).collect(),
        _ => measured.filter(|row| row.failure.is_none()).map(|row| of_row(row, metric)).collect(),
    }
}

/// The values of one request: several for gaps, one or none for other metrics.
pub fn of_row(row: &Row, metric: Metric) -> Vec<f64> {
    let ttft = || row.arrivals.first().map(|first| f64::from(first.at_us) / 1e3);
    let one = match metric {
        Metric::Ttft => ttft().map(|ms| ms + late_ms(row)),
        Metric::ServiceTtft => ttft(),
        Metric::Tpot => tpot(row),
        Metric::E2e => Some(service_ms(row) + late_ms(row)),
        Metric::ServiceE2e => Some(service_ms(row)),
        Metric::Lateness => Some(late_ms(row)),
        Metric::OutputTokens => Some(f64::from(row.output_tokens)),
        Metric::Itl | Metric::ChunkGap => {
            let (mut tokens, mut chunks) = (Vec::new(), Vec::new());
            gaps(row, &mut tokens, &mut chunks);
            return if metric == Metric::Itl { tokens } else { chunks };
        }
        _ => None,
    };
    one.into_iter().collect()
}
