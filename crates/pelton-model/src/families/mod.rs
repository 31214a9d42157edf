//! The registry: an architecture's name in `config.json`, and the function that declares it.

mod codegen;
mod gemma;
mod gemma2;
mod gemma3;
mod gpt2;
mod gpt_bigcode;
mod gpt_neox;
mod gptj;
mod llama;
mod mistral;
mod mixtral;
mod phi;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod starcoder2;

use crate::config::{ConfigError, HfConfig};
use crate::spec::DecoderSpec;

type Declare = fn(&HfConfig) -> Result<DecoderSpec, ConfigError>;

const FAMILIES: &[(&str, Declare)] = &[
    ("CodeGenForCausalLM", codegen::spec),
    ("GPT2LMHeadModel", gpt2::spec),
    ("GPTBigCodeForCausalLM", gpt_bigcode::spec),
    ("GPTJForCausalLM", gptj::spec),
    ("GPTNeoXForCausalLM", gpt_neox::spec),
    ("Gemma2ForCausalLM", gemma2::spec),
    ("Gemma3ForCausalLM", gemma3::spec),
    ("Gemma3ForConditionalGeneration", gemma3::multimodal),
    ("GemmaForCausalLM", gemma::spec),
    ("LlamaForCausalLM", llama::spec),
    ("MistralForCausalLM", mistral::spec),
    ("MixtralForCausalLM", mixtral::spec),
    ("Phi3ForCausalLM", phi3::spec),
    ("PhiForCausalLM", phi::spec),
    ("Qwen2ForCausalLM", qwen2::spec),
    ("Qwen2MoeForCausalLM", qwen2_moe::spec),
    ("Qwen3ForCausalLM", qwen3::spec),
    ("Qwen3MoeForCausalLM", qwen3_moe::spec),
    ("Starcoder2ForCausalLM", starcoder2::spec),
];

/// Names of the architectures that can be served.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|(name, _)| *name)
}

