//! From rows to numbers, after the run. Exact: every quantile comes from the sorted values themselves.
//!
//! Definitions:
//! - **Measured window**: from the end of the warm-up to the end of the load less the cool-down. The load ends when starting stopped
//!   because of time, or with the last answer if all requests could be started. A request is *measured* if it was intended to start
//!   inside. Latencies are those of measured requests with a complete answer; failures are counted, never timed.
//! - **TTFT**: from the intended start to the first arrival of text or tokens. **End to end**: to the last byte of the answer. In the
//!   closed loop the intended start is the start; in the open loop both are also given from the real start, as *service* times.
//! - **Inter-token latency**: all gaps between tokens. A chunk of `k` tokens that arrives `g` after the one before gives `k` gaps of
//!   `g / k`. **Chunk gap**: all gaps between events as they became readable; events of one read are 0 apart.
//! - **TPOT**: `(last arrival - first arrival) / (n - 1)` of each answer with `n > 1` tokens.
//! - **Rates** count what happened inside the window, whichever request it belonged to: answers that became complete, tokens that
//!   arrived, prompts whose first token arrived. **Concurrency** is the mean number of running requests.

pub mod bootstrap;
mod client;
mod goodput;
mod histograms;
mod merged;
mod values;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::executor::Run;
use crate::plan::{BenchPlan, Case, OpenBounds, Warmup};
use crate::recorder::{CountedBy, Part, Row};
use crate::slo::Goodput;
pub use bootstrap::{CaseEstimates, Difference, Estimate, Interval, Resampled, compare, estimate};
pub use client::{ClientCost, ClientLimit};
pub use histograms::Histograms;
pub(crate) use merged::Merged;
pub(crate) use values::of_requests;

/// Quantiles of some values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// Number of values.
    pub count: usize,
    /// Arithmetic mean.
    pub mean: f64,
    /// Smallest.
    pub min: f64,
    /// Median.
    pub p50: f64,
    /// 90 % are not above this.
    pub p90: f64,
    /// 95 % are not above this.
    pub p95: f64,
    /// 99 % are not above this.
    pub p99: f64,
    /// 99.9 % are not above this.
    pub p999: f64,
    /// Largest.
    pub max: f64,
}

impl Distribution {
    /// `None` without values.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        let (&min, &max) = values.first().zip(values.last())?;
        Some(Self {
            count: values.len(),
            mean: values.iter().sum::<f64>() / values.len() as f64,
            min,
            p50: quantile(&values, 0.5),
            p90: quantile(&values, 0.9),
            p95: quantile(&values, 0.95),
            p99: quantile(&values, 0.99),
            p999: quantile(&values, 0.999),
            max,
        })
    }
}

/// The `q` quantile of ascending values, with linear interpolation between the two nearest (Hyndman and Fan 1996, type 7).
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let low = at.floor() as usize;
    let high = (low + 1).min(sorted.len() - 1);
    sorted[low] + (sorted[high] - sorted[low]) * (at - low as f64)
}

/// A span of a run and what happened in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Beginning, in seconds after the beginning of the run.
    pub from_s: f64,
    /// End.
    pub to_s: f64,
    /// Complete answers per second.
    pub requests_per_s: f64,
    /// Tokens that arrived per second.
    pub output_tokens_per_s: f64,
    /// Prompt tokens per second, each prompt counted when its first token arrived.
    pub input_tokens_per_s: f64,
    /// Mean number of running requests.
    pub concurrency: f64,
}

/// Numbers of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Started in the whole run.
    pub started: u64,
    /// Of these, later messages of conversations: an answer started them, not the load.
    #[serde(default)]
    pub follow_ups: u64,
    /// Of these, before the window.
    pub warmup: u64,
    /// After the window.
    pub cooldown: u64,
    /// Measured.
    pub measured: u64,
    /// Measured, with a complete answer.
    pub complete: u64,
    /// Measured, without one.
    pub failed: u64,
    /// Never started, in the whole run: too many were running.
    pub dropped: u64,
    /// Measured, and started later than the plan allows.
    pub late: u64,
    /// Complete, with fewer tokens than asked for.
    pub short: u64,
    /// Complete, tokens counted by chunks for want of anything better.
    pub counted_by_chunks: u64,
}

