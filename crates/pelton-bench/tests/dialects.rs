//! Every dialect, the habits of the servers that speak it, and what happens when they misbehave, against scripted servers.

#[path = "mock/grpc.rs"]
mod grpc;
mod mock;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use grpc::{framed, streamed};
use mock::{
    Act, Mock, Pace, Question, is_generation, kinds, openai_facts, plan, run, stream, tgi_facts, tgi_stream, try_run,
    whole,
};
use pelton_bench::{Api, BenchPlan, CountedBy, Provider, TargetPlan, TensorRole};
use serde_json::{Value, json};

fn demo_tokenizer() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo/tokenizer.json")
}

/// What a Triton says whose model has these inputs; `None` for generation requests.
fn triton_facts(question: &Question, inputs: &[(&str, &str)]) -> Option<Vec<Act>> {
    match question.path.as_str() {
        "/v2" => Some(whole(json!({ "name": "triton", "version": "2.60.0", "extensions": [] }))),
        path if is_generation(path) => None,
        "/v2/models/ensemble" => {
            let input =
                |(name, datatype): &(&str, &str)| json!({ "name": name, "datatype": datatype, "shape": [-1, 1] });
            Some(whole(json!({ "name": "ensemble", "inputs": inputs.iter().map(input).collect::<Vec<_>>() })))
        }
        _ => Some(vec![Act::Whole(404, "", r#"{"error":"Not Found"}"#.to_owned())]),
    }
}

const TENSORRT_LLM: [(&str, &str); 4] =
    [("text_input", "BYTES"), ("max_tokens", "INT32"), ("bad_words", "BYTES"), ("stop_words", "BYTES")];

#[test]
fn kserve_infer_sends_tensors_and_reads_the_text_without_its_echo() {
    let mock = Mock::start(|question| {
        triton_facts(question, &TENSORRT_LLM).unwrap_or_else(|| {
            assert_eq!(question.path, "/v2/models/ensemble/infer");
            let tensor = |name: &str| {
                let inputs = question.body["inputs"].as_array().expect("tensors");
                inputs.iter().find(|input| input["name"] == name).expect("the tensor").clone()
            };
            assert_eq!(tensor("bad_words")["data"], json!([""]));
            let length = tensor("max_tokens");
            assert_eq!((&length["datatype"], &length["shape"]), (&json!("INT32"), &json!([1, 1])));
            let prompt = tensor("text_input")["data"][0].as_str().expect("a prompt").to_owned();
            let outputs = json!([
                { "name": "cum_log_probs", "datatype": "FP32", "shape": [1], "data": [0.5] },
                { "name": "text_output", "datatype": "BYTES", "shape": [1], "data": [format!("<s> {prompt} and so on")] },
            ]);
            whole(json!({ "model_name": "ensemble", "outputs": outputs }))
        })
    });
    let mut plan = plan(mock.url(), 3, 8);
    plan.target.stream = false;
    plan.workload.tokenizer = Some(demo_tokenizer());
    let results = run(&plan);
    assert_eq!((results.server.api, results.server.provider), (Api::KserveInfer, Some(Provider::Triton)));
    assert_eq!(results.server.info["model"]["name"], "ensemble");
    let tokenizer = |text: &str| {
        let path = demo_tokenizer();
        let read = |name: &str| if name == "tokenizer.json" { std::fs::read(&path).map(Some) } else { Ok(None) };
        let model = pelton_text::TextModel::from_files(&read).expect("a tokenizer");
        model.encode(text, false).expect("encodes").len() as u32
    };
    let expected = tokenizer(" and so on");
    for row in &results.runs[0].rows {
        assert_eq!((row.output_tokens, row.counted_by), (expected, CountedBy::Tokenizer));
        assert_eq!(row.arrivals.len(), 1);
    }
    // Streams there are none of.
    plan.target.stream = true;
    plan.target.api = Some(Api::KserveInfer);
    let error = try_run(&plan).expect_err("no streams").to_string();
    assert!(error.contains("--no-stream"), "{error}");
}

#[test]
fn kserve_generate_streams_without_an_end_mark() {
    let mock = Mock::start(|question| {
        triton_facts(question, &TENSORRT_LLM).unwrap_or_else(|| {
            assert_eq!(question.path, "/v2/models/ensemble/generate_stream");
            // The request before the run asks for one token.
            let wished = if question.nth == 0 { 1 } else { 3 };
            assert_eq!((&question.body["max_tokens"], &question.body["top_k"]), (&json!(wished), &json!(5)));
            match question.nth {
                2 => stream("data: {\"text_output\":\"a\"}\n\ndata: {\"error\":\"out of blocks\"}\n\n"),
                3 => vec![Act::StreamHead, Act::StreamEnd],
                _ => stream(
                    "data: {\"model_name\":\"ensemble\",\"text_output\":\" a\"}\n\ndata: {\"text_output\":\"\"}\n\n\
                     data: {\"text_output\":[\" b\"]}\n\ndata: {\"text_output\":\" c\"}\n\n",
                ),
            }
        })
    });
    let mut plan = plan(mock.url(), 4, 3);
    plan.target.extra_body.insert("top_k".to_owned(), json!(5));
    let results = run(&plan);
    assert_eq!(results.server.api, Api::KserveGenerate);
    let rows = &results.runs[0].rows;
    assert_eq!((rows[0].output_tokens, rows[0].counted_by, rows[0].failure.is_none()), (3, CountedBy::Chunks, true));
    assert_eq!(
        kinds(rows),
        ["", "error event: out of blocks", "broken stream: stream ended before its final event", ""]
    );
}

#[test]
fn triton_with_vllm_behind_it_counts_its_own_tokens() {
    let inputs = [
        ("text_input", "BYTES"),
        ("stream", "BOOL"),
        ("sampling_parameters", "BYTES"),
        ("exclude_input_in_output", "BOOL"),
        ("return_num_output_tokens", "BOOL"),
    ];
    let mock = Mock::start(move |question| {
        triton_facts(question, &inputs).unwrap_or_else(|| {
            assert_eq!((&question.body["ignore_eos"], &question.body["min_tokens"]), (&json!(true), &json!(5)));
            assert_eq!(question.body["exclude_input_in_output"], true);
            stream(
                "data: {\"text_output\":\" ab\",\"num_output_tokens\":2,\"num_input_tokens\":21}\n\n\
                 data: {\"text_output\":\" cde\",\"num_output_tokens\":[3],\"finish_reason\":\"length\"}\n\n",
            )
        })
    });
    // The request before the run asks for one token.
    let mut plan = plan(mock.url(), 2, 5);
    plan.target.extra_body.insert("min_tokens".to_owned(), json!(5));
    let results = run(&plan);
    let row = &results.runs[0].rows[0];
    assert_eq!((row.output_tokens, row.counted_by, row.prompt_tokens_reported), (5, CountedBy::Server, Some(21)));
    assert_eq!(row.finish_reason.as_deref(), Some("length"));
    assert!(results.server.ignores_end_of_text);
}

#[test]
fn tensors_are_named_by_the_user_where_they_cannot_be_known() {
    let mock = Mock::start(|question| {
        triton_facts(question, &[("q", "BYTES"), ("n", "UINT32")]).unwrap_or_else(|| {
            assert_eq!((question.body["n"].as_u64(), question.body["q"].is_string()), (Some(4), true));
            whole(json!({ "said": " a b" }))
        })
    });
    let mut plan = plan(mock.url(), 1, 4);
    plan.target.stream = false;
    plan.target.api = Some(Api::KserveGenerate);
    plan.target.extra_body.insert("n".to_owned(), json!(4));
    let error = try_run(&plan).expect_err("the prompt has no place").to_string();
    assert!(error.contains("it has n, q: name it with --tensor prompt=NAME"), "{error}");
    let names = [(TensorRole::Prompt, "q"), (TensorRole::Length, "n"), (TensorRole::Text, "said")];
    plan.target.tensors = names.map(|(role, name)| (role, name.to_owned())).into();
    assert_eq!(run(&plan).runs[0].summary.requests.complete, 1);
}

#[test]
fn grpc_streams_are_timed_as_http_streams_are() {
    let calls: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&calls);
    let address = grpc::start(move |call| {
        seen.lock().expect("not poisoned").push(call.method.clone());
        grpc::facts(call).unwrap_or_else(|| {
            assert_eq!(call.metadata["authorization"], "Bearer key");
            assert_eq!(call.metadata["x-team"], "a");
            let question = call.question();
            let input =
                |name: &str| question.inputs.iter().find(|input| input.name == name).and_then(|i| i.contents.clone());
            assert_eq!(question.model_version, "3");
            assert!(question.parameters.contains_key("priority"));
            assert_eq!(input("stream").expect("asked for").bool_contents, [true]);
            let wished = input("max_tokens").expect("asked for").int_contents[0] as u64;
            let pieces =
                (0..wished).flat_map(|n| [grpc::Act::Until(Duration::from_millis(40 + 10 * n)), streamed(" w")]);
            pieces.chain([grpc::Act::Status(0, "")]).collect()
        })
    });
    let mut plan = plan(format!("grpc://{address}"), 8, 6);
    plan.target.api_key = Some("key".to_owned());
    plan.target.headers.insert("x-team".to_owned(), "a".to_owned());
    plan.target.model_version = Some("3".to_owned());
    plan.target.extra_body.insert("priority".to_owned(), json!(1));
    let began = Instant::now();
    let results = loop {
        let results = run(&plan);
        let summary = &results.runs[0].summary;
        let p50 = |of: &Option<pelton_bench::Distribution>| of.as_ref().map_or(f64::NAN, |of| of.p50);
        let off = [(p50(&summary.ttft_ms), 40.0), (p50(&summary.itl_ms), 10.0), (p50(&summary.e2e_ms), 90.0)];
        if off.iter().all(|(measured, expected)| (measured - expected).abs() < 1.5) {
            break results;
        }
        // Other work on the machine delays server and client alike: measured again until it is quiet.
        assert!(began.elapsed() < Duration::from_secs(240), "{off:?}");
    };
    let row = &results.runs[0].rows[0];
    assert_eq!((row.output_tokens, row.arrivals.len(), row.status), (6, 6, Some(200)));
    assert_eq!((results.server.api, results.server.provider), (Api::KserveGrpc, Some(Provider::Triton)));
    assert_eq!(calls.lock().expect("not poisoned")[..3], ["ServerMetadata", "ModelMetadata", "ModelStreamInfer"]);
}

#[test]
fn grpc_failures_are_told_in_the_words_of_the_server() {
    let calls = Mutex::new(0);
    let address = grpc::start(move |call| {
        grpc::facts(call).unwrap_or_else(|| {
            let mut calls = calls.lock().expect("not poisoned");
            *calls += 1;
            let error = |text: &str| {
                let message = pelton_protocol::kserve::ModelStreamInferResponse {
                    error_message: text.to_owned(),
                    ..Default::default()
                };
                grpc::Act::Send(framed(&message))
            };
            match *calls {
                2 => vec![grpc::Act::Status(14, "Exceeds%20maximum queue size")],
                3 => vec![streamed(" a"), error("no more blocks"), grpc::Act::Status(0, "")],
                4 => vec![streamed(" a"), grpc::Act::Reset],
                5 => vec![grpc::Act::Send(vec![0, 255, 255, 255, 255]), grpc::Act::Status(0, "")],
                6 => vec![grpc::Act::Send(vec![0, 0, 0, 0, 9, 1]), grpc::Act::Status(0, "")],
                7 => vec![grpc::Act::Status(0, "")],
                8 => vec![grpc::Act::Send(vec![0, 0, 0, 0, 1, 255]), grpc::Act::Status(0, "")],
                _ => vec![streamed(" a"), grpc::Act::Status(0, "")],
            }
        })
    });
    let rows = run(&plan(format!("grpc://{address}"), 8, 1)).runs.remove(0).rows;
    let expected = [
        "grpc status 14: Exceeds maximum queue size",
        "error event: no more blocks",
        "broken stream: ",
        "malformed: message has 4294967295 bytes",
        "broken stream: stream ended before its message",
        "broken stream: stream ended before its message",
        "malformed: message cannot be read",
        "",
    ];
    let told = kinds(&rows);
    assert!(told.iter().zip(expected).all(|(told, expected)| told.starts_with(expected)), "{told:?}");
    assert!(told[7].is_empty());
}

#[test]
fn grpc_answers_can_be_whole() {
    let address = grpc::start(|call| {
        grpc::facts(call).unwrap_or_else(|| {
            assert_eq!(call.method, "ModelInfer");
            let prompt = call.question().inputs.iter().find(|input| input.name == "text_input").cloned();
            let prompt = prompt.and_then(|prompt| prompt.contents).expect("a prompt").bytes_contents.remove(0);
            let text = format!("{} and more", String::from_utf8_lossy(&prompt));
            vec![grpc::Act::Send(framed(&grpc::piece(&text))), grpc::Act::Status(0, "")]
        })
    });
    let mut plan = plan(format!("grpc://{address}"), 2, 3);
    plan.target.stream = false;
    let results = run(&plan);
    assert_eq!((results.runs[0].summary.requests.complete, results.runs[0].rows[0].output_tokens), (2, 1));
    plan.target.extra_body.insert("list".to_owned(), json!([1]));
    let error = try_run(&plan).expect_err("a parameter is no list").to_string();
    assert!(error.contains("cannot be sent as parameter \"list\""), "{error}");
}

/// The bytes of one stream, and what must be read: tokens of each arrival's event in order, how counted, finish reason.
type Habit = (&'static str, &'static str, &'static [u32], CountedBy, Option<&'static str>);

const HABITS: &[Habit] = &[
    (
        "CRLF, comments, data without a space, an event name",
        ": hi\r\n\r\nevent: message\r\ndata:{\"choices\":[{\"text\":\"a\"}]}\r\n\r\n: ping\r\n\
         data:{\"choices\":[{\"text\":\"b\",\"finish_reason\":\"length\"}]}\r\n\r\ndata:[DONE]\r\n\r\n",
        &[1, 1],
        CountedBy::Chunks,
        Some("length"),
    ),
    (
        "no [DONE]",
        "data: {\"choices\":[{\"text\":\"a\",\"finish_reason\":\"stop\"}]}\n\n",
        &[1],
        CountedBy::Chunks,
        Some("stop"),
    ),
    (
        "role only, null and empty content, an empty list of choices, the message beside the delta",
        "data: {\"choices\":[]}\n\ndata: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":null}}]}\n\n\
         data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
         data: {\"choices\":[{\"message\":{\"role\":\"assistant\",\"content\":\"x\"},\"delta\":{\"content\":\"x\"}}]}\n\n\
         data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n",
        &[1],
        CountedBy::Chunks,
        Some("stop"),
    ),
    (
        "usage in a chunk of its own without choices at all",
        "data: {\"choices\":[{\"text\":\"ab\"}]}\n\ndata: {\"choices\":[{\"text\":\"c\"}]}\n\n\
         data: {\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":4}}\n\ndata: [DONE]\n\n",
        &[2, 2],
        CountedBy::Server,
        None,
    ),
    (
        "usage repeated, null in between",
        "data: {\"choices\":[{\"text\":\"a\"}],\"usage\":{\"completion_tokens\":1}}\n\n\
         data: {\"choices\":[{\"text\":\"bc\"}],\"usage\":{\"completion_tokens\":3}}\n\n\
         data: {\"choices\":[],\"usage\":{\"completion_tokens\":3}}\n\ndata: {\"choices\":[],\"usage\":null}\n\ndata: [DONE]\n\n",
        &[1, 2],
        CountedBy::Server,
        None,
    ),
    (
        "usage of zero is no count",
        "data: {\"choices\":[{\"text\":\"a\"}],\"usage\":{\"prompt_tokens\":0,\"completion_tokens\":0}}\n\ndata: [DONE]\n\n",
        &[1],
        CountedBy::Chunks,
        None,
    ),
    (
        "usage inside a choice, and beside it",
        "data: {\"choices\":[{\"text\":\"a\"}]}\n\n\
         data: {\"choices\":[{\"text\":\"b\",\"finish_reason\":\"stop\",\"usage\":{\"completion_tokens\":4}}]}\n\ndata: [DONE]\n\n",
        &[2, 2],
        CountedBy::Server,
        Some("stop"),
    ),
    (
        "token ids in each chunk, more in the usage than in the chunks",
        "data: {\"choices\":[{\"text\":\"abc\",\"token_ids\":[5,6,7]}]}\n\ndata: {\"choices\":[{\"text\":\"\",\"token_ids\":[8]}]}\n\n\
         data: {\"choices\":[],\"usage\":{\"completion_tokens\":8}}\n\ndata: [DONE]\n\n",
        &[6, 2],
        CountedBy::Server,
        None,
    ),
    (
        "log-probabilities tell the tokens of a chunk",
        "data: {\"choices\":[{\"text\":\"abc\",\"logprobs\":{\"tokens\":[\"a\",\"b\",\"c\"],\"token_logprobs\":[0,0,0]}}]}\n\n\
         data: {\"choices\":[{\"delta\":{\"content\":\"de\"},\"logprobs\":{\"content\":[{\"token\":\"d\"},{\"token\":\"e\"}]}}]}\n\ndata: [DONE]\n\n",
        &[3, 2],
        CountedBy::Server,
        None,
    ),
    (
        "llama.cpp's own chunks",
        "data: {\"content\":\" a\",\"stop\":false,\"id_slot\":0,\"multimodal\":false}\n\n\
         data: {\"content\":\" bc\",\"stop\":false}\n\n\
         data: {\"content\":\"\",\"stop\":true,\"stop_type\":\"limit\",\"tokens_predicted\":4,\"tokens_evaluated\":9,\
         \"timings\":{\"prompt_ms\":2.5,\"predicted_n\":4,\"predicted_ms\":4.5,\"predicted_per_token_ms\":1.125}}\n\n",
        &[2, 2],
        CountedBy::Server,
        None,
    ),
    (
        "llama.cpp's timings in each chunk",
        "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"timings\":{\"predicted_n\":1}}\n\n\
         data: {\"choices\":[{\"delta\":{\"content\":\"bcd\"},\
         \"finish_reason\":\"length\"}],\"timings\":{\"predicted_n\":4,\"prompt_ms\":1.0,\"predicted_ms\":6.0}}\n\ndata: [DONE]\n\n",
        &[1, 3],
        CountedBy::Server,
        Some("length"),
    ),
    (
        "content in parts",
        "data: {\"choices\":[{\"delta\":{\"content\":[{\"type\":\"text\",\"text\":\"a\"}]},\"finish_reason\":\"stop\"}]}\n\n",
        &[1],
        CountedBy::Chunks,
        Some("stop"),
    ),
];

