//! Mistral, Codestral, Devstral: a llama with a window.
//!
//! Source: `modeling_mistral.py` of Transformers. A configuration without `sliding_window` means 4096, `null` means none.

use serde_json::json;

use super::llama::declared;
use crate::config::{ConfigError, HfConfig};
use crate::spec::{Attention, DecoderSpec, LLAMA, sliding_window};

pub(super) fn spec(config: &HfConfig) -> Result<DecoderSpec, ConfigError> {
    let config = &config.with_defaults(json!({"rms_norm_eps": 1e-6, "num_key_value_heads": 8, "sliding_window": 4096}));
    let window = sliding_window(config)?;
    Ok(declared(config, Attention::grouped(config)?, LLAMA)?.with_window(window, |_| true))
}
