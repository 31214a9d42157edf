//! What is asked is what was wished: lengths, shared prefixes, conversations, files, datasets, traces; and what the server tells meanwhile.

mod mock;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mock::{Act, Mock, Pace, Question, openai_facts, run, tgi_facts, tgi_stream};
use pelton_bench::results::{Results, TokenSource};
use pelton_bench::watch::{Control, Sight, Watch};
use pelton_bench::{
    Api, BenchPlan, DatasetPlan, FilesPlan, Lengths, MetricsPlan, MetricsSource, PromptMix, Provider, Row, Source,
    ThinkTime, WorkloadPlan,
};

fn plan(mock: &Mock, workload: WorkloadPlan, requests: u64) -> BenchPlan {
    BenchPlan { workload, ..mock::plan(mock.url(), requests, 1) }
}

fn lengths(text: &str) -> Option<Lengths> {
    Some(text.parse().expect("lengths"))
}

type Heard = Arc<Mutex<Vec<String>>>;

/// A TGI server that keeps the prompts, that of the request before the run apart.
fn listening() -> (Mock, Heard) {
    let heard = Heard::default();
    let list = Arc::clone(&heard);
    let mock = Mock::start(move |question| {
        tgi_facts(question).unwrap_or_else(|| {
            let prompt = question.body["inputs"].as_str().expect("a prompt").to_owned();
            if question.nth > 0 {
                list.lock().expect("not poisoned").push(prompt);
            }
            tgi_stream(question, Pace::ms(0, 0))
        })
    });
    (mock, heard)
}

/// One run's prompts and what came of it.
fn prompts(workload: WorkloadPlan, requests: u64) -> (Vec<String>, Results) {
    let (mock, heard) = listening();
    let results = run(&plan(&mock, workload, requests));
    let heard = std::mem::take(&mut *heard.lock().expect("not poisoned"));
    assert_eq!(results.runs[0].summary.errors, BTreeMap::new());
    (heard, results)
}

fn rows(results: &Results) -> &[Row] {
    &results.runs[0].rows
}

fn exact(results: &Results) -> bool {
    results.runs[0].summary.prompts.as_ref().is_some_and(|check| check.reported > 0 && check.exact == check.reported)
}

/// A file that is gone when the test ends.
struct Written(PathBuf);

impl Written {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("pelton-workloads-{}-{name}", std::process::id()));
        std::fs::write(&path, text).expect("can be written");
        Self(path)
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn lengths_are_drawn_and_equal_seeds_ask_the_same() {
    let workload = |seed| WorkloadPlan {
        input_tokens: lengths("lognormal:60,0.5,8..200"),
        output_tokens: lengths("uniform:1..4"),
        seed,
        ..WorkloadPlan::default()
    };
    let (one, results) = prompts(workload(7), 40);
    assert!(exact(&results), "{:?}", results.runs[0].summary.prompts);
    let inputs: HashSet<u32> = rows(&results).iter().map(|row| row.prompt_tokens).collect();
    let outputs: HashSet<u32> = rows(&results).iter().map(|row| row.wished_tokens).collect();
    assert!(inputs.len() > 20 && inputs.iter().all(|n| (8..=200).contains(n)), "{inputs:?}");
    assert_eq!(outputs, HashSet::from([1, 2, 3, 4]));
    assert_eq!(results.prompts.counted_by, TokenSource::Server);
    let (same, _) = prompts(workload(7), 40);
    assert_eq!(one, same);
    let (other, _) = prompts(workload(8), 40);
    assert_ne!(one, other);
}

/// Tokens of each prompt that were the beginning of an earlier one: a prefix cache without limits, which is fed the prompts in order.
fn found(prompts: &[String]) -> Vec<usize> {
    let mut seen: HashSet<Vec<&str>> = HashSet::new();
    let mut found = Vec::new();
    for prompt in prompts {
        let words: Vec<&str> = prompt.split(' ').collect();
        let known = (1..=words.len()).take_while(|&n| seen.contains(&words[..n])).count();
        seen.extend((1..=words.len()).map(|n| words[..n].to_vec()));
        // The mock has a token before the first word.
        found.push(if known > 0 { known + 1 } else { 0 });
    }
    found
}