/// How well the prompts met their number of tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptCheck {
    /// Answers in which the server said how many there were, of requests whose prompts were made to have a certain number.
    pub reported: u64,
    /// Of these, with exactly as many as wished.
    pub exact: u64,
    /// Fewest wished.
    pub wished_min: u32,
    /// Most wished.
    pub wished_max: u32,
    /// Largest difference between wished and reported.
    pub max_off: u32,
    /// Fewest reported.
    pub min: u32,
    /// Most reported.
    pub max: u32,
}

/// What one run showed. Durations are milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Requests by fate.
    pub requests: Counts,
    /// Failed requests of the whole run, by kind.
    pub errors: BTreeMap<String, ErrorSummary>,
    /// Rates inside the measured window.
    pub rates: Rates,
    /// The same from the first start to the last end.
    pub whole: Rates,
    /// Time to first token, from the intended start.
    pub ttft_ms: Option<Distribution>,
    /// Gaps between tokens.
    pub itl_ms: Option<Distribution>,
    /// Gaps between events.
    pub chunk_gap_ms: Option<Distribution>,
    /// Time per output token after the first, one value for each answer.
    pub tpot_ms: Option<Distribution>,
    /// To the last byte, from the intended start.
    pub e2e_ms: Option<Distribution>,
    /// Time to first token from the real start. Open loop only.
    pub service_ttft_ms: Option<Distribution>,
    /// To the last byte from the real start. Open loop only.
    pub service_e2e_ms: Option<Distribution>,
    /// Real minus intended start. Open loop only.
    pub lateness_ms: Option<Distribution>,
    /// Tokens of complete answers.
    pub output_tokens: Option<Distribution>,
    /// Tokens of prompts.
    pub prompts: Option<PromptCheck>,
    /// What met the targets; `None` if no target judges requests.
    pub goodput: Option<Goodput>,
    /// `None` where the system does not tell.
    pub client: Option<ClientCost>,
    /// In which ways the client was the limit; empty is good.
    pub client_limits: Vec<ClientLimit>,
    /// What the reader should know before trusting the numbers.
    pub notes: Vec<String>,
}

/// Failed requests of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorSummary {
    /// How many.
    pub count: u64,
    /// The words of the first.
    pub example: String,
}

/// A half-open span of microseconds after the beginning of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    from_us: u64,
    to_us: u64,
}

impl Window {
    fn holds(&self, at_us: u64) -> bool {
        (self.from_us..self.to_us).contains(&at_us)
    }

    fn per_second(&self, n: u64) -> f64 {
        let length_s = Duration::from_micros(self.to_us - self.from_us).as_secs_f64();
        if length_s > 0.0 { n as f64 / length_s } else { 0.0 }
    }
}

impl Row {
    fn end_at_us(&self) -> u64 {
        self.start_us + u64::from(self.end_us)
    }

    pub(crate) fn late_us(&self) -> u64 {
        self.start_us.saturating_sub(self.intended_us)
    }
}

fn late_ms(row: &Row) -> f64 {
    ms(row.late_us())
}

/// To the last byte, from the real start.
fn service_ms(row: &Row) -> f64 {
    ms(row.end_us.into())
}

/// Marks each row's part, and computes what the run showed.
pub fn summarise(plan: &BenchPlan, case: &Case, run: &mut Run) -> Summary {
    let last_end = run.rows.iter().map(Row::end_at_us).max().unwrap_or(0);
    let window = measured_window(plan, run, last_end);
    for row in &mut run.rows {
        row.part = match plan.warmup {
            Warmup::Requests(n) if row.index < n => Part::Warmup,
            _ if row.intended_us < window.from_us => Part::Warmup,
            _ if row.intended_us >= window.to_us => Part::Cooldown,
            _ => Part::Measured,
        };
    }
    let observed = Observed {
        rows: &run.rows,
        dropped_us: &run.dropped_us,
        window,
        client: client::cost(run),
        is_interrupted: run.interrupted,
    };
    observed.summary(plan, case)
}

