//! Prefill and decode by batch size: the tables of text-generation-benchmark, for a running server.
//!
//! The original calls one shard of a server and times its prefill and its decode steps. Here a wave of as many requests as the batch has
//! starts at once and each streams its answer: prefill is the time until the last of them has its first token, decode the time from there to
//! the last token of all. Scheduling and wire are in the figures, as they are for the server's users.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use pelton_bench::results::{Results, RunResult};
use pelton_bench::{BenchPlan, Case, MAX_DURATION, Part, Row, TargetPlan, Warmup, Waves, WorkloadPlan};

use super::Table;

/// Batch sizes of the original.
pub const BATCH_SIZES: [usize; 6] = [1, 2, 4, 8, 16, 32];

/// What was typed, for the first table.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters {
    /// Model or tokenizer.
    pub model: String,
    /// Tokens of each prompt.
    pub sequence_length: u32,
    /// Tokens of each answer.
    pub decode_length: u32,
    /// Waves of each size.
    pub runs: u32,
    /// Waves of each size before them.
    pub warmups: u32,
}

/// A run of waves for each batch size. The first `warmups` waves of each are left out.
pub fn plans(target: &TargetPlan, batches: &[usize], parameters: &Parameters, seed: u64) -> Vec<BenchPlan> {
    let plan = |&batch: &usize| {
        let workload = WorkloadPlan::synthetic(parameters.sequence_length, parameters.decode_length, seed);
        let waves =
            Waves { sizes: vec![batch; (parameters.warmups + parameters.runs) as usize], pause: Duration::ZERO };
        let mut plan = super::test(target.clone(), workload, Case::Waves(waves).into(), MAX_DURATION);
        plan.warmup = Warmup::Requests(parameters.warmups as u64 * batch as u64);
        plan
    };
    batches.iter().map(plan).collect()
}

/// One wave of requests. Times are milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Wave {
    batch: usize,
    prefill_ms: f64,
    /// All steps after the first token.
    decode_ms: f64,
}

impl Wave {
    /// `None` if a request of it failed: its batch was not what it should be.
    fn of(rows: &[&Row]) -> Option<Self> {
        let mut first = 0;
        let mut last = 0;
        for row in rows {
            let (Some(begin), Some(end), None) = (row.arrivals.first(), row.arrivals.last(), &row.failure) else {
                return None;
            };
            // From the common start: a request that was sent late does not hide it.
            let late = row.start_us - row.intended_us;
            first = first.max(late + u64::from(begin.at_us));
            last = last.max(late + u64::from(end.at_us));
        }
        Some(Self { batch: rows.len(), prefill_ms: first as f64 / 1e3, decode_ms: (last - first) as f64 / 1e3 })
    }
}

/// Waves of a run that count: the rows of each share their intended start.
fn waves(run: &RunResult) -> Vec<Wave> {
    let mut starts: BTreeMap<u64, Vec<&Row>> = BTreeMap::new();
    for row in run.rows.iter().filter(|row| row.part == Part::Measured) {
        starts.entry(row.intended_us).or_default().push(row);
    }
    starts.values().filter_map(|rows| Wave::of(rows)).collect()
}

/// Average, lowest, highest and three quantiles, as the original takes them: the value at `floor(q n)` of the sorted ones.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Figures {
    average: f64,
    lowest: f64,
    highest: f64,
    p50: f64,
    p90: f64,
    p99: f64,
}

impl Figures {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        let (&lowest, &highest) = values.first().zip(values.last())?;
        let at = |q: f64| values[((q * values.len() as f64) as usize).min(values.len() - 1)];
        let average = values.iter().sum::<f64>() / values.len() as f64;
        Some(Self { average, lowest, highest, p50: at(0.5), p90: at(0.9), p99: at(0.99) })
    }
}

/// Prints the three tables.
#[derive(Debug)]
pub struct Engine<'a> {
    /// One load test for each batch size.
    pub results: &'a [Results],
    /// What was asked for.
    pub parameters: &'a Parameters,
}

impl fmt::Display for Engine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parameters = self.parameters;
        let mut table = Table::new(&["Parameter", "Value"]);
        let rows = [
            ("Model", parameters.model.clone()),
            ("Sequence Length", parameters.sequence_length.to_string()),
            ("Decode Length", parameters.decode_length.to_string()),
            ("N Runs", parameters.runs.to_string()),
            ("Warmups", parameters.warmups.to_string()),
        ];
        for (name, value) in rows {
            table.row([name.to_owned(), value]);
        }
        writeln!(f, "{table}")?;

        let batches: Vec<Vec<Wave>> = self
            .results
            .iter()
            .flat_map(|results| &results.runs)
            .map(waves)
            .filter(|waves| !waves.is_empty())
            .collect();
        let steps = f64::from(parameters.decode_length.saturating_sub(1));
        let latency: [Quantity<'_>; 3] = [
            ("Prefill", &|wave| Some(wave.prefill_ms)),
            ("Decode (token)", &|wave| (steps > 0.0).then(|| wave.decode_ms / steps)),
            ("Decode (total)", &|wave| (steps > 0.0).then_some(wave.decode_ms)),
        ];
        let mut table = Table::new(&["Step", "Batch Size", "Average", "Lowest", "Highest", "p50", "p90", "p99"]);
        each(&batches, &latency, |name, batch, figures| {
            let values = [figures.average, figures.lowest, figures.highest, figures.p50, figures.p90, figures.p99];
            table.row([name, batch].into_iter().chain(values.map(|value| format!("{value:.2} ms"))));
        });
        writeln!(f, "{table}")?;

        let prompt = f64::from(parameters.sequence_length);
        let throughput: [Quantity<'_>; 2] = [
            ("Prefill", &|wave| Some(wave.batch as f64 * prompt / wave.prefill_ms * 1e3)),
            ("Decode", &|wave| (steps > 0.0).then(|| wave.batch as f64 * steps / wave.decode_ms * 1e3)),
        ];
        let mut table = Table::new(&["Step", "Batch Size", "Average", "Lowest", "Highest"]);
        each(&batches, &throughput, |name, batch, figures| {
            let values = [figures.average, figures.lowest, figures.highest];
            table.row([name, batch].into_iter().chain(values.map(|value| format!("{value:.2} tokens/secs"))));
        });
        write!(f, "{table}")?;
        writeln!(
            f,
            "\nOver the wire: prefill ends when the last request of a wave has its first token, decode with the last token of all."
        )
    }
}

/// A name, and how it is read off a wave.
type Quantity<'a> = (&'a str, &'a dyn Fn(&Wave) -> Option<f64>);

/// One row for each quantity and batch size; the quantity's name stands in the first of its rows only.
fn each(batches: &[Vec<Wave>], quantities: &[Quantity<'_>], mut row: impl FnMut(String, String, Figures)) {
    for (name, quantity) in quantities {
        let mut name = *name;
        for waves in batches {
            if let Some(figures) = Figures::of(waves.iter().filter_map(quantity).collect()) {
                row(std::mem::take(&mut name).to_owned(), waves[0].batch.to_string(), figures);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_original() {
        let figures = Figures::of((0..10).map(f64::from).collect()).expect("ten values");
        assert_eq!((figures.p50, figures.p90, figures.p99), (5.0, 9.0, 9.0));
        assert_eq!((figures.average, figures.lowest, figures.highest), (4.5, 0.0, 9.0));
        assert_eq!(Figures::of(Vec::new()), None);
    }
}