#[test]
fn a_prefix_cache_finds_the_expected_share() {
    for (mix, input, expected) in [
        (PromptMix::Distinct, "100", 0.0),
        (PromptMix::SharedPrefix { tokens: 30, groups: 1 }, "120", 0.25),
        (PromptMix::SharedPrefix { tokens: 40, groups: 5 }, "uniform:60..100", 0.5),
        (PromptMix::HitRate { rate: 0.6, groups: 1 }, "100", 0.6),
        (PromptMix::HitRate { rate: 0.6, groups: 4 }, "normal:100,20,50..150", 0.6),
    ] {
        let workload = WorkloadPlan { input_tokens: lengths(input), prompts: mix, ..WorkloadPlan::synthetic(1, 1, 3) };
        let (prompts, results) = prompts(workload, 240);
        assert!(exact(&results), "{:?}", results.runs[0].summary.prompts);
        assert!((results.prompts.expected_hit_share - expected).abs() < 0.01, "{mix}: {:?}", results.prompts);
        // The first prompts warm the cache: after them each group was seen, and long ones of it.
        let warm = 120;
        let hits: usize = found(&prompts)[warm..].iter().sum();
        let all: usize = prompts[warm..].iter().map(|prompt| mock::tokens(prompt)).sum();
        let share = hits as f64 / all as f64;
        // By chance a word behind the prefix is found too: about one token in each prompt.
        assert!(share >= expected - 0.015 && share < expected + 0.03, "{mix}: {share}, expected {expected}");
    }
}

