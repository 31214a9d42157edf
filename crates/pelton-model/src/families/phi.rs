//! Phi 1, 1.5 and 2: attention and MLP side by side, part of each head rotated, a head with a bias.
//!
//! Source: `modeling_phi.py` of Transformers.

use serde_json::json;

use crate::config::{ConfigError, HfConfig};
use crate::rope::Rope;
use crate::spec::{Attention, Block, DecoderSpec, LLAMA, Mlp, Names, Norm, NormKind, Positions, stated_positions};

const NAMES: Names =
    Names { out: "self_attn.dense", up: &["mlp.fc1"], down: "mlp.fc2", norm: "final_layernorm", ..LLAMA };

pub(super) fn spec(config: &HfConfig) -> Result<DecoderSpec, ConfigError> {
    let config = &config.with_defaults(json!({
        "hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5,
    }));
    if config.bool_or("qk_layernorm", false)? {
        return Err(
            config.unsupported("qk_layernorm", "layer norms of heads are not known; no released model has them")
        );
    }
    let attention = Attention::grouped(config)?.with_bias(true, true);
    let rotary_dim = attention.rotary_dim(config, "partial_rotary_factor")?;
    let rope = Rope::from_config(config, rotary_dim, stated_positions(config)?)?;
    let norm = Norm::from_config(config, NormKind::Layer, "layer_norm_eps")?;
    let mlp = Mlp::plain(config)?.with_bias(true);
    let spec = DecoderSpec::new(config, norm, Positions::Rotary(vec![rope]), attention, mlp, NAMES)?;
    Ok(spec.with_block(Block::ParallelOneNorm).with_head_bias())
}
