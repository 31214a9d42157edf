//! The page as a browser and other programs meet it: over HTTP, with a scripted server being measured.

#[path = "../../pelton-bench/tests/mock/mod.rs"]
mod mock;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use mock::{Act, Mock, Pace, Question, tgi_facts, tgi_stream};
use pelton_bench::results::Results;
use pelton_bench::{
    BenchPlan, Goals, Limits, Load, MAX_REQUESTS, MetricsPlan, Scale, TargetPlan, Warmup, WorkloadPlan,
};
use pelton_live::{Download, Form, WebPage};
use serde_json::{Value, json};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(30);

fn plan(url: String) -> BenchPlan {
    BenchPlan {
        target: TargetPlan { timeout: Duration::from_secs(20), ..TargetPlan::at(url) },
        workload: WorkloadPlan::synthetic(20, 4, 1),
        metrics: MetricsPlan::default(),
        load: users(1),
        limits: Limits {
            duration: Duration::from_secs(30),
            requests: MAX_REQUESTS,
            grace: Duration::from_secs(5),
            at_least: Duration::ZERO,
        },
        warmup: Warmup::Requests(0),
        cooldown: Duration::ZERO,
        goals: Goals::default(),
        scale: Scale::default(),
    }
}

fn users(n: usize) -> Load {
    Load::users([n])
}

/// A TGI server; `generate` answers requests for text.
fn server_with(generate: impl Fn(&Question) -> Vec<Act> + Send + Sync + 'static) -> Mock {
    Mock::start(move |question| match question.path.as_str() {
        "/generate" | "/generate_stream" => generate(question),
        _ => tgi_facts(question).unwrap_or_else(|| vec![Act::Whole(404, "", "{}".to_owned())]),
    })
}

fn server() -> Mock {
    server_with(|question| tgi_stream(question, Pace::ms(5, 2)))
}

