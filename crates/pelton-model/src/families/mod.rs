//! The registry: an architecture's name in `config.json`, and the function that declares it.

mod llama;

pub(crate) use llama::NAMES as LLAMA_NAMES;

use crate::config::{ConfigError, HfConfig};
use crate::spec::DecoderSpec;

type Declare = fn(&HfConfig) -> Result<DecoderSpec, ConfigError>;

const FAMILIES: &[(&str, Declare)] = &[("LlamaForCausalLM", llama::spec)];

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
    use super::*;

    fn error(text: &str) -> String {
        spec_of(&HfConfig::parse("config.json", text.as_bytes()).unwrap()).unwrap_err().to_string()
    }

    #[test]
    fn unknown_architectures_are_refused_with_the_known_ones() {
        assert_eq!(
            error(r#"{"architectures": ["MambaForCausalLM"]}"#),
            "config.json: architectures is [\"MambaForCausalLM\"]: not known; known are LlamaForCausalLM"
        );
        assert_eq!(error("{}"), "config.json has no architectures");
        assert!(error(r#"{"architectures": "LlamaForCausalLM"}"#).contains("a list of strings"));
    }

    /// Whatever a byte is changed to, the answer is a spec or an error, and every spec can be laid out.
    #[test]
    fn no_change_of_a_byte_panics() {
        let text =
            br#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64, "hidden_act": "silu",
            "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "head_dim": 8, "rope_scaling":
            {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32, "original_max_position_embeddings": 64}}"#;
        let mut accepted = 0;
        for place in 0..text.len() {
            for byte in [b'0', b'9', b'-', b'e', b'.', b'"', b'}', b' ', 0xff] {
                let mut changed = text.to_vec();
                changed[place] = byte;
                let Ok(config) = HfConfig::parse("config.json", &changed) else { continue };
                if let Ok((_, spec)) = spec_of(&config) {
                    accepted += 1;
                    assert!(spec.tensors().matrices().all(|tensor| tensor.num_elements() > 0));
                    assert_eq!(spec.attention.rope.table(3).len() as u64, spec.attention.rope.table_bytes(3));
                }
            }
        }
        assert!(accepted > 0);
    }
}
