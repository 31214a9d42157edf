//! Named shapes: configurations of released decoders, for models with made-up weights.

use crate::config::{ConfigError, HfConfig};

/// A decoder without its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// What it is called on the command line.
    pub name: &'static str,
    /// Its `config.json`, as far as the family reads it.
    pub json: &'static str,
}

/// Every shape that has a name. Sources: the `config.json` of the released models; CodeGen's as it is converted to GPT-J.
pub const SHAPES: [Shape; 9] = [
    Shape {
        name: "llama-160m",
        json: r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 768, "num_hidden_layers": 12,
            "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6}"#,
    },
    Shape {
        name: "codegen-350m",
        json: r#"{"architectures": ["GPTJForCausalLM"], "vocab_size": 51200, "n_embd": 1024, "n_layer": 20, "n_head": 16, "rotary_dim": 32,
            "n_positions": 2048, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": false}"#,
    },
    Shape { name: "qwen2.5-0.5b", json: QWEN },
    Shape { name: "qwen2.5-coder-0.5b", json: QWEN },
    Shape {
        name: "tinyllama-1.1b",
        json: r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 2048, "num_hidden_layers": 22,
            "num_attention_heads": 32, "num_key_value_heads": 4, "intermediate_size": 5632, "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5}"#,
    },
    Shape {
        name: "starcoderbase-1b",
        json: r#"{"architectures": ["GPTBigCodeForCausalLM"], "vocab_size": 49152, "n_embd": 2048, "n_layer": 24, "n_head": 16,
            "n_inner": 8192, "n_positions": 8192, "multi_query": true, "activation_function": "gelu_pytorch_tanh"}"#,
    },
    Shape {
        name: "llama-3.2-1b",
        json: r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 8192, "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": true}"#,
    },
    Shape {
        name: "llama-7b",
        json: r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32,
            "num_attention_heads": 32, "intermediate_size": 11008, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}"#,
    },
    Shape {
        name: "llama-3.1-8b",
        json: r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5, "rope_theta": 500000.0}"#,
    },
];

/// Qwen2.5 0.5B; its Coder has the same sizes.
const QWEN: &str = r#"{"architectures": ["Qwen2ForCausalLM"], "vocab_size": 151936, "hidden_size": 896, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0, "tie_word_embeddings": true}"#;

/// A name that no shape has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no shape is called {name:?}: there are {}", SHAPES.map(|shape| shape.name).join(", "))]
pub struct UnknownShape {
    /// As it was given.
    pub name: String,
}

impl Shape {
    /// The shape of that name.
    pub fn named(name: &str) -> Result<Self, UnknownShape> {
        SHAPES.into_iter().find(|shape| shape.name == name).ok_or_else(|| UnknownShape { name: name.to_owned() })
    }

    /// Its configuration.
    pub fn config(&self) -> Result<HfConfig, ConfigError> {
        HfConfig::parse(self.name, self.json.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::spec_of;

    #[test]
    fn shapes_have_the_parameters_of_the_released_models() {
        let millions = |name: &str| {
            let (_, spec) = spec_of(&Shape::named(name).unwrap().config().unwrap()).unwrap();
            (spec.tensors().all().map(|tensor| tensor.num_elements()).sum::<u64>() as f64 / 1e6).round()
        };
        // As their cards say, to the million.
        for (name, expected) in [
            ("codegen-350m", 357.0),
            ("qwen2.5-0.5b", 494.0),
            ("qwen2.5-coder-0.5b", 494.0),
            ("tinyllama-1.1b", 1100.0),
            ("starcoderbase-1b", 1137.0),
            ("llama-3.2-1b", 1236.0),
            ("llama-7b", 6738.0),
            ("llama-3.1-8b", 8030.0),
        ] {
            assert_eq!(millions(name), expected, "{name}");
        }
    }

    #[test]
    fn unknown_names_are_refused_with_the_list() {
        let error = Shape::named("gpt-5").unwrap_err().to_string();
        assert!(error.starts_with("no shape is called \"gpt-5\": there are llama-160m, codegen-350m, "), "{error}");
    }
}
