//! Mixtral: Mistral with experts in every block.
//!
//! Source: `modeling_mixtral.py` of Transformers.

use serde_json::json;

use super::llama::declared;
use crate::config::{ConfigError, HfConfig};
use crate::spec::{Attention, DecoderSpec, ExpertNames, Experts, LLAMA, sliding_window};

const EXPERTS: ExpertNames = ExpertNames {
    router: "block_sparse_moe.gate",
    experts: "block_sparse_moe.experts",
    up: &["w1", "w3"],
    down: "w2",
    shared: "",
    shared_gate: "",
};

pub(super) fn spec(config: &HfConfig) -> Result<DecoderSpec, ConfigError> {
    let config = &config.with_defaults(json!({
        "rms_norm_eps": 1e-5, "num_key_value_heads": 8, "rope_theta": 1e6, "num_local_experts": 8, "num_experts_per_tok": 2,
    }));
    let spec = declared(config, Attention::grouped(config)?, LLAMA)?.with_window(sliding_window(config)?, |_| true);
    let experts = Experts::from_config(config, &spec.mlp, "num_local_experts", "intermediate_size", EXPERTS)?;
    Ok(spec.with_experts(Experts { renormalise: true, ..experts }, |_| true))
}
