//! CodeGen 1: GPT-J with one projection for queries, values and keys, in four blocks.
//!
//! Source: `modeling_codegen.py` of Transformers.

use super::{gpt2::WORDS, gptj};
use crate::config::{ConfigError, HfConfig};
use crate::spec::{Attention, DecoderSpec, GPT, Names, QkvOrder};

const NAMES: Names =
    Names { qkv: &["attn.qkv_proj"], out: "attn.out_proj", up: &["mlp.fc_in"], down: "mlp.fc_out", ..GPT };

pub(super) fn spec(config: &HfConfig) -> Result<DecoderSpec, ConfigError> {
    let config = &config.with_words(WORDS);
    let attention = Attention { qkv_order: QkvOrder::FourBlocks, ..Attention::multi_head(config)? };
    if !attention.num_heads.is_multiple_of(4) {
        return Err(config.refuse("num_attention_heads", "a multiple of 4"));
    }
    gptj::declared(config, attention, NAMES)
}
