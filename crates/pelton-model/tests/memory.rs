//! Peak memory of loading, in a process of its own: this file holds one test only.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use pelton_cpu::{CpuBackend, CpuConfig};
use pelton_model::{HfConfig, KvBudget, LoadOptions, Model, ModelFiles, load, spec_of};
use serde_json::{Map, Value, json};

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 4096, "hidden_size": 640, "num_hidden_layers": 8,
    "num_attention_heads": 10, "num_key_value_heads": 10, "intermediate_size": 1728, "hidden_act": "silu",
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5}"#;

/// A checkpoint in bfloat16 whose numbers are all zero: a file with a hole. Returns its size.
fn write_checkpoint(folder: &Path) -> u64 {
    let (_, spec) = spec_of(&HfConfig::parse("config.json", CONFIG.as_bytes()).unwrap()).unwrap();
    let tensors = spec.tensors();
    let mut header = Map::new();
    let mut end = 0;
    for tensor in tensors.matrices().chain(tensors.vectors()) {
        let begin = end;
        end += 2 * tensor.num_elements();
        let entry = json!({"dtype": "BF16", "shape": tensor.shape, "data_offsets": [begin, end]});
        header.insert(tensor.name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    let mut file = File::create(folder.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let size = 8 + header.len() as u64 + end;
    file.set_len(size).unwrap();
    std::fs::write(folder.join("config.json"), CONFIG).unwrap();
    size
}

/// The most memory this process ever had resident, in bytes.
fn peak_resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn loading_needs_the_size_of_the_file_and_a_tenth() {
    let folder = tempfile::tempdir().unwrap();
    let file_size = write_checkpoint(folder.path());
    let backend = CpuBackend::new(CpuConfig { threads: Some(2), ..CpuConfig::default() }).unwrap();
    let options =
        LoadOptions { max_step_rows: 1, max_logit_rows: 1, kv_budget: KvBudget::Tokens(64), ..LoadOptions::default() };
    let before = peak_resident();
    let decoder = load(&ModelFiles::directory(folder.path()).unwrap(), backend, &options).unwrap();
    let grown = peak_resident() - before;
    let limit = file_size + file_size / 10 + decoder.plan().kv_bytes();
    println!("{grown} bytes resident for a file of {file_size}");
    assert!(grown <= limit, "{grown} bytes for a file of {file_size}, limit is {limit}");
    // The packed weights are resident: the measurement measures.
    assert!(grown >= file_size, "{grown} bytes for a file of {file_size}");
    assert_eq!(decoder.spec().vocab_size, 4096);
}
