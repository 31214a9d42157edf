//! `pelton kernels` and `pelton bench engine`, as a user starts them: small runs, whose figures are checked for sense only.

use std::process::{Command, Output};

use serde_json::Value;

fn pelton(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pelton")).args(arguments).output().expect("pelton starts")
}

/// What a run that must succeed printed.
fn printed(arguments: &[&str]) -> String {
    let output = pelton(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// What a run that must fail said.
fn refusal(arguments: &[&str]) -> String {
    let output = pelton(arguments);
    assert!(!output.status.success() && output.stdout.is_empty(), "{arguments:?}");
    String::from_utf8(output.stderr).expect("text")
}

/// A number that can be a time, a rate or a share: above nothing, below the absurd.
fn assert_sane(value: &Value, most: f64, whose: &Value) {
    let number = value.as_f64().unwrap_or_else(|| panic!("{value} is no number in {whose}"));
    assert!(number > 0.0 && number < most, "{number} in {whose}");
}

#[test]
fn kernels_are_measured_and_told_to_machines() {
    let text = printed(&["kernels", "--quick", "--duration", "50ms", "--threads", "2", "--isa", "avx2", "--json"]);
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&report["chosen"]["isa"], &report["chosen"]["threads"]), (&"AVX2".into(), &2.into()));
    assert_eq!(report["extent"], "quick");
    assert_eq!(report["cpu"]["flags"]["avx2"], true);
    assert_eq!(report["command"][1], "kernels");
    for limit in ["memory_bytes_per_s", "cache_bytes_per_s", "f32_per_s"] {
        assert_sane(&report["limits"][limit], 1e15, &report["limits"]);
    }
    let rows = report["kernels"].as_array().expect("rows");
    for kernel in ["linear", "attend", "add_norm", "rope", "gate", "embed"] {
        assert!(rows.iter().any(|row| row["kernel"] == kernel), "{kernel}");
    }
    for row in rows {
        assert_sane(&row["time_us"], 60e6, row);
        assert_sane(&row["share"], 100.0, row);
        assert_sane(&row["samples"], 1e6, row);
    }
}

#[test]
fn kernels_are_measured_and_told_to_people() {
    let text = printed(&["kernels", "--quick", "--duration", "10ms", "--threads", "1"]);
    for part in [
        "1 thread",
        "flags",
        "memory",
        "GB/s",
        "linear",
        "256 x 256 int8",
        "256 x 256 int4 g32",
        "prefill, 256 tokens",
        "share",
    ] {
        assert!(text.contains(part), "`{part}` is missing in:\n{text}");
    }
}

#[test]
fn the_demo_model_is_measured_without_a_server() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("run.json");
    let arguments = [
        &["bench", "engine", "--quiet", "--threads", "2", "--batch", "1,3", "--input-tokens", "20,40"][..],
        &["--output-tokens", "2", "--rounds", "2", "--max-batch-prefill-tokens", "16"],
        &["--dtype", "float32", "--output", file.to_str().expect("a path")],
    ];
    let text = printed(&arguments.concat());
    for part in ["pelton-demo", "float32", "prefill", "decode", "tokens/s", "share of memory"] {
        assert!(text.contains(part), "`{part}` is missing in:\n{text}");
    }
    let report: Value = serde_json::from_slice(&std::fs::read(&file).expect("a file")).expect("JSON");
    assert_eq!(report["command"][2], "engine");
    assert_eq!((&report["model"]["dtype"], &report["model"]["random_weights"]), (&"float32".into(), &false.into()));
    assert_sane(&report["memory_bytes_per_s"], 1e15, &report["model"]);
    let cases = report["cases"].as_array().expect("cases");
    assert_eq!(cases.len(), 6);
    for case in cases {
        assert_sane(&case["time_ms"], 60e3, case);
        assert_sane(&case["tokens_per_s"], 1e9, case);
        if case["case"] == "decode" {
            // The demo model sits in caches, so it may be read faster than memory.
            assert_sane(&case["bandwidth_share"], 1000.0, case);
            assert_eq!(case["samples"], 4);
        }
    }
    // Two and three steps of the prompts, two steps of each of four decodes; two rounds.
    let rows = report["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 2 * (2 + 3 + 4 * 2));
    rows.iter().for_each(|row| assert_sane(&row["time_us"], 60e6, row));
}