#[test]
fn habits_of_openai_servers_are_understood() {
    let mock = Mock::start(|question| {
        openai_facts(question).unwrap_or_else(|| {
            // One piece a read, so that each event is an arrival of its own; the first request is the one before the run.
            let (_, text, ..) = HABITS[question.nth.saturating_sub(1).min(HABITS.len() - 1)];
            let mut acts = vec![Act::StreamHead];
            for (n, event) in text.split_inclusive("\n\n").enumerate() {
                acts.push(Act::Until(Duration::from_millis(3 * n as u64)));
                acts.push(Act::Send(event.to_owned()));
            }
            acts.push(Act::StreamEnd);
            acts
        })
    });
    let results = run(&plan(mock.url(), HABITS.len() as u64, 4));
    for (row, (name, _, tokens, counted_by, reason)) in results.runs[0].rows.iter().zip(HABITS) {
        assert_eq!(row.failure, None, "{name}");
        assert_eq!((row.counted_by, row.output_tokens), (*counted_by, tokens.iter().sum::<u32>()), "{name}");
        assert_eq!(row.finish_reason.as_deref(), *reason, "{name}");
        // Reads that a busy machine joined hold the tokens of both.
        let arrived: Vec<u32> = row.arrivals.iter().map(|arrival| arrival.tokens).collect();
        assert!(arrived == *tokens || arrived.len() < tokens.len(), "{name}: {arrived:?}");
    }
    let own = HABITS.iter().position(|habit| habit.0 == "llama.cpp's own chunks").expect("it is there");
    let row = &results.runs[0].rows[own];
    let times = row.server_ms.expect("timings are told");
    assert_eq!((times.inference, times.per_token, row.prompt_tokens_reported), (Some(7.0), Some(1.125), Some(9)));
}

