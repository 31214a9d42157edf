//! Prefill and decode by batch size: the tables that text-generation-benchmark prints.

use std::fmt;

use pelton_bench::batches::{BatchTimes, Batches, Figures, Quantity};

use super::Table;

/// Prints the three tables.
#[derive(Debug)]
pub struct Engine<'a> {
    /// What was asked for.
    pub batches: &'a Batches,
    /// The measured runs.
    pub runs: &'a [BatchTimes],
}

impl fmt::Display for Engine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", parameters(self.batches))?;

        let latency = [
            ("Prefill", Quantity::PrefillLatency),
            ("Decode (token)", Quantity::DecodeTokenLatency),
            ("Decode (total)", Quantity::DecodeTotalLatency),
        ];
        let mut table = Table::left(&["Step", "Batch Size", "Average", "Lowest", "Highest", "p50", "p90", "p99"]);
        self.each(&latency, |name, size, figures| {
            let values = [figures.average, figures.lowest, figures.highest, figures.p50, figures.p90, figures.p99];
            table.row([name, size].into_iter().chain(values.map(|value| format!("{value:.2} ms"))));
        });
        writeln!(f, "{table}")?;

        let throughput = [("Prefill", Quantity::PrefillThroughput), ("Decode", Quantity::DecodeThroughput)];
        let mut table = Table::left(&["Step", "Batch Size", "Average", "Lowest", "Highest"]);
        self.each(&throughput, |name, size, figures| {
            let values = [figures.average, figures.lowest, figures.highest];
            table.row([name, size].into_iter().chain(values.map(|value| format!("{value:.2} tokens/secs"))));
        });
        write!(f, "{table}")
    }
}

impl Engine<'_> {
    /// One row for each quantity and batch size with a run; the quantity's name stands in the first of its rows only.
    fn each(&self, quantities: &[(&str, Quantity)], mut row: impl FnMut(String, String, Figures)) {
        for (name, quantity) in quantities {
            let mut name = *name;
            for &size in &self.batches.sizes {
                if let Some(figures) = quantity.figures(self.batches, self.runs, size) {
                    row(std::mem::take(&mut name).to_owned(), size.to_string(), figures);
                }
            }
        }
    }
}

/// Options are told as the original tells them: `None`, or `Some` value.
fn parameters(batches: &Batches) -> Table {
    let sampling = &batches.sampling;
    let mut table = Table::left(&["Parameter", "Value"]);
    let rows = [
        ("Model", batches.model.clone()),
        ("Sequence Length", batches.sequence_length.to_string()),
        ("Decode Length", batches.decode_length.to_string()),
        ("Top N Tokens", format!("{:?}", sampling.top_n_tokens)),
        ("N Runs", batches.runs.to_string()),
        ("Warmups", batches.warmups.to_string()),
        ("Temperature", format!("{:?}", sampling.temperature)),
        ("Top K", format!("{:?}", sampling.top_k)),
        ("Top P", format!("{:?}", sampling.top_p)),
        ("Typical P", format!("{:?}", sampling.typical_p)),
        ("Repetition Penalty", format!("{:?}", sampling.repetition_penalty)),
        ("Frequency Penalty", format!("{:?}", sampling.frequency_penalty)),
        ("Watermark", sampling.watermark.to_string()),
        ("Do Sample", sampling.do_sample.to_string()),
    ];
    for (name, value) in rows {
        table.row([name.to_owned(), value]);
    }
    table
}

#[cfg(test)]
mod tests {
    use pelton_bench::batches::BatchSampling;

    use super::*;

    fn told(decode_length: u32, runs: &[BatchTimes]) -> String {
        let batches = Batches {
            model: "bigcode/starcoder".into(),
            sizes: vec![1, 2, 4],
            sequence_length: 10,
            decode_length,
            runs: 2,
            warmups: 1,
            sampling: BatchSampling { temperature: Some(0.2), top_k: Some(5), ..BatchSampling::default() },
        };
        Engine { batches: &batches, runs }.to_string()
    }

    const RUNS: [BatchTimes; 3] = [
        BatchTimes { batch: 1, prefill_ms: 10.0, decode_ms: 70.0 },
        BatchTimes { batch: 1, prefill_ms: 20.0, decode_ms: 140.0 },
        BatchTimes { batch: 2, prefill_ms: 40.0, decode_ms: 280.0 },
    ];

    #[test]
    fn the_tables_are_those_of_the_original() {
        let expected = "\
| Parameter          | Value             |
|--------------------|-------------------|
| Model              | bigcode/starcoder |
| Sequence Length    | 10                |
| Decode Length      | 8                 |
| Top N Tokens       | None              |
| N Runs             | 2                 |
| Warmups            | 1                 |
| Temperature        | Some(0.2)         |
| Top K              | Some(5)           |
| Top P              | None              |
| Typical P          | None              |
| Repetition Penalty | None              |
| Frequency Penalty  | None              |
| Watermark          | false             |
| Do Sample          | false             |

| Step           | Batch Size | Average   | Lowest    | Highest   | p50       | p90       | p99       |
|----------------|------------|-----------|-----------|-----------|-----------|-----------|-----------|
| Prefill        | 1          | 15.00 ms  | 10.00 ms  | 20.00 ms  | 20.00 ms  | 20.00 ms  | 20.00 ms  |
|                | 2          | 40.00 ms  | 40.00 ms  | 40.00 ms  | 40.00 ms  | 40.00 ms  | 40.00 ms  |
| Decode (token) | 1          | 15.00 ms  | 10.00 ms  | 20.00 ms  | 20.00 ms  | 20.00 ms  | 20.00 ms  |
|                | 2          | 40.00 ms  | 40.00 ms  | 40.00 ms  | 40.00 ms  | 40.00 ms  | 40.00 ms  |
| Decode (total) | 1          | 105.00 ms | 70.00 ms  | 140.00 ms | 140.00 ms | 140.00 ms | 140.00 ms |
|                | 2          | 280.00 ms | 280.00 ms | 280.00 ms | 280.00 ms | 280.00 ms | 280.00 ms |

";
        let told = told(8, &RUNS);
        assert!(told.starts_with(expected), "{told}");
        let cells: Vec<Vec<&str>> =
            told.lines().rev().take(4).map(|line| line.split('|').map(str::trim).collect()).collect();
        assert_eq!(cells[3][1..6], ["Prefill", "1", "750.00 tokens/secs", "500.00 tokens/secs", "1000.00 tokens/secs"]);
        assert_eq!(cells[2][1..4], ["", "2", "500.00 tokens/secs"]);
        assert_eq!(cells[1][1..4], ["Decode", "1", "75.00 tokens/secs"]);
        assert_eq!(cells[0][1..4], ["", "2", "50.00 tokens/secs"]);
    }

    #[test]
    fn one_token_has_no_decode() {
        let told = told(1, &RUNS);
        assert!(told.contains("| Prefill") && !told.contains("| Decode ("), "{told}");
        assert!(!told.lines().any(|line| line.starts_with("| Decode  ")), "{told}");
    }
}
