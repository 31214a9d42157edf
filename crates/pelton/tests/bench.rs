//! `pelton bench` against `pelton serve --model-id fake`, both as a user starts them: known costs are measured as what they are.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

/// A served fake model; ends with its owner.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(step_cost: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_pelton"))
            .args(["serve", "--model-id", "fake", "--port", "0", "--fake-step-cost", step_cost])
            .env("RUST_LOG", "error")
            .stdout(Stdio::piped())
            .spawn()
            .expect("pelton starts");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let url = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("is served on ")?.1.trim().to_owned()))
            .expect("the server tells its address");
        // What it prints further is read away, so that it never waits for a reader.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { child, url }
    }

    /// Runs the bench against this server; gives back what it printed and what it wrote.
    fn bench(&self, arguments: &[&str]) -> (String, Value) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("run.json");
        let output = Command::new(env!("CARGO_BIN_EXE_pelton"))
            .args(["bench", "--quiet", "--url", &self.url, "--output"])
            .arg(&file)
            .args(arguments)
            .output()
            .expect("pelton starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        // 4: the machine was too busy for a trustworthy verdict, which no test here asks for.
        assert!(matches!(output.status.code(), Some(0 | 4)), "{stderr}");
        let json = std::fs::read(&file).expect("the rows are written");
        (
            String::from_utf8(output.stdout).expect("a report is text"),
            serde_json::from_slice(&json).expect("the rows are JSON"),
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `summary` of the only run.
fn summary(report: &Value) -> &Value {
    &report["runs"][0]["summary"]
}

fn p50(report: &Value, metric: &str) -> f64 {
    summary(report)[metric]["p50"].as_f64().unwrap_or_else(|| panic!("{metric} has no value in {}", summary(report)))
}

/// A step of the fake model takes 20 ms and gives each sequence a token; a prompt of 64 tokens fits in one step.
///
/// The gaps between tokens must be a step within a millisecond. Before the first token the server also reads the request and tokenizes
/// it, in an unoptimised build, so that only the order of that is checked. Other work on the machine delays both sides:
/// it is measured again, up to twenty times, until it was quiet enough.
fn steps_are_measured(api: &str) {
    let server = Server::start("20ms");
    let mut arguments = vec!["--users", "2", "--requests", "8", "--input-tokens", "64", "--output-tokens", "12"];
    arguments.extend(["--api", api]);
    let mut last = Value::Null;
    for _ in 0..20 {
        last = server.bench(&arguments).1;
        let (itl, tpot, ttft) = (p50(&last, "itl_ms"), p50(&last, "tpot_ms"), p50(&last, "ttft_ms"));
        // A second user's prompt may have to wait for the step under way.
        if (itl - 20.0).abs() < 1.0 && (tpot - 20.0).abs() < 1.0 && (20.0..45.0).contains(&ttft) {
            let prompts = &summary(&last)["prompts"];
            assert_eq!((&prompts["reported"], &prompts["exact"]), (&8.into(), &8.into()), "{}", summary(&last));
            assert_eq!(summary(&last)["requests"]["short"], 0);
            for row in last["runs"][0]["rows"].as_array().expect("rows") {
                assert_eq!((&row["output_tokens"], &row["counted_by"]), (&12.into(), &"server".into()));
            }
            return;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    panic!("steps of 20 ms were measured as {}", summary(&last));
}

#[test]
fn tgi_steps_are_measured_within_a_millisecond() {
    steps_are_measured("tgi");
}

#[test]
fn completion_steps_are_measured_within_a_millisecond() {
    steps_are_measured("openai");
}

#[test]
fn chat_steps_are_measured_within_a_millisecond() {
    steps_are_measured("openai-chat");
}

#[test]
fn an_open_loop_starts_what_is_due() {
    let server = Server::start("1ms");
    let arguments = ["--rate", "40", "--arrival", "constant", "--requests", "40", "--input-tokens", "32"];
    let (text, json) = server.bench(&[&arguments[..], &["--output-tokens", "4"]].concat());
    let intended: Vec<u64> = json["runs"][0]["rows"]
        .as_array()
        .expect("rows")
        .iter()
        .map(|row| row["intended_us"].as_u64().expect("a time"))
        .collect();
    assert_eq!(intended, (0..40).map(|n| 25_000 * n).collect::<Vec<u64>>());
    for wanted in ["40 req/s constant", "40 measured: 40 complete", "lateness of starts", "service: first token"] {
        assert!(text.contains(wanted), "{wanted} is not in\n{text}");
    }
}

#[test]
fn several_numbers_of_users_give_one_table() {
    let server = Server::start("1ms");
    let (text, json) =
        server.bench(&["--users", "1,3", "--requests", "6", "--input-tokens", "32", "--output-tokens", "4"]);
    assert_eq!(json["runs"].as_array().map(Vec::len), Some(2));
    assert!(text.contains("TTFT p50") && text.contains("\n3 users "), "{text}");
}

#[test]
fn whole_answers_are_measured() {
    let server = Server::start("1ms");
    let (text, json) =
        server.bench(&["--no-stream", "--requests", "3", "--input-tokens", "32", "--output-tokens", "4"]);
    assert_eq!(summary(&json)["requests"]["complete"], 3);
    assert!(text.contains("end to end") && !text.contains("time to first token"), "{text}");
}

#[test]
fn what_cannot_be_measured_is_told_in_a_line() {
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let nobody = format!("http://{free}");
    let cases: [(&[&str], &str); 4] = [
        (&["--url", &nobody], "connect"),
        (&["--url", "ftp://127.0.0.1:1"], "http://"),
        (&["--users", "0"], "users must be in 1..="),
        (&["--duration", "5s", "--warmup", "5s"], "warm-up"),
    ];
    for (arguments, wanted) in cases {
        let output =
            Command::new(env!("CARGO_BIN_EXE_pelton")).arg("bench").args(arguments).output().expect("pelton starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert!(stderr.starts_with("error: ") && stderr.trim_end().lines().count() == 1, "{stderr}");
        assert!(stderr.contains(wanted), "{wanted} is not in {stderr}");
    }
}

/// Runs `pelton bench` with these arguments.
fn pelton_bench(arguments: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_pelton")).arg("bench").args(arguments).output().expect("pelton starts")
}

#[test]
fn stored_runs_are_told_in_every_form() {
    let server = Server::start("1ms");
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (run, page) = (path("run.json"), path("page.html"));
    let load = ["--users", "1,2", "--requests", "6", "--input-tokens", "16", "--output-tokens", "8"];
    let measured = pelton_bench(&[&["--quiet", "--url", &server.url, "-o", &run, "--html", &page], &load[..]].concat());
    // 4: other work on the machine made the client wait, which matters to no form.
    let stderr = String::from_utf8_lossy(&measured.stderr);
    assert!(matches!(measured.status.code(), Some(0 | 4)), "{stderr}");
    let printed = String::from_utf8(measured.stdout).expect("a report is text");
    let told = pelton_bench(&["report", &run]);
    assert_eq!(String::from_utf8(told.stdout).expect("a report is text"), printed);

    let begins = [
        ("page.html", "<!DOCTYPE html>"),
        ("told.html", "<!DOCTYPE html>"),
        ("told.md", "# Load test"),
        ("told.csv", "test,server"),
    ];
    for (name, _) in &begins[1..] {
        assert!(pelton_bench(&["report", &run, "-o", &path(name)]).status.success(), "{name}");
    }
    for (name, beginning) in begins {
        let text = std::fs::read_to_string(path(name)).expect("it was written");
        assert!(text.starts_with(beginning), "{name}: {text:.60}");
    }
    assert!(pelton_bench(&["report", &run, "--format", "svg", "-o", &path("pictures")]).status.success());
    for name in ["throughput-users", "latency-users", "distribution-ttft", "time-2-users", "requests-2-users"] {
        let text = std::fs::read_to_string(path(&format!("pictures/{name}.svg")));
        assert!(text.unwrap_or_else(|_| panic!("there is no {name}")).starts_with("<svg"), "{name}");
    }
    assert!(pelton_bench(&["report", &run, "--chart", "throughput-users", "-o", &path("t.png")]).status.success());
    assert!(std::fs::read(path("t.png")).expect("a picture").starts_with(b"\x89PNG"));
    let compared = pelton_bench(&["compare", &run, &run]);
    assert!(String::from_utf8_lossy(&compared.stdout).contains("At 2 users"), "{compared:?}");
}

#[test]
fn wrong_wishes_for_reports_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let bad = folder.path().join("bad.json").display().to_string();
    std::fs::write(&bad, "{}").expect("a file is written");
    let cases: [(&[&str], &str); 5] = [
        (&["report", "/nowhere/run.json"], "/nowhere/run.json cannot be read"),
        (&["report", &bad], "not results of a load test"),
        (&["compare", &bad], "2 values required"),
        (&["explain", "speed"], "is no metric; there are ttft"),
        (&["report", &bad, "--format", "nothing"], "possible values: console, markdown, csv, json, html, svg, png"),
    ];
    for (arguments, words) in cases {
        let output = pelton_bench(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && stderr.contains(words), "{arguments:?}: {stderr}");
    }
    let explained = String::from_utf8(pelton_bench(&["explain", "ttft"]).stdout).expect("text");
    assert!(explained.starts_with("ttft: time to first token, ms\n    arrival of the first chunk"), "{explained}");
}

/// Rows of the Markdown table whose first column is called `first`, without its head.
fn table<'a>(text: &'a str, first: &str) -> Vec<Vec<&'a str>> {
    let rows = text.lines().skip_while(|line| !line.starts_with(&format!("| {first} "))).skip(2);
    rows.take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

/// A step of the fake model takes 20 ms, whatever is in it: so long takes a prefill, and each token after the first. Noise only adds.
#[test]
fn batches_of_a_server_are_measured_over_the_wire() {
    let server = Server::start("20ms");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("batches.json");
    let output = Command::new(env!("CARGO_BIN_EXE_pelton"))
        .args([
            "bench",
            "engine",
            "--url",
            &server.url,
            "-b",
            "1",
            "-b",
            "4",
            "-s",
            "32",
            "-d",
            "5",
            "-r",
            "3",
            "-w",
            "1",
        ])
        .args(["--top-p", "0.9", "--ui", "line", "--output"])
        .arg(&file)
        .output()
        .expect("pelton starts");
    let (text, progress) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{progress}");
    assert!(progress.contains("batch 4: prefill") && progress.contains("over the wire"), "{progress}");
    let parameters = table(&text, "Parameter");
    for row in [["Model", "fake"], ["Decode Length", "5"], ["N Runs", "3"], ["Top P", "Some(0.9)"], ["Top K", "None"]] {
        assert!(parameters.iter().any(|found| *found == row), "{row:?} is not in\n{text}");
    }
    let report: Value = serde_json::from_slice(&std::fs::read(&file).expect("a file")).expect("JSON");
    let runs = report["runs"].as_array().expect("runs");
    assert_eq!(runs.iter().map(|run| run["batch"].as_u64()).collect::<Vec<_>>(), [1, 1, 1, 4, 4, 4].map(Some));
    for run in runs {
        let times = ["prefill_ms", "decode_ms"].map(|part| run[part].as_f64().expect("milliseconds"));
        // A first token that is read late makes the one longer and the other shorter.
        assert!(times[0] > 19.0 && times[0] + times[1] > 99.0, "{run}");
    }
    assert_eq!(report["measured"]["server"]["url"], server.url);
    // Sizes of which the first row of each step has the name.
    let steps: Vec<(&str, &str)> = table(&text, "Step").iter().map(|row| (row[0], row[1])).collect();
    let expected = ["Prefill", "Decode (token)", "Decode (total)"].map(|step| [(step, "1"), ("", "4")]);
    assert_eq!(steps, expected.concat());
}

#[test]
fn a_batch_of_one_token_each_is_measured() {
    let server = Server::start("5ms");
    let output = Command::new(env!("CARGO_BIN_EXE_pelton"))
        .args(["bench", "engine", "--url", &server.url, "-b", "2", "-d", "1", "-r", "2", "--quiet"])
        .output()
        .expect("pelton starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(table(&text, "Step").len(), 1, "prefill alone:\n{text}");
}

#[test]
fn failed_batches_are_told_and_left_out() {
    let output = Command::new(env!("CARGO_BIN_EXE_pelton"))
        .args(["bench", "engine", "--url", "http://127.0.0.1:9", "-b", "2", "-r", "2", "--ui", "line"])
        .output()
        .expect("pelton starts");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(told.contains("cannot measure http://127.0.0.1:9"), "{told}");
    assert!(table(&String::from_utf8_lossy(&output.stdout), "Step").is_empty());
}
