//! Starting with something wrong: one clear line, an exit code that is not 0, and no open port.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Runs `pelton serve` with `arguments`, which must fail, and gives back what it said.
fn refusal(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_pelton"))
        .args(["serve"])
        .args(["--port", "0"].iter().filter(|_| !arguments.contains(&"--port")))
        .args(arguments)
        .env("RUST_LOG", "error")
        .output()
        .expect("pelton starts");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_ne!(output.status.code(), Some(0), "{stderr}");
    assert!(!stdout.contains("http://"), "the port was opened: {stdout}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("error: "), "{stderr}");
    stderr
}

fn assert_says(refusal: &str, words: &[&str]) {
    for word in words {
        assert!(refusal.contains(word), "`{word}` is missing in: {refusal}");
    }
}

/// A copy of the demo model to damage.
fn checkpoint() -> TempDir {
    let copy = TempDir::new().unwrap();
    for name in
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    {
        fs::copy(demo().join(name), copy.path().join(name)).unwrap();
    }
    copy
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo")
}

fn serve(model: &TempDir) -> String {
    refusal(&["--model-id", model.path().to_str().unwrap()])
}

/// Replaces one value in config.json.
fn configure(model: &TempDir, key: &str, value: serde_json::Value) {
    let path = model.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn what_is_no_model_is_told() {
    assert_says(&refusal(&["--model-id", "/no/such/directory"]), &["/no/such/directory", "directory", "hub"]);
}

#[test]
fn offline_hub_model_that_is_not_cached_is_told() {
    let cache = TempDir::new().unwrap();
    let arguments = ["--model-id", "org/name", "--offline", "--huggingface-hub-cache", cache.path().to_str().unwrap()];
    assert_says(&refusal(&arguments), &["org/name", "offline"]);
}

#[test]
fn missing_files_are_named() {
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        let model = checkpoint();
        fs::remove_file(model.path().join(name)).unwrap();
        assert_says(&serve(&model), &[name]);
    }
}

#[test]
fn truncated_weights_name_both_sizes() {
    let model = checkpoint();
    let path = model.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1000]).unwrap();
    assert_says(&serve(&model), &["model.safetensors", "truncated", &(bytes.len() - 1000).to_string()]);
}

#[test]
fn weights_that_do_not_fit_the_configuration_are_named() {
    let model = checkpoint();
    configure(&model, "intermediate_size", 1024.into());
    assert_says(&serve(&model), &["mlp", "1024"]);
    let model = checkpoint();
    configure(&model, "num_hidden_layers", 99.into());
    assert_says(&serve(&model), &["model.layers."]);
}

#[test]
fn unknown_architecture_is_refused_with_the_known_ones() {
    let model = checkpoint();
    configure(&model, "architectures", serde_json::json!(["MambaForCausalLM"]));
    assert_says(&serve(&model), &["MambaForCausalLM", "LlamaForCausalLM"]);
}

#[test]
fn too_little_memory_is_told_before_weights_are_read() {
    assert_says(
        &refusal(&["--max-batch-total-tokens", "400000000"]),
        &["not enough memory", "--max-batch-total-tokens"],
    );
}

#[test]
fn limits_beyond_the_model_are_refused() {
    assert_says(&refusal(&["--max-total-tokens", "1000000"]), &["1000000", "2048"]);
    assert_says(&refusal(&["--max-input-tokens", "5000"]), &["max_input_tokens", "5000"]);
}

#[test]
fn what_is_not_built_is_refused() {
    assert_says(
        &refusal(&["--quantize", "gptq"]),
        &["--quantize gptq needs a checkpoint", "in numbers", "int8 or int4"],
    );
    assert_says(&refusal(&["--quantize", "int4", "--dtype", "float16"]), &["--quantize", "--dtype"]);
    assert_says(&refusal(&["--model-id", "fake", "--quantize", "int8"]), &["--quantize", "fake"]);
    assert_says(&refusal(&["--fake-step-cost", "1ms"]), &["--model-id fake"]);
    assert_says(&refusal(&["--revision", "main"]), &["--revision", "--model-id"]);
    assert_says(&refusal(&["--model-id", "fake", "--dtype", "float32"]), &["--dtype", "fake"]);
}

#[test]
fn taken_port_is_told() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    assert_says(&refusal(&["--model-id", "fake", "--port", &port]), &["cannot listen on 127.0.0.1", &port, "--port 0"]);
}

#[cfg(feature = "otlp")]
#[test]
fn impossible_collectors_are_told() {
    for endpoint in ["localhost:4317", "https://collector:4317", "http://not a name"] {
        assert_says(&refusal(&["--model-id", "fake", "--otlp-endpoint", endpoint]), &["--otlp-endpoint", endpoint]);
    }
}
