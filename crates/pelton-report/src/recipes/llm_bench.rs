//! The summary block of llm_bench: the same keys in the same order, by the formulas of its time; and the same quantities as pelton
//! defines them.

use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use pelton_bench::results::{Results, RunResult};
use pelton_bench::{
    Arrival, BenchPlan, Case, Distribution, Lengths, Load, MAX_TOKENS, OpenBounds, Part, PromptMix, Row, Shape, Stage,
    TargetPlan, Users, WorkloadPlan,
};

/// Each user of the original waits up to so long before its first request, so that they do not go in step.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Width of the rules above and below the block.
const RULE: usize = 80;

/// How the lengths of answers are spread around their mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Always the mean.
    Constant,
    /// Every number within the range equally often.
    Uniform,
    /// Exponential.
    Exponential,
    /// The range is the deviation.
    Normal,
}

/// What was asked for, in the original's terms.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// `openai`, `vllm`, ...; `None` shows the dialect that was found.
    pub provider: Option<String>,
    /// Users, and how many begin per second.
    pub users: usize,
    /// See `users`.
    pub spawn_rate: f64,
    /// Length of the run.
    pub run_time: Duration,
    /// Tokens of each prompt.
    pub prompt_tokens: u32,
    /// Whether prompts differ from their beginning.
    pub randomize: bool,
    /// Mean tokens of an answer.
    pub max_tokens: u32,
    /// How they are spread.
    pub spread: Spread,
    /// Half-width or deviation, as a share of the mean.
    pub range: f64,
    /// Most tokens of an answer.
    pub cap: Option<u32>,
    /// Sampling temperature.
    pub temperature: f64,
    /// Log-probabilities asked for.
    pub logprobs: Option<u32>,
    /// Open loop: requests per second.
    pub qps: Option<(f64, Arrival)>,
    /// Counts tokens.
    pub tokenizer: Option<PathBuf>,
    /// Of prompts, lengths and start times.
    pub seed: u64,
}

impl Asked {
    /// The sampler's text, as in the line `Generation Tokens`.
    fn generation_tokens(&self) -> String {
        let (mean, half) = (self.max_tokens, (f64::from(self.max_tokens) * self.range) as u32);
        let text = match self.spread {
            Spread::Constant => mean.to_string(),
            Spread::Uniform => format!("uniform({mean} +/- {half})"),
            Spread::Normal => format!("normal({mean}, {half})"),
            Spread::Exponential => format!("exponential({mean})"),
        };
        self.cap.map_or(text.clone(), |cap| format!("{text} capped at {cap}"))
    }

    fn lengths(&self) -> Lengths {
        let (mean, half) = (f64::from(self.max_tokens), f64::from(self.max_tokens) * self.range);
        let shape = match self.spread {
            Spread::Constant => Shape::Fixed(self.max_tokens),
            Spread::Uniform => Shape::Uniform((mean - half).max(1.0) as u32, (mean + half) as u32),
            Spread::Normal => Shape::Normal(mean, half),
            Spread::Exponential => Shape::Exponential(mean),
        };
        Lengths { max: self.cap.unwrap_or(MAX_TOKENS), ..Lengths::of(shape) }
    }

    fn concurrency(&self) -> String {
        match self.qps {
            None => self.users.to_string(),
            Some((rate, Arrival::Constant)) => format!("QPS {rate} constant"),
            Some((rate, _)) => format!("QPS {rate} exponential"),
        }
    }
}

/// The load test: users that come one after another and stay, or an open loop.
pub fn plan(target: TargetPlan, asked: &Asked) -> BenchPlan {
    let workload = WorkloadPlan {
        prompts: if asked.randomize { PromptMix::Distinct } else { PromptMix::Same },
        output_tokens: Some(asked.lengths()),
        tokenizer: asked.tokenizer.clone(),
        ..WorkloadPlan::synthetic(asked.prompt_tokens, asked.max_tokens, asked.seed)
    };
    let load = match asked.qps {
        Some((rate, arrival)) => {
            let bounds = OpenBounds { max_in_flight: asked.users, ..OpenBounds::default() };
            Load::rates([rate], arrival, bounds)
        }
        None => {
            // A ramp that never ends is refused with the plan.
            let duration = Duration::try_from_secs_f64(asked.users as f64 / asked.spawn_rate).unwrap_or(Duration::MAX);
            let duration = duration.max(FIRST_WAIT);
            let stages = vec![Stage { duration, target: asked.users as f64 }];
            Case::Closed { users: Users::Ramping { from: 0, stages }, each: None }.into()
        }
    };
    super::test(target, workload, load, asked.run_time)
}