/// What happened, with the part of each row known.
struct Observed<'a> {
    rows: &'a [Row],
    dropped_us: &'a [u64],
    window: Window,
    client: Option<ClientCost>,
    is_interrupted: bool,
}

impl Observed<'_> {
    fn summary(self, plan: &BenchPlan, case: &Case) -> Summary {
        let Self { rows, dropped_us, window, client, is_interrupted } = self;
        let last_end = rows.iter().map(Row::end_at_us).max().unwrap_or(0);
        let measured = || rows.iter().filter(|row| row.part == Part::Measured);
        let complete: Vec<&Row> = measured().filter(|row| row.failure.is_none()).collect();
        let is_open = !case.is_closed();
        let late_after_us = case.bounds().map_or(u64::MAX, |bounds| bounds.late_after.as_micros() as u64);
        let part = |part| rows.iter().filter(|row| row.part == part).count() as u64;
        let requests = Counts {
            started: rows.len() as u64,
            follow_ups: rows.iter().filter(|row| row.turn > 0).count() as u64,
            warmup: part(Part::Warmup),
            cooldown: part(Part::Cooldown),
            measured: part(Part::Measured),
            complete: complete.len() as u64,
            failed: part(Part::Measured) - complete.len() as u64,
            dropped: dropped_us.len() as u64,
            late: measured().filter(|row| row.late_us() > late_after_us).count() as u64,
            short: complete.iter().filter(|row| row.output_tokens < row.wished_tokens).count() as u64,
            counted_by_chunks: complete.iter().filter(|row| row.counted_by == CountedBy::Chunks).count() as u64,
        };
        let mut errors = BTreeMap::new();
        for failure in rows.iter().filter_map(|row| row.failure.as_ref()) {
            let entry = errors
                .entry(failure.kind.to_string())
                .or_insert_with(|| ErrorSummary { count: 0, example: failure.message.clone() });
            entry.count += 1;
        }
        let of = |value: &dyn Fn(&Row) -> Option<f64>| {
            Distribution::of(complete.iter().filter_map(|row| value(row)).collect())
        };
        let service_ttft = |row: &Row| Some(ms(row.arrivals.first()?.at_us.into())).filter(|_| plan.target.stream);
        let service_e2e = |row: &Row| Some(service_ms(row));
        let (mut token_gaps, mut chunk_gaps) = (Vec::new(), Vec::new());
        for row in &complete {
            gaps(row, &mut token_gaps, &mut chunk_gaps);
        }
        let dropped = dropped_us.iter().filter(|&&at| window.holds(at)).count() as u64;
        let mut summary = Summary {
            goodput: goodput::goodput(&plan.goals.slos, &plan.target, rows, window, dropped),
            client_limits: client::limits(
                client.as_ref(),
                requests.late,
                measured().filter(|row| row.turn == 0).count(),
            ),
            client,
            requests,
            errors,
            rates: rates(rows, window),
            whole: rates(rows, Window { from_us: 0, to_us: last_end + 1 }),
            ttft_ms: of(&|row| Some(service_ttft(row)? + late_ms(row))),
            itl_ms: Distribution::of(token_gaps),
            chunk_gap_ms: Distribution::of(chunk_gaps),
            tpot_ms: of(&tpot),
            e2e_ms: of(&|row| Some(service_e2e(row)? + late_ms(row))),
            service_ttft_ms: of(&service_ttft).filter(|_| is_open),
            service_e2e_ms: of(&service_e2e).filter(|_| is_open),
            lateness_ms: Distribution::of(measured().map(late_ms).collect()).filter(|_| is_open),
            output_tokens: of(&|row| Some(f64::from(row.output_tokens))),
            prompts: check_prompts(rows.iter()),
            notes: Vec::new(),
        };
        summary.notes = notes(case, rows, is_interrupted, &summary);
        summary
    }
}

