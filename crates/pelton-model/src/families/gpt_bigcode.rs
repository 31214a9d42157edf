//! GPT-BigCode: StarCoder 1 and its relatives, one key/value head for all queries; and its multi-head variant.
//!
//! Source: `modeling_gpt_bigcode.py` of Transformers. `attention_softmax_in_fp32` and `scale_attention_softmax_in_fp32` change the precision of scores
//! only, which are f32 here always.

use serde_json::json;

use super::gpt2::WORDS;
use crate::config::{ConfigError, HfConfig};
use crate::spec::{Attention, DecoderSpec, GPT, Mlp, Norm, NormKind, Positions, QkvOrder};

pub(super) fn spec(config: &HfConfig) -> Result<DecoderSpec, ConfigError> {
    let config = &config.with_words(WORDS).with_defaults(json!({
        "hidden_act": "gelu_pytorch_tanh", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": true,
    }));
    let mut attention = Attention::multi_head(config)?.with_bias(true, true);
    if config.bool_or("multi_query", true)? {
        attention.num_kv_heads = 1;
    } else {
        attention.qkv_order = QkvOrder::ByHead;
    }
    if !config.bool_or("scale_attn_weights", true)? {
        attention.scale = 1.0;
    }
    let norm = Norm::from_config(config, NormKind::Layer, "layer_norm_epsilon")?;
    DecoderSpec::new(config, norm, Positions::Learned, attention, Mlp::gpt(config)?, GPT)
}
