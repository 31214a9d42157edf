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

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::executor::Run;
use crate::plan::{BenchPlan, Case, Warmup};
use crate::recorder::{CountedBy, Part, Row};

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
    /// Tokens wished.
    pub wished: u32,
    /// Answers in which the server said how many there were.
    pub reported: u64,
    /// Of these, with exactly as many as wished.
    pub exact: u64,
    /// Fewest reported.
    pub min: u32,
    /// Most reported.
    pub max: u32,
}

/// What measuring cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientCost {
    /// Share of one processor that the measuring thread used.
    pub busy: f64,
    /// Share of the time in which it could have run but waited for a processor.
    pub waiting: f64,
    /// Processor time for each event read, in microseconds.
    pub us_per_event: Option<f64>,
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
    /// `None` where the system does not tell.
    pub client: Option<ClientCost>,
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

impl Row {
    fn end_at_us(&self) -> u64 {
        self.start_us + u64::from(self.end_us)
    }

    fn late_us(&self) -> u64 {
        self.start_us - self.intended_us
    }
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
    let measured = || run.rows.iter().filter(|row| row.part == Part::Measured);
    let complete: Vec<&Row> = measured().filter(|row| row.failure.is_none()).collect();
    let is_open = matches!(case, Case::Open { .. });
    let late_after_us = match case {
        Case::Open { late_after, .. } => late_after.as_micros() as u64,
        Case::Closed { .. } => u64::MAX,
    };
    let part = |part| run.rows.iter().filter(|row| row.part == part).count() as u64;
    let requests = Counts {
        started: run.rows.len() as u64,
        warmup: part(Part::Warmup),
        cooldown: part(Part::Cooldown),
        measured: part(Part::Measured),
        complete: complete.len() as u64,
        failed: part(Part::Measured) - complete.len() as u64,
        dropped: run.dropped_us.len() as u64,
        late: measured().filter(|row| row.late_us() > late_after_us).count() as u64,
        short: complete.iter().filter(|row| row.output_tokens < row.wished_tokens).count() as u64,
        counted_by_chunks: complete.iter().filter(|row| row.counted_by == CountedBy::Chunks).count() as u64,
    };
    let mut errors = BTreeMap::new();
    for failure in run.rows.iter().filter_map(|row| row.failure.as_ref()) {
        let entry = errors
            .entry(failure.kind.to_string())
            .or_insert_with(|| ErrorSummary { count: 0, example: failure.message.clone() });
        entry.count += 1;
    }
    let of =
        |value: &dyn Fn(&Row) -> Option<f64>| Distribution::of(complete.iter().filter_map(|row| value(row)).collect());
    let service_ttft = |row: &Row| Some(ms(row.arrivals.first()?.at_us.into())).filter(|_| plan.target.stream);
    let service_e2e = |row: &Row| Some(ms(row.end_us.into()));
    let late = |row: &Row| ms(row.late_us());
    let (mut token_gaps, mut chunk_gaps) = (Vec::new(), Vec::new());
    for row in &complete {
        gaps(row, &mut token_gaps, &mut chunk_gaps);
    }
    let mut summary = Summary {
        requests,
        errors,
        rates: rates(&run.rows, window),
        whole: rates(&run.rows, Window { from_us: 0, to_us: last_end + 1 }),
        ttft_ms: of(&|row| Some(service_ttft(row)? + late(row))),
        itl_ms: Distribution::of(token_gaps),
        chunk_gap_ms: Distribution::of(chunk_gaps),
        tpot_ms: of(&tpot),
        e2e_ms: of(&|row| Some(service_e2e(row)? + late(row))),
        service_ttft_ms: of(&service_ttft).filter(|_| is_open),
        service_e2e_ms: of(&service_e2e).filter(|_| is_open),
        lateness_ms: Distribution::of(measured().map(late).collect()).filter(|_| is_open),
        output_tokens: of(&|row| Some(f64::from(row.output_tokens))),
        prompts: check_prompts(run.rows.iter(), plan.workload.input_tokens),
        client: client_cost(run),
        notes: Vec::new(),
    };
    summary.notes = notes(plan, case, run, &summary);
    summary
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
    let inside = |at: u64| (window.from_us..window.to_us).contains(&at);
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
    let length_s = Duration::from_micros(window.to_us - window.from_us).as_secs_f64();
    let per_second = |n: u64| if length_s > 0.0 { n as f64 / length_s } else { 0.0 };
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
fn gaps(row: &Row, token_gaps: &mut Vec<f64>, chunk_gaps: &mut Vec<f64>) {
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

fn tpot(row: &Row) -> Option<f64> {
    let span = row.arrivals.last()?.at_us - row.arrivals.first()?.at_us;
    (row.output_tokens > 1 && row.arrivals.len() > 1).then(|| ms(span.into()) / f64::from(row.output_tokens - 1))
}

fn check_prompts<'a>(rows: impl Iterator<Item = &'a Row>, wished: u32) -> Option<PromptCheck> {
    let reported: Vec<u32> = rows.filter_map(|row| row.prompt_tokens_reported).collect();
    Some(PromptCheck {
        wished,
        reported: reported.len() as u64,
        exact: reported.iter().filter(|&&tokens| tokens == wished).count() as u64,
        min: *reported.iter().min()?,
        max: *reported.iter().max()?,
    })
}

fn client_cost(run: &Run) -> Option<ClientCost> {
    let time = run.client?;
    let wall = run.wall.as_secs_f64();
    let events: u64 = run.rows.iter().flat_map(|row| &row.arrivals).map(|arrival| u64::from(arrival.events)).sum();
    Some(ClientCost {
        busy: time.ran.as_secs_f64() / wall,
        waiting: time.waited.as_secs_f64() / wall,
        us_per_event: (events > 0).then(|| time.ran.as_secs_f64() * 1e6 / events as f64),
    })
}

/// Above this share of a processor the client's own queue shows in the latencies: at 80 % a single server queues four of its own
/// service times on average.
const BUSY_LIMIT: f64 = 0.8;

/// Above this share of waiting the machine has too few processors for client and server together.
const WAITING_LIMIT: f64 = 0.05;

fn notes(plan: &BenchPlan, case: &Case, run: &Run, summary: &Summary) -> Vec<String> {
    let mut notes = Vec::new();
    let requests = &summary.requests;
    if run.interrupted {
        notes.push("the run was interrupted; the numbers are of what came before".to_owned());
    }
    if requests.complete == 0 {
        notes.push("no measured request has a complete answer".to_owned());
    }
    if requests.counted_by_chunks > 0 {
        let n = requests.counted_by_chunks;
        notes.push(format!(
            "{n} answers came without token counts: chunks were counted as tokens, which may be too few"
        ));
    }
    if requests.short > 0 {
        let (n, of, wished) = (requests.short, requests.complete, plan.workload.output_tokens);
        let reasons: BTreeMap<&str, ()> = run
            .rows
            .iter()
            .filter(|row| row.part == Part::Measured && row.output_tokens < wished)
            .filter_map(|row| Some((row.finish_reason.as_deref()?, ())))
            .collect();
        let reasons = reasons.into_keys().collect::<Vec<_>>().join(", ");
        notes.push(format!(
            "{n} of {of} answers ended before {wished} tokens (finish reason: {reasons}); compare servers only at equal lengths"
        ));
    }
    match &summary.prompts {
        Some(check) if check.exact < check.reported => notes.push(format!(
            "{} of {} prompts had another length than {} tokens: the server counted {} to {}",
            check.reported - check.exact,
            check.reported,
            check.wished,
            check.min,
            check.max
        )),
        None if requests.complete > 0 => {
            notes.push("the server does not report prompt tokens: their number is unchecked".to_owned())
        }
        _ => {}
    }
    if requests.late > 0
        && let Case::Open { late_after, .. } = case
    {
        notes.push(format!(
            "{} requests started more than {late_after:?} late; latencies count from the intended start",
            requests.late
        ));
    }
    if requests.dropped > 0
        && let Case::Open { max_in_flight, .. } = case
    {
        notes.push(format!("{} starts were dropped: {max_in_flight} requests were running already", requests.dropped));
    }
    if let Some(client) = &summary.client {
        if client.busy > BUSY_LIMIT {
            notes.push(format!(
                "the client was the limit: its thread was busy {:.0} % of the time",
                100.0 * client.busy
            ));
        }
        if client.waiting > WAITING_LIMIT {
            notes.push(format!(
                "the client waited for a processor {:.0} % of the time, which adds to the latencies: give it a core of its own",
                100.0 * client.waiting
            ));
        }
    }
    notes
}

fn ms(us: u64) -> f64 {
    us as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Limits, Load, PromptMix, TargetPlan, WorkloadPlan};
    use crate::recorder::{ErrorKind, Failure, RowBuilder};
    use std::time::Instant;

