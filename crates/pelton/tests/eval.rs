//! `pelton eval perplexity`, as a user starts it.

use std::process::{Command, Output};

use serde_json::Value;

const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo/heldout.txt");

fn pelton(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pelton"))
        .args(["eval", "perplexity"])
        .args(arguments)
        .output()
        .expect("pelton starts")
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
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8(output.stderr).expect("text")
}

#[test]
fn a_format_is_compared_with_an_earlier_run() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_str().expect("a path in UTF-8").to_owned();
    let (f32_run, int4_run) = (file("f32.json"), file("int4.json"));
    let text = ["--text", TEXT, "--max-tokens", "1500", "--context", "256"];
    let told = printed(&[&text[..], &["--dtype", "float32", "--output", &f32_run]].concat());
    assert!(told.contains("weights float32") && told.contains("perplexity  "), "{told}");
    let told = printed(&[&text[..], &["--quantize", "int4", "--against", &f32_run, "-o", &int4_run]].concat());
    assert!(told.contains("against     pelton-demo in float32: +"), "{told}");

    let read = |path: &str| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let (f32_run, int4_run) = (read(&f32_run), read(&int4_run));
    let tokens: u64 = f32_run["windows"].as_array().unwrap().iter().map(|row| row["tokens"].as_u64().unwrap()).sum();
    assert_eq!(tokens, 1499);
    let ratio = int4_run["perplexity"].as_f64().unwrap() / f32_run["perplexity"].as_f64().unwrap();
    assert!((1.0..1.05).contains(&ratio), "int4 over float32: {ratio}");
    assert!(int4_run["model"]["weights_bytes"].as_u64() < f32_run["model"]["weights_bytes"].as_u64().map(|n| n / 4));
}

#[test]
fn what_cannot_be_compared_or_measured_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run.json");
    let run = run.to_str().expect("a path in UTF-8");
    printed(&["--text", TEXT, "--max-tokens", "40", "--context", "16", "--output", run]);
    let other = refusal(&["--text", TEXT, "--max-tokens", "40", "--context", "32", "--against", run]);
    assert!(other.contains("in windows of 16 each 8 further"), "{other}");
    assert!(refusal(&["--text", TEXT, "--context", "4096"]).contains("max_positions is 4096, expected 1 to 2048"));
    assert!(refusal(&["--text", TEXT, "--context", "16", "--stride", "16"]).contains("stride is 16 tokens"));
    assert!(refusal(&["--text", "no-such-file"]).contains("cannot read no-such-file"));
    assert!(
        refusal(&["--text", TEXT, "--against", TEXT]).contains("is not what `pelton eval perplexity --output` writes")
    );
    assert!(refusal(&["--text", TEXT, "--model-id", "fake"]).contains("predicts nothing"));
}
