//! Gemma and CodeGemma: a llama with scaled embeddings, and norms whose weights are stored less one.
//!
//! Source: `modeling_gemma.py` of Transformers. Old files say `hidden_act` "gelu" and mean its approximation by tanh, which is what the models
//! were trained with.

use pelton_backend::Act;
use serde_json::json;

use crate::config::{ConfigError, HfConfig};
use crate::rope::Rope;
use crate::spec::{Attention, DecoderSpec, LLAMA, Mlp, Names, Norm, NormKind, Positions, stated_positions};

pub(super) fn spec(config: &HfConfig) -> Result<DecoderSpec, ConfigError> {
    let config = &config.with_defaults(json!({"hidden_act": "gelu_pytorch_tanh", "head_dim": 256}));
    let mut mlp = Mlp::gated(config)?;
    if config.has("hidden_activation") {
        mlp = mlp.with_act(config, "hidden_activation")?;
    } else if mlp.act == Act::Gelu {
        mlp.act = Act::GeluTanh;
    }
    let attention = Attention::grouped(config)?;
    let rope = Rope::from_config(config, attention.head_dim, stated_positions(config)?)?;
    declared(config, attention, vec![rope], mlp, LLAMA)
}

/// What all Gemmas have in common.
pub(super) fn declared(
    config: &HfConfig,
    attention: Attention,
    ropes: Vec<Rope>,
    mlp: Mlp,
    names: Names,
) -> Result<DecoderSpec, ConfigError> {
    let config = &config.with_defaults(json!({"rms_norm_eps": 1e-6, "tie_word_embeddings": true}));
    let bias = config.bool_or("attention_bias", false)?;
    let norm = Norm::from_config(config, NormKind::RmsLessOne, "rms_norm_eps")?;
    let positions = Positions::Rotary(ropes);
    let spec = DecoderSpec::new(config, norm, positions, attention.with_bias(bias, bias), mlp, names)?;
    Ok(DecoderSpec { embed_factor: Some((spec.hidden_size as f64).sqrt()), ..spec })
}