#[test]
fn batches_of_the_demo_model_are_measured_without_a_server() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("run.json");
    let arguments = [
        &["bench", "engine", "--quiet", "--threads", "2", "--batch-size", "1", "--batch-size", "3"][..],
        &["--sequence-length", "20", "--decode-length", "4", "--runs", "2", "--warmups", "1"],
        &["--temperature", "0.7", "--top-n-tokens", "3", "--watermark", "--output", file.to_str().expect("a path")],
    ];
    let text = printed(&arguments.concat());
    for part in [
        "| Model              | pelton-demo",
        "| Temperature        | Some(0.7)",
        "| Top N Tokens       | Some(3)",
        "| Watermark          | true",
    ] {
        assert!(text.contains(part), "`{part}` is missing in:\n{text}");
    }
    // Three tables: fourteen parameters, three latencies and two throughputs of two sizes, each under two lines.
    let tables: Vec<usize> = text.split("\n\n").map(|table| table.lines().count()).collect();
    assert_eq!(tables, [2 + 14, 2 + 3 * 2, 2 + 2 * 2], "{text}");
    let report: Value = serde_json::from_slice(&std::fs::read(&file).expect("a file")).expect("JSON");
    let runs = report["runs"].as_array().expect("runs");
    assert_eq!(runs.iter().map(|run| run["batch"].as_u64()).collect::<Vec<_>>(), [1, 1, 3, 3].map(Some));
    for run in runs {
        assert_sane(&run["prefill_ms"], 60e3, run);
        assert_sane(&run["decode_ms"], 60e3, run);
    }
    let engine = &report["measured"]["engine"];
    assert_eq!((&engine["model"]["random_weights"], &engine["max_batch_prefill_tokens"]), (&false.into(), &60.into()));
}

#[test]
fn the_name_of_the_benchmark_brings_its_defaults_and_variables() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let link = folder.path().join("text-generation-benchmark");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_pelton"), &link).expect("a link");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&link);
        command.args(arguments).env("RUNS", "1").env("SEQUENCE_LENGTH", "6").env("DO_SAMPLE", "true");
        // The server's, where both are in one container.
        command.env("MODEL_ID", "/no/such/model");
        command.output().expect("the benchmark starts")
    };
    let output = run(&["-b", "1", "-d", "1"]);
    let (text, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}");
    for part in
        ["Sequence Length    | 6", "Decode Length      | 1", "N Runs             | 1", "Do Sample          | true"]
    {
        assert!(text.contains(part), "`{part}` is missing in:\n{text}");
    }
    assert!(text.contains("| Prefill | 1") && !text.contains("Decode ("), "one token is prefill alone:\n{text}");
    assert!(told.contains("batch 1: prefill") && told.contains("measured: an engine in this process"), "{told}");

    let output = run(&["--master-shard-uds-path", "/tmp/text-generation-server-0"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("there are none here") && told.contains("--url"), "{told}");
    let output = run(&["--tokenizer-name", "/no/such/model", "--help"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("Usage: text-generation-benchmark"));
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let unknown = refusal(&["bench", "engine", "--random-weights", "gpt-5"]);
    assert!(
        unknown.contains("\"gpt-5\"") && unknown.contains("tinyllama-1.1b, starcoderbase-1b, llama-3.2-1b"),
        "{unknown}"
    );
    let both = refusal(&["bench", "engine", "--random-weights", "llama-160m", "--model-id", "some/model"]);
    assert!(both.contains("cannot be used with"), "{both}");
    assert!(refusal(&["bench", "engine", "--model-id", "fake"]).contains("computes nothing"));
    assert!(refusal(&["bench", "engine", "--revision", "main"]).contains("--revision needs --model-id"));
    let long = refusal(&["bench", "engine", "--batch", "1", "--input-tokens", "3000"]);
    assert!(long.contains("with room for 1 sequences of 3032 tokens") && long.contains("1 to 2048"), "{long}");
    for (arguments, told) in [
        (&["--decode-length", "8", "--input-tokens", "8,16"] as &[&str], "prompts of one length"),
        (&["--warmups", "2", "--output-tokens", "4"], "--decode-length, which counts tokens"),
        (&["--decode-length", "8", "--output-tokens", "4"], "cannot be used with"),
        (
            &["--url", "http://127.0.0.1:9", "--random-weights", "llama-160m"],
            "--random-weights says what this process computes",
        ),
        (&["--url", "http://127.0.0.1:9", "--no-stream"], "only streams tell"),
        (&["--url", "http://127.0.0.1:9", "--watermark"], "watermark has no place"),
        (&["--api", "tgi"], "--api says how a server is spoken to"),
        (&["--top-p", "1.5"], "must be above 0 and at most 1"),
    ] {
        let refused = refusal(&[&["bench", "engine"], arguments].concat());
        assert!(refused.contains(told), "{arguments:?}: {refused}");
    }
    let mixed = refusal(&["bench", "--users", "2", "engine"]);
    assert!(mixed.contains("cannot be used with"), "{mixed}");
    assert!(refusal(&["kernels", "--isa", "sse9"]).contains("possible values"));
}
