//! Where a family's tensors are: names of modules in its checkpoints.

/// Names of modules; tensors are `<module>.weight` and `<module>.bias`. All but the head follow the prefix, those of a block also its
/// index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names {
    /// What stands before all names but the head's, with its dot.
    pub prefix: &'static str,
    /// What may stand there instead: files are written from a whole model or from a part of it.
    pub other_prefixes: &'static [&'static str],
    /// The embedding.
    pub embed: &'static str,
    /// The table of learned positions, where there is one.
    pub positions: &'static str,
    /// What stands before a block's index.
    pub layers: &'static str,
    /// Norm before attention.
    pub attention_norm: &'static str,
    /// Projections to queries, keys and values: three modules, or one.
    pub qkv: &'static [&'static str],
    /// Norms of query and key heads, where there are such.
    pub head_norms: [&'static str; 2],
    /// Projection back to the residual stream.
    pub out: &'static str,
    /// Norm of what attention gives, in sandwiched blocks.
    pub after_attention: &'static str,
    /// Norm before the MLP.
    pub mlp_norm: &'static str,
    /// Gate and up projection, one module for both, or up alone.
    pub up: &'static [&'static str],
    /// Down projection.
    pub down: &'static str,
    /// Norm of what the MLP gives, in sandwiched blocks.
    pub after_mlp: &'static str,
    /// The norm after the last block.
    pub norm: &'static str,
    /// The head, where it is not the embedding.
    pub head: &'static str,
    /// Whether matrices of blocks lie transposed in the file, `[in, out]`.
    pub transposed: bool,
    /// Parts of names of tensors that files carry and nobody reads: buffers, and towers for images.
    pub ignored: &'static [&'static str],
}

/// Names of modules of blocks with experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertNames {
    /// The linear that chooses.
    pub router: &'static str,
    /// What stands before an expert's index.
    pub experts: &'static str,
    /// Within an expert: gate and up projection.
    pub up: &'static [&'static str],
    /// Within an expert: down projection.
    pub down: &'static str,
    /// What stands before the same of the shared one.
    pub shared: &'static str,
    /// The linear that weighs the shared one.
    pub shared_gate: &'static str,
}

/// A llama's, from which many families differ little.
pub(crate) const LLAMA: Names = Names {
    prefix: "model.",
    other_prefixes: &["language_model.model.", "model.language_model.", ""],
    embed: "embed_tokens",
    positions: "",
    layers: "layers",
    attention_norm: "input_layernorm",
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    head_norms: ["self_attn.q_norm", "self_attn.k_norm"],
    out: "self_attn.o_proj",
    after_attention: "",
    mlp_norm: "post_attention_layernorm",
    up: &["mlp.gate_proj", "mlp.up_proj"],
    down: "mlp.down_proj",
    after_mlp: "",
    norm: "norm",
    head: "lm_head",
    transposed: false,
    ignored: &["rotary_emb.inv_freq"],
};

/// GPT-2's, from which its successors differ.
pub(crate) const GPT: Names = Names {
    prefix: "transformer.",
    other_prefixes: &[""],
    embed: "wte",
    positions: "wpe",
    layers: "h",
    attention_norm: "ln_1",
    qkv: &["attn.c_attn"],
    out: "attn.c_proj",
    mlp_norm: "ln_2",
    up: &["mlp.c_fc"],
    down: "mlp.c_proj",
    norm: "ln_f",
    ignored: &[".attn.bias", ".attn.masked_bias", ".attn.causal_mask"],
    ..LLAMA
};

impl Names {
    /// With the prefix under which `has` finds the embedding; unchanged when there is none.
    pub(crate) fn found(self, has: impl Fn(&str) -> bool) -> Self {
        let mut prefixes = std::iter::once(self.prefix).chain(self.other_prefixes.iter().copied());
        let found = prefixes.find(|prefix| has(&format!("{prefix}{}.weight", self.embed)));
        Self { prefix: found.unwrap_or(self.prefix), ..self }
    }

    /// Whether nobody reads the tensor of that name.
    pub(crate) fn ignores(&self, name: &str) -> bool {
        self.ignored.iter().any(|part| name.contains(part))
    }
}
