//! Qwen 1.5 and 2 with experts: a shared one and many routed.
//!
//! Source: `modeling_qwen2_moe.py` of Transformers.

use serde_json::json;

use super::llama::declared;
use crate::config::{ConfigError, HfConfig};
use crate::spec::{Attention, DecoderSpec, ExpertNames, Experts, LLAMA};

const EXPERTS: ExpertNames = ExpertNames {
    router: "mlp.gate",
    experts: "mlp.experts",
    up: &["gate_proj", "up_proj"],
    down: "down_proj",
    shared: "mlp.shared_expert",
    shared_gate: "mlp.shared_expert_gate",
};

pub(super) fn spec(config: &HfConfig) -> Result<DecoderSpec, ConfigError> {
    let config = &config.with_defaults(json!({
        "rms_norm_eps": 1e-6, "num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    }));
    if config.bool_or("use_sliding_window", false)? {
        let why = "implementations differ in which layers slide; no released model asks for it";
        return Err(config.unsupported("use_sliding_window", why));
    }
    let attention = Attention::grouped(config)?.with_bias(config.bool_or("qkv_bias", true)?, false);
    with_experts(config, declared(config, attention, LLAMA)?, |experts| {
        experts.with_shared(config, "shared_expert_intermediate_size")
    })
}

/// Experts in every `decoder_sparse_step`-th layer that `mlp_only_layers` does not list.
pub(super) fn with_experts(
    config: &HfConfig,
    spec: DecoderSpec,
    finish: impl Fn(Experts) -> Result<Experts, ConfigError>,
) -> Result<DecoderSpec, ConfigError> {
    let step = config.size_or("decoder_sparse_step", 1, 1..=usize::MAX)?;
    let plain = config.indices("mlp_only_layers")?;
    let experts = Experts::from_config(config, &spec.mlp, "num_experts", "moe_intermediate_size", EXPERTS)?;
    let experts = finish(Experts { renormalise: config.bool_or("norm_topk_prob", false)?, ..experts })?;
    Ok(spec.with_experts(experts, |layer| (layer + 1) % step == 0 && !plain.contains(&(layer as u64))))
}
