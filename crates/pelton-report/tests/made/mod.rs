//! Results of a load test that never was, with numbers that are easy to find again.

use std::collections::BTreeMap;
use std::time::Duration;

use pelton_bench::results::{FORMAT, PromptMaking, Results, RunResult, Server, TokenSource};
use pelton_bench::slo::{Attained, Goodput, Slo};
use pelton_bench::{
    Api, BenchPlan, Case, CaseEstimates, ClientCost, CountedBy, Counts, Distribution, ErrorKind, ErrorSummary, Failure,
    Goals, Limits, Load, Machine, Part, Rates, Row, Scale, ServerMetrics, ServerSample, Summary, TargetPlan,
    TokenArrival, Warmup, WorkloadPlan, estimate,
};

/// Tokens of each answer.
pub const TOKENS: u32 = 10;

/// A test with a run of ten seconds for each number of users, repeated as often as wished. A user's request begins every second, gives
/// its first token after `ttft_ms` and more for each user, and the others 20 ms apart; the last of each run fails.
pub fn results(users: &[usize], repeats: u32, ttft_ms: u32) -> Results {
    let mut runs = Vec::new();
    for &users in users {
        runs.extend((0..repeats).map(|repeat| run(users, repeat, ttft_ms)));
    }
    let mut results = Results {
        format: FORMAT,
        pelton_version: "0.0.1".to_owned(),
        command: ["pelton", "bench", "--model", "<b>a model</b>"].map(str::to_owned).to_vec(),
        began_unix_s: 951_782_400,
        machine: Machine { cpu: "abacus".to_owned(), cores: 3, memory_bytes: Some(4 << 30), system: "test".to_owned() },
        plan: plan(users),
        server: Server {
            api: Api::Tgi,
            provider: None,
            model: "<b>a model</b>".to_owned(),
            info: serde_json::Value::Null,
            launch_arguments: serde_json::Value::Null,
            ignores_end_of_text: true,
        },
        prompts: PromptMaking {
            counted_by: TokenSource::Server,
            overhead: 0,
            expected_hit_share: 0.0,
            notes: Vec::new(),
        },
        runs,
        search: None,
        estimates: Vec::new(),
    };
    for users in users {
        let case = Case::users(*users);
        let chosen: Vec<usize> = (0..results.runs.len()).filter(|&n| results.runs[n].case == case).collect();
        let of_case: Vec<&RunResult> = chosen.iter().map(|&n| &results.runs[n]).collect();
        let estimates = estimate(&of_case);
        results.estimates.push(CaseEstimates { case, runs: chosen, estimates });
    }
    results
}

fn plan(users: &[usize]) -> BenchPlan {
    BenchPlan {
        target: TargetPlan {
            timeout: Duration::from_secs(60),
            ..TargetPlan::at("http://example.test:3000".to_owned())
        },
        workload: WorkloadPlan::synthetic(64, TOKENS, 7),
        load: Load::users(users.iter().copied()),
        metrics: pelton_bench::MetricsPlan::default(),
        limits: Limits {
            duration: Duration::from_secs(10),
            requests: 1_000,
            grace: Duration::from_secs(1),
            at_least: Duration::ZERO,
        },
        warmup: Warmup::Time(Duration::from_secs(1)),
        cooldown: Duration::ZERO,
        goals: Goals::default(),
        scale: Scale::default(),
    }
}

fn run(users: usize, repeat: u32, ttft_ms: u32) -> RunResult {
    let mut rows = Vec::new();
    for second in 0..10u32 {
        for user in 0..users as u32 {
            // Each repeat is 1 ms slower than the one before, each user 2 ms than the one before.
            rows.push(row(rows.len() as u64, user, second, ttft_ms + 2 * user + repeat));
        }
    }
    if let Some(last) = rows.last_mut() {
        last.failure = Some(Failure::new(ErrorKind::Status(503), "too | <i>busy</i>\nnow"));
        last.arrivals.clear();
    }
    let summary = summary(&rows);
    let slo: Slo = "ttft:p50<45ms".parse().expect("a target");
    RunResult {
        case: Case::users(users),
        repeat,
        began_unix_s: 951_782_400.0,
        wall_s: 10.0,
        is_interrupted: false,
        verdicts: vec![slo.judge(&summary)],
        summary,
        histograms: None,
        server_metrics: Some(ServerMetrics {
            url: "http://example.test:3000/metrics".to_owned(),
            samples: (0..=20u64).map(|n| sample(n, users)).collect(),
            ..ServerMetrics::default()
        }),
        dropped_us: Vec::new(),
        rows,
    }
}

