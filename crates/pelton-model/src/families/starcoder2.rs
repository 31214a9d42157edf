//! StarCoder 2: layer norms, biases, grouped queries, rotary positions and a window.
//!
//! Source: `modeling_starcoder2.py` of Transformers.

use serde_json::json;

use crate::config::{ConfigError, HfConfig};
use crate::rope::Rope;
use crate::spec::{
    Attention, DecoderSpec, LLAMA, Mlp, Names, Norm, NormKind, Positions, sliding_window, stated_positions,
};

const NAMES: Names = Names { up: &["mlp.c_fc"], down: "mlp.c_proj", ..LLAMA };

pub(super) fn spec(config: &HfConfig) -> Result<DecoderSpec, ConfigError> {
    let config = &config.with_defaults(json!({
        "hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5, "num_key_value_heads": 2, "tie_word_embeddings": true,
    }));
    for (key, only) in [("norm_type", "layer_norm"), ("mlp_type", "default")] {
        if config.optional_text(key)?.is_some_and(|found| found != only) {
            return Err(config.unsupported(key, &format!("only {only} is known")));
        }
    }
    let bias = config.bool_or("use_bias", true)?;
    let attention = Attention::grouped(config)?.with_bias(bias, bias);
    let rope = Rope::from_config(config, attention.head_dim, stated_positions(config)?)?;
    let norm = Norm::from_config(config, NormKind::Layer, "norm_epsilon")?;
    let mlp = Mlp::plain(config)?.with_bias(bias);
    let spec = DecoderSpec::new(config, norm, Positions::Rotary(vec![rope]), attention, mlp, NAMES)?;
    Ok(spec.with_window(sliding_window(config)?, |_| true))
}
