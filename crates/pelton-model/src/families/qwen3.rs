//! Qwen 3: a llama whose query and key heads are normed.
//!
//! Source: `modeling_qwen3.py` of Transformers.

use serde_json::json;

use super::llama::declared;
use super::qwen2::with_windows;
use crate::config::{ConfigError, HfConfig};
use crate::spec::{Attention, DecoderSpec, LLAMA};

pub(super) fn spec(config: &HfConfig) -> Result<DecoderSpec, ConfigError> {
    let config = &config.with_defaults(json!({"rms_norm_eps": 1e-6, "head_dim": 128}));
    let bias = config.bool_or("attention_bias", false)?;
    let attention = Attention { head_norms: true, ..Attention::grouped(config)? }.with_bias(bias, bias);
    with_windows(config, declared(config, attention, LLAMA)?)
}
