//! Ten thousand concurrent streams from one process, and what they cost: `cargo run --release -p pelton-bench --example many_streams --
//! [streams] [seconds]`.
//!
//! The server is this program again, in a process of its own, so that processor time and memory below are the client's alone. A token
//! each second and stream. Both processes need as many open files as there are streams (`ulimit -Hn`).

#[path = "../tests/mock/paced.rs"]
#[allow(dead_code, reason = "nothing is compared here")]
mod paced;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use paced::{Pace, Paced};
use pelton_bench::watch::{Control, Sight, Watch};
use pelton_bench::{
    BenchPlan, Goals, KeepRows, Limits, Load, MetricsPlan, MetricsSource, Scale, TargetPlan, Warmup, WorkloadPlan,
};

/// Says now and then how many streams there are.
struct Told(Duration);

impl Watch for Told {
    fn see(&mut self, sight: Sight<'_>) {
        if let Sight::Moment(now, _) = sight
            && now.at >= self.0
        {
            self.0 = now.at + Duration::from_secs(2);
            println!(
                "{:>5.1} s: {} running, {} tokens, {} failed",
                now.at.as_secs_f64(),
                now.running(),
                now.tokens,
                now.failed
            );
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "serve") {
        raise_open_files()?;
        let pace = Pace { first: Duration::from_secs(1), gap: Duration::from_secs(1), stall: None };
        println!("{}", Paced::start(pace)?.address);
        // Until the other process closes the pipe.
        std::io::stdin().lines().for_each(drop);
        return Ok(());
    }
    let streams: usize = args.first().map_or(Ok(10_000), |n| n.parse())?;
    let seconds: u64 = args.get(1).map_or(Ok(30), |n| n.parse())?;
    let mut server =
        Command::new(std::env::current_exe()?).arg("serve").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut address = String::new();
    BufReader::new(server.stdout.take().ok_or("no output")?).read_line(&mut address)?;
    let plan = BenchPlan {
        target: TargetPlan {
            timeout: Duration::from_secs(300),
            ..TargetPlan::at(format!("http://{}", address.trim()))
        },
        workload: WorkloadPlan::synthetic(50, 10, 0),
        load: Load::users([streams]),
        limits: Limits {
            duration: Duration::from_secs(seconds),
            requests: 1_000_000,
            grace: Duration::from_secs(30),
            at_least: Duration::ZERO,
        },
        warmup: Warmup::Time(Duration::from_secs(5)),
        cooldown: Duration::ZERO,
        goals: Goals::default(),
        scale: Scale { keep: KeepRows::None, ..Scale::default() },
        metrics: MetricsPlan { source: MetricsSource::Off, ..MetricsPlan::default() },
    };
    let results = pelton_bench::run(&plan, Vec::new(), &mut Told(Duration::ZERO), &Control::default())?;
    let summary = &results.runs[0].summary;
    println!("{:?}", summary.requests);
    println!("{:.1} streams on average, {:.1} tokens/s", summary.rates.concurrency, summary.rates.output_tokens_per_s);
    if let (Some(ttft), Some(itl)) = (&summary.ttft_ms, &summary.itl_ms) {
        println!(
            "TTFT p50 {:.1} ms, p99 {:.1} ms (scripted 1,000); ITL p50 {:.1} ms, p99 {:.1} ms (scripted 1,000)",
            ttft.p50, ttft.p99, itl.p50, itl.p99
        );
    }
    if let Some(client) = &summary.client {
        println!(
            "client: {:.2} processors, waited {:.1} %, {:?} us per token",
            client.process,
            100.0 * client.waiting,
            client.us_per_token
        );
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .filter(|line| line.starts_with("VmHWM"))
        .for_each(|line| println!("client memory at its peak: {}", line[6..].trim()));
    drop(server.stdin.take());
    server.wait()?;
    Ok(())
}

/// The server's part of what the client does by itself.
fn raise_open_files() -> Result<(), rustix::io::Errno> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)
}