/// Facts of each program, and what a request to it must hold.
#[test]
fn programs_are_known_by_what_they_say_of_themselves() {
    let models = |owner: &str| json!({ "data": [{ "id": "m", "owned_by": owner }] });
    type Facts = Vec<(&'static str, Value)>;
    let cases: [(Facts, Option<Provider>, &[&str]); 8] = [
        (vec![("/v1/models", models("vllm"))], Some(Provider::Vllm), &["ignore_eos", "min_tokens"]),
        (vec![("/v1/models", models("llamacpp"))], Some(Provider::LlamaCpp), &["ignore_eos", "n_predict"]),
        (
            vec![("/v1/models", models("me")), ("/extras/tokenize/count", Value::Null)],
            Some(Provider::LlamaCpp),
            &["ignore_eos"],
        ),
        (
            vec![("/v1/models", models("?")), ("/props", json!({ "default_generation_settings": {} }))],
            Some(Provider::LlamaCpp),
            &["ignore_eos"],
        ),
        (
            vec![("/v1/models", models("user")), ("/v1/internal/model/info", json!({ "model_name": "m" }))],
            Some(Provider::TextGenerationWebui),
            &["ban_eos_token"],
        ),
        (vec![("/v1/models", models("na"))], Some(Provider::Openllm), &["ignore_eos", "min_tokens"]),
        (vec![("/v1/models", models("system"))], Some(Provider::Openai), &[]),
        (vec![("/v1/models", models("somebody"))], None, &["ignore_eos", "min_tokens"]),
    ];
    const EXTENSIONS: [&str; 4] = ["ignore_eos", "min_tokens", "n_predict", "ban_eos_token"];
    for (facts, provider, fields) in cases {
        let bodies: Arc<Mutex<Vec<Value>>> = Arc::default();
        let seen = Arc::clone(&bodies);
        let mock = Mock::start(move |question| {
            if is_generation(&question.path) {
                seen.lock().expect("not poisoned").push(question.body.clone());
                return stream(
                    "data: {\"choices\":[{\"text\":\"a\",\"finish_reason\":\"length\"}]}\n\ndata: [DONE]\n\n",
                );
            }
            let fact = facts.iter().find(|(path, _)| *path == question.path).map(|(_, fact)| fact.clone());
            let count = || json!({ "count": mock::tokens(question.body["input"].as_str().expect("a text")) });
            let fact = fact.map(|fact| if fact.is_null() { count() } else { fact });
            fact.map_or_else(|| vec![Act::Whole(404, "", "{}".to_owned())], whole)
        });
        let results = run(&plan(mock.url(), 1, 7));
        assert_eq!(results.server.provider, provider);
        let bodies = bodies.lock().expect("not poisoned");
        let sent = EXTENSIONS.into_iter().filter(|name| bodies[1].get(name).is_some());
        assert!(sent.clone().all(|name| fields.contains(&name) || name == "n_predict"), "{}", bodies[1]);
        assert!(fields.iter().all(|name| bodies[1].get(name).is_some()), "{}", bodies[1]);
        assert_eq!(results.server.ignores_end_of_text, !fields.is_empty());
    }
}

#[test]
fn tgi_and_pelton_are_told_apart_and_servers_can_be_named() {
    let mock = Mock::start(|question| match question.path.as_str() {
        "/info" => whole(json!({ "model_id": "m", "router": "pelton-serve" })),
        "/v1/models" => whole(json!({ "data": [{ "id": "m", "owned_by": "vllm" }] })),
        "/v1/completions" => {
            assert!(question.headers.iter().any(|line| line == "authorization: bearer key"));
            stream("data: {\"choices\":[{\"text\":\"a\",\"finish_reason\":\"length\"}]}\n\ndata: [DONE]\n\n")
        }
        "/generate_stream" => tgi_stream(question, Pace::ms(0, 0)),
        _ => vec![Act::Whole(404, "", "{}".to_owned())],
    });
    let mut plan = plan(mock.url(), 1, 1);
    plan.target.api_key = Some("key".to_owned());
    let found = |plan: &BenchPlan| {
        let server = run(plan).server;
        (server.api, server.provider)
    };
    assert_eq!(found(&plan), (Api::Tgi, Some(Provider::Pelton)));
    plan.target.provider = Some(Provider::Vllm);
    assert_eq!(found(&plan), (Api::Openai, Some(Provider::Vllm)));
    plan.target.provider = None;
    plan.target.api = Some(Api::Openai);
    assert_eq!(found(&plan), (Api::Openai, Some(Provider::Pelton)));
    for (api, url, words) in [
        (Api::KserveGrpc, "http://localhost", "needs a url grpc://"),
        (Api::Tgi, "grpc://localhost", "not spoken over gRPC"),
        (Api::Tgi, "ftp://localhost", "must begin with http://"),
        (Api::KserveGrpc, "grpc://localhost/a", "no place for"),
    ] {
        plan.target = TargetPlan { api: Some(api), ..TargetPlan::at(url) };
        let error = try_run(&plan).expect_err("impossible").to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn servers_that_refuse_even_stream_options_are_asked_without_them() {
    let mock = Mock::start(|question| {
        openai_facts(question).unwrap_or_else(|| {
            if question.body.get("stream_options").is_some() {
                return vec![Act::Whole(422, "", r#"{"detail":"extra fields not permitted"}"#.to_owned())];
            }
            stream("data: {\"choices\":[{\"text\":\"a\",\"finish_reason\":\"length\"}]}\n\ndata: [DONE]\n\n")
        })
    });
    let results = run(&plan(mock.url(), 2, 1));
    assert_eq!((results.runs[0].summary.requests.complete, results.server.ignores_end_of_text), (2, false));
}

#[test]
fn the_servers_own_account_is_kept() {
    let mock = Mock::start(|question| {
        tgi_facts(question).unwrap_or_else(|| {
            let body = r#"{"generated_text":"w","details":{"finish_reason":"length","generated_tokens":2}}"#.to_owned();
            let headers = "x-total-time: 30\r\nx-validation-time: 1\r\nx-queue-time: 4\r\nx-inference-time: 25\r\n\
                           x-time-per-token: 12\r\n";
            vec![Act::Whole(200, if question.nth < 2 { headers } else { "" }, body)]
        })
    });
    let mut plan = plan(mock.url(), 2, 2);
    plan.target.stream = false;
    let rows = run(&plan).runs.remove(0).rows;
    let times = rows[0].server_ms.expect("headers are there");
    assert_eq!((times.total, times.validation, times.queue), (Some(30.0), Some(1.0), Some(4.0)));
    assert_eq!((times.inference, times.per_token, rows[1].server_ms), (Some(25.0), Some(12.0), None));
}

#[test]
fn a_tokenizer_counts_what_the_server_does_not() {
    let mock = Mock::start(|question| {
        openai_facts(question).unwrap_or_else(|| {
            let chunk = |text: &str| format!("data: {}\n\n", json!({ "choices": [{ "text": text }] }));
            let texts = [" one two three", " four", " five six"];
            let mut acts = vec![Act::StreamHead];
            for (n, text) in texts.iter().enumerate() {
                acts.push(Act::Until(Duration::from_millis(5 * n as u64)));
                acts.push(Act::Send(chunk(text)));
            }
            // The second answer has a count, and a wrong one.
            let usage = r#"data: {"choices":[],"usage":{"completion_tokens":99}}"#;
            acts.extend((question.nth == 2).then(|| Act::Send(format!("{usage}\n\n"))));
            acts.extend([Act::Send("data: [DONE]\n\n".to_owned()), Act::StreamEnd]);
            acts
        })
    });
    let mut plan = plan(mock.url(), 2, 6);
    plan.workload.tokenizer = Some(demo_tokenizer());
    let run = run(&plan).runs.remove(0);
    let path = demo_tokenizer();
    let read = |name: &str| if name == "tokenizer.json" { std::fs::read(&path).map(Some) } else { Ok(None) };
    let tokenizer = pelton_text::TextModel::from_files(&read).expect("a tokenizer");
    let all = tokenizer.encode(" one two three four five six", false).expect("encodes").len() as u32;
    assert!(all > 3, "chunks are fewer than tokens");
    let row = &run.rows[0];
    assert_eq!((row.counted_by, row.output_tokens), (CountedBy::Tokenizer, all));
    assert_eq!(row.arrivals.iter().map(|arrival| arrival.tokens).sum::<u32>(), all);
    assert_eq!((run.rows[1].counted_by, run.rows[1].output_tokens), (CountedBy::Server, 99));
    assert!(
        run.summary.notes.iter().any(|note| note.contains("in 1 of 1 answers, by up to")),
        "{:?}",
        run.summary.notes
    );
    assert_eq!(run.summary.requests.counted_by_chunks, 0);
}
