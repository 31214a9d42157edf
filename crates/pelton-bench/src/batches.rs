//! Prefill and decode by batch size, the quantities of text-generation-benchmark: what is asked for, what is measured, the formulas.
//!
//! [`measure`] takes the times of a running server. Whoever computes batches in another way makes [`BatchTimes`] of its own and has the same
//! [`Quantity`]s and [`Figures`].

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::plan::{
    Api, BenchPlan, Case, Goals, Limits, Load, MAX_DURATION, MAX_REQUESTS, MetricsPlan, Scale, TargetPlan, Warmup,
    Waves, WorkloadPlan,
};
use crate::recorder::{CountedBy, Row};
use crate::results::RunResult;
use crate::watch::{Control, Sight, Watch};
use crate::{BenchError, run};

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Batches {
    /// Name of the model or tokenizer.
    pub model: String,
    /// Sequences that run together; one measurement each.
    pub sizes: Vec<usize>,
    /// Tokens of each prompt.
    pub sequence_length: u32,
    /// Tokens of each answer.
    pub decode_length: u32,
    /// Measured runs of each size.
    pub runs: u32,
    /// Runs of each size before them.
    pub warmups: u32,
    /// How tokens are chosen.
    pub sampling: BatchSampling,
}

/// How tokens are chosen; what is absent is neutral.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BatchSampling {
    /// Divides the logits.
    pub temperature: Option<f32>,
    /// Keeps so many likeliest tokens.
    pub top_k: Option<u32>,
    /// Keeps the likeliest tokens of this probability together.
    pub top_p: Option<f32>,
    /// Keeps the tokens nearest to the entropy, of this probability together.
    pub typical_p: Option<f32>,
    /// Divides the logits of tokens seen before.
    pub repetition_penalty: Option<f32>,
    /// Subtracted for each earlier occurrence.
    pub frequency_penalty: Option<f32>,
    /// Marks the text.
    pub watermark: bool,
    /// Draws, even if everything else is neutral.
    pub do_sample: bool,
    /// Likeliest tokens told for each position.
    pub top_n_tokens: Option<u8>,
}

/// Parameters of a request that a dialect has no name for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{parameter} has no place in the requests of this dialect: leave it out, or name one that has it with --api tgi"
)]
pub struct NoPlace {
    parameter: &'static str,
}

impl BatchSampling {
    /// Whether tokens are drawn: if that is asked for, or any filter is not neutral.
    pub fn draws(&self) -> bool {
        let is_set = |value: Option<f32>| value.is_some_and(|value| value != 1.0);
        self.do_sample
            || is_set(self.temperature)
            || is_set(self.top_p)
            || is_set(self.typical_p)
            || self.top_k.is_some_and(|k| k > 0)
    }

    /// Members of a request's body.
    ///
    /// # Errors
    /// If the dialect has no name for one of them.
    pub fn body(&self, api: Api) -> Result<Map<String, Value>, NoPlace> {
        if *self == Self::default() {
            return Ok(Map::new());
        }
        match api {
            Api::Tgi => Ok(Map::from_iter([("parameters".to_owned(), Value::Object(self.tgi()))])),
            Api::Openai | Api::OpenaiChat => self.openai(api),
            Api::KserveInfer | Api::KserveGenerate | Api::KserveGrpc => Err(NoPlace { parameter: "sampling" }),
        }
    }

