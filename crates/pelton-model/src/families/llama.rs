//! Llama 1 to 3 and the many models that share its layout (CodeLlama, DeepSeek-Coder, Yi, SmolLM, TinyLlama, ...).
//!
//! Source: `modeling_llama.py` of Transformers. `attention_bias` there covers the projection back as well. `pretraining_tp` only
//! cuts a product into slices and changes no value, so it is not read.

use serde_json::json;

use crate::config::{ConfigError, HfConfig};
use crate::rope::Rope;
use crate::spec::{Attention, DecoderSpec, LLAMA, Mlp, Names, Norm, NormKind, Positions, stated_positions};

pub(super) fn spec(config: &HfConfig) -> Result<DecoderSpec, ConfigError> {
    if config.float_or("partial_rotary_factor", 1.0, 0.0..=1.0)? != 1.0 {
        return Err(config.unsupported("partial_rotary_factor", "LlamaForCausalLM rotates whole heads"));
    }
    if config.has("sliding_window") {
        return Err(config.unsupported("sliding_window", "LlamaForCausalLM attends to every position; set it to null"));
    }
    let attention_bias = config.bool_or("attention_bias", false)?;
    let attention = Attention::grouped(config)?.with_bias(attention_bias, attention_bias);
    let spec = declared(config, attention, LLAMA)?;
    let mlp_bias = config.bool_or("mlp_bias", false)?;
    Ok(DecoderSpec { mlp: spec.mlp.clone().with_bias(mlp_bias), ..spec })
}

/// RMS norms, whole heads rotated, a gated MLP without biases: what many families have in common.
pub(super) fn declared(config: &HfConfig, attention: Attention, names: Names) -> Result<DecoderSpec, ConfigError> {
    let config = &config.with_defaults(json!({"hidden_act": "silu", "rms_norm_eps": 1e-6}));
    let rope = Rope::from_config(config, attention.head_dim, stated_positions(config)?)?;
    let norm = Norm::from_config(config, NormKind::Rms, "rms_norm_eps")?;
    DecoderSpec::new(config, norm, Positions::Rotary(vec![rope]), attention, Mlp::gated(config)?, names)
}

#[cfg(test)]
mod tests {
    use pelton_backend::Act;
    use serde_json::{Value, json};

    use super::*;
    use crate::spec::{BranchTensors, Head, HeadWeight};

    fn llama() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "vocab_size": 100, "hidden_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 80, "hidden_act": "silu",
            "max_position_embeddings": 256, "rms_norm_eps": 1e-5
        })
    }

    fn read(change: Value) -> Result<DecoderSpec, ConfigError> {
        let mut config = llama();
        for (key, value) in change.as_object().unwrap() {
            config[key] = value.clone();
        }
        config.as_object_mut().unwrap().retain(|_, value| *value != "remove");
        spec(&HfConfig::parse("config.json", config.to_string().as_bytes())?)
    }

    #[test]
    fn old_files_without_optional_keys_get_the_defaults() {
        let spec = read(json!({"num_key_value_heads": "remove"})).unwrap();
        assert_eq!((spec.attention.num_kv_heads, spec.attention.head_dim), (6, 8));
        assert_eq!(spec.positions, Positions::Rotary(vec![Rope::plain(10_000.0, 8)]));
        assert_eq!(spec.mlp, Mlp { intermediate_size: 80, act: Act::Silu, gated: true, bias: false });
        assert_eq!(spec.head, Head { weight: HeadWeight::Own, bias: false, softcap: None });
        assert!(!spec.attention.qkv_bias && !spec.attention.out_bias);
    }

    #[test]
    fn tensors_have_the_names_and_shapes_of_the_files() {
        let spec = read(json!({"head_dim": 10, "attention_bias": true, "tie_word_embeddings": true})).unwrap();
        let tensors = spec.tensors();
        assert_eq!(tensors.head, None);
        let layer = &tensors.layers[1];
        assert_eq!(layer.attention_norm.weight.name, "model.layers.1.input_layernorm.weight");
        let part = |i: usize| (layer.qkv.parts[i].name.as_str(), layer.qkv.parts[i].shape.as_slice());
        assert_eq!(part(0), ("model.layers.1.self_attn.q_proj.weight", &[60, 48][..]));
        assert_eq!(part(2), ("model.layers.1.self_attn.v_proj.weight", &[20, 48][..]));
        assert_eq!(layer.out.bias[0].name, "model.layers.1.self_attn.o_proj.bias");
        assert_eq!(layer.out.bias[0].shape, [48]);
        let BranchTensors::Dense(mlp) = &layer.mlp else { panic!("a llama has no experts") };
        assert_eq!(mlp.up.parts[1].name, "model.layers.1.mlp.up_proj.weight");
        assert!(mlp.up.bias.is_empty());
        assert_eq!(tensors.matrices().count(), 1 + 2 * 7);
        assert_eq!(tensors.vectors().count(), 2 * (2 + 4) + 1);
    }

    #[test]
    fn bad_values_are_refused_with_the_key() {
        for (change, part) in [
            (json!({"num_attention_heads": 0}), "num_attention_heads is 0"),
            (json!({"num_attention_heads": 7, "num_key_value_heads": 7}), "a divisor of hidden_size (48)"),
            (json!({"num_key_value_heads": 4}), "a divisor of num_attention_heads (6)"),
            (json!({"head_dim": 7}), "even rotated width"),
            (json!({"head_dim": 0}), "head_dim is 0"),
            (json!({"vocab_size": 1e18}), "vocab_size"),
            (json!({"hidden_size": "48"}), "hidden_size is \"48\""),
            (json!({"hidden_size": "remove"}), "no hidden_size"),
            (json!({"num_hidden_layers": 1000000}), "num_hidden_layers is 1000000"),
            (json!({"hidden_act": "relu6"}), "hidden_act is \"relu6\""),
            (json!({"attention_bias": 1}), "attention_bias is 1"),
            (json!({"rms_norm_eps": -1.0}), "rms_norm_eps"),
            (json!({"partial_rotary_factor": 0.5}), "rotates whole heads"),
            (json!({"sliding_window": 4096}), "sliding_window is 4096"),
            (json!({"max_position_embeddings": 0}), "max_position_embeddings is 0"),
        ] {
            let error = read(change).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