/// A chat server that answers `w w` and keeps what it was asked.
fn chat(question: &Question, heard: &Heard) -> Vec<Act> {
    openai_facts(question).unwrap_or_else(|| {
        heard.lock().expect("not poisoned").push(question.body["messages"].to_string());
        let event = |choice: &str| Act::Send(format!("data: {{\"choices\":[{choice}]}}\n\n"));
        vec![
            Act::StreamHead,
            event(r#"{"delta":{"role":"assistant","content":""}}"#),
            event(r#"{"delta":{"content":"w"}}"#),
            event(r#"{"delta":{"content":" w"},"finish_reason":"length"}"#),
            Act::Send("data: [DONE]\n\n".to_owned()),
            Act::StreamEnd,
        ]
    })
}

#[test]
fn conversations_send_the_answers_again_after_a_pause() {
    let heard = Heard::default();
    let list = Arc::clone(&heard);
    let mock = Mock::start(move |question| chat(question, &list));
    let think = Duration::from_millis(60);
    let workload =
        WorkloadPlan { turns: Lengths::from(3), think: ThinkTime::Fixed(think), ..WorkloadPlan::synthetic(12, 2, 1) };
    let mut plan = plan(&mock, workload, 2);
    plan.target.api = Some(Api::OpenaiChat);
    let results = run(&plan);
    let places: Vec<(u64, u32)> = rows(&results).iter().map(|row| (row.index, row.turn)).collect();
    assert_eq!(places, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]);
    for pair in rows(&results).windows(2).filter(|pair| pair[1].turn > 0) {
        let pause_us = pair[1].start_us - pair[0].start_us - u64::from(pair[0].end_us);
        assert!(pause_us >= think.as_micros() as u64, "{pause_us}");
    }
    let heard = heard.lock().expect("not poisoned");
    let first: Vec<serde_json::Value> = heard[heard.len() - 6..][..3]
        .iter()
        .map(|messages| serde_json::from_str(messages).expect("messages"))
        .collect();
    let roles = |messages: &serde_json::Value| {
        let list = messages.as_array().expect("a list");
        list.iter().map(|message| message["role"].as_str().expect("a role").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(roles(&first[2]), ["user", "assistant", "user", "assistant", "user"]);
    assert_eq!(first[1][0], first[0][0]);
    assert_eq!(first[2][1]["content"], "w w");
    let words = first[2][4]["content"].as_str().expect("a text").split(' ').count();
    assert_eq!(words, 12, "further messages have the wished tokens too");
    assert_eq!(results.runs[0].summary.requests.measured, 6);
}

#[test]
fn a_completion_server_reads_a_growing_text() {
    let workload = WorkloadPlan { turns: Lengths::from(2), ..WorkloadPlan::synthetic(12, 2, 1) };
    let (prompts, results) = prompts(workload, 1);
    assert_eq!(rows(&results).len(), 2);
    assert!(prompts[1].starts_with(&prompts[0]) && prompts[1].len() > 2 * prompts[0].len(), "{prompts:?}");
    assert!(results.prompts.expected_hit_share > 0.3, "the history is found again");
    // Nobody counted what the server said: only the first prompt has a wished number.
    assert_eq!(rows(&results).iter().map(|row| row.prompt_tokens).collect::<Vec<_>>(), [12, 0]);
    assert_eq!(results.runs[0].summary.prompts.as_ref().map(|check| check.reported), Some(1));
}

#[test]
fn source_files_are_cut_to_the_wished_tokens() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/workload");
    let files = FilesPlan { dir, extensions: vec!["rs".to_owned()], fim: None };
    let workload = WorkloadPlan {
        source: Source::Files(files),
        input_tokens: lengths("uniform:20..60"),
        output_tokens: lengths("1"),
        ..WorkloadPlan::default()
    };
    let (prompts, results) = prompts(workload.clone(), 12);
    assert!(exact(&results), "{:?}", results.runs[0].summary.prompts);
    assert_eq!(prompts.iter().collect::<HashSet<_>>().len(), 12);
    assert!(results.prompts.notes[0].contains(" files of "), "{:?}", results.prompts.notes);
    // The same under a tokenizer, which the mock does not share: only the reported numbers differ.
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    let workload = WorkloadPlan { tokenizer: Some(tokenizer), ..workload };
    let (_, results) = self::prompts(workload, 3);
    assert_eq!(results.prompts.counted_by, TokenSource::Tokenizer);
    assert!(rows(&results).iter().all(|row| (20..=60).contains(&row.prompt_tokens)));
}

#[test]
fn datasets_are_asked_with_their_lengths_or_others() {
    let file = Written::new(
        "dataset.jsonl",
        r#"{"prompt":"one two three","max_tokens":2}
nonsense
{"messages":[{"role":"user","content":"four five six seven"},{"role":"assistant","content":"a b c"}]}
{"text":"too short"}
"#,
    );
    let dataset = DatasetPlan { file: file.0.clone(), min_tokens: Some(4), max_tokens: Some(50) };
    let workload = WorkloadPlan { source: Source::Dataset(dataset), ..WorkloadPlan::default() };
    let (prompts, results) = prompts(workload.clone(), 4);
    assert_eq!(prompts.iter().collect::<HashSet<_>>().len(), 2, "two are good and long enough");
    assert!(exact(&results), "{:?}", results.runs[0].summary.prompts);
    let mut asked: Vec<(u32, u32)> = rows(&results).iter().map(|row| (row.prompt_tokens, row.wished_tokens)).collect();
    asked.sort_unstable();
    // `a b c` is four tokens as the mock counts.
    assert_eq!(asked, [(4, 2), (4, 2), (5, 4), (5, 4)]);
    let notes = results.prompts.notes.join("\n");
    assert!(notes.contains("1 bad (line 2: ") && notes.contains("1 left out for their lengths"), "{notes}");
    assert!(notes.contains("2 different prompts; request 3 begins them again"), "{notes}");

    let other = WorkloadPlan { input_tokens: lengths("30"), output_tokens: lengths("3"), ..workload };
    let (prompts, results) = self::prompts(other, 2);
    assert!(exact(&results), "{:?}", results.runs[0].summary.prompts);
    assert!(prompts.iter().all(|prompt| mock::tokens(prompt) == 30), "{prompts:?}");
    assert!(rows(&results).iter().all(|row| row.wished_tokens == 3));
}

#[test]
fn a_trace_makes_prompts_that_share_their_blocks() {
    let file = Written::new(
        "trace.jsonl",
        r#"{"timestamp": 0, "input_length": 1100, "output_length": 1, "hash_ids": [1, 2, 3]}
{"timestamp": 10, "input_length": 1030, "output_length": 2, "hash_ids": [1, 2, 9]}
{"timestamp": 20, "input_length": 40, "output_length": 1}
"#,
    );
    let workload = WorkloadPlan { source: Source::Trace(file.0.clone()), ..WorkloadPlan::default() };
    let (prompts, results) = prompts(workload, 3);
    assert!(exact(&results), "{:?}", results.runs[0].summary.prompts);
    let asked: Vec<(u32, u32)> = rows(&results).iter().map(|row| (row.prompt_tokens, row.wished_tokens)).collect();
    assert_eq!(asked, [(1100, 1), (1030, 2), (40, 1)]);
    let found = found(&prompts);
    assert!((1024..1026).contains(&found[1]), "two blocks of 512 tokens are found again: {found:?}");
    assert_eq!(results.prompts.expected_hit_share, 1024.0 / 2170.0);
}

/// What an OpenAI server without `/tokenize` answers; a template adds five tokens, words that begin with `s` are two.
fn reporting(question: &Question) -> Vec<Act> {
    if question.path == "/tokenize" {
        return vec![Act::Whole(404, "", "{}".to_owned())];
    }
    openai_facts(question).unwrap_or_else(|| {
        let prompt = question.body["prompt"].as_str().expect("a prompt");
        let tokens: usize = prompt.split_whitespace().map(|word| 1 + usize::from(word.starts_with('s'))).sum();
        let wished = question.body["max_tokens"].as_u64().expect("a number of tokens");
        let usage = format!("{{\"prompt_tokens\":{},\"completion_tokens\":{wished}}}", tokens + 5);
        vec![
            Act::StreamHead,
            Act::Send("data: {\"choices\":[{\"text\":\"w\",\"finish_reason\":\"length\"}]}\n\n".to_owned()),
            Act::Send(format!("data: {{\"choices\":[],\"usage\":{usage}}}\n\ndata: [DONE]\n\n")),
            Act::StreamEnd,
        ]
    })
}

#[test]
fn usage_alone_makes_exact_prompts() {
    let count = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&count);
    let mock = Mock::start(move |question| {
        *counted.lock().expect("not poisoned") = question.nth;
        reporting(question)
    });
    let results = run(&plan(&mock, WorkloadPlan::synthetic(50, 1, 1), 20));
    assert_eq!(results.prompts.counted_by, TokenSource::Usage);
    assert_eq!(results.prompts.overhead, 5);
    assert!(exact(&results), "{:?}", results.runs[0].summary.prompts);
    let before = *count.lock().expect("not poisoned") + 1 - 20;
    assert!(before <= 20, "{before} requests before the run");
}

#[test]
fn the_tokenizer_of_llama_cpp_is_understood() {
    let mock = Mock::start(|question| {
        if question.path == "/tokenize" {
            let tokens = question.body["content"].as_str().map_or(0, mock::tokens);
            return vec![Act::Whole(200, "", serde_json::json!({ "tokens": vec![7; tokens] }).to_string())];
        }
        reporting(question)
    });
    let mut plan = plan(&mock, WorkloadPlan::synthetic(50, 1, 1), 2);
    plan.target.provider = Some(Provider::LlamaCpp);
    let results = run(&plan);
    assert_eq!(results.prompts.counted_by, TokenSource::Server);
}

/// Counts what is seen of the server.
#[derive(Default)]
struct Looker {
    readings: usize,
}

impl Watch for Looker {
    fn see(&mut self, sight: Sight<'_>) {
        self.readings += usize::from(matches!(sight, Sight::Server(_)));
    }
}

#[test]
fn the_servers_own_metrics_lie_on_the_clock_of_the_rows() {
    let readings = Arc::new(Mutex::new(0));
    let mock = Mock::start(move |question| {
        if question.path == "/metrics" {
            let mut n = readings.lock().expect("not poisoned");
            *n += 1;
            // One reading in the middle fails.
            if *n == 4 {
                return vec![Act::Whole(500, "", "broken".to_owned())];
            }
            let page = format!(
                "# TYPE tgi_request_count counter\ntgi_request_count {n}\n# TYPE tgi_batch_current_size gauge\ntgi_batch_current_size 2\n"
            );
            return vec![Act::Whole(200, "", page)];
        }
        tgi_facts(question).unwrap_or_else(|| tgi_stream(question, Pace::ms(50, 0)))
    });
    let mut plan = plan(&mock, WorkloadPlan::synthetic(20, 1, 1), 8);
    plan.metrics = MetricsPlan { source: MetricsSource::Auto, interval: Duration::from_millis(10) };
    let mut looker = Looker::default();
    let results = pelton_bench::run(&plan, Vec::new(), &mut looker, &Control::default()).expect("the server answers");
    let run = &results.runs[0];
    let metrics = run.server_metrics.as_ref().expect("there is a page");
    assert_eq!(metrics.url, format!("{}/metrics", mock.url()));
    assert!(metrics.samples.len() >= 5, "{} readings in {} s", metrics.samples.len(), run.wall_s);
    assert!(metrics.samples.windows(2).all(|pair| pair[0].at_us < pair[1].at_us));
    let within = metrics.samples.iter().filter(|sample| sample.at_us as f64 <= run.wall_s * 1e6).count();
    assert!(metrics.samples.len() - within <= 1, "all but the last lie within the run");
    assert!(metrics.samples.iter().all(|sample| sample.running == Some(2.0) && sample.waiting.is_none()));
    let (before, after) = (metrics.before["tgi_request_count"], metrics.after["tgi_request_count"]);
    assert_eq!(before, 2.0, "the first reading finds the page, the second is just before the run");
    assert!(after > before + 5.0);
    assert!(!metrics.before.contains_key("tgi_batch_current_size"), "gauges are in the samples");
    // The run lasts longer than the time between two looks.
    assert!(looker.readings > 0 && looker.readings <= metrics.samples.len(), "{}", looker.readings);
    let note = run.summary.notes.iter().find(|note| note.contains("server metrics")).expect("a reading failed");
    assert!(note.contains("1 of ") && note.contains("status 500"), "{note}");
}

#[test]
fn a_server_without_metrics_is_measured_all_the_same() {
    let mock = Mock::start(|question| {
        if question.path == "/metrics" {
            return vec![Act::Whole(404, "", String::new())];
        }
        tgi_facts(question).unwrap_or_else(|| tgi_stream(question, Pace::ms(0, 0)))
    });
    let mut plan = plan(&mock, WorkloadPlan::synthetic(20, 1, 1), 2);
    plan.metrics = MetricsPlan::default();
    let results = run(&plan);
    assert_eq!(results.runs[0].server_metrics, None);
    assert!(!results.runs[0].summary.notes.iter().any(|note| note.contains("metrics")), "nobody asked for them");
    // A page that was named is another matter.
    plan.metrics.source = MetricsSource::Url(format!("{}/metrics", mock.url()));
    let results = run(&plan);
    assert_eq!(results.runs[0].summary.requests.complete, 2);
    let notes = results.runs[0].summary.notes.join("\n");
    assert!(notes.contains("no server metrics") && notes.contains("status 404"), "{notes}");
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let (mock, _) = listening();
    let refusal = |workload: WorkloadPlan| plan(&mock, workload, 2).check().expect_err("cannot be meant").to_string();
    let trace = || Source::Trace(PathBuf::from("t"));
    let plain = WorkloadPlan::default;
    for (workload, expected) in [
        (WorkloadPlan { source: trace(), input_tokens: lengths("5"), ..plain() }, "a trace says how long"),
        (WorkloadPlan { source: trace(), turns: Lengths::from(2), ..plain() }, "turns of a trace"),
        (WorkloadPlan { prompts: PromptMix::SharedPrefix { tokens: 512, groups: 1 }, ..plain() }, "shorter than"),
        (WorkloadPlan { prompts: PromptMix::HitRate { rate: 1.0, groups: 1 }, ..plain() }, "below 1"),
        (WorkloadPlan { prompts: PromptMix::HitRate { rate: 0.5, groups: 0 }, ..plain() }, "prefix groups"),
        (WorkloadPlan { think: ThinkTime::Fixed(Duration::from_secs(1)), ..plain() }, "between the messages"),
        (WorkloadPlan { turns: Lengths::from(5000), ..plain() }, "at most 1000"),
        (
            WorkloadPlan { source: trace(), prompts: PromptMix::HitRate { rate: 0.5, groups: 1 }, ..plain() },
            "not for a trace",
        ),
    ] {
        let refusal = refusal(workload);
        assert!(refusal.contains(expected), "{refusal}");
    }
}