    fn tgi(&self) -> Map<String, Value> {
        let mut body = Map::new();
        let numbers = [
            ("temperature", self.temperature),
            ("top_p", self.top_p),
            ("typical_p", self.typical_p),
            ("repetition_penalty", self.repetition_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ];
        for (name, value) in numbers {
            body.extend(value.map(|value| (name.to_owned(), decimal(value))));
        }
        body.extend(self.top_k.filter(|&k| k > 0).map(|k| ("top_k".to_owned(), json!(k))));
        body.extend(self.top_n_tokens.map(|n| ("top_n_tokens".to_owned(), json!(n))));
        body.insert("do_sample".to_owned(), json!(self.draws()));
        if self.watermark {
            body.insert("watermark".to_owned(), json!(true));
        }
        body
    }

    fn openai(&self, api: Api) -> Result<Map<String, Value>, NoPlace> {
        if self.typical_p.is_some() {
            return Err(NoPlace { parameter: "typical_p" });
        }
        if self.watermark {
            return Err(NoPlace { parameter: "watermark" });
        }
        let temperature = if self.draws() { self.temperature.unwrap_or(1.0) } else { 0.0 };
        let mut body = Map::from_iter([("temperature".to_owned(), decimal(temperature))]);
        let numbers = [
            ("top_p", self.top_p),
            ("repetition_penalty", self.repetition_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ];
        for (name, value) in numbers {
            body.extend(value.map(|value| (name.to_owned(), decimal(value))));
        }
        body.extend(self.top_k.filter(|&k| k > 0).map(|k| ("top_k".to_owned(), json!(k))));
        if let Some(n) = self.top_n_tokens {
            if api == Api::OpenaiChat {
                body.extend([("logprobs".to_owned(), json!(true)), ("top_logprobs".to_owned(), json!(n))]);
            } else {
                body.insert("logprobs".to_owned(), json!(n));
            }
        }
        Ok(body)
    }
}

/// `0.7`, not the nearest f64 to the nearest f32.
fn decimal(value: f32) -> Value {
    json!(value.to_string().parse::<f64>().unwrap_or(f64::from(value)))
}

/// One run of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BatchTimes {
    /// Sequences.
    pub batch: usize,
    /// Until the last sequence has its first token.
    pub prefill_ms: f64,
    /// From there until the last token of all.
    pub decode_ms: f64,
}

/// What is computed from a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// Milliseconds.
    PrefillLatency,
    /// Prompt tokens of the batch per second.
    PrefillThroughput,
    /// Milliseconds of all steps after the first token.
    DecodeTotalLatency,
    /// Milliseconds of one of them.
    DecodeTokenLatency,
    /// Tokens of the batch in these steps per second.
    DecodeThroughput,
}

impl Quantity {
    /// Its value; `None` where there is none: with one token for each sequence nothing is decoded.
    pub fn of(self, batches: &Batches, times: &BatchTimes) -> Option<f64> {
        let steps = f64::from(batches.decode_length.saturating_sub(1));
        let size = times.batch as f64;
        match self {
            Quantity::PrefillLatency => Some(times.prefill_ms),
            Quantity::PrefillThroughput => rate(size * f64::from(batches.sequence_length), times.prefill_ms),
            _ if steps == 0.0 => None,
            Quantity::DecodeTotalLatency => Some(times.decode_ms),
            Quantity::DecodeTokenLatency => Some(times.decode_ms / steps),
            Quantity::DecodeThroughput => rate(size * steps, times.decode_ms),
        }
    }

    /// The figures of all runs of a size.
    pub fn figures(self, batches: &Batches, runs: &[BatchTimes], size: usize) -> Option<Figures> {
        let of_size = runs.iter().filter(|times| times.batch == size);
        Figures::of(of_size.filter_map(|times| self.of(batches, times)).collect())
    }
}

fn rate(tokens: f64, time_ms: f64) -> Option<f64> {
    (time_ms > 0.0).then(|| tokens / time_ms * 1e3)
}

/// Average, lowest, highest and three quantiles, as the original takes them: the value at `floor(q n)` of the sorted ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// The mean.
    pub average: f64,
    /// The least.
    pub lowest: f64,
    /// The greatest.
    pub highest: f64,
    /// Half are below.
    pub p50: f64,
    /// Nine of ten are below.
    pub p90: f64,
    /// 99 of 100 are below.
    pub p99: f64,
}

impl Figures {
    /// `None` for no values.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        let (&lowest, &highest) = values.first().zip(values.last())?;
        let at = |q: f64| values[((q * values.len() as f64) as usize).min(values.len() - 1)];
        let average = values.iter().sum::<f64>() / values.len() as f64;
        Some(Self { average, lowest, highest, p50: at(0.5), p90: at(0.9), p99: at(0.99) })
    }
}

/// What happens while batches are measured.
#[derive(Debug)]
pub enum BatchSight<'a> {
    /// Work before the first run that may take a while.
    Preparing(&'a str),
    /// The runs of this size begin, warm-ups first.
    Begins {
        /// Sequences.
        batch: usize,
    },
    /// A run that does not count is over.
    Warmed,
    /// A run that counts is over.
    Ran(&'a BatchTimes),
    /// A run failed; it counts for nothing.
    Failed {
        /// Sequences.
        batch: usize,
        /// Why, in words for people.
        reason: &'a str,
    },
}

/// Looks on; must return at once.
pub type See<'a> = dyn FnMut(BatchSight<'_>) + 'a;

