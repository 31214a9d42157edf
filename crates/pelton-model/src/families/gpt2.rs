//! GPT-2 and the models trained in its shape (CodeParrot, PolyCoder's ports, ...).
//!
//! Source: `modeling_gpt2.py` of Transformers. Matrices of blocks are of its `Conv1D`, which keeps them transposed. `reorder_and_upcast_attn` changes
//! the precision of scores only, which are f32 here always.

use serde_json::json;

use crate::config::{ConfigError, HfConfig};
use crate::spec::{Attention, DecoderSpec, GPT, Mlp, Names, Norm, NormKind, Positions};

/// What GPT-2 and its successors call what others call otherwise.
pub(super) const WORDS: &[(&str, &str)] = &[
    ("hidden_size", "n_embd"),
    ("num_hidden_layers", "n_layer"),
    ("num_attention_heads", "n_head"),
    ("max_position_embeddings", "n_positions"),
    ("intermediate_size", "n_inner"),
    ("hidden_act", "activation_function"),
];

pub(super) fn spec(config: &HfConfig) -> Result<DecoderSpec, ConfigError> {
    let config = &config.with_words(WORDS).with_defaults(json!({
        "hidden_act": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": true,
    }));
    let mut attention = Attention::multi_head(config)?.with_bias(true, true);
    if !config.bool_or("scale_attn_weights", true)? {
        attention.scale = 1.0;
    }
    let norm = Norm::from_config(config, NormKind::Layer, "layer_norm_epsilon")?;
    let names = Names { transposed: true, ..GPT };
    let mut spec = DecoderSpec::new(config, norm, Positions::Learned, attention, Mlp::gpt(config)?, names)?;
    if config.bool_or("scale_attn_by_inverse_layer_idx", false)? {
        for (index, layer) in spec.layers.iter_mut().enumerate() {
            layer.score_factor = 1.0 / (index as f32 + 1.0);
        }
    }
    Ok(spec)
}
