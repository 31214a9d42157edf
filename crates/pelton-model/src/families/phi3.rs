//! Phi 3, 3.5 and 4-mini: a llama with joined projections, part of each head rotated, LongRoPE.
//!
//! Source: `modeling_phi3.py` of Transformers; for long sequences see [`RopeScaling::LongRope`](crate::rope::RopeScaling).

use serde_json::json;

use crate::config::{ConfigError, HfConfig};
use crate::rope::Rope;
use crate::spec::{
    Attention, DecoderSpec, LLAMA, Mlp, Names, Norm, NormKind, Positions, sliding_window, stated_positions,
};

const NAMES: Names = Names { qkv: &["self_attn.qkv_proj"], up: &["mlp.gate_up_proj"], ..LLAMA };

pub(super) fn spec(config: &HfConfig) -> Result<DecoderSpec, ConfigError> {
    let config = &config.with_defaults(json!({
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096,
    }));
    let attention = Attention::grouped(config)?;
    let rotary_dim = attention.rotary_dim(config, "partial_rotary_factor")?;
    let rope = Rope::from_config(config, rotary_dim, stated_positions(config)?)?;
    let norm = Norm::from_config(config, NormKind::Rms, "rms_norm_eps")?;
    let positions = Positions::Rotary(vec![rope]);
    let spec = DecoderSpec::new(config, norm, positions, attention, Mlp::gated(config)?, NAMES)?;
    Ok(spec.with_window(sliding_window(config)?, |_| true))
}
