//! Named shapes: sizes of released decoders, for models with made-up weights.

use pelton_backend::Act;

use crate::families::LLAMA_NAMES;
use crate::rope::{Rope, RopeScaling};
use crate::spec::{Attention, DecoderSpec, Mlp};

/// Sizes of a decoder, without its weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// What it is called on the command line.
    pub name: &'static str,
    /// The architecture of the released model.
    pub architecture: &'static str,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Positions the model can tell apart.
    pub max_positions: usize,
    /// Base of the rotary wavelengths.
    pub rope_theta: f64,
    /// Whether query, key and value projections add a bias.
    pub qkv_bias: bool,
    /// Whether logits come from the embedding.
    pub tied_head: bool,
}

/// What most shapes have in common.
const LLAMA: Shape = Shape {
    name: "",
    architecture: "LlamaForCausalLM",
    vocab_size: 32_000,
    hidden_size: 0,
    num_layers: 0,
    num_heads: 32,
    num_kv_heads: 32,
    head_dim: 64,
    intermediate_size: 0,
    max_positions: 2048,
    rope_theta: 10_000.0,
    qkv_bias: false,
    tied_head: false,
};

/// Every shape that has a name. Sources: the `config.json` of the released models.
pub const SHAPES: [Shape; 6] = [
    Shape {
        name: "llama-160m",
        hidden_size: 768,
        num_layers: 12,
        num_heads: 12,
        num_kv_heads: 12,
        intermediate_size: 3072,
        ..LLAMA
    },
    Shape {
        name: "qwen2.5-0.5b",
        architecture: "Qwen2ForCausalLM",
        vocab_size: 151_936,
        hidden_size: 896,
        num_layers: 24,
        num_heads: 14,
        num_kv_heads: 2,
        intermediate_size: 4864,
        max_positions: 32_768,
        rope_theta: 1_000_000.0,
        qkv_bias: true,
        tied_head: true,
        ..LLAMA
    },
    Shape {
        name: "tinyllama-1.1b",
        hidden_size: 2048,
        num_layers: 22,
        num_kv_heads: 4,
        intermediate_size: 5632,
        ..LLAMA
    },
    Shape {
        name: "llama-3.2-1b",
        vocab_size: 128_256,
        hidden_size: 2048,
        num_layers: 16,
        num_kv_heads: 8,
        intermediate_size: 8192,
        max_positions: 131_072,
        rope_theta: 500_000.0,
        tied_head: true,
        ..LLAMA
    },
    Shape {
        name: "llama-7b",
        hidden_size: 4096,
        num_layers: 32,
        head_dim: 128,
        intermediate_size: 11_008,
        max_positions: 4096,
        ..LLAMA
    },
    Shape {
        name: "llama-3.1-8b",
        vocab_size: 128_256,
        hidden_size: 4096,
        num_layers: 32,
        num_kv_heads: 8,
        head_dim: 128,
        intermediate_size: 14_336,
        max_positions: 131_072,
        rope_theta: 500_000.0,
        ..LLAMA
    },
];

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

    /// The decoder of this shape: SiLU, plain rotary positions, no biases but those of queries, keys and values.
    pub fn spec(&self) -> DecoderSpec {
        DecoderSpec {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            num_layers: self.num_layers,
            max_positions: self.max_positions,
            norm_eps: 1e-5,
            attention: Attention {
                num_heads: self.num_heads,
                num_kv_heads: self.num_kv_heads,
                head_dim: self.head_dim,
                scale: (1.0 / (self.head_dim as f64).sqrt()) as f32,
                qkv_bias: self.qkv_bias,
                out_bias: false,
                rope: Rope { theta: self.rope_theta, rotary_dim: self.head_dim, scaling: RopeScaling::None },
            },
            mlp: Mlp { intermediate_size: self.intermediate_size, act: Act::Silu, bias: false },
            tied_head: self.tied_head,
            names: LLAMA_NAMES,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_the_parameters_of_the_released_models() {
        let millions = |name: &str| {
            let tensors = Shape::named(name).unwrap().spec().tensors();
            let all = tensors.matrices().chain(tensors.vectors());
            (all.map(|tensor| tensor.num_elements()).sum::<u64>() as f64 / 1e6).round()
        };
        // As their cards say, to the million.
        for (name, expected) in [
            ("qwen2.5-0.5b", 494.0),
            ("tinyllama-1.1b", 1100.0),
            ("llama-3.2-1b", 1236.0),
            ("llama-7b", 6738.0),
            ("llama-3.1-8b", 8030.0),
        ] {
            assert_eq!(millions(name), expected, "{name}");
        }
        for shape in SHAPES {
            assert_eq!(shape.num_heads * shape.head_dim, shape.hidden_size, "{}", shape.name);
            assert_eq!(shape.num_heads % shape.num_kv_heads, 0, "{}", shape.name);
        }
    }

    #[test]
    fn unknown_names_are_refused_with_the_list() {
        assert_eq!(
            Shape::named("gpt-5").unwrap_err().to_string(),
            "no shape is called \"gpt-5\": there are llama-160m, qwen2.5-0.5b, tinyllama-1.1b, llama-3.2-1b, llama-7b, llama-3.1-8b"
        );
    }
}
