//! What the client itself costs: a server that has its answers ready and writes them as fast as they are taken.
//!
//! `cargo run --release -p pelton-bench --example client_speed [tgi|openai] [events per write] [users]`
//!
//! The last lines tell the processor time for each event; the reciprocal bounds the events per second that
//! one core can follow.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use pelton_bench::watch::{Blind, Control};
use pelton_bench::{Api, BenchPlan, Goals, Limits, Load, MetricsPlan, Scale, TargetPlan, Warmup, WorkloadPlan};

/// Events of each answer.
const EVENTS: usize = 2000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let api = if args.first().is_some_and(|api| api == "openai") { Api::Openai } else { Api::Tgi };
    let events_per_write: usize = args.get(1).map_or(Ok(1), |n| n.parse())?;
    let users: usize = args.get(2).map_or(Ok(8), |n| n.parse())?;

    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}", listener.local_addr()?);
    let answer: Arc<Vec<Vec<u8>>> = Arc::new(events(api).chunks(events_per_write.max(1)).map(as_write).collect());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || serve(stream, &answer));
        }
    });
    let plan = BenchPlan {
        target: TargetPlan { api: Some(api), timeout: Duration::from_secs(60), ..TargetPlan::at(url) },
        workload: WorkloadPlan::synthetic(100, EVENTS as u32, 0),
        metrics: MetricsPlan::default(),
        load: Load::users([users]),
        limits: Limits {
            duration: Duration::from_secs(5),
            requests: 10_000,
            grace: Duration::from_secs(5),
            at_least: Duration::ZERO,
        },
        warmup: Warmup::Time(Duration::from_secs(1)),
        cooldown: Duration::ZERO,
        goals: Goals::default(),
        scale: Scale::default(),
    };
    let results = pelton_bench::run(&plan, Vec::new(), &mut Blind, &Control::default())?;
    let summary = &results.runs[0].summary;
    println!("{:#?}\n{:#?}\n{:#?}", summary.requests, summary.rates, summary.client);
    Ok(())
}

/// The events of one answer, as real servers write them.
fn events(api: Api) -> Vec<String> {
    let event = |n: usize| match api {
        Api::Openai => {
            let (reason, end) = if n + 1 == EVENTS { ("\"length\"", "data: [DONE]\n\n") } else { ("null", "") };
            let head = r#""id":"cmpl-0123456789abcdef","object":"text_completion","created":1732000000,"model":"m""#;
            let choice = format!(r#"{{"index":0,"text":" word","logprobs":null,"finish_reason":{reason}}}"#);
            format!("data: {{{head},\"choices\":[{choice}],\"usage\":null}}\n\n{end}")
        }
        _ => {
            let end = if n + 1 == EVENTS {
                r#""generated_text":"...","details":{"finish_reason":"length","generated_tokens":2000,"seed":null,"input_length":100}"#
            } else {
                r#""generated_text":null,"details":null"#
            };
            let token = r#"{"id":1234,"text":" word","logprob":-1.2890625,"special":false}"#;
            format!("data: {{\"index\":{},\"token\":{token},{end}}}\n\n", n + 1)
        }
    };
    (0..EVENTS).map(event).collect()
}

/// One chunk of the transfer encoding for each event, all handed to the socket at once.
fn as_write(events: &[String]) -> Vec<u8> {
    events.iter().flat_map(|event| format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()).collect()
}

fn serve(stream: TcpStream, answer: &[Vec<u8>]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut length = 0;
        let mut path = String::new();
        if reader.read_line(&mut path)? == 0 {
            return Ok(());
        }
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            if line.trim().is_empty() {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        reader.read_exact(&mut vec![0; length])?;
        if path.contains("generate_stream") || path.contains("completions") {
            writer.write_all(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
            )?;
            for write in answer {
                writer.write_all(write)?;
            }
            writer.write_all(b"0\r\n\r\n")?;
        } else {
            let body = r#"{"model_id":"ready answers","data":[{"id":"m"}]}"#;
            write!(writer, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
        }
    }
}