/// Calls `visit` with the page's address while the page serves and runs what it is asked.
fn with_page(url: String, visit: impl FnOnce(SocketAddr)) {
    let plan = plan(url);
    let html =
        Download { name: "note.txt", kind: "text/plain", write: |results| Ok(results.server.model.clone().into()) };
    let form = Form { users: Some(3), ..Form::default() };
    let page = WebPage::open("127.0.0.1:0", &plan, form, vec![html]).expect("a port is free");
    std::thread::scope(|scope| {
        let runner = scope.spawn(|| page.run(&plan, &[], &mut |_| ()));
        let visited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| visit(page.address())));
        page.leave();
        runner.join().expect("the runner returns");
        if let Err(panic) = visited {
            std::panic::resume_unwind(panic);
        }
    });
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// One exchange, with just these headers.
fn exchange(page: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut stream = TcpStream::connect(page).expect("the page listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time");
    let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    write!(stream, "{head}\r\n{body}").expect("the page reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("the page answers");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

fn get(page: SocketAddr, path: &str) -> Answer {
    exchange(page, "GET", path, &[("host", &page.to_string())], "")
}

/// As the page itself does.
fn post(page: SocketAddr, path: &str, body: &Value) -> Answer {
    let (host, origin) = (page.to_string(), format!("http://{page}"));
    let headers = [("host", host.as_str()), ("origin", &origin), ("content-type", "application/json")];
    exchange(page, "POST", path, &headers, &body.to_string())
}

/// Server-sent events from the beginning.
struct Events {
    lines: BufReader<TcpStream>,
}

impl Events {
    fn listen(page: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(page).expect("the page listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        write!(stream, "GET /api/events HTTP/1.1\r\nhost: {page}\r\n\r\n").expect("the page reads");
        Self { lines: BufReader::new(stream) }
    }

    /// The next event of which `is_it` holds.
    fn until(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        let mut last = Value::Null;
        while began.elapsed() < PATIENCE {
            let mut line = String::new();
            if self.lines.read_line(&mut line).expect("events go on") == 0 {
                break;
            }
            if let Some(data) = line.strip_prefix("data:") {
                last = serde_json::from_str(data).expect("JSON");
                if is_it(&last) {
                    return last;
                }
            }
        }
        panic!("never came: {what}; last: {last}");
    }
}

fn is_ready(update: &Value) -> bool {
    update["phase"] == "ready"
}

#[test]
fn a_run_is_started_changed_stopped_and_downloaded() {
    with_page(server().url(), |page| {
        let mut events = Events::listen(page);
        let first = events.until("the first event", |_| true);
        assert_eq!(
            (&first["phase"], &first["run"], &first["has_results"]),
            (&json!("ready"), &Value::Null, &json!(false))
        );
        assert_eq!(first["form"], json!({ "users": 3, "rate": null, "duration_s": null }));
        assert_eq!(get(page, "/download/results.json").status, 404);

        let started = post(page, "/api/start", &json!({ "users": 2 }));
        assert_eq!((started.status, started.json()), (202, json!({ "number": 1 })));
        let again = post(page, "/api/start", &json!({ "users": 2 }));
        assert_eq!(again.status, 409, "{}", again.body);
        let update = events.until("answers of two users", |update| {
            update["phase"] == "running" && update["run"]["done"].as_u64() > Some(0) && update["run"]["users"] == 2
        });
        assert_eq!((&update["number"], &update["run"]["is_steered"]), (&json!(1), &json!(true)));
        events.until("a point", |update| !update["points"].as_array().is_none_or(Vec::is_empty));

        assert_eq!(post(page, "/api/users", &json!({ "users": 7, "spawn_rate": 20 })).status, 200);
        events.until("seven users", |update| update["run"]["users"] == 7);
        assert_eq!(post(page, "/api/users", &json!({ "users": 1 })).status, 200);
        let update = events.until("one user", |update| update["run"]["users"] == 1 && update["run"]["running"] == 1);
        let statistics = update["run"]["statistics"].as_array().expect("statistics").clone();
        assert_eq!(statistics.len(), 3);
        for statistic in statistics {
            assert!(statistic["all"]["p50"].as_f64() > Some(1.0), "{statistic}");
        }

        assert_eq!(post(page, "/api/stop", &json!({})).status, 200);
        let update = events.until("the end", |update| is_ready(update) && update["has_results"] == true);
        assert_eq!(update["run"]["is_over"], true);
        assert_eq!(post(page, "/api/stop", &json!({})).status, 409);
        assert_eq!(post(page, "/api/users", &json!({ "users": 2 })).status, 409);

        let json = get(page, "/download/results.json");
        assert!(json.head.contains("attachment; filename=\"pelton-bench-results.json\""), "{}", json.head);
        let results = Results::read_json(json.body.as_bytes()).expect("results");
        let complete = results.runs[0].summary.requests.complete;
        assert!(complete > 0);
        let sheet = get(page, "/download/statistics.csv").body;
        assert!(sheet.starts_with("load,repeat,metric,unit,count,mean,min,p50,p90,p95,p99,max,value\n"), "{sheet}");
        assert!(sheet.lines().any(|line| line.contains(&format!(",e2e,ms,{complete},"))), "{sheet}");
        assert_eq!(get(page, "/download/failures.csv").body.lines().next(), Some("load,repeat,kind,count,example"));
        assert_eq!(get(page, "/download/note.txt").status, 200);
        assert_eq!(get(page, "/download/../Cargo.toml").status, 404);

        // The points of a second run do not mix with those of the first.
        let points_of_first = get(page, "/api/state").json()["update"]["points"].as_array().map(Vec::len);
        assert_eq!(post(page, "/api/start", &json!({ "users": 1, "duration_s": 0.3 })).status, 202);
        events.until("the second run", |update| is_ready(update) && update["begun"] == 2);
        let points = get(page, "/api/state").json()["update"]["points"].as_array().map(Vec::len);
        assert!(points_of_first > Some(0) && points == Some(0), "{points:?}");

        // One who comes later is told everything at once.
        let state = get(page, "/api/state").json();
        assert_eq!(state["update"]["done"].as_array().map(Vec::len), Some(2));
        assert_eq!(state["downloads"], json!(["results.json", "statistics.csv", "failures.csv", "note.txt"]));
        assert!(state["update"]["log"].as_array().expect("lines").len() >= 4);
    });
}

#[test]
fn a_rate_is_run_too_and_ends_by_itself() {
    with_page(server().url(), |page| {
        let mut events = Events::listen(page);
        let order = json!({ "rate": 40, "arrival": "constant", "duration_s": 0.5 });
        assert_eq!(post(page, "/api/start", &order).status, 202);
        let update = events.until("the end", |update| is_ready(update) && update["has_results"] == true);
        let run = &update["run"];
        assert_eq!(
            (&run["has_timed_starts"], &run["is_steered"], &run["started"]),
            (&json!(true), &json!(false), &json!(20))
        );
    });
}

#[test]
fn a_dead_server_is_told_and_the_next_start_may_come() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free").local_addr().expect("bound");
    with_page(format!("http://{nobody}"), |page| {
        let mut events = Events::listen(page);
        for number in 1..=2 {
            assert_eq!(post(page, "/api/start", &json!({ "users": 1 })).status, 202);
            events.until("the reason", |update| {
                let mut lines = update["log"].as_array().into_iter().flatten();
                let begin = format!("run {number}: server: ");
                is_ready(update) && lines.any(|line| line["text"].as_str().is_some_and(|text| text.starts_with(&begin)))
            });
        }
    });
}

#[test]
fn failures_are_shown_by_kind_with_their_first_words() {
    // Well while it is asked before the run, and ill ever after.
    let mock = server_with(|question| match question.body["parameters"]["max_new_tokens"].as_u64() {
        Some(1) => tgi_stream(question, Pace::ms(1, 1)),
        _ => vec![Act::Whole(503, "", r#"{"error":"<b>overloaded</b>"}"#.to_owned())],
    });
    with_page(mock.url(), |page| {
        let mut events = Events::listen(page);
        assert_eq!(post(page, "/api/start", &json!({ "users": 2 })).status, 202);
        let update = events
            .until("failures", |update| update["run"]["errors"].as_array().is_some_and(|errors| !errors.is_empty()));
        let error = &update["run"]["errors"][0];
        assert_eq!(error["kind"], "status 503");
        assert!(error["example"].as_str().is_some_and(|words| words.contains("overloaded")), "{error}");
    });
}

#[test]
fn strangers_change_nothing() {
    with_page(server().url(), |page| {
        let host = page.to_string();
        let own = format!("http://{page}");
        let start = r#"{"users": 1}"#;
        let json = ("content-type", "application/json");
        for (headers, status) in [
            (vec![("host", host.as_str()), json, ("origin", "http://evil.example")], 403),
            (vec![("host", "evil.example"), json, ("origin", "http://evil.example")], 403),
            (vec![("host", host.as_str()), ("content-type", "text/plain"), ("origin", &own)], 415),
            (vec![("host", host.as_str()), ("origin", &own)], 415),
        ] {
            for path in ["/api/start", "/api/users", "/api/stop"] {
                let answer = exchange(page, "POST", path, &headers, start);
                assert_eq!(answer.status, status, "{path} {headers:?}: {}", answer.body);
            }
        }
        // Reading is refused to other names too.
        assert_eq!(exchange(page, "GET", "/api/state", &[("host", "evil.example")], "").status, 403);
        let state = get(page, "/api/state").json();
        assert_eq!((&state["update"]["phase"], &state["update"]["number"]), (&json!("ready"), &json!(0)));
    });
}

#[test]
fn garbage_is_refused_by_field() {
    with_page(server().url(), |page| {
        for (body, field) in [
            (json!({ "users": 0 }), "users"),
            (json!({ "users": "many" }), "users"),
            (json!({ "users": 1, "spawn_rate": -1 }), "spawn_rate"),
            (json!({ "rate": -2 }), "rate"),
            (json!({ "users": 1, "url": "http://elsewhere" }), "url"),
            (json!([1, 2]), ""),
        ] {
            let answer = post(page, "/api/start", &body);
            assert_eq!((answer.status, &answer.json()["field"]), (400, &json!(field)), "{body}: {}", answer.body);
        }
        assert_eq!(post(page, "/api/users", &json!({ "users": 1_000_000 })).json()["field"], "users");
        assert_eq!(post(page, "/api/start", &json!({ "users": 1, "arrival": "x".repeat(40_000) })).status, 413);
        assert_eq!(exchange(page, "GET", "/api/start", &[("host", &page.to_string())], "").status, 405);
    });
}

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    with_page(server().url(), |page| {
        let html = get(page, "/");
        assert_eq!(html.status, 200);
        assert!(html.head.contains("content-security-policy: default-src 'self'"), "{}", html.head);
        let named = html
            .body
            .split(['"', '\''])
            .filter(|word| word.starts_with('/') && !word.contains('%'))
            .collect::<Vec<_>>();
        assert_eq!(named, ["/uplot.css", "/page.css", "/uplot.js", "/page.js"]);
        for path in named {
            let file = get(page, path);
            assert!(file.status == 200 && file.body.len() > 500, "{path}");
        }
        assert!(!html.body.contains("src=\"http") && !html.body.contains("href=\"http"));
    });
}

#[test]
fn leaving_ends_the_run_that_goes_on() {
    let (told, hears) = mpsc::channel();
    let plan = plan(server().url());
    let page = WebPage::open("127.0.0.1:0", &plan, Form::default(), Vec::new()).expect("a port is free");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            page.run(&plan, &[], &mut |result| {
                let _ = told.send(result.map(|results| results.runs.len()).map_err(ToString::to_string));
            });
        });
        let begun = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut events = Events::listen(page.address());
            assert_eq!(post(page.address(), "/api/start", &json!({ "users": 1 })).status, 202);
            events.until("answers", |update| update["run"]["done"].as_u64() > Some(0));
        }));
        page.leave();
        assert!(begun.is_ok());
        assert_eq!(hears.recv_timeout(PATIENCE), Ok(Ok(1)));
    });
}
