//! How far the measurements are from the truth: a server with scripted pace notes when each token really left, and the distributions of
//! both sides are compared. What differs is the way through the sockets and the client's own delay.
//!
//! `cargo run --release -p pelton-bench --example truth -- [users...]` (1, 100 and 1,000 without numbers), then a stall of two
//! seconds as the open and the closed loop see it.

#[path = "../tests/mock/paced.rs"]
mod paced;

use std::time::Duration;

use paced::{Pace, Paced, Served};
use pelton_bench::results::RunResult;
use pelton_bench::watch::{Blind, Control};
use pelton_bench::{
    Arrival, BenchPlan, Case, Distribution, Goals, Limits, MetricsPlan, MetricsSource, OpenBounds, Scale, TargetPlan,
    Warmup, WorkloadPlan,
};

/// Tokens of each answer.
const TOKENS: u32 = 50;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let users: Vec<usize> = std::env::args().skip(1).map(|n| n.parse()).collect::<Result<_, _>>()?;
    let users = if users.is_empty() { vec![1, 100, 1000] } else { users };
    println!("milliseconds: measured, true, difference; TTFT 200 ms, a token each 40 ms\n");
    println!("{:>6} {:<20} {:>28} {:>28}", "users", "metric", "p50", "p99");
    for users in users {
        let pace = Pace { first: Duration::from_millis(200), gap: Duration::from_millis(40), stall: None };
        let server = Paced::start(pace)?;
        let run = measure(&server, Case::users(users), Duration::from_secs(10))?;
        // The first answer was to the question before the run.
        let served: Vec<Served> = server.take_served().into_iter().skip(1).collect();
        compare(users, &run, &served);
    }
    stall()
}

fn measure(server: &Paced, case: Case, duration: Duration) -> Result<RunResult, pelton_bench::BenchError> {
    let plan = BenchPlan {
        target: TargetPlan { timeout: Duration::from_secs(60), ..TargetPlan::at(format!("http://{}", server.address)) },
        workload: WorkloadPlan::synthetic(50, TOKENS, 0),
        load: case.into(),
        limits: Limits { duration, requests: 1_000_000, grace: Duration::from_secs(30), at_least: Duration::ZERO },
        warmup: Warmup::Requests(0),
        cooldown: Duration::ZERO,
        goals: Goals::default(),
        scale: Scale::default(),
        metrics: MetricsPlan { source: MetricsSource::Off, ..MetricsPlan::default() },
    };
    let mut results = pelton_bench::run(&plan, Vec::new(), &mut Blind, &Control::default())?;
    Ok(results.runs.remove(0))
}

fn compare(users: usize, run: &RunResult, served: &[Served]) {
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    let of = |values: &dyn Fn(&Served) -> Vec<f64>| Distribution::of(served.iter().flat_map(values).collect());
    let first = |served: &Served| served.sent.first().map(|&at| ms(at - served.received));
    let span = |served: &Served| Some(ms(*served.sent.last()? - *served.sent.first()?));
    let truths = [
        ("time to first token", &run.summary.ttft_ms, of(&|served| first(served).into_iter().collect())),
        (
            "inter-token latency",
            &run.summary.itl_ms,
            of(&|served| served.sent.windows(2).map(|pair| ms(pair[1] - pair[0])).collect()),
        ),
        (
            "time per token",
            &run.summary.tpot_ms,
            of(&|served| span(served).map(|span| span / f64::from(TOKENS - 1)).into_iter().collect()),
        ),
        (
            "end to end",
            &run.summary.e2e_ms,
            of(&|served| served.sent.last().map(|&at| ms(at - served.received)).into_iter().collect()),
        ),
    ];
    for (name, measured, truth) in truths {
        let (Some(measured), Some(truth)) = (measured, truth) else { continue };
        let cell = |measured: f64, truth: f64| format!("{measured:.3} {truth:.3} {:+.3}", measured - truth);
        println!("{users:>6} {name:<20} {:>28} {:>28}", cell(measured.p50, truth.p50), cell(measured.p99, truth.p99));
    }
    if let Some(client) = &run.summary.client {
        println!("{users:>6} client: thread busy {:.1} %, waited {:.1} %", 100.0 * client.busy, 100.0 * client.waiting);
    }
    println!("{users:>6} {} requests measured, {} answers served\n", run.rows.len(), served.len());
}

/// Arrivals every 50 ms for 8 s; in the middle the server stands still for 2 s. Every answer due in it waits for its rest.
fn stall() -> Result<(), Box<dyn std::error::Error>> {
    let ms = Duration::from_millis;
    let pace = || Pace { first: ms(50), gap: ms(0), stall: Some((ms(3000), ms(5000))) };
    let bounds = OpenBounds { max_in_flight: 1000, late_after: ms(10) };
    println!("a stall of 2 s in 8 s, first tokens otherwise after 50 ms: time to first token");
    for (name, case) in
        [("open loop, 20/s", Case::rate(20.0, Arrival::Constant, bounds)), ("closed loop, 1 user", Case::users(1))]
    {
        let run = measure(&Paced::start(pace())?, case, Duration::from_secs(8))?;
        let slow = run.rows.iter().filter(|row| row.end_us > 500_000).count();
        if let Some(ttft) = &run.summary.ttft_ms {
            println!(
                "{name:<20} p50 {:.1} ms, p90 {:.1} ms, max {:.1} ms; {slow} of {} requests took more than 0.5 s",
                ttft.p50, ttft.p90, ttft.max, ttft.count
            );
        }
    }
    println!(
        "expected of the open loop: 40 answers fall into the stall, about 30 of them wait more than 0.5 s; p90 near 1,250 ms"
    );
    Ok(())
}