fn measured_window(plan: &BenchPlan, run: &Run, last_end: u64) -> Window {
    let cooldown = plan.cooldown.as_micros() as u64;
    let to_us = run.stopped_us.unwrap_or(last_end + 1).saturating_sub(cooldown);
    let from_us = match plan.warmup {
        Warmup::Time(time) => time.as_micros() as u64,
        Warmup::Requests(n) => run.rows.iter().find(|row| row.index >= n).map_or(to_us, |row| row.intended_us),
    };
    Window { from_us: from_us.min(to_us), to_us }
}

fn rates(rows: &[Row], window: Window) -> Rates {
    let inside = |at: u64| window.holds(at);
    let (mut requests, mut output, mut input, mut busy_us) = (0u64, 0u64, 0u64, 0u64);
    for row in rows {
        requests += u64::from(row.failure.is_none() && inside(row.end_at_us()));
        for arrival in &row.arrivals {
            if inside(row.start_us + u64::from(arrival.at_us)) {
                output += u64::from(arrival.tokens);
            }
        }
        if row.arrivals.first().is_some_and(|first| inside(row.start_us + u64::from(first.at_us))) {
            input += u64::from(row.prompt_tokens_reported.unwrap_or(row.prompt_tokens));
        }
        busy_us += row.end_at_us().min(window.to_us).saturating_sub(row.start_us.max(window.from_us));
    }
    let per_second = |n: u64| window.per_second(n);
    Rates {
        from_s: window.from_us as f64 / 1e6,
        to_s: window.to_us as f64 / 1e6,
        requests_per_s: per_second(requests),
        output_tokens_per_s: per_second(output),
        input_tokens_per_s: per_second(input),
        concurrency: per_second(busy_us) / 1e6,
    }
}

/// Appends the gaps of one answer, in milliseconds.
pub(crate) fn gaps(row: &Row, token_gaps: &mut Vec<f64>, chunk_gaps: &mut Vec<f64>) {
    let (mut last_token_us, mut last_event_us) = (None, None);
    for arrival in &row.arrivals {
        let at = u64::from(arrival.at_us);
        if let Some(last) = last_event_us.replace(at) {
            chunk_gaps.push(ms(at - last));
        }
        chunk_gaps.extend((1..arrival.events).map(|_| 0.0));
        // A chunk that completed no token belongs to the gap of the next one.
        if arrival.tokens > 0
            && let Some(last) = last_token_us.replace(at)
        {
            let gap = ms(at - last) / f64::from(arrival.tokens);
            token_gaps.extend((0..arrival.tokens).map(|_| gap));
        }
    }
}

/// Time per output token after the first, in milliseconds.
pub(crate) fn tpot(row: &Row) -> Option<f64> {
    let span = row.arrivals.last()?.at_us - row.arrivals.first()?.at_us;
    (row.output_tokens > 1 && row.arrivals.len() > 1).then(|| ms(span.into()) / f64::from(row.output_tokens - 1))
}

fn check_prompts<'a>(rows: impl Iterator<Item = &'a Row>) -> Option<PromptCheck> {
    let counted = rows.filter(|row| row.prompt_tokens > 0);
    let pairs: Vec<(u32, u32)> =
        counted.filter_map(|row| Some((row.prompt_tokens, row.prompt_tokens_reported?))).collect();
    let wished = || pairs.iter().map(|pair| pair.0);
    let reported = || pairs.iter().map(|pair| pair.1);
    Some(PromptCheck {
        reported: pairs.len() as u64,
        exact: pairs.iter().filter(|(wished, reported)| wished == reported).count() as u64,
        wished_min: wished().min()?,
        wished_max: wished().max()?,
        max_off: pairs.iter().map(|(wished, reported)| wished.abs_diff(*reported)).max()?,
        min: reported().min()?,
        max: reported().max()?,
    })
}

/// Note of a run of which nothing can be told.
const NOTHING_COMPLETE: &str = "no measured request has a complete answer";

/// Note of a run that was ended early.
const INTERRUPTED: &str = "the run was interrupted; the numbers are of what came before";