/// Measures a running server: so many requests as the batch has start at once and stream their answers, again and again, one size after
/// another. Scheduling and wire are in the times, as they are for the server's users. Returns the model's name and the measured runs;
/// those before a stop by `control` if there was one.
///
/// # Errors
/// What prevents the test. Runs with a failed request are told to `see` and left out.
pub fn measure(
    batches: &Batches,
    target: TargetPlan,
    workload: WorkloadPlan,
    see: &mut See<'_>,
    control: &Control,
) -> Result<String, BenchError> {
    let num_waves = batches.warmups.saturating_add(batches.runs) as usize;
    for &size in &batches.sizes {
        let requests = (size as u64).saturating_mul(num_waves as u64);
        if requests > MAX_REQUESTS {
            return Err(BenchError::Plan(format!(
                "batch size {size} with {num_waves} runs, warm-ups included, is {requests} requests, limit {MAX_REQUESTS}"
            )));
        }
    }
    let wave = |&size: &usize| Case::Waves(Waves { sizes: vec![size; num_waves], pause: Duration::ZERO });
    let plan = BenchPlan {
        target,
        workload,
        metrics: MetricsPlan::default(),
        load: Load { cases: batches.sizes.iter().map(wave).collect() },
        limits: Limits {
            duration: MAX_DURATION,
            requests: MAX_REQUESTS,
            grace: Duration::ZERO,
            at_least: Duration::ZERO,
        },
        warmup: Warmup::Requests(0),
        cooldown: Duration::ZERO,
        goals: Goals::default(),
        scale: Scale::default(),
    };
    let mut watch = WaveWatch { batches, see, size: 0, open: BTreeMap::new(), num_told: 0 };
    let results = run(&plan, Vec::new(), &mut watch, control)?;
    Ok(results.server.name().to_owned())
}

/// Puts requests together to waves: those of each share their intended start.
struct WaveWatch<'a, 'b> {
    batches: &'a Batches,
    see: &'a mut See<'b>,
    size: usize,
    /// Rows by intended start, until a wave has all of its own.
    open: BTreeMap<u64, Vec<Row>>,
    /// Waves of this size that are over.
    num_told: usize,
}

impl WaveWatch<'_, '_> {
    fn take(&mut self, rows: &[Row]) {
        for row in rows {
            let wave = self.open.entry(row.intended_us).or_default();
            wave.push(row.clone());
            if wave.len() == self.size {
                let wave = std::mem::take(wave);
                self.open.remove(&row.intended_us);
                self.tell(&wave);
            }
        }
    }

    fn tell(&mut self, wave: &[Row]) {
        let times = times(wave);
        let counts = self.num_told >= self.batches.warmups as usize;
        self.num_told += 1;
        match times {
            Err(message) => (self.see)(BatchSight::Failed { batch: self.size, reason: &message }),
            Ok(_) if !counts => (self.see)(BatchSight::Warmed),
            Ok(times) => (self.see)(BatchSight::Ran(&times)),
        }
    }

    /// What was not told before the end of the run.
    fn end(&mut self, result: &RunResult) {
        let mut waves: BTreeMap<u64, Vec<Row>> = BTreeMap::new();
        for row in &result.rows {
            waves.entry(row.intended_us).or_default().push(row.clone());
        }
        for wave in waves.into_values().skip(self.num_told) {
            // An interrupt leaves a wave without some of its requests, or with such that were cut: nothing failed there.
            if wave.len() == self.size && !result.is_interrupted {
                self.tell(&wave);
            }
        }
    }
}

impl Watch for WaveWatch<'_, '_> {
    fn see(&mut self, sight: Sight<'_>) {
        match sight {
            Sight::Preparing(what) => (self.see)(BatchSight::Preparing(what)),
            Sight::Begins { case: Case::Waves(waves), .. } => {
                self.size = waves.sizes.first().copied().unwrap_or(0);
                self.open.clear();
                self.num_told = 0;
                (self.see)(BatchSight::Begins { batch: self.size });
            }
            Sight::Moment(_, rows) => self.take(rows),
            Sight::Ends(result) => self.end(result),
            Sight::Begins { .. } | Sight::Series(_) | Sight::Found { .. } | Sight::Server(_) => {}
        }
    }
}