fn row(index: u64, user: u32, second: u32, ttft_ms: u32) -> Row {
    let at = |token: u32| 1000 * (ttft_ms + 20 * token);
    let start_us = 1_000_000 * u64::from(second);
    Row {
        index,
        turn: 0,
        user,
        intended_us: start_us,
        start_us,
        connect_us: None,
        first_byte_us: Some(1000),
        first_event_us: Some(at(0)),
        end_us: at(TOKENS - 1),
        arrivals: (0..TOKENS).map(|n| TokenArrival { at_us: at(n), events: 1, tokens: 1 }).collect(),
        prompt_tokens: 64,
        prompt_tokens_reported: Some(64),
        wished_tokens: TOKENS,
        output_tokens: TOKENS,
        counted_by: CountedBy::Server,
        status: Some(200),
        finish_reason: Some("length".to_owned()),
        server_ms: None,
        failure: None,
        part: if second == 0 { Part::Warmup } else { Part::Measured },
    }
}

fn sample(n: u64, users: usize) -> ServerSample {
    ServerSample {
        at_us: 500_000 * n,
        running: Some(users as f64),
        waiting: Some(0.0),
        kv_usage: Some(0.25),
        prompt_tokens: Some(32.0 * n as f64),
        generated_tokens: Some(5.0 * (users as u64 * n) as f64),
    }
}

fn summary(rows: &[Row]) -> Summary {
    let measured: Vec<&Row> = rows.iter().filter(|row| row.part == Part::Measured).collect();
    let complete: Vec<&Row> = measured.iter().copied().filter(|row| row.failure.is_none()).collect();
    let of = |value: &dyn Fn(&Row) -> f64| Distribution::of(complete.iter().map(|row| value(row)).collect());
    let rates = |from_s: f64| Rates {
        from_s,
        to_s: 10.0,
        requests_per_s: complete.len() as f64 / 9.0,
        output_tokens_per_s: f64::from(TOKENS) * complete.len() as f64 / 9.0,
        input_tokens_per_s: 64.0 * complete.len() as f64 / 9.0,
        concurrency: 0.25,
    };
    let (n, failed) = (measured.len() as u64, (measured.len() - complete.len()) as u64);
    let slo: Slo = "ttft:p50<45ms".parse().expect("a target");
    Summary {
        requests: Counts {
            started: rows.len() as u64,
            warmup: rows.len() as u64 - n,
            measured: n,
            complete: complete.len() as u64,
            failed,
            ..Counts::default()
        },
        errors: BTreeMap::from([(
            "status 503".to_owned(),
            ErrorSummary { count: failed, example: "too | <i>busy</i>\nnow".to_owned() },
        )]),
        rates: rates(1.0),
        whole: rates(0.0),
        ttft_ms: of(&|row| f64::from(row.arrivals[0].at_us) / 1e3),
        itl_ms: Distribution::of(vec![20.0; 9 * complete.len()]),
        chunk_gap_ms: Distribution::of(vec![20.0; 9 * complete.len()]),
        tpot_ms: of(&|_| 20.0),
        e2e_ms: of(&|row| f64::from(row.end_us) / 1e3),
        service_ttft_ms: None,
        service_e2e_ms: None,
        lateness_ms: None,
        output_tokens: of(&|row| f64::from(row.output_tokens)),
        prompts: None,
        goodput: Some(Goodput { requests_per_s: 0.5, attainment: 0.75, by_slo: vec![Attained { slo, share: 0.8 }] }),
        client: Some(ClientCost {
            busy: 0.125,
            waiting: 0.0,
            process: 0.2,
            us_per_event: Some(12.5),
            us_per_request: Some(125.0),
            us_per_token: Some(12.5),
        }),
        client_limits: Vec::new(),
        notes: vec!["a note of <every> run".to_owned()],
    }
}
