//! A GGUF file's metadata as the `config.json` of the model it was made of, and where that model's tensors are in it.

use serde_json::{Value, json};

use crate::gguf::{Gguf, GgufError};
use crate::spec::{Attention, DecoderSpec, Names, Norm, NormKind, QkvOrder, RotaryPairs};

/// How a GGUF architecture is called in Transformers, and how its files differ from those.
struct Architecture {
    /// `general.architecture`.
    name: &'static str,
    /// In `architectures` of a `config.json`.
    transformers: &'static str,
    hidden_act: &'static str,
    /// Whether rows of query and key heads stand in pairs that are rotated together, as llama.cpp wants them, and not in halves.
    paired_rows: bool,
    /// Whether a part of each head may be rotated.
    partial_rotation: bool,
}

const ARCHITECTURES: [Architecture; 11] = [
    Architecture { name: "llama", transformers: "LlamaForCausalLM", paired_rows: true, ..SILU },
    Architecture { name: "qwen2", transformers: "Qwen2ForCausalLM", ..SILU },
    Architecture { name: "qwen3", transformers: "Qwen3ForCausalLM", ..SILU },
    Architecture { name: "phi3", transformers: "Phi3ForCausalLM", partial_rotation: true, ..SILU },
    Architecture { name: "gemma", transformers: "GemmaForCausalLM", ..GELU_TANH },
    Architecture { name: "gemma2", transformers: "Gemma2ForCausalLM", ..GELU_TANH },
    Architecture { name: "gemma3", transformers: "Gemma3ForCausalLM", ..GELU_TANH },
    Architecture { name: "starcoder2", transformers: "Starcoder2ForCausalLM", ..GELU_TANH },
    Architecture { name: "gpt2", transformers: "GPT2LMHeadModel", ..GELU_TANH },
    Architecture { name: "phi2", transformers: "PhiForCausalLM", partial_rotation: true, ..GELU_TANH },
    Architecture {
        name: "gptneox",
        transformers: "GPTNeoXForCausalLM",
        hidden_act: "gelu",
        partial_rotation: true,
        ..SILU
    },
];

const SILU: Architecture =
    Architecture { name: "", transformers: "", hidden_act: "silu", paired_rows: false, partial_rotation: false };
const GELU_TANH: Architecture = Architecture { hidden_act: "gelu_pytorch_tanh", ..SILU };

/// What GGUF calls the modules of every family.
const NAMES: Names = Names {
    prefix: "",
    other_prefixes: &[],
    embed: "token_embd",
    positions: "position_embd",
    layers: "blk",
    attention_norm: "attn_norm",
    qkv: &["attn_q", "attn_k", "attn_v"],
    head_norms: ["attn_q_norm", "attn_k_norm"],
    out: "attn_output",
    after_attention: "post_attention_norm",
    mlp_norm: "ffn_norm",
    up: &["ffn_gate", "ffn_up"],
    down: "ffn_down",
    after_mlp: "post_ffw_norm",
    norm: "output_norm",
    head: "output",
    transposed: false,
    ignored: &[ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS],
};

/// Factors by which frequencies are divided, one for each pair of rotated dimensions: of Llama 3.1 and its kin, and of Phi 3.
const ROPE_FACTORS: &str = "rope_freqs.weight";
const LONG_FACTORS: &str = "rope_factors_long.weight";
const SHORT_FACTORS: &str = "rope_factors_short.weight";

impl Gguf {
    /// `spec`, declared by a family, with the names and the orders of rows that GGUF has.
    pub(crate) fn told(&self, spec: DecoderSpec) -> Result<DecoderSpec, GgufError> {
        let has = |module: &str| self.has_tensor(&format!("blk.0.{module}.weight"));
        let names = Names {
            qkv: if has("attn_qkv") { &["attn_qkv"] } else { NAMES.qkv },
            up: if has("ffn_gate") { NAMES.up } else { &["ffn_up"] },
            ..NAMES
        };
        let rotary_pairs = if self.architecture()?.paired_rows { RotaryPairs::Neighbours } else { RotaryPairs::Halves };
        let attention = Attention { qkv_order: QkvOrder::ByKind, rotary_pairs, ..spec.attention };
        // Those that are stored less one elsewhere are stored whole.
        let kind = if spec.norm.kind == NormKind::RmsLessOne { NormKind::Rms } else { spec.norm.kind };
        Ok(DecoderSpec { names, attention, norm: Norm { kind, ..spec.norm }, ..spec })
    }

