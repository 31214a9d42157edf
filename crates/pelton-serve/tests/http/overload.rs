//! Far more work than fits, for a while: whoever is admitted is served, everyone else is told at once, and nothing stays behind.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::StatusCode;
use serde_json::{Value, json};

use crate::support::{Answer, Client, Server, Setup};

/// Requests in the server at once.
const PERMITS: usize = 8;

/// Sequences that run at once: half of the permits wait.
const PLACES: usize = 4;

/// A request takes so many steps of [`STEP`].
const TOKENS: u32 = 40;
const STEP: Duration = Duration::from_millis(5);

/// Measured again so often until the machine was quiet enough.
const ATTEMPTS: usize = 10;

async fn narrow() -> Server {
    let setup = Setup::alphabet().step_cost(STEP).engine(|engine| engine.max_sequences = PLACES as u32);
    setup.serve(|serve| serve.max_concurrent_requests = PERMITS as u32).start().await
}

fn body() -> Value {
    json!({"inputs": "abc", "parameters": {"max_new_tokens": TOKENS}})
}

/// An answer and how long it took.
type Timed = (Answer, Duration);

async fn timed(client: &mut Client<'_>) -> Timed {
    let began = Instant::now();
    let answer = client.post("/generate", &body()).await;
    (answer, began.elapsed())
}

/// Clients that send their next request when the last one was answered, or a little after it was refused.
async fn closed_loop(server: &Server, clients: usize, requests: usize) -> Vec<Timed> {
    let clients = (0..clients).map(|_| async {
        let mut client = Client::new(server);
        let mut answers = Vec::new();
        for _ in 0..requests {
            let answer = timed(&mut client).await;
            if answer.0.status == StatusCode::TOO_MANY_REQUESTS {
                tokio::time::sleep(20 * STEP).await;
            }
            answers.push(answer);
        }
        answers
    });
    join_all(clients).await.into_iter().flatten().collect()
}

/// Requests that start so many times faster than they can be served, each on a connection of its own.
async fn open_loop(server: &Server, times: u32, requests: u32) -> Vec<Timed> {
    let gap = STEP * TOKENS / PLACES as u32 / times;
    let starts = (0..requests).map(|n| async move {
        tokio::time::sleep(gap * n).await;
        timed(&mut Client::new(server)).await
    });
    join_all(starts).await
}

fn milliseconds(answer: &Answer, header: &str) -> u64 {
    answer.header(header).parse().expect("whole milliseconds")
}

/// What must hold on any machine. Returns whether it was quiet enough for times to mean something, and they were as they should be.
async fn check(server: &Server, answers: &[Timed]) -> bool {
    let (served, refused): (Vec<&Timed>, Vec<&Timed>) =
        answers.iter().partition(|(answer, _)| answer.status == StatusCode::OK);
    for (answer, _) in &refused {
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS, "nothing else fails: {answer:?}");
        assert_eq!(answer.header("retry-after"), "1");
        assert_eq!(answer.json(), json!({"error": "Model is overloaded", "error_type": "overloaded"}));
    }
    assert!(served.len() >= PERMITS && !refused.is_empty(), "{} served, {} refused", served.len(), refused.len());
    for (answer, _) in &served {
        assert_eq!(answer.header("x-generated-tokens"), TOKENS.to_string(), "who is admitted is served to the end");
    }
    server.until("nothing is left in the engine", |gauges| gauges.is_idle()).await;
    all_permits_are_there(server).await;

    // Who is admitted waits for those admitted before, of which each place has one or none.
    let longest = |header| served.iter().map(|(answer, _)| milliseconds(answer, header)).max().unwrap_or(0);
    let turns = (PERMITS / PLACES) as u64 - 1;
    let queue_is_bounded =
        longest("x-queue-time") <= turns * longest("x-inference-time") + 10 * STEP.as_millis() as u64;
    // To be refused takes far less than to be served.
    let mut refusals: Vec<Duration> = refused.iter().map(|(_, time)| *time).collect();
    refusals.sort_unstable();
    let p99 = refusals[(refusals.len() * 99 / 100).min(refusals.len() - 1)];
    queue_is_bounded && p99 < STEP * TOKENS / 2
}

/// As many long streams as there are permits are taken, and not one more.
async fn all_permits_are_there(server: &Server) {
    let long = || json!({"inputs": "abc", "parameters": {"max_new_tokens": 1000}});
    let mut streams = Vec::new();
    for _ in 0..PERMITS {
        let (response, connection) = server.open("/generate_stream", long()).await;
        assert_eq!(response.status(), StatusCode::OK, "a permit is lost");
        streams.push((response, connection));
    }
    assert_eq!(server.post("/generate", long()).await.status, StatusCode::TOO_MANY_REQUESTS);
    drop(streams);
    server.until("the streams are gone", |gauges| gauges.is_idle()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_loop_of_twice_the_permits() {
    let server = narrow().await;
    for _ in 0..ATTEMPTS {
        let answers = closed_loop(&server, 2 * PERMITS, 3).await;
        if check(&server, &answers).await {
            return;
        }
    }
    panic!("refusals were slow, or queues long, in each of {ATTEMPTS} attempts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_loop_of_ten_times_the_permits() {
    let server = narrow().await;
    for _ in 0..ATTEMPTS {
        let answers = closed_loop(&server, 10 * PERMITS, 3).await;
        if check(&server, &answers).await {
            return;
        }
    }
    panic!("refusals were slow, or queues long, in each of {ATTEMPTS} attempts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_loop_twice_as_fast_as_it_is_served() {
    let server = narrow().await;
    for _ in 0..ATTEMPTS {
        let answers = open_loop(&server, 2, 40).await;
        if check(&server, &answers).await {
            return;
        }
    }
    panic!("refusals were slow, or queues long, in each of {ATTEMPTS} attempts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_loop_ten_times_as_fast_as_it_is_served() {
    let server = narrow().await;
    for _ in 0..ATTEMPTS {
        let answers = open_loop(&server, 10, 120).await;
        if check(&server, &answers).await {
            return;
        }
    }
    panic!("refusals were slow, or queues long, in each of {ATTEMPTS} attempts");
}

/// Clients that keep their connections, ten for each place: without a turn for everyone, those without a place would wait until others
/// have nothing more to say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_connections_than_places_take_turns() {
    let setup = Setup::alphabet().serve(|serve| {
        serve.max_concurrent_requests = 2;
        serve.max_connections = 4;
    });
    let server = setup.start().await;
    let (all_were_served, _) = tokio::sync::watch::channel(0);
    let clients = (0..40).map(|_| async {
        let mut client = Client::new(&server);
        let mut was_served = false;
        // Nobody stops before everyone was served, so that nobody's end makes a place.
        while *all_were_served.borrow() < 40 {
            let answer = client.post("/generate", &json!({"inputs": "abc", "parameters": {"max_new_tokens": 2}})).await;
            assert!(matches!(answer.status, StatusCode::OK | StatusCode::TOO_MANY_REQUESTS), "{answer:?}");
            if answer.status == StatusCode::OK && !was_served {
                was_served = true;
                all_were_served.send_modify(|count| *count += 1);
            }
        }
    });
    join_all(clients).await;
    server.until("nothing is left", |gauges| gauges.is_idle()).await;
}
