//! Gemma 2: norms on both sides of attention and MLP, soft caps, a window in every other block.
//!
//! Source: `modeling_gemma2.py` of Transformers.

use serde_json::json;

use super::gemma;
use crate::config::{ConfigError, HfConfig};
use crate::rope::Rope;
use crate::spec::{
    Attention, Block, DecoderSpec, Head, LLAMA, Mlp, Names, sliding_layers, sliding_window, stated_positions,
};

pub(super) const NAMES: Names = Names {
    after_attention: "post_attention_layernorm",
    mlp_norm: "pre_feedforward_layernorm",
    after_mlp: "post_feedforward_layernorm",
    ..LLAMA
};

pub(super) fn spec(config: &HfConfig) -> Result<DecoderSpec, ConfigError> {
    let config = &config.with_defaults(json!({
        "head_dim": 256, "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "sliding_window": 4096,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    }));
    let attention = Attention::grouped(config)?;
    let rope = Rope::from_config(config, attention.head_dim, stated_positions(config)?)?;
    declared(config, attention, vec![rope], |layer| layer % 2 == 0)
}

/// What Gemma 2 and 3 have in common; `slides` where `layer_types` does not say.
pub(super) fn declared(
    config: &HfConfig,
    attention: Attention,
    ropes: Vec<Rope>,
    slides: impl Fn(usize) -> bool,
) -> Result<DecoderSpec, ConfigError> {
    let config =
        &config.with_defaults(json!({"hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh"}));
    let cap = |key: &str| Ok::<_, ConfigError>(config.optional_float(key, 1e-3..=1e6)?.map(|cap| cap as f32));
    let attention = Attention {
        scale: (1.0 / config.float("query_pre_attn_scalar", 1e-3..=1e6)?.sqrt()) as f32,
        softcap: cap("attn_logit_softcapping")?,
        ..attention
    };
    let mlp = Mlp::gated(config)?.with_act(config, "hidden_activation")?;
    let slides = sliding_layers(config, slides)?;
    let spec = gemma::declared(config, attention, ropes, mlp, NAMES)?.with_block(Block::Sandwiched);
    let head = Head { softcap: cap("final_logit_softcapping")?, ..spec.head };
    Ok(DecoderSpec { head, ..spec }.with_window(sliding_window(config)?, |layer| slides[layer]))
}