/// The architecture's name and declaration of the model that `config` (its `config.json`) describes.
pub fn spec_of(config: &HfConfig) -> Result<(&'static str, DecoderSpec), ConfigError> {
    let named = config.texts("architectures")?;
    let Some((name, declare)) = FAMILIES.iter().find(|(name, _)| named.contains(name)) else {
        let known = architectures().collect::<Vec<_>>().join(", ");
        return Err(config.unsupported("architectures", &format!("not known; known are {known}")));
    };
    Ok((name, declare(config)?))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::{Value, json};

    use super::*;

    fn error(text: &str) -> String {
        spec_of(&HfConfig::parse("config.json", text.as_bytes()).unwrap()).unwrap_err().to_string()
    }

    #[test]
    fn unknown_architectures_are_refused_with_the_known_ones() {
        let unknown = error(r#"{"architectures": ["MambaForCausalLM"]}"#);
        let start = "config.json: architectures is [\"MambaForCausalLM\"]: not known; known are CodeGenForCausalLM, ";
        assert!(unknown.starts_with(start) && unknown.contains(", LlamaForCausalLM, "), "{unknown}");
        assert_eq!(error("{}"), "config.json has no architectures");
        assert!(error(r#"{"architectures": "LlamaForCausalLM"}"#).contains("a list of strings"));
    }

    fn fixtures() -> PathBuf {
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models"))
    }

    /// Every family's first fixture: its name and `config.json`.
    fn configs() -> Vec<(&'static str, Vec<u8>)> {
        let folders = std::fs::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = folders.map(|folder| folder.join("config.json")).filter(|file| file.exists()).collect();
        files.sort();
        let texts: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
        let first = |name: &'static str| {
            let named = |text: &&Vec<u8>| String::from_utf8_lossy(text).contains(&format!("\"{name}\""));
            (name, texts.iter().find(named).unwrap_or_else(|| panic!("no fixture of {name}")).clone())
        };
        architectures().map(first).collect()
    }

    /// Whatever a byte is changed to, the answer is a spec or an error, and every spec can be laid out.
    #[test]
    fn no_change_of_a_byte_panics() {
        for (name, text) in configs() {
            let mut accepted = 0;
            for place in 0..text.len() {
                // Two of them at each place, others at the next.
                for byte in [place, place + 3].map(|at| [b'0', b'9', b'-', b'.', b'"', 0xff][at % 6]) {
                    let mut changed = text.clone();
                    changed[place] = byte;
                    let Ok(config) = HfConfig::parse("config.json", &changed) else { continue };
                    if let Ok((_, spec)) = spec_of(&config) {
                        accepted += 1;
                        assert!(spec.tensors().all().all(|tensor| tensor.num_elements() > 0));
                        for rope in spec.positions.ropes() {
                            assert_eq!(rope.table(3).len() as u64, rope.table_bytes(3));
                        }
                    }
                }
            }
            assert!(accepted > 0, "{name}");
        }
    }

    /// Sizes that cannot be are refused with their key, in every family.
    #[test]
    fn bad_sizes_are_refused_by_key() {
        for (name, text) in configs() {
            let whole: Value = serde_json::from_slice(&text).unwrap();
            let inner = if whole.get("text_config").is_some() { &whole["text_config"] } else { &whole };
            for key in
                ["vocab_size", "hidden_size", "n_embd", "num_attention_heads", "n_head", "num_hidden_layers", "n_layer"]
            {
                if inner.get(key).is_none() {
                    continue;
                }
                for value in [json!(0), json!(-1), json!(1e18), json!("four"), json!(3.5), json!([1])] {
                    let mut changed = whole.clone();
                    let place =
                        if changed.get("text_config").is_some() { &mut changed["text_config"] } else { &mut changed };
                    place[key] = value.clone();
                    let error = error(&changed.to_string());
                    assert!(error.contains(&format!("{key} is {value}")), "{name}, {key} = {value}: {error}");
                }
            }
        }
    }

    /// Newer files list what older ones leave to a rule.
    #[test]
    fn layers_slide_by_rule_as_transformers_lists_them() {
        for fixture in ["gemma2", "gemma2_uncapped", "gemma3_every_sixth", "qwen2_windows", "qwen3_biases_windows"] {
            let text = std::fs::read(fixtures().join(fixture).join("config.json")).unwrap();
            let mut config: Value = serde_json::from_slice(&text).unwrap();
            let declared = |config: &Value| {
                spec_of(&HfConfig::parse("config.json", config.to_string().as_bytes()).unwrap()).unwrap().1
            };
            let listed = declared(&config);
            assert!(
                config["layer_types"].take().is_array() && listed.layers.iter().any(|layer| layer.window.is_some())
            );
            assert_eq!(declared(&config), listed, "{fixture}");
        }
    }

    #[test]
    fn what_families_cannot_serve_is_refused_by_name() {
        for (family, key, value, part) in [
            ("CodeGenForCausalLM", "n_head", json!(2), "a multiple of 4"),
            ("GPTJForCausalLM", "rotary_dim", json!(3), "an even number"),
            ("GPTJForCausalLM", "rotary_dim", json!(64), "rotary_dim is 64, expected a whole number from 2 to"),
            ("GPTJForCausalLM", "n_head", json!(5), "a divisor of hidden_size (32)"),
            ("GPTNeoXForCausalLM", "rotary_pct", json!(0.0), "even rotated width"),
            ("GPT2LMHeadModel", "activation_function", json!("tanh"), "activation_function is \"tanh\": not known"),
            ("PhiForCausalLM", "qk_layernorm", json!(true), "layer norms of heads"),
            ("Qwen2ForCausalLM", "layer_types", json!(["full_attention"]), "one for each of 2 layers"),
            ("Qwen2ForCausalLM", "layer_types", json!(["full_attention", "chunked"]), "known are full_attention"),
            ("Qwen2MoeForCausalLM", "use_sliding_window", json!(true), "implementations differ"),
            ("Qwen2MoeForCausalLM", "num_experts_per_tok", json!(7), "from 1 to 6"),
            ("Qwen3MoeForCausalLM", "num_experts", json!(0), "num_experts is 0"),
            ("Qwen3MoeForCausalLM", "mlp_only_layers", json!([-1]), "a list of whole numbers"),
            ("MixtralForCausalLM", "sliding_window", json!(0), "sliding_window is 0"),
            ("Gemma2ForCausalLM", "query_pre_attn_scalar", json!(0), "query_pre_attn_scalar is 0"),
            ("Gemma3ForCausalLM", "use_bidirectional_attention", json!(true), "look back only"),
            ("Starcoder2ForCausalLM", "norm_type", json!("rms_norm"), "only layer_norm is known"),
        ] {
            let (_, text) = configs().into_iter().find(|(name, _)| *name == family).unwrap();
            let mut config: Value = serde_json::from_slice(&text).unwrap();
            config[key] = value;
            let error = error(&config.to_string());
            assert!(error.contains(part), "{family}: {error}");
        }
    }
}