    fn architecture(&self) -> Result<&'static Architecture, GgufError> {
        let name = self.header.text("general.architecture");
        ARCHITECTURES.iter().find(|known| Some(known.name) == name).ok_or_else(|| {
            let known = ARCHITECTURES.each_ref().map(|known| known.name).join(", ");
            let what = format!("general.architecture {:?}", name.unwrap_or_default());
            self.unsupported(&what, &format!("known are {known}"))
        })
    }

    /// A count under `<architecture>.<key>`.
    fn size(&self, key: &str) -> Result<usize, GgufError> {
        self.optional_size(key)?.ok_or_else(|| self.refuse(key, "a count"))
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, GgufError> {
        let full = self.key(key)?;
        match self.header.integer(&full) {
            Some(size) => usize::try_from(size).map(Some).map_err(|_| self.refuse(key, "a count")),
            None if self.header.has(&full) => Err(self.refuse(key, "a count, the same for all layers")),
            None => Ok(None),
        }
    }

    fn float(&self, key: &str) -> Result<Option<f64>, GgufError> {
        Ok(self.header.float(&self.key(key)?))
    }

    fn key(&self, key: &str) -> Result<String, GgufError> {
        Ok(format!("{}.{key}", self.architecture()?.name))
    }

    fn refuse(&self, key: &str, expected: &str) -> GgufError {
        let key = match self.key(key) {
            Ok(key) => key,
            Err(error) => return error,
        };
        let found = if self.header.has(&key) { "something else" } else { "absent" };
        GgufError::Key { file: self.file.clone(), key, found: found.to_owned(), expected: expected.to_owned() }
    }

    fn has_tensor(&self, name: &str) -> bool {
        self.ranges.contains_key(name)
    }
}