    fn plan() -> BenchPlan {
        BenchPlan {
            target: TargetPlan::at("http://localhost"),
            workload: WorkloadPlan {
                input_tokens: 10,
                output_tokens: 3,
                prompts: PromptMix::Distinct,
                seed: 0,
                tokenizer: None,
            },
            load: Load::Closed { users: vec![1] },
            limits: Limits { duration: Duration::from_secs(10), requests: 100, grace: Duration::ZERO },
            warmup: Warmup::Time(Duration::ZERO),
            cooldown: Duration::ZERO,
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
            wall: Duration::from_secs(10),
            client: None,
            interrupted: false,
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
        let case = Case::Open {
            rate: 1.0,
            arrival: crate::Arrival::Constant,
            max_in_flight: 9,
            late_after: Duration::from_millis(10),
        };
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
        let summary = summarise(&plan(), &Case::Closed { users: 1 }, &mut run);
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
        let summary = summarise(&plan, &Case::Closed { users: 1 }, &mut run);
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
        let summary = summarise(&plan(), &Case::Closed { users: 4 }, &mut run);
        assert!((summary.rates.requests_per_s - 10.0).abs() < 0.01, "{:?}", summary.rates);
        assert_eq!(summary.requests.short, 4);
    }

    #[test]
    fn warm_up_by_requests_begins_the_window_with_the_first_after_it() {
        let rows = (0..4).map(|n| row(n, 100 * n, 100 * n, &[(50, 1, 3)], None)).collect();
        let mut plan = plan();
        plan.warmup = Warmup::Requests(3);
        let mut run = run_of(rows, None);
        let summary = summarise(&plan, &Case::Closed { users: 1 }, &mut run);
        assert_eq!((summary.requests.warmup, summary.requests.measured, summary.rates.from_s), (3, 1, 0.3));
    }

    #[test]
    fn a_busy_or_waiting_client_is_told() {
        let mut run = run_of(vec![row(0, 0, 0, &[(1, 1, 3)], None)], None);
        let time = crate::machine::ThreadTime { ran: Duration::from_secs(9), waited: Duration::from_secs(1) };
        run.client = Some(time);
        let notes = summarise(&plan(), &Case::Closed { users: 1 }, &mut run).notes.join("\n");
        assert!(notes.contains("busy 90 %") && notes.contains("waited for a processor 10 %"), "{notes}");
    }
}