/// Times of one wave.
///
/// # Errors
/// In words for people: if a request failed, or an answer was shorter than wished, since then the batch was not what it should be.
fn times(wave: &[Row]) -> Result<BatchTimes, String> {
    let (mut first, mut last) = (0, 0);
    for row in wave {
        if let Some(failure) = &row.failure {
            return Err(format!("{}: {}", failure.kind, failure.message));
        }
        let is_exact = matches!(row.counted_by, CountedBy::Server | CountedBy::Events);
        if is_exact && row.output_tokens != row.wished_tokens {
            return Err(format!(
                "an answer has {} tokens instead of {}: the server must be able to go on after the end of text",
                row.output_tokens, row.wished_tokens
            ));
        }
        let (Some(begin), Some(end)) = (row.arrivals.first(), row.arrivals.last()) else {
            return Err("an answer came without tokens".to_owned());
        };
        // From the common start: a request that was sent late does not hide it.
        let late = row.start_us - row.intended_us;
        first = first.max(late + u64::from(begin.at_us));
        last = last.max(late + u64::from(end.at_us));
    }
    Ok(BatchTimes { batch: wave.len(), prefill_ms: first as f64 / 1e3, decode_ms: (last - first) as f64 / 1e3 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(sequence_length: u32, decode_length: u32) -> Batches {
        Batches {
            model: "m".into(),
            sizes: vec![4],
            sequence_length,
            decode_length,
            runs: 1,
            warmups: 0,
            sampling: BatchSampling::default(),
        }
    }

    #[test]
    fn quantiles_are_those_of_the_original() {
        let figures = Figures::of((0..10).map(f64::from).collect()).expect("ten values");
        assert_eq!((figures.p50, figures.p90, figures.p99), (5.0, 9.0, 9.0));
        assert_eq!((figures.average, figures.lowest, figures.highest), (4.5, 0.0, 9.0));
        assert_eq!(Figures::of(Vec::new()), None);
    }

    #[test]
    fn quantities_follow_the_formulas() {
        let times = BatchTimes { batch: 4, prefill_ms: 20.0, decode_ms: 70.0 };
        let all = [
            Quantity::PrefillLatency,
            Quantity::PrefillThroughput,
            Quantity::DecodeTotalLatency,
            Quantity::DecodeTokenLatency,
            Quantity::DecodeThroughput,
        ];
        let values = all.map(|quantity| quantity.of(&batches(10, 8), &times));
        assert_eq!(values, [Some(20.0), Some(2000.0), Some(70.0), Some(10.0), Some(400.0)]);
        let short = all.map(|quantity| quantity.of(&batches(10, 1), &times));
        assert_eq!(short, [Some(20.0), Some(2000.0), None, None, None]);
    }

    #[test]
    fn sampling_is_written_in_each_dialect_or_refused() {
        let drawn = BatchSampling { top_p: Some(0.9), top_n_tokens: Some(3), ..BatchSampling::default() };
        assert_eq!(
            Value::Object(drawn.body(Api::Tgi).expect("a place")),
            json!({ "parameters": { "top_p": 0.9, "top_n_tokens": 3, "do_sample": true } })
        );
        assert_eq!(
            Value::Object(drawn.body(Api::Openai).expect("a place")),
            json!({ "temperature": 1.0, "top_p": 0.9, "logprobs": 3 })
        );
        let typical = BatchSampling { typical_p: Some(0.5), ..BatchSampling::default() };
        assert!(typical.body(Api::Openai).expect_err("no place").to_string().starts_with("typical_p has no place"));
        assert!(BatchSampling::default().body(Api::KserveGrpc).expect("nothing to place").is_empty());
    }

    #[test]
    fn neutral_values_do_not_draw() {
        let neutral = BatchSampling {
            temperature: Some(1.0),
            top_k: Some(0),
            top_p: Some(1.0),
            repetition_penalty: Some(1.2),
            ..BatchSampling::default()
        };
        assert!(!neutral.draws());
        assert!(BatchSampling { do_sample: true, ..neutral }.draws());
    }
}
