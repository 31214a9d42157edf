//! The registry: an architecture's name in `config.json`, and the function that declares it.

mod llama;

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
    if let Some(quantization) = config.section("quantization_config")? {
        let method = quantization.optional_text("quant_method")?.unwrap_or("unnamed").to_owned();
        let why =
            format!("checkpoints quantized by {method} are not supported yet; use one in bfloat16, float16 or float32");
        return Err(config.unsupported("quantization_config", &why));
    }
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

    #[test]
    fn quantized_checkpoints_are_refused_by_method() {
        let text =
            r#"{"architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": "gptq", "bits": 4}}"#;
        assert!(error(text).contains("quantized by gptq are not supported yet"), "{}", error(text));
    }
}
