//! GPT-NeoX: Pythia, StableLM-Alpha, Dolly, RedPajama.
//!
//! Source: `modeling_gpt_neox.py` of Transformers.

use serde_json::json;

use crate::config::{ConfigError, HfConfig};
use crate::rope::Rope;
use crate::spec::{
    Attention, Block, DecoderSpec, LLAMA, Mlp, Names, Norm, NormKind, Positions, QkvOrder, stated_positions,
};

const NAMES: Names = Names {
    prefix: "gpt_neox.",
    other_prefixes: &[""],
    embed: "embed_in",
    qkv: &["attention.query_key_value"],
    out: "attention.dense",
    up: &["mlp.dense_h_to_4h"],
    down: "mlp.dense_4h_to_h",
    norm: "final_layer_norm",
    head: "embed_out",
    ignored: &["attention.bias", "attention.masked_bias", "rotary_emb.inv_freq"],
    ..LLAMA
};

pub(super) fn spec(config: &HfConfig) -> Result<DecoderSpec, ConfigError> {
    let config = &config.with_words(&[("rope_theta", "rotary_emb_base")]).with_defaults(json!({
        "hidden_act": "gelu", "layer_norm_eps": 1e-5, "rotary_pct": 0.25,
    }));
    let bias = config.bool_or("attention_bias", true)?;
    let attention = Attention { qkv_order: QkvOrder::ByHead, ..Attention::multi_head(config)? }.with_bias(bias, bias);
    let rope = Rope::from_config(config, attention.rotary_dim(config, "rotary_pct")?, stated_positions(config)?)?;
    let norm = Norm::from_config(config, NormKind::Layer, "layer_norm_eps")?;
    let mlp = Mlp::plain(config)?.with_bias(true);
    let spec = DecoderSpec::new(config, norm, Positions::Rotary(vec![rope]), attention, mlp, NAMES)?;
    let parallel = config.bool_or("use_parallel_residual", true)?;
    Ok(spec.with_block(if parallel { Block::ParallelTwoNorms } else { Block::Sequential }))
}
