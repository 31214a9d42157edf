//! Gemma 3, text: Gemma 2 with normed heads instead of caps, and rotary tables of their own for blocks with a window.
//!
//! Source: `modeling_gemma3.py` of Transformers. Of models for text and images the part for text is read: their `text_config` leaves out whatever is as
//! in the class.

use serde_json::json;

use super::{gemma2, gemma2::NAMES};
use crate::config::{ConfigError, HfConfig};
use crate::rope::Rope;
use crate::spec::{Attention, DecoderSpec, Names, stated_positions};

pub(super) fn multimodal(config: &HfConfig) -> Result<DecoderSpec, ConfigError> {
    let text = config.section("text_config")?.ok_or_else(|| config.missing("text_config"))?;
    let names = Names { ignored: &["vision_tower.", "multi_modal_projector."], ..NAMES };
    Ok(DecoderSpec { names, ..spec(&text)? })
}

pub(super) fn spec(config: &HfConfig) -> Result<DecoderSpec, ConfigError> {
    let config = &config.with_defaults(json!({
        "vocab_size": 262_208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256,
        "max_position_embeddings": 131_072, "rope_theta": 1_000_000.0, "sliding_window": 4096, "sliding_window_pattern": 6,
    }));
    if config.bool_or("use_bidirectional_attention", false)? {
        return Err(config.unsupported("use_bidirectional_attention", "decoders look back only"));
    }
    let attention = Attention { head_norms: true, ..Attention::grouped(config)? };
    let everywhere = Rope::from_config(config, attention.head_dim, stated_positions(config)?)?;
    let within_window = Rope::plain(config.float_or("rope_local_base_freq", 10_000.0, 1.0..=1e15)?, attention.head_dim);
    // Every sixth block sees everything.
    let pattern = config.size("sliding_window_pattern", 1..=usize::MAX)?;
    let mut spec =
        gemma2::declared(config, attention, vec![everywhere, within_window], |layer| (layer + 1) % pattern != 0)?;
    for layer in &mut spec.layers {
        layer.rope = usize::from(layer.window.is_some());
    }
    Ok(spec)
}
