//! Virtual users, time per token, queue time: the table of the k6 load test of text-generation-inference.
//!
//! Times are the server's own account, told in the headers of whole answers ([`ServerTimes`](pelton_bench::ServerTimes)). A server that
//! tells none is measured by streams instead, and the columns say so.

use std::fmt;
use std::time::Duration;

use pelton_bench::results::{Results, RunResult};
use pelton_bench::{Api, BenchPlan, Distribution, Load, Part, PromptMix, Row, TargetPlan, WorkloadPlan};
use serde_json::json;

use super::Table;
use super::table::or_dash;

/// Users of the original.
pub const USERS: [usize; 10] = [1, 5, 10, 20, 40, 60, 80, 100, 120, 140];

/// Tokens of each answer in the original.
pub const OUTPUT_TOKENS: u32 = 60;

/// Milliseconds per token and in the queue.
type Times = Option<(u32, u32)>;

/// StarCoder 15B in GPTQ, four bits, on text-generation-inference (revision e605c2a): users, then milliseconds per token and in the queue,
/// both the 95th percentile, on one A10G and on one A100. `None` was not published.
const PUBLISHED: [(usize, Times, Times); 9] = [
    (1, Some((30, 1)), Some((30, 1))),
    (5, Some((65, 105)), Some((59, 64))),
    (10, Some((104, 120)), Some((50, 51))),
    (20, Some((203, 5110)), Some((59, 49))),
    (40, None, Some((73, 1000))),
    (60, None, Some((59, 113))),
    (80, None, Some((92, 165))),
    (100, None, Some((72, 1111))),
    (120, None, Some((77, 1270))),
];

/// Users at which the published run on the A100 failed.
const PUBLISHED_FAILURE: usize = 140;

/// Tokens of the prompt: about those of the original, a comment and `def fibonacci`.
const INPUT_TOKENS: u32 = 17;

/// A closed loop for each number of users, one prompt for all, sampled as in the original. text-generation-inference is asked for whole
/// answers, whose headers tell times; other servers for streams.
pub fn plan(mut target: TargetPlan, users: &[usize], duration: Duration, seed: u64) -> BenchPlan {
    target.stream = target.api != Some(Api::Tgi);
    if target.api == Some(Api::Tgi) && target.extra_body.is_empty() {
        let sampling = json!({ "temperature": 0.2, "top_p": 0.95, "seed": 0 });
        target.extra_body.insert("parameters".to_owned(), sampling);
    }
    let workload =
        WorkloadPlan { prompts: PromptMix::Same, ..WorkloadPlan::synthetic(INPUT_TOKENS, OUTPUT_TOKENS, seed) };
    super::test(target, workload, Load::users(users.iter().copied()), duration)
}

/// Prints the table of a run over numbers of users.
#[derive(Debug)]
pub struct Vus<'a>(pub &'a Results);

impl fmt::Display for Vus<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = self.0.runs.iter().any(|run| times(run, |row| row.server_ms?.per_token).is_some());
        let columns = if told {
            ["VU", "time per token (p95)", "queue time (p95)"]
        } else {
            ["VU", "time per output token (p95)", "time to first token (p95)"]
        };
        let more = ["requests/s", "429s", "failed", "A10G: per token, queue", "A100: per token, queue"];
        let mut table = Table::new(&[columns.as_slice(), more.as_slice()].concat());
        for run in &self.0.runs {
            let users = run.case.level().map(|(_, level)| level as usize);
            let (per_token, queue) = if told {
                (times(run, |row| row.server_ms?.per_token), times(run, |row| row.server_ms?.queue))
            } else {
                (run.summary.tpot_ms.clone(), run.summary.ttft_ms.clone())
            };
            // The headers carry whole milliseconds.
            let digits = if told { 0 } else { 1 };
            let p95 = |values: Option<Distribution>| or_dash(values, |values| format!("{:.digits$}ms", values.p95));
            let requests = &run.summary.requests;
            let overloaded =
                measured(run).filter(|row| row.failure.is_some() && row.status == Some(429)).count() as u64;
            let (a10g, a100) = published(users);
            table.row([
                or_dash(users, |users| users.to_string()),
                p95(per_token),
                p95(queue),
                or_dash(answers_per_s(run), |rate| format!("{rate:.2}")),
                overloaded.to_string(),
                format!("{} of {}", requests.failed - overloaded, requests.measured),
                a10g,
                a100,
            ]);
        }
        write!(f, "{table}")?;
        if told {
            writeln!(f, "\nTime per token and queue time are the server's own, from the headers of its answers.")?;
        } else {
            writeln!(
                f,
                "\nThis server tells no times of its own, so both columns are the client's: (last token - first token) / (n - 1), and the \
                 first token's arrival after the start, which holds queue and prefill."
            )?;
        }
        writeln!(
            f,
            "A10G and A100: published figures of StarCoder 15B (GPTQ, 4 bits) on text-generation-inference, 60 new tokens; another \
             model on another machine."
        )
    }
}

fn published(users: Option<usize>) -> (String, String) {
    let text = |pair: Times| or_dash(pair, |(token, queue)| format!("{token}ms, {queue}ms"));
    match users.and_then(|users| PUBLISHED.iter().find(|(at, ..)| *at == users)) {
        Some(&(_, a10g, a100)) => (text(a10g), text(a100)),
        None if users == Some(PUBLISHED_FAILURE) => ("-".to_owned(), "requests failed".to_owned()),
        None => ("-".to_owned(), "-".to_owned()),
    }
}

/// What the server told of the measured, complete requests.
fn times(run: &RunResult, which: impl Fn(&Row) -> Option<f64>) -> Option<Distribution> {
    Distribution::of(measured(run).filter(|row| row.failure.is_none()).filter_map(which).collect())
}

/// Complete answers in the time from the first start to the last end, as k6 counts them: those that end after the load's last start are in it.
fn answers_per_s(run: &RunResult) -> Option<f64> {
    let end_us = |row: &Row| row.start_us + u64::from(row.end_us);
    let first = measured(run).map(|row| row.start_us).min()?;
    let last = measured(run).map(end_us).max().filter(|&last| last > first)?;
    let answers = measured(run).filter(|row| row.failure.is_none()).count();
    Some(answers as f64 * 1e6 / (last - first) as f64)
}

fn measured(run: &RunResult) -> impl Iterator<Item = &Row> {
    run.rows.iter().filter(|row| row.part == Part::Measured)
}
