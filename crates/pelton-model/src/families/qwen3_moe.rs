//! Qwen 3 with experts, Qwen3-Coder.
//!
//! Source: `modeling_qwen3_moe.py` of Transformers. A window, where `use_sliding_window` asks for one, holds in every layer.

use serde_json::json;

use super::llama::declared;
use super::qwen2_moe::with_experts;
use crate::config::{ConfigError, HfConfig};
use crate::spec::{Attention, DecoderSpec, LLAMA, sliding_window};

pub(super) fn spec(config: &HfConfig) -> Result<DecoderSpec, ConfigError> {
    let config = &config.with_defaults(json!({
        "rms_norm_eps": 1e-6, "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
        "sliding_window": 4096,
    }));
    let bias = config.bool_or("attention_bias", false)?;
    let attention = Attention { head_norms: true, ..Attention::grouped(config)? }.with_bias(bias, bias);
    let window = if config.bool_or("use_sliding_window", false)? { sliding_window(config)? } else { None };
    let spec = declared(config, attention, LLAMA)?.with_window(window, |_| true);
    with_experts(config, spec, Ok)
}