/// What the family in `families` will read.
pub(super) fn config(gguf: &Gguf) -> Result<Value, GgufError> {
    let architecture = gguf.architecture()?;
    let not_known = |what: &str| gguf.unsupported(architecture.name, what);
    if let Some(experts) = gguf.optional_size("expert_count")?.filter(|&count| count > 0) {
        return Err(not_known(&format!("it has {experts} experts, and only dense models are read from GGUF")));
    }
    let heads = gguf.size("attention.head_count")?;
    let hidden = gguf.size("embedding_length")?;
    let shared = hidden.checked_div(heads).ok_or_else(|| gguf.refuse("attention.head_count", "at least one"))?;
    let head_dim = gguf.optional_size("attention.key_length")?.unwrap_or(shared);
    if gguf.optional_size("attention.value_length")?.is_some_and(|width| width != head_dim) {
        return Err(not_known("values of another width than keys are not known"));
    }
    let rotary_dim = gguf.optional_size("rope.dimension_count")?.unwrap_or(head_dim);
    if rotary_dim != head_dim && !architecture.partial_rotation {
        return Err(not_known("rotation of a part of each head is not known"));
    }
    let vocab = gguf.header.tensors.get("token_embd.weight").and_then(|info| info.shape.first().copied());
    let mut config = json!({
        "architectures": [architecture.transformers],
        "vocab_size": vocab.ok_or_else(|| gguf.mismatch(&["token_embd.weight is missing".to_owned()]))?,
        "hidden_size": hidden,
        "num_hidden_layers": gguf.size("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": gguf.optional_size("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_dim,
        "intermediate_size": gguf.size("feed_forward_length")?,
        "hidden_act": architecture.hidden_act,
        "max_position_embeddings": gguf.size("context_length")?,
        "rope_theta": gguf.float("rope.freq_base")?.unwrap_or(10_000.0),
        "tie_word_embeddings": !gguf.has_tensor("output.weight"),
        "attention_bias": gguf.has_tensor("blk.0.attn_q.bias") || gguf.has_tensor("blk.0.attn_qkv.bias"),
        "mlp_bias": gguf.has_tensor("blk.0.ffn_gate.bias"),
    });
    // Families have words of their own for the same.
    for (key, words) in [
        ("attention.layer_norm_rms_epsilon", &["rms_norm_eps"][..]),
        ("attention.layer_norm_epsilon", &["layer_norm_epsilon", "layer_norm_eps", "norm_epsilon"]),
        ("attention.sliding_window", &["sliding_window"]),
        ("attn_logit_softcapping", &["attn_logit_softcapping"]),
        ("final_logit_softcapping", &["final_logit_softcapping"]),
        ("rope.freq_base_swa", &["rope_local_base_freq"]),
    ] {
        if let Some(value) = gguf.float(key)? {
            words.iter().for_each(|word| config[*word] = value.into());
        }
    }
    let part = rotary_dim as f64 / head_dim.max(1) as f64;
    match architecture.name {
        // Mistral's models are llamas with a window.
        "llama" if config["sliding_window"].is_number() => config["architectures"] = json!(["MistralForCausalLM"]),
        "starcoder2" => config["use_bias"] = config["attention_bias"].clone(),
        // Their largest models scale scores by another width than the head's, which files do not say.
        "gemma2" | "gemma3" => {
            let largest = matches!((architecture.name, gguf.size("block_count")?), ("gemma2", 46) | ("gemma3", 62));
            config["query_pre_attn_scalar"] = if largest { shared } else { head_dim }.into();
        }
        "phi2" => config["partial_rotary_factor"] = part.into(),
        "phi3" => {
            config["partial_rotary_factor"] = part.into();
            config["original_max_position_embeddings"] =
                gguf.optional_size("rope.scaling.original_context_length")?.into();
        }
        "gptneox" => {
            config["rotary_pct"] = part.into();
            let parallel = gguf.header.bool(&gguf.key("use_parallel_residual")?).unwrap_or(true);
            config["use_parallel_residual"] = parallel.into();
        }
        _ => {}
    }
    if let Some(scaling) = scaling(gguf)? {
        config["rope_scaling"] = scaling;
    }
    Ok(config)
}

/// The rule that stretches rotary frequencies, from keys or from tensors of factors.
fn scaling(gguf: &Gguf) -> Result<Option<Value>, GgufError> {
    let original = gguf.optional_size("rope.scaling.original_context_length")?;
    let factors = |short: &str, long: &str, attention_factor: Option<f64>| -> Result<_, GgufError> {
        let (short, long) = (gguf.numbers(short)?, gguf.numbers(long)?);
        Ok(Some(json!({
            "rope_type": "longrope", "short_factor": short, "long_factor": long, "attention_factor": attention_factor,
            "original_max_position_embeddings": original,
        })))
    };
    if gguf.has_tensor(ROPE_FACTORS) {
        return factors(ROPE_FACTORS, ROPE_FACTORS, Some(1.0));
    }
    if gguf.has_tensor(LONG_FACTORS) && gguf.has_tensor(SHORT_FACTORS) {
        return factors(SHORT_FACTORS, LONG_FACTORS, gguf.float("rope.scaling.attn_factor")?);
    }
    let kind = gguf.key("rope.scaling.type")?;
    let factor = || gguf.float("rope.scaling.factor")?.ok_or_else(|| gguf.refuse("rope.scaling.factor", "a number"));
    match gguf.header.text(&kind).unwrap_or("none") {
        "none" => Ok(None),
        "linear" => Ok(Some(json!({"rope_type": "linear", "factor": factor()?}))),
        "yarn" => Ok(Some(json!({
            "rope_type": "yarn", "factor": factor()?, "original_max_position_embeddings": original,
            "attention_factor": gguf.float("rope.scaling.attn_factor")?,
            "beta_fast": gguf.float("rope.scaling.yarn_beta_fast")?,
            "beta_slow": gguf.float("rope.scaling.yarn_beta_slow")?,
        }))),
        other => Err(gguf.unsupported(&format!("{kind} {other:?}"), "known are none, linear, yarn")),
    }
}
