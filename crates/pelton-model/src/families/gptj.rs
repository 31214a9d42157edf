//! GPT-J, also CodeGen models converted to it.
//!
//! Source: `modeling_gptj.py` of Transformers.

use serde_json::json;

use super::gpt2::WORDS;
use crate::config::{ConfigError, HfConfig};
use crate::rope::Rope;
use crate::spec::{Attention, Block, DecoderSpec, GPT, Mlp, Names, Norm, NormKind, Positions, RotaryPairs};

const NAMES: Names = Names {
    qkv: &["attn.q_proj", "attn.k_proj", "attn.v_proj"],
    out: "attn.out_proj",
    up: &["mlp.fc_in"],
    down: "mlp.fc_out",
    ..GPT
};

pub(super) fn spec(config: &HfConfig) -> Result<DecoderSpec, ConfigError> {
    let config = &config.with_words(WORDS);
    declared(config, Attention::multi_head(config)?, NAMES)
}

/// Attention and MLP side by side behind one norm, neighbouring dimensions rotated, a head with a bias.
pub(super) fn declared(config: &HfConfig, attention: Attention, names: Names) -> Result<DecoderSpec, ConfigError> {
    let config = &config.with_defaults(json!({
        "hidden_act": "gelu_new", "layer_norm_epsilon": 1e-5, "rotary_dim": 64,
    }));
    let rotary_dim = config.size("rotary_dim", 2..=attention.head_dim)?;
    if !rotary_dim.is_multiple_of(2) {
        return Err(config.refuse("rotary_dim", "an even number"));
    }
    let positions = Positions::Rotary(vec![Rope::plain(10_000.0, rotary_dim)]);
    let attention = Attention { rotary_pairs: RotaryPairs::Neighbours, ..attention };
    let norm = Norm::from_config(config, NormKind::Layer, "layer_norm_epsilon")?;
    let spec = DecoderSpec::new(config, norm, positions, attention, Mlp::gpt(config)?, names)?;
    Ok(spec.with_block(Block::ParallelOneNorm).with_head_bias())
}
