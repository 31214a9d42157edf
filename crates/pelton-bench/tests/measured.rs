//! Known latencies, failures and loads of a scripted server are measured as what they are.

mod mock;

use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mock::{Act, Mock, Pace, openai_facts, run, tgi_event, tgi_facts, tgi_stream};
use pelton_bench::results::Results;
use pelton_bench::watch::{Blind, Control};
use pelton_bench::{
    Api, Arrival, BenchPlan, CountedBy, Distribution, Load, OpenBounds, Part, Summary, Warmup, WorkloadPlan,
};

fn plan(mock: &Mock, load: Load, requests: u64, output_tokens: u32) -> BenchPlan {
    let mut plan = mock::plan(mock.url(), requests, output_tokens);
    plan.workload = WorkloadPlan::synthetic(40, output_tokens, 1);
    plan.load = load;
    plan.limits.duration = Duration::from_secs(30);
    plan
}

fn users(n: usize) -> Load {
    Load::users([n])
}

fn rate(rate: f64, max_in_flight: usize) -> Load {
    let bounds = OpenBounds { max_in_flight, late_after: Duration::from_millis(20) };
    Load::rates([rate], Arrival::Constant, bounds)
}

/// How long a test waits for a quiet moment.
const PATIENCE: Duration = Duration::from_secs(240);

type Metric = fn(&Summary) -> &Option<Distribution>;

/// The claim of this tool: medians lie within a millisecond of what the server did.
///
/// Other work on the machine (and on the machine it is a guest of) delays the server's clock and the reading alike, so it is measured again
/// until it was quiet enough, for at most [`PATIENCE`].
fn within_a_millisecond(plan: &BenchPlan, expected: &[(Metric, f64)]) -> Results {
    let began = Instant::now();
    let mut report = run(plan);
    loop {
        let off = expected.iter().find_map(|&(which, expected_ms)| {
            let p50 = which(&report.runs[0].summary).as_ref().expect("there are values").p50;
            ((p50 - expected_ms).abs() >= 1.0).then_some((p50, expected_ms))
        });
        let Some((p50, expected_ms)) = off else { break };
        assert!(began.elapsed() < PATIENCE, "p50 is {p50} ms, expected {expected_ms} ms");
        report = run(plan);
    }
    report
}

#[test]
fn tgi_latencies_are_measured_within_a_millisecond() {
    let mock = Mock::start(|question| tgi_facts(question).unwrap_or_else(|| tgi_stream(question, Pace::ms(50, 10))));
    let report = within_a_millisecond(
        &plan(&mock, users(2), 10, 12),
        &[
            (|s| &s.ttft_ms, 50.0),
            (|s| &s.itl_ms, 10.0),
            (|s| &s.chunk_gap_ms, 10.0),
            (|s| &s.tpot_ms, 10.0),
            (|s| &s.e2e_ms, 160.0),
        ],
    );
    let summary = &report.runs[0].summary;
    assert_eq!(summary.itl_ms.as_ref().map(|itl| itl.count), Some(10 * 11));
    assert_eq!((summary.requests.complete, summary.requests.short), (10, 0));
    assert_eq!(report.runs[0].rows.iter().map(|row| row.output_tokens).collect::<Vec<_>>(), [12; 10]);
    assert!(report.runs[0].rows.iter().all(|row| row.counted_by == CountedBy::Server));
    // Two users that are never idle: Little's law.
    assert!((summary.rates.concurrency - 2.0).abs() < 0.1, "{:?}", summary.rates);
    assert!(summary.service_ttft_ms.is_none(), "the closed loop has one kind of latency");
}

