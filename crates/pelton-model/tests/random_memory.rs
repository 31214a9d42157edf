//! Peak memory of making weights, in a process of its own: this file holds one test only.

use pelton_cpu::{CpuBackend, CpuConfig};
use pelton_model::{HfConfig, KvBudget, LoadOptions, load_random};

/// The most memory this process ever had resident, in bytes.
fn peak_resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn made_up_weights_need_little_more_than_their_packed_size() {
    let config = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 4096, "hidden_size": 640, "num_hidden_layers": 5,
        "num_attention_heads": 10, "intermediate_size": 1728, "max_position_embeddings": 64}"#;
    let config = HfConfig::parse("config.json", config.as_bytes()).unwrap();
    let backend = CpuBackend::new(CpuConfig { threads: Some(2), ..CpuConfig::default() }).unwrap();
    let options =
        LoadOptions { max_step_rows: 1, max_logit_rows: 1, kv_budget: KvBudget::Tokens(64), ..LoadOptions::default() };
    let before = peak_resident();
    let decoder = load_random(&config, 1, backend, &options).unwrap();
    let grown = peak_resident() - before;
    let plan = decoder.plan();
    // Beside the packed weights: what is packed at the moment and two groups read ahead, each no larger than the embedding in bfloat16.
    let limit = plan.weights_bytes + 3 * 2 * 4096 * 640 + plan.kv_bytes();
    assert!(grown <= limit, "{grown} bytes for weights of {}, limit is {limit}", plan.weights_bytes);
    // The packed weights are resident: the measurement measures.
    assert!(grown >= plan.weights_bytes, "{grown} bytes for weights of {}", plan.weights_bytes);
}