fn notes(case: &Case, rows: &[Row], is_interrupted: bool, summary: &Summary) -> Vec<String> {
    let mut notes = Vec::new();
    let requests = &summary.requests;
    if is_interrupted {
        notes.push(INTERRUPTED.to_owned());
    }
    if requests.complete == 0 {
        notes.push(NOTHING_COMPLETE.to_owned());
    }
    if requests.counted_by_chunks > 0 {
        let n = requests.counted_by_chunks;
        notes.push(format!(
            "{n} answers came without token counts: chunks were counted as tokens, which may be too few"
        ));
    }
    if requests.short > 0 {
        let (n, of) = (requests.short, requests.complete);
        let reasons: BTreeMap<&str, ()> = rows
            .iter()
            .filter(|row| row.part == Part::Measured && row.output_tokens < row.wished_tokens)
            .filter_map(|row| Some((row.finish_reason.as_deref()?, ())))
            .collect();
        let reasons = reasons.into_keys().collect::<Vec<_>>().join(", ");
        notes.push(format!(
            "{n} of {of} answers ended before they had the wished tokens (finish reason: {reasons}); compare servers only at equal lengths"
        ));
    }
    match &summary.prompts {
        Some(check) if check.exact < check.reported => notes.push(format!(
            "{} of {} prompts had another length than wished ({} tokens): the server counted {}, at most {} off",
            check.reported - check.exact,
            check.reported,
            range(check.wished_min, check.wished_max),
            range(check.min, check.max),
            check.max_off
        )),
        None if requests.complete > 0 => {
            notes.push("the server does not report prompt tokens: their number is unchecked".to_owned())
        }
        _ => {}
    }
    if requests.late > 0
        && let Some(OpenBounds { late_after, .. }) = case.bounds()
    {
        notes.push(format!(
            "{} requests started more than {late_after:?} late; latencies count from the intended start",
            requests.late
        ));
    }
    if requests.dropped > 0
        && let Some(OpenBounds { max_in_flight, .. }) = case.bounds()
    {
        notes.push(format!("{} starts were dropped: {max_in_flight} requests were running already", requests.dropped));
    }
    notes.extend(summary.client_limits.iter().map(ClientLimit::to_string));
    notes
}

fn range(from: u32, to: u32) -> String {
    if from == to { from.to_string() } else { format!("{from} to {to}") }
}