/// A role-only chunk at once, then text; usage in a chunk of its own; CRLF line ends and comments.
#[test]
fn chat_latencies_begin_with_text_and_end_with_it() {
    let mock = Mock::start(|question| {
        openai_facts(question).unwrap_or_else(|| {
            assert_eq!(question.body["model"], "mock-model");
            assert_eq!(question.body["stream_options"]["include_usage"], true);
            let prompt = question.body["messages"][0]["content"].as_str().expect("a message");
            let wished = question.body["max_tokens"].as_u64().expect("a number of tokens");
            let mut acts = vec![
                Act::StreamHead,
                Act::Send(
                    "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":null}}]}\r\n\r\n".to_owned(),
                ),
                Act::Send(": ping\r\n\r\n".to_owned()),
            ];
            for n in 0..wished {
                acts.push(Act::Until(Duration::from_millis(50 + 10 * n)));
                // Cut inside the event.
                acts.push(Act::Send("data: {\"choices\":[{\"delta\":{\"cont".to_owned()));
                acts.push(Act::Send("ent\":\"w\"}}]}\r\n\r\n".to_owned()));
            }
            // The template adds seven tokens.
            let usage = format!("{{\"prompt_tokens\":{},\"completion_tokens\":{wished}}}", mock::tokens(prompt) + 7);
            acts.push(Act::Send(format!("data: {{\"choices\":[],\"usage\":{usage}}}\r\n\r\ndata: [DONE]\r\n\r\n")));
            acts.push(Act::StreamEnd);
            acts
        })
    });
    let mut plan = plan(&mock, users(2), 8, 6);
    plan.target.api = Some(Api::OpenaiChat);
    let report = within_a_millisecond(&plan, &[(|s| &s.ttft_ms, 50.0), (|s| &s.itl_ms, 10.0), (|s| &s.e2e_ms, 100.0)]);
    let summary = &report.runs[0].summary;
    assert_eq!(report.prompts.overhead, 7);
    let prompts = summary.prompts.as_ref().expect("usage tells the prompt's tokens");
    assert_eq!((prompts.reported, prompts.exact), (8, 8));
    assert!(report.server.ignores_end_of_text);
}

