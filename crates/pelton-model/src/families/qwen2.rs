//! Qwen 1.5, 2 and 2.5, Qwen2.5-Coder: a llama with biases on queries, keys and values.
//!
//! Source: `modeling_qwen2.py` of Transformers. `sliding_window` counts only where `use_sliding_window` says so.

use serde_json::json;

use super::llama::declared;
use crate::config::{ConfigError, HfConfig};
use crate::spec::{Attention, DecoderSpec, LLAMA, sliding_layers, sliding_window};

pub(super) fn spec(config: &HfConfig) -> Result<DecoderSpec, ConfigError> {
    let config = &config.with_defaults(json!({"rms_norm_eps": 1e-6}));
    with_windows(config, declared(config, Attention::grouped(config)?.with_bias(true, false), LLAMA)?)
}

/// Windows where they are asked for, in the layers that `layer_types` names or from the one that `max_window_layers` counts.
pub(super) fn with_windows(config: &HfConfig, spec: DecoderSpec) -> Result<DecoderSpec, ConfigError> {
    let config = &config.with_defaults(json!({"sliding_window": 4096, "max_window_layers": 28}));
    let first = config.size("max_window_layers", 0..=usize::MAX)?;
    let slides = sliding_layers(config, |layer| layer >= first)?;
    let window = if config.bool_or("use_sliding_window", false)? { sliding_window(config)? } else { None };
    Ok(spec.with_window(window, |layer| slides[layer]))
}