fn ms(us: u64) -> f64 {
    us as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Goals, Limits, Load, MetricsPlan, Scale, TargetPlan, WorkloadPlan};
    use crate::recorder::{ErrorKind, Failure, RowBuilder};
    use std::time::Instant;

    fn plan() -> BenchPlan {
        BenchPlan {
            target: TargetPlan::at("http://localhost"),
            workload: WorkloadPlan::synthetic(10, 3, 0),
            metrics: MetricsPlan::default(),
            load: Load::users([1]),
            limits: Limits {
                duration: Duration::from_secs(10),
                requests: 100,
                grace: Duration::ZERO,
                at_least: Duration::ZERO,
            },
            warmup: Warmup::Time(Duration::ZERO),
            cooldown: Duration::ZERO,
            goals: Goals::default(),
            scale: Scale::default(),
        }
    }

    /// A request at `intended` and `start` (ms) with tokens arriving at the given times after the start.
    fn row(index: u64, intended: u64, start: u64, arrivals: &[(u64, u32, u32)], failure: Option<Failure>) -> Row {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let mut row = RowBuilder::new(zero, at(start)).numbered(index, 0, 0).intended(intended * 1000).asking(10, 3);
        for &(ms, events, tokens) in arrivals {
            row.touch(at(start + ms));
            row.arrived(at(start + ms), events, tokens);
        }
        row.count(row.tokens_so_far(), CountedBy::Server);
        let end = at(start + arrivals.last().map_or(0, |arrival| arrival.0));
        row.finish(failure, end)
    }

    fn run_of(rows: Vec<Row>, stopped_ms: Option<u64>) -> Run {
        let stopped_us = stopped_ms.map(|ms| ms * 1000);
        Run {
            rows,
            dropped_us: Vec::new(),
            stopped_us,
            began: Instant::now(),
            wall: Duration::from_secs(10),
            client: None,
            interrupted: false,
            is_steered: false,
        }
    }

    #[test]
    fn quantiles_equal_their_definition() {
        let mut random = fastrand::Rng::with_seed(1);
        for n in [1usize, 2, 3, 10, 99, 100, 101, 1000] {
            let values: Vec<f64> = (0..n).map(|_| random.f64()).collect();
            let exact = Distribution::of(values.clone()).expect("not empty");
            let mut sorted = values.clone();
            sorted.sort_by(f64::total_cmp);
            for (q, measured) in [(0.5, exact.p50), (0.9, exact.p90), (0.95, exact.p95), (0.99, exact.p99)] {
                // The position among n values, taken apart into whole and fraction.
                let position = q * (n as f64 - 1.0);
                let (below, above) = (sorted[position as usize], sorted[(position.ceil() as usize).min(n - 1)]);
                let expected = below * (1.0 - position.fract()) + above * position.fract();
                assert!((measured - expected).abs() < 1e-12, "quantile {q} of {n}");
            }
            assert_eq!((exact.min, exact.max, exact.count), (sorted[0], sorted[n - 1], n));
            assert!((exact.mean - values.iter().sum::<f64>() / n as f64).abs() < 1e-12);
        }
        assert_eq!(Distribution::of(Vec::new()), None);
    }

    #[test]
    fn latency_counts_from_the_intended_start_and_service_from_the_real_one() {
        let case = Case::rate(1.0, crate::Arrival::Constant, OpenBounds::default());
        let mut run = run_of(vec![row(0, 100, 350, &[(20, 1, 1), (30, 1, 1), (50, 1, 1)], None)], None);
        let summary = summarise(&plan(), &case, &mut run);
        let p50 = |values: &Option<Distribution>| values.as_ref().expect("one value").p50;
        assert_eq!((p50(&summary.ttft_ms), p50(&summary.service_ttft_ms)), (270.0, 20.0));
        assert_eq!((p50(&summary.e2e_ms), p50(&summary.service_e2e_ms)), (300.0, 50.0));
        assert_eq!((p50(&summary.lateness_ms), summary.requests.late), (250.0, 1));
        assert_eq!(p50(&summary.tpot_ms), 15.0);
    }

    #[test]
    fn a_chunk_of_several_tokens_shares_its_gap() {
        let mut run = run_of(vec![row(0, 0, 0, &[(10, 2, 2), (30, 1, 4), (35, 1, 0), (40, 1, 1)], None)], None);
        let (mut tokens, mut chunks) = (Vec::new(), Vec::new());
        gaps(&run.rows[0], &mut tokens, &mut chunks);
        assert_eq!(tokens, [5.0, 5.0, 5.0, 5.0, 10.0]);
        assert_eq!(chunks, [0.0, 20.0, 5.0, 5.0]);
        // End to end is the first token, and then a TPOT for each further one.
        let summary = summarise(&plan(), &Case::users(1), &mut run);
        assert_eq!(summary.tpot_ms.expect("one value").p50, 30.0 / 6.0);
    }

    #[test]
    fn rates_count_what_happened_inside_the_window() {
        let cut = Failure::new(ErrorKind::Cut, "late");
        let rows = vec![
            row(0, 0, 0, &[(500, 1, 1), (900, 1, 1), (1500, 1, 1)], None),
            row(1, 1500, 1500, &[(100, 1, 1), (400, 1, 1), (450, 1, 1)], None),
            row(2, 2000, 2000, &[(900, 1, 2), (1800, 1, 2)], Some(cut)),
        ];
        let mut plan = plan();
        plan.warmup = Warmup::Time(Duration::from_secs(1));
        let mut run = run_of(rows, Some(3000));
        let summary = summarise(&plan, &Case::users(1), &mut run);
        assert_eq!(
            run.rows.iter().map(|row| row.part).collect::<Vec<_>>(),
            [Part::Warmup, Part::Measured, Part::Measured]
        );
        let rates = summary.rates;
        assert_eq!((rates.from_s, rates.to_s), (1.0, 3.0));
        // Ends at 1.5 and 1.95 s; tokens at 1.5, 1.6, 1.9, 1.95 and two at 2.9 s; prompts answered first at 1.6 and 2.9 s.
        assert_eq!((rates.requests_per_s, rates.output_tokens_per_s, rates.input_tokens_per_s), (1.0, 3.0, 10.0));
        // Running: 0.5 + 0.45 + 1 of 2 s.
        assert!((rates.concurrency - 0.975).abs() < 1e-9, "{rates:?}");
        assert_eq!((summary.requests.complete, summary.requests.failed, summary.requests.warmup), (1, 1, 1));
        assert_eq!(summary.e2e_ms.expect("one value").p50, 450.0);
    }

    #[test]
    fn a_run_limited_by_count_ends_with_its_last_answer() {
        let rows = (0..4).map(|n| row(n, 0, 0, &[(100 * (n + 1), 1, 1)], None)).collect();
        let mut run = run_of(rows, None);
        let summary = summarise(&plan(), &Case::users(4), &mut run);
        assert!((summary.rates.requests_per_s - 10.0).abs() < 0.01, "{:?}", summary.rates);
        assert_eq!(summary.requests.short, 4);
    }

    #[test]
    fn warm_up_by_requests_begins_the_window_with_the_first_after_it() {
        let rows = (0..4).map(|n| row(n, 100 * n, 100 * n, &[(50, 1, 3)], None)).collect();
        let mut plan = plan();
        plan.warmup = Warmup::Requests(3);
        let mut run = run_of(rows, None);
        let summary = summarise(&plan, &Case::users(1), &mut run);
        assert_eq!((summary.requests.warmup, summary.requests.measured, summary.rates.from_s), (3, 1, 0.3));
    }

    #[test]
    fn a_busy_or_waiting_client_is_told() {
        let mut run = run_of(vec![row(0, 0, 0, &[(1, 1, 3)], None)], None);
        let seconds = Duration::from_secs;
        run.client = Some(crate::machine::CpuTime { ran: seconds(9), waited: seconds(1), process: seconds(12) });
        let summary = summarise(&plan(), &Case::users(1), &mut run);
        assert_eq!(summary.client_limits, [ClientLimit::Busy(0.9), ClientLimit::Waiting(0.1)]);
        let cost = summary.client.as_ref().expect("there is a cost");
        assert_eq!((cost.process, cost.us_per_request, cost.us_per_token), (1.2, Some(12e6), Some(4e6)));
        let notes = summary.notes.join("\n");
        assert!(notes.contains("busy 90 %") && notes.contains("waited for a processor 10 %"), "{notes}");
    }
    /// Two targets, one on each request's own gaps; a failed request and a dropped start meet none.
    #[test]
    fn goodput_judges_each_request_by_its_own_values() {
        let cut = Failure::new(ErrorKind::Cut, "late");
        let rows = vec![
            row(0, 0, 0, &[(100, 1, 1), (150, 1, 1), (200, 1, 1)], None),
            row(1, 0, 0, &[(300, 1, 1), (310, 1, 1), (400, 1, 1)], None),
            row(2, 0, 250, &[(100, 1, 1), (110, 1, 1), (120, 1, 1)], None),
            row(3, 0, 0, &[(10, 1, 1), (20, 1, 1)], Some(cut)),
        ];
        let mut plan = plan();
        plan.goals.slos =
            ["ttft:p95<320ms", "itl:max<60ms", "error-rate<1%"].map(|text| text.parse().expect(text)).into();
        let mut run = run_of(rows, Some(2000));
        run.dropped_us = vec![500_000, 2_500_000];
        let summary = summarise(&plan, &Case::rate(1.0, crate::Arrival::Constant, OpenBounds::default()), &mut run);
        let goodput = summary.goodput.clone().expect("targets judge requests");
        // Request 1 has a gap of 90 ms; request 2 started 250 ms late, so its first token took 350 ms. One drop lies inside.
        assert_eq!((goodput.attainment, goodput.requests_per_s), (0.2, 0.5));
        assert_eq!(goodput.by_slo.iter().map(|attained| attained.share).collect::<Vec<_>>(), [0.4, 0.4]);
        let verdicts: Vec<_> = plan.goals.slos.iter().map(|slo| slo.judge(&summary).ok).collect();
        assert_eq!(verdicts, [false, false, false]);
    }
}