/// One line of the summary.
type Line = (&'static str, String);

/// The lines of the summary in their order. `Time To First Token` and `Latency Per Token` are empty without streams.
///
/// Formulas: time to first token from the start to the first event, whatever it holds; latency per token
/// `(end - first event) / tokens`; total latency to the last byte; each the mean of all complete requests, warm-up included as then;
/// Qps is requests over the time from the first start to the last end.
pub fn lines(results: &Results, run: &RunResult, asked: &Asked) -> Vec<Line> {
    let complete: Vec<&Row> = run.rows.iter().filter(|row| row.failure.is_none()).collect();
    let mean = |value: &dyn Fn(&Row) -> Option<f64>| {
        let values: Vec<f64> = complete.iter().filter_map(|row| value(row)).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    let stream = results.plan.target.stream;
    let first_ms = |row: &Row| row.first_event_us.filter(|_| stream).map(ms);
    let per_token = |row: &Row| Some((ms(row.end_us) - first_ms(row)?) / f64::from(row.output_tokens).max(1.0));
    let text = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
    let first_us = complete.iter().map(|row| row.start_us).min();
    let last_us = complete.iter().map(|row| row.start_us + u64::from(row.end_us)).max();
    let span_s = first_us.zip(last_us).map(|(first, last)| (last - first) as f64 / 1e6);
    let prompt = mean(&|row| Some(f64::from(row.prompt_tokens_reported.unwrap_or(row.prompt_tokens))));
    vec![
        ("Provider", asked.provider.clone().unwrap_or_else(|| results.server.api.name().to_owned())),
        ("Model", results.server.name().to_owned()),
        ("Prompt Tokens", text(prompt)),
        ("Generation Tokens", asked.generation_tokens()),
        ("Stream", if stream { "True" } else { "False" }.to_owned()),
        ("Temperature", format!("{:?}", asked.temperature)),
        ("Logprobs", asked.logprobs.map_or_else(|| "None".to_owned(), |n| n.to_string())),
        ("Concurrency", asked.concurrency()),
        ("Time To First Token", text(mean(&first_ms))),
        ("Latency Per Token", text(mean(&per_token))),
        ("Num Tokens", text(mean(&|row| Some(f64::from(row.output_tokens))))),
        ("Total Latency", text(mean(&|row| Some(ms(row.end_us))))),
        ("Num Requests", complete.len().to_string()),
        ("Qps", text(span_s.filter(|span| *span > 0.0).map(|span| complete.len() as f64 / span))),
    ]
}

fn ms(us: u32) -> f64 {
    f64::from(us) / 1e3
}

/// The block as printed: a rule with the word Summary, keys padded to the longest, a plain rule.
pub fn block(lines: &[Line]) -> String {
    let width = lines.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    let mut text = format!("{:=^RULE$}\n", " Summary ");
    for (key, value) in lines {
        let _ = writeln!(text, "{key:<width$}: {value}");
    }
    text.push_str(&"=".repeat(RULE));
    text.push('\n');
    text
}

/// Header and row for `--summary-file`; the header belongs into an empty file only.
pub fn csv(lines: &[Line]) -> Result<(Vec<u8>, Vec<u8>), csv::Error> {
    let record = |cells: &mut dyn Iterator<Item = &str>| {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(cells)?;
        writer.into_inner().map_err(|error| csv::Error::from(error.into_error()))
    };
    Ok((record(&mut lines.iter().map(|(key, _)| *key))?, record(&mut lines.iter().map(|(_, value)| value.as_str()))?))
}

/// The same quantities by pelton's definitions.
#[derive(Debug)]
pub struct Honest<'a>(pub &'a RunResult);

impl fmt::Display for Honest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let summary = &self.0.summary;
        let measured = self.0.rows.iter().filter(|row| row.part == Part::Measured).count();
        writeln!(
            f,
            "The same run by pelton's definitions ({measured} measured requests; `pelton bench explain` has the formulas)"
        )?;
        let line = |f: &mut fmt::Formatter<'_>, name: &str, values: &Option<Distribution>| match values {
            Some(values) => {
                writeln!(f, "{name:<38}: p50 {:.2}, p95 {:.2}, p99 {:.2} ms", values.p50, values.p95, values.p99)
            }
            None => Ok(()),
        };
        line(f, "Time to first token with text", &summary.ttft_ms)?;
        line(f, "Time per output token, (n - 1) gaps", &summary.tpot_ms)?;
        line(f, "Inter-token latency, all gaps", &summary.itl_ms)?;
        line(f, "End to end", &summary.e2e_ms)?;
        writeln!(f, "{:<38}: {:.3}", "Requests/s in the measured window", summary.rates.requests_per_s)?;
        writeln!(f, "{:<38}: {:.1}", "Output tokens/s in the measured window", summary.rates.output_tokens_per_s)?;
        if self.0.case.bounds().is_some() {
            writeln!(f, "{:<38}: {}", "Dropped starts", summary.requests.dropped)?;
        }
        writeln!(f, "{:<38}: {}", "Failed", summary.requests.failed)
    }
}