#[test]
fn servers_that_refuse_extensions_are_asked_without_them() {
    let mock = Mock::start(|question| {
        openai_facts(question).unwrap_or_else(|| {
            if question.body.get("min_tokens").is_some() || question.body.get("ignore_eos").is_some() {
                return vec![Act::Whole(400, "", r#"{"error":{"message":"unknown field"}}"#.to_owned())];
            }
            // Ends early, says so, and does not count tokens.
            vec![
                Act::StreamHead,
                Act::Send("data: {\"choices\":[{\"text\":\"a\",\"finish_reason\":\"\"}]}\n\n".to_owned()),
                Act::Send(
                    "data: {\"choices\":[{\"text\":\"b\",\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n".to_owned(),
                ),
                Act::StreamEnd,
            ]
        })
    });
    let report = run(&plan(&mock, users(1), 3, 6));
    let summary = &report.runs[0].summary;
    assert_eq!(report.server.api, Api::Openai);
    assert!(!report.server.ignores_end_of_text);
    assert_eq!((summary.requests.complete, summary.requests.short, summary.requests.counted_by_chunks), (3, 3, 3));
    let notes = summary.notes.join("\n");
    assert!(
        notes.contains("without token counts")
            && notes.contains("3 of 3 answers ended before they had the wished tokens"),
        "{notes}"
    );
    assert!(notes.contains("(finish reason: stop)") && notes.contains("unchecked"), "{notes}");
}

#[test]
fn tokens_of_one_read_share_their_gap() {
    let mock = Mock::start(|question| {
        tgi_facts(question).unwrap_or_else(|| {
            let wished = question.body["parameters"]["max_new_tokens"].as_u64().expect("a number of tokens") as usize;
            let mut acts = vec![Act::StreamHead];
            for n in 0..wished.div_ceil(4) {
                acts.push(Act::Until(Duration::from_millis(20 * (n as u64 + 1))));
                let events =
                    (4 * n..wished.min(4 * n + 4)).map(|i| tgi_event(i + 1, (i + 1 == wished).then_some((wished, 3))));
                acts.push(Act::Send(events.collect()));
            }
            acts.push(Act::StreamEnd);
            acts
        })
    });
    let report = within_a_millisecond(
        &plan(&mock, users(1), 5, 16),
        &[(|s| &s.ttft_ms, 20.0), (|s| &s.itl_ms, 5.0), (|s| &s.chunk_gap_ms, 0.0)],
    );
    let summary = &report.runs[0].summary;
    assert_eq!(summary.itl_ms.as_ref().map(|gaps| gaps.count), Some(5 * 12));
    assert_eq!(summary.chunk_gap_ms.as_ref().map(|gaps| gaps.count), Some(5 * 15));
    let note = "the server counted 3, at most 37 off";
    assert!(summary.notes.iter().any(|text| text.contains(note)), "{:?}", summary.notes);
}

#[test]
fn whole_answers_have_an_end_and_no_first_token() {
    let mock = Mock::start(|question| {
        tgi_facts(question).unwrap_or_else(|| {
            assert_eq!(question.path, "/generate");
            let body = r#"{"generated_text":"w","details":{"finish_reason":"length","generated_tokens":8}}"#.to_owned();
            vec![Act::Until(Duration::from_millis(30)), Act::Whole(200, "x-prompt-tokens: 40\r\n", body)]
        })
    });
    let mut plan = plan(&mock, users(2), 6, 8);
    plan.target.stream = false;
    let report = within_a_millisecond(&plan, &[(|s| &s.e2e_ms, 30.0)]);
    let summary = &report.runs[0].summary;
    assert_eq!((&summary.ttft_ms, &summary.itl_ms, &summary.tpot_ms), (&None, &None, &None));
    assert_eq!(report.runs[0].rows.iter().map(|row| row.output_tokens).sum::<u32>(), 48);
    assert_eq!(report.runs[0].rows[0].prompt_tokens_reported, Some(40));
}

#[test]
fn failures_are_counted_by_kind_and_kept_out_of_latencies() {
    let mock = Mock::start(|question| {
        tgi_facts(question).unwrap_or_else(|| {
            let error = |text: &str| format!(r#"{{"error":"{text}","error_type":"x"}}"#);
            // The request before the run is number 0.
            match question.nth {
                1 => vec![Act::Whole(429, "", error("Model is overloaded"))],
                2 => vec![Act::StreamHead, Act::Send(format!("data: {}\n\n", error("boom"))), Act::StreamEnd],
                3 => vec![Act::StreamHead, Act::Send(tgi_event(1, None)), Act::Close],
                4 => vec![Act::StreamHead, Act::Send(tgi_event(1, None)), Act::StreamEnd],
                5 => vec![Act::StreamHead, Act::Send("data: {oops\n\n".to_owned()), Act::StreamEnd],
                6 => vec![
                    Act::StreamHead,
                    Act::Send(tgi_event(1, None)),
                    Act::Until(Duration::from_millis(2_000)),
                    Act::Close,
                ],
                7 => vec![Act::Whole(500, "", "broke".to_owned())],
                8 => vec![Act::Close],
                _ => tgi_stream(question, Pace::ms(5, 1)),
            }
        })
    });
    let mut plan = plan(&mock, users(1), 12, 4);
    plan.target.timeout = Duration::from_millis(300);
    let report = run(&plan);
    let summary = &report.runs[0].summary;
    let counts: Vec<(&str, u64)> = summary.errors.iter().map(|(kind, errors)| (kind.as_str(), errors.count)).collect();
    let expected = [
        ("broken stream", 3),
        ("error event", 1),
        ("malformed", 1),
        ("status 429", 1),
        ("status 500", 1),
        ("timeout", 1),
    ];
    assert_eq!(counts, expected);
    assert_eq!(summary.errors["status 429"].example, "Model is overloaded");
    assert_eq!(summary.errors["error event"].example, "boom");
    assert_eq!((summary.requests.measured, summary.requests.complete, summary.requests.failed), (12, 4, 8));
    assert_eq!(summary.e2e_ms.as_ref().map(|e2e| e2e.count), Some(4));
    // What arrived before a failure is kept in the row.
    assert_eq!(report.runs[0].rows[5].output_tokens, 1);
}

#[test]
fn a_server_that_goes_away_gives_connect_errors() {
    // One connection for the questions, one for the user.
    let mock = Mock::start_for(2, |question| {
        tgi_facts(question).unwrap_or_else(|| {
            let mut acts = tgi_stream(question, Pace::ms(1, 0));
            // The second request of the run, number 2 after the one before it, finds its connection closed.
            acts.extend((question.nth == 1).then_some(Act::Close));
            acts
        })
    });
    let report = run(&plan(&mock, users(1), 5, 2));
    let summary = &report.runs[0].summary;
    assert_eq!(summary.requests.complete, 1);
    let failed: u64 = summary.errors.values().map(|errors| errors.count).sum();
    // The closed connection is noticed before sending or while sending.
    assert!(failed == 4 && summary.errors["connect"].count >= 3, "{:?}", summary.errors);
}

#[test]
fn a_server_that_is_not_there_is_an_error_before_the_run() {
    let mock = Mock::start(|question| tgi_facts(question).unwrap_or_else(|| tgi_stream(question, Pace::ms(1, 0))));
    let mut gone = plan(&mock, users(1), 2, 2);
    // Nobody listens on this port: it was free and is closed again.
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    gone.target.url = format!("http://{free}");
    let error = pelton_bench::run(&gone, Vec::new(), &mut Blind, &Control::default()).expect_err("nobody listens");
    let told = error.to_string();
    assert!(
        told.starts_with(&format!("server: http://{free}: connect: ")) && told.contains("does a server listen"),
        "{told}"
    );
}

#[test]
fn a_server_that_never_answers_is_an_error_before_the_run() {
    let mock = Mock::start(|_| vec![Act::Until(Duration::from_secs(10)), Act::Close]);
    let mut plan = plan(&mock, users(1), 2, 2);
    plan.target.timeout = Duration::from_millis(200);
    let error = pelton_bench::run(&plan, Vec::new(), &mut Blind, &Control::default()).expect_err("nothing is answered");
    let expected = format!("server: {}: timeout: /info is not answered within 200ms", plan.target.url);
    assert_eq!(error.to_string(), expected);
}

#[test]
fn what_still_runs_after_the_grace_period_is_cut() {
    let mock = Mock::start(|question| {
        tgi_facts(question).unwrap_or_else(|| {
            let pace = if question.nth == 0 { Pace::ms(0, 0) } else { Pace::ms(5, 60) };
            tgi_stream(question, pace)
        })
    });
    let mut plan = plan(&mock, users(3), 1000, 50);
    plan.limits.duration = Duration::from_millis(300);
    plan.limits.grace = Duration::from_millis(200);
    let began = Instant::now();
    loop {
        let report = run(&plan);
        let run = &report.runs[0];
        assert_eq!(run.rows.len(), 3);
        assert_eq!(run.summary.errors["cut at the end"].count, 3);
        // Tokens that arrived in the window count although their requests did not end: 3 x (1 + 4) in 0.3 s.
        let rate = run.summary.rates.output_tokens_per_s;
        if (run.wall_s - 0.5).abs() < 0.05 && (rate - 50.0).abs() < 11.0 {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{} s, {rate} tokens/s", run.wall_s);
    }
}

/// A server that stands still for a second. Users of a closed loop meet it once each; arrivals that do not wait show all of it.
#[test]
fn a_stall_shows_in_the_open_loop() {
    let stalling = || {
        let stall: Mutex<Option<Instant>> = Mutex::new(None);
        Mock::start(move |question| {
            tgi_facts(question).unwrap_or_else(|| {
                if question.nth == 0 {
                    return tgi_stream(question, Pace::ms(0, 0));
                }
                let first = *stall.lock().expect("not poisoned").get_or_insert(question.received);
                let (begin, end) = (first + Duration::from_millis(475), first + Duration::from_millis(1475));
                let wait = if question.received < begin {
                    Duration::ZERO
                } else {
                    end.saturating_duration_since(question.received)
                };
                tgi_stream(question, Pace { first: wait + Duration::from_millis(10), gap: Duration::ZERO })
            })
        })
    };
    let slow = |report: &Results| report.runs[0].rows.iter().filter(|row| row.end_us > 500_000).count();
    let open = run(&plan(&stalling(), rate(20.0, 100), 40, 2));
    let e2e = open.runs[0].summary.e2e_ms.as_ref().expect("there are values");
    // Arrivals every 50 ms in the second of the stall wait 975, 925, 875 ... ms.
    assert!((9..=11).contains(&slow(&open)), "{} slow requests", slow(&open));
    assert!((960.0..1010.0).contains(&e2e.max) && e2e.p90 > 750.0, "{e2e:?}");
    let closed = run(&plan(&stalling(), users(1), 60, 2));
    assert_eq!(slow(&closed), 1);
    assert!(closed.runs[0].summary.e2e_ms.as_ref().expect("there are values").p90 < 20.0);
}

#[test]
fn open_loop_starts_are_on_time_and_latency_counts_from_them() {
    // Answers come between the starts: at one moment the one thread can do one thing.
    let mock = Mock::start(|question| tgi_facts(question).unwrap_or_else(|| tgi_stream(question, Pace::ms(28, 1))));
    let report = within_a_millisecond(
        &plan(&mock, rate(50.0, 100), 50, 3),
        &[(|s| &s.lateness_ms, 0.0), (|s| &s.ttft_ms, 28.0), (|s| &s.service_ttft_ms, 28.0), (|s| &s.e2e_ms, 30.0)],
    );
    let (summary, rows) = (&report.runs[0].summary, &report.runs[0].rows);
    for (n, row) in rows.iter().enumerate() {
        assert_eq!(row.intended_us, 20_000 * n as u64);
    }
    assert_eq!((summary.requests.measured, summary.requests.dropped), (50, 0));
    assert!((summary.rates.requests_per_s - 50.0).abs() < 2.0, "{:?}", summary.rates);
}

#[test]
fn starts_beyond_the_requests_in_flight_are_dropped_and_counted() {
    let mock = Mock::start(|question| {
        let pace = if question.nth == 0 { Pace::ms(0, 0) } else { Pace::ms(400, 0) };
        tgi_facts(question).unwrap_or_else(|| tgi_stream(question, pace))
    });
    let report = run(&plan(&mock, rate(100.0, 2), 30, 1));
    let run = &report.runs[0];
    assert_eq!((run.rows.len(), run.summary.requests.dropped), (2, 28));
    assert_eq!(run.dropped_us.len(), 28);
    assert!(run.summary.notes.iter().any(|note| note.contains("28 starts were dropped")), "{:?}", run.summary.notes);
}

#[test]
fn users_share_the_number_of_requests_and_keep_their_connections() {
    let mock = Mock::start(|question| tgi_facts(question).unwrap_or_else(|| tgi_stream(question, Pace::ms(2, 0))));
    let report = run(&plan(&mock, Load::users([1, 4]), 21, 1));
    assert_eq!(report.runs.len(), 2);
    for run in &report.runs {
        assert_eq!(run.rows.iter().map(|row| row.index).collect::<Vec<_>>(), (0..21).collect::<Vec<_>>());
    }
    // One for the questions, and one for each user.
    assert_eq!(mock.connections.load(Ordering::Relaxed), 1 + 1 + 4);
}

#[test]
fn connections_that_the_server_closes_are_made_again() {
    let mock = Mock::start(|question| {
        tgi_facts(question).unwrap_or_else(|| {
            let body = r#"{"generated_text":"w","details":{"finish_reason":"length","generated_tokens":2}}"#.to_owned();
            vec![Act::Whole(200, "connection: close\r\n", body), Act::Close]
        })
    });
    let mut plan = plan(&mock, users(1), 6, 2);
    plan.target.stream = false;
    let report = run(&plan);
    assert_eq!(report.runs[0].summary.requests.complete, 6, "{:?}", report.runs[0].summary.errors);
    assert!(report.runs[0].rows[1..].iter().all(|row| row.connect_us.is_some()));
}

#[test]
fn prompts_are_exact_distinct_and_checked() {
    let seen: std::sync::Arc<Mutex<Vec<String>>> = Default::default();
    let list = std::sync::Arc::clone(&seen);
    let mock = Mock::start(move |question| {
        tgi_facts(question).unwrap_or_else(|| {
            list.lock().expect("not poisoned").push(question.body["inputs"].as_str().expect("a prompt").to_owned());
            tgi_stream(question, Pace::ms(0, 0))
        })
    });
    let mut plan = plan(&mock, users(3), 30, 1);
    plan.workload.input_tokens = Some(77.into());
    let report = run(&plan);
    let prompts = report.runs[0].summary.prompts.clone().expect("the server reports prompt tokens");
    assert_eq!((prompts.wished_min, prompts.wished_max, prompts.reported, prompts.exact), (77, 77, 30, 30));
    assert!(
        report.runs[0].summary.notes.is_empty() || report.runs[0].summary.notes.iter().all(|n| n.contains("client"))
    );
    let seen = seen.lock().expect("not poisoned");
    let first: std::collections::HashSet<&str> =
        seen[1..].iter().filter_map(|prompt| prompt.split(' ').next()).collect();
    assert_eq!(first.len(), 30, "prompts differ from their first token on");
}

#[test]
fn warm_up_and_cool_down_are_marked_and_kept() {
    let mock = Mock::start(|question| tgi_facts(question).unwrap_or_else(|| tgi_stream(question, Pace::ms(10, 0))));
    let mut plan = plan(&mock, rate(50.0, 10), 1000, 1);
    plan.limits.duration = Duration::from_secs(1);
    plan.warmup = Warmup::Time(Duration::from_millis(210));
    plan.cooldown = Duration::from_millis(190);
    let parts = |report: &Results| {
        let part = |part| report.runs[0].rows.iter().filter(|row| row.part == part).count();
        (part(Part::Warmup), part(Part::Measured), part(Part::Cooldown))
    };
    let began = Instant::now();
    let mut report = run(&plan);
    // A last start that a busy machine delays moves the end of the load.
    while parts(&report) != (11, 30, 9) && began.elapsed() < PATIENCE {
        report = run(&plan);
    }
    assert_eq!(parts(&report), (11, 30, 9));
    let rates = &report.runs[0].summary.rates;
    assert_eq!((rates.from_s, rates.to_s), (0.21, 0.81));
    assert!((rates.requests_per_s - 50.0).abs() < 4.0, "{rates:?}");
}

#[test]
fn the_report_is_json_with_every_row_and_no_secret() {
    let mock = Mock::start(|question| tgi_facts(question).unwrap_or_else(|| tgi_stream(question, Pace::ms(1, 1))));
    let mut plan = plan(&mock, users(1), 3, 4);
    plan.target.api_key = Some("very-secret".to_owned());
    plan.target.headers.insert("x-team".to_owned(), "hidden-value".to_owned());
    let mut out = Vec::new();
    let report = run(&plan);
    report.write_json(&mut out).expect("memory is writable");
    let text = String::from_utf8(out).expect("JSON is UTF-8");
    assert!(!text.contains("very-secret") && !text.contains("hidden-value"));
    let json: serde_json::Value = serde_json::from_str(&text).expect("valid JSON");
    assert_eq!(json["runs"][0]["rows"].as_array().map(Vec::len), Some(3));
    let row = &json["runs"][0]["rows"][0];
    assert_eq!((row["output_tokens"].as_u64(), row["error"].is_null()), (Some(4), true));
    assert_eq!(row["arrivals_us"].as_array().map(Vec::len), row["arrival_tokens"].as_array().map(Vec::len));
    assert_eq!(json["server"]["info"]["model_id"], "mock");
    assert_eq!(json["plan"]["target"]["headers"], serde_json::json!(["x-team"]));
    let read = Results::read_json(text.as_bytes()).expect("what was written can be read");
    assert_eq!(read.runs[0].rows, report.runs[0].rows);
    let (read, written) = (&read.runs[0].summary, &report.runs[0].summary);
    assert_eq!((&read.requests, &read.notes), (&written.requests, &written.notes));
    // Decimal numbers may come back with another last bit.
    let p99 = |summary: &Summary| summary.e2e_ms.as_ref().expect("there are values").p99;
    assert!((p99(read) / p99(written) - 1.0).abs() < 1e-12);
    let newer = text.replacen(r#""format":2"#, r#""format":77"#, 1);
    let error = Results::read_json(newer.as_bytes()).expect_err("another format");
    assert!(error.to_string().contains("format 77"), "{error}");
}
