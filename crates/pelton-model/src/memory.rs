//! How much memory a model takes, and how many KV blocks fit beside it: computed from headers, before weights are read.

use std::fmt;

use pelton_backend::{KvSpec, MemoryReport};

use crate::formats::{MatrixFormats, WeightFormats};
use crate::spec::{DecoderSpec, DecoderTensors, Mlp, Positions};

/// How many tokens the KV cache shall hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum KvBudget {
    /// So many tokens, rounded up to whole blocks.
    Tokens(usize),
    /// So many bytes, rounded down to whole blocks.
    Bytes(u64),
    /// This share (0 to 1) of the memory that is available beside weights and workspace.
    Fraction(f64),
    /// What so many sequences of the greatest length need, or `max_fraction` as in [`KvBudget::Fraction`] if that is less.
    Sequences {
        /// How many.
        count: usize,
        /// A share above 0, at most 1.
        max_fraction: f64,
    },
}

/// A model that does not fit.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MemoryError {
    /// The machine is too small for what was asked.
    #[error(
        "not enough memory: {needed} are needed ({parts}), {available} are available; lower --max-total-tokens or \
         --max-batch-total-tokens, choose a smaller model, or free memory"
    )]
    NotEnough {
        /// All of it.
        needed: Size,
        /// What it consists of.
        parts: String,
        /// What the machine can give.
        available: Size,
        /// Tokens that a KV cache of the wished share of it would hold; 0 where no share was wished.
        room_tokens: u64,
    },
    /// The KV cache could not hold one sequence of the greatest length.
    #[error(
        "the KV cache would hold {found} tokens, one sequence may have {needed}; raise --max-batch-total-tokens or lower \
         --max-total-tokens"
    )]
    KvTooSmall {
        /// Tokens the budget is enough for.
        found: u64,
        /// Tokens of the longest sequence.
        needed: usize,
    },
    /// A KV budget that is no amount.
    #[error("the KV budget is {found}, expected {expected}")]
    Budget {
        /// As it was given.
        found: String,
        /// What it may be.
        expected: String,
    },
}

/// A number of bytes, shown in the unit that suits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        let text = match self.0 {
            0..1024 => format!("{} bytes", self.0),
            1024..1_048_576 => format!("{:.1} KiB", bytes / 1024.0),
            1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes / 1_048_576.0),
            _ => format!("{:.2} GiB", bytes / 1_073_741_824.0),
        };
        f.pad(&text)
    }
}

/// Where the memory goes; its [`Display`](fmt::Display) is the table shown at start.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryPlan {
    /// Packed matrices, norms and biases. Padding of a backend's layout is not counted.
    pub weights_bytes: u64,
    /// Of these, the embedding where it is not the head too: a step reads a few rows of it, and all other weights once.
    pub lookup_bytes: u64,
    /// How the matrices are kept.
    pub format: WeightFormats,
    /// Adapters that sequences may ask for.
    pub num_adapters: usize,
    /// Their matrices; a step reads those of the adapters that it has rows of.
    pub adapters_bytes: u64,
    /// What is known of every position: cosines and sines, or learned vectors.
    pub positions_bytes: u64,
    /// Positions in such a table: the greatest length of a sequence.
    pub max_positions: usize,
    /// Every buffer of a step.
    pub workspace_bytes: u64,
    /// Rows the workspace is for.
    pub max_step_rows: usize,
    /// Shape of the KV cache.
    pub kv: KvSpec,
    /// Blocks of the KV cache.
    pub num_blocks: u32,
    /// The machine before loading.
    pub memory: MemoryReport,
}

/// What stays in memory of a model, before it is read.
#[derive(Clone, Copy)]
pub(crate) struct Kept<'a> {
    pub(crate) tensors: &'a DecoderTensors,
    pub(crate) formats: &'a MatrixFormats,
    pub(crate) num_adapters: usize,
    pub(crate) adapters_bytes: u64,
}

/// Rows a step may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepLimits {
    pub(crate) max_step_rows: usize,
    pub(crate) max_logit_rows: usize,
    pub(crate) max_positions: usize,
}

impl MemoryPlan {
    /// Distributes `memory`, or says why it cannot.
    pub(crate) fn new(
        spec: &DecoderSpec,
        kept: Kept<'_>,
        limits: StepLimits,
        kv: KvSpec,
        budget: KvBudget,
        memory: MemoryReport,
    ) -> Result<Self, MemoryError> {
        let Kept { tensors, formats, num_adapters, adapters_bytes } = kept;
        let matrices: u64 = tensors.matrices().map(|tensor| formats.bytes(tensor)).sum();
        let vectors: u64 = tensors.vectors().map(|tensor| tensor.num_elements()).sum();
        let mut plan = Self {
            weights_bytes: matrices + vectors * 4,
            lookup_bytes: tensors.head.as_ref().map_or(0, |_| formats.bytes(&tensors.embed)),
            format: formats.summary(tensors),
            num_adapters,
            adapters_bytes,
            positions_bytes: positions_bytes(spec, limits.max_positions),
            max_positions: limits.max_positions,
            workspace_bytes: workspace_bytes(spec, limits),
            max_step_rows: limits.max_step_rows,
            kv,
            num_blocks: 0,
            memory,
        };
        plan.num_blocks = plan.blocks(budget)?;
        Ok(plan)
    }

    /// Bytes of weights that every step with logits reads.
    pub fn step_weights_bytes(&self) -> u64 {
        self.weights_bytes - self.lookup_bytes
    }

    /// Bytes of the keys and values of one position, all layers.
    pub fn position_bytes(&self) -> u64 {
        (self.kv.block_bytes() / self.kv.block_tokens) as u64
    }

    /// Tokens the KV cache holds.
    pub fn kv_tokens(&self) -> u64 {
        u64::from(self.num_blocks) * self.kv.block_tokens as u64
    }

    /// Bytes of the KV cache.
    pub fn kv_bytes(&self) -> u64 {
        u64::from(self.num_blocks) * self.kv.block_bytes() as u64
    }

    /// All of it.
    pub fn total_bytes(&self) -> u64 {
        self.fixed_bytes() + self.kv_bytes()
    }

    /// What is needed whatever the KV cache.
    fn fixed_bytes(&self) -> u64 {
        self.weights_bytes + self.adapters_bytes + self.positions_bytes + self.workspace_bytes
    }

    fn blocks(&self, budget: KvBudget) -> Result<u32, MemoryError> {
        let block_tokens = self.kv.block_tokens as u64;
        let block_bytes = self.kv.block_bytes() as u64;
        let least = (self.max_positions as u64).div_ceil(block_tokens);
        let available = self.memory.available_bytes;
        // A slot's number, block * block_tokens + offset, is a u32.
        let most = u64::from(u32::MAX) / block_tokens;
        let mut room = 0;
        // One sequence of the greatest length must fit, even when that takes more than the share.
        let mut within = |share: f64, enough: u64| {
            if !(share > 0.0 && share <= 1.0) {
                return Err(MemoryError::Budget {
                    found: format!("a share of {share}"),
                    expected: "a share above 0, at most 1".to_owned(),
                });
            }
            let beside = available.saturating_sub(self.fixed_bytes());
            room = (beside as f64 * share) as u64 / block_bytes;
            Ok(room.min(enough).max(least))
        };
        let wished = match budget {
            KvBudget::Tokens(tokens) => (tokens as u64).div_ceil(block_tokens),
            KvBudget::Bytes(bytes) => bytes / block_bytes,
            KvBudget::Fraction(share) => within(share, most)?,
            KvBudget::Sequences { count, max_fraction } => {
                within(max_fraction, least.saturating_mul(count as u64).min(most))?
            }
        };
        if wished > most {
            return Err(MemoryError::Budget {
                found: format!("{wished} blocks of {block_tokens} tokens"),
                expected: format!("at most {most} blocks"),
            });
        }
        if wished < least {
            return Err(MemoryError::KvTooSmall { found: wished * block_tokens, needed: self.max_positions });
        }
        let kv_bytes = wished.saturating_mul(block_bytes);
        let needed = self.fixed_bytes().saturating_add(kv_bytes);
        if needed > available {
            return Err(MemoryError::NotEnough {
                needed: Size(needed),
                parts: format!(
                    "weights {}, adapters {}, positions {}, workspace {}, KV cache {} for {} tokens",
                    Size(self.weights_bytes),
                    Size(self.adapters_bytes),
                    Size(self.positions_bytes),
                    Size(self.workspace_bytes),
                    Size(kv_bytes),
                    wished * block_tokens
                ),
                available: Size(available),
                room_tokens: room * block_tokens,
            });
        }
        Ok(wished as u32)
    }
}

/// Bytes of the tables of positions, which are f32.
fn positions_bytes(spec: &DecoderSpec, positions: usize) -> u64 {
    match &spec.positions {
        Positions::Learned => 4 * positions as u64 * spec.hidden_size as u64,
        Positions::Rotary(ropes) => ropes.iter().map(|rope| rope.table_bytes(positions)).sum(),
    }
}

/// Bytes of the buffers in [`Workspace`](crate::workspace::Workspace), which are f32; the routes of experts are a few numbers more.
fn workspace_bytes(spec: &DecoderSpec, limits: StepLimits) -> u64 {
    let mlp = |mlp: &Mlp| mlp.up_width() + if mlp.gated { mlp.intermediate_size } else { 0 };
    let experts = spec.experts.as_ref().map_or(0, |experts| {
        let shared = experts.shared.as_ref().map_or(0, |shared| mlp(shared) + 1);
        experts.num_experts + 2 * spec.hidden_size + mlp(&experts.mlp) + shared
    });
    let heads = spec.attention.num_heads * spec.attention.head_dim;
    let dense = spec.dense_mlp().map_or(0, mlp);
    let row = 3 * spec.hidden_size + spec.attention.qkv_width() + heads + dense + experts;
    let logit_row = spec.hidden_size + spec.vocab_size;
    4 * (limits.max_step_rows as u64 * row as u64 + limits.max_logit_rows as u64 * logit_row as u64)
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |what: &str, bytes: u64, note: String| writeln!(f, "{what:<12}{:>11}  {note}", Size(bytes));
        line("weights", self.weights_bytes, self.format.to_string())?;
        if self.num_adapters > 0 {
            line("adapters", self.adapters_bytes, format!("{} of them", self.num_adapters))?;
        }
        line("positions", self.positions_bytes, format!("{} positions", self.max_positions))?;
        line("workspace", self.workspace_bytes, format!("{} rows a step", self.max_step_rows))?;
        let blocks = format!("{} blocks of {}", self.num_blocks, self.kv.block_tokens);
        line("kv cache", self.kv_bytes(), format!("{}, {} tokens in {blocks}", self.kv.format, self.kv_tokens()))?;
        // What the tokens are enough for, beside one sequence that always fits.
        let whole = self.kv_tokens() / self.max_positions.max(1) as u64;
        let sequences = if whole == 1 { "1 sequence".to_owned() } else { format!("{whole} sequences") };
        line("a token", self.position_bytes(), format!("{sequences} of {} tokens fit", self.max_positions))?;
        let of =
            format!("of {} available, {} in all", Size(self.memory.available_bytes), Size(self.memory.total_bytes));
        write!(f, "{:<12}{:>11}  {of}", "together", Size(self.total_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use pelton_backend::DType;

    use super::*;
    use crate::config::HfConfig;
    use crate::families::spec_of;
    use crate::treatment::Treatment;
    use crate::weights::RandomWeights;

    const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64, "hidden_act": "silu",
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5}"#;

    fn plan(budget: KvBudget, available_bytes: u64) -> Result<MemoryPlan, MemoryError> {
        let (_, spec) = spec_of(&HfConfig::parse("config.json", LLAMA.as_bytes()).unwrap()).unwrap();
        let kv = KvSpec { num_layers: 2, num_kv_heads: 2, head_dim: 8, block_tokens: 16, format: DType::BF16.into() };
        let limits = StepLimits { max_step_rows: 64, max_logit_rows: 8, max_positions: 250 };
        let memory = MemoryReport { total_bytes: 1 << 30, available_bytes };
        let tensors = spec.tensors();
        let formats = MatrixFormats::new(&tensors, &RandomWeights::new(0), Treatment::AsTheyCome, DType::BF16).unwrap();
        let kept = Kept { tensors: &tensors, formats: &formats, num_adapters: 2, adapters_bytes: 5000 };
        MemoryPlan::new(&spec, kept, limits, kv, budget, memory)
    }

    #[test]
    fn every_byte_is_counted() {
        let plan = plan(KvBudget::Tokens(1000), 1 << 30).unwrap();
        let layer = 32 * (32 + 16 + 16) + 32 * 32 + 32 * 64 * 3;
        assert_eq!(plan.weights_bytes, 2 * (2 * 100 * 32 + 2 * layer) + 4 * 5 * 32);
        assert_eq!(plan.step_weights_bytes(), plan.weights_bytes - 2 * 100 * 32);
        assert_eq!(plan.position_bytes(), 2 * 2 * 2 * 8 * 2);
        assert_eq!(plan.positions_bytes, 250 * 8 * 4);
        assert_eq!(plan.workspace_bytes, 4 * (64 * (3 * 32 + 64 + 32 + 3 * 64) + 8 * 132));
        assert_eq!(plan.num_blocks, 63);
        assert_eq!(plan.kv_bytes(), 63 * 2 * 2 * 2 * 8 * 16 * 2);
        assert_eq!(
            plan.total_bytes(),
            plan.weights_bytes + 5000 + plan.positions_bytes + plan.workspace_bytes + plan.kv_bytes()
        );
        let table = plan.to_string();
        assert!(table.contains("1008 tokens in 63 blocks of 16") && table.contains("of 1.00 GiB available"), "{table}");
        assert!(table.contains("4 sequences of 250 tokens fit"), "{table}");
        assert!(table.contains("adapters        4.9 KiB  2 of them"), "{table}");
        assert_eq!(table.lines().count(), 7);
    }

    #[test]
    fn experts_and_learned_positions_are_counted() {
        let plan = |text: &str| {
            let (_, spec) = spec_of(&HfConfig::parse("config.json", text.as_bytes()).unwrap()).unwrap();
            let kv =
                KvSpec { num_layers: 2, num_kv_heads: 2, head_dim: 8, block_tokens: 16, format: DType::BF16.into() };
            let limits = StepLimits { max_step_rows: 64, max_logit_rows: 8, max_positions: 50 };
            let memory = MemoryReport { total_bytes: 1 << 30, available_bytes: 1 << 30 };
            let tensors = spec.tensors();
            let formats =
                MatrixFormats::new(&tensors, &RandomWeights::new(0), Treatment::Numbers, DType::BF16).unwrap();
            let kept = Kept { tensors: &tensors, formats: &formats, num_adapters: 0, adapters_bytes: 0 };
            let plan = MemoryPlan::new(&spec, kept, limits, kv, KvBudget::Tokens(64), memory).unwrap();
            assert!(!plan.to_string().contains("adapters"), "{plan}");
            plan
        };
        // One block has an MLP of 64, the other five experts of 20 and a shared one of 12; routers are in f32.
        let moe = plan(
            r#"{"architectures": ["Qwen2MoeForCausalLM"], "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 256,
            "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "shared_expert_intermediate_size": 12,
            "mlp_only_layers": [0]}"#,
        );
        let attention = 32 * (32 + 16 + 16) + 32 * 32;
        let matrices = 2 * 100 * 32 + 2 * attention + 32 * 3 * (64 + 5 * 20 + 12);
        let vectors = 5 * 32 + 2 * (32 + 16 + 16) + 32 * (5 + 1);
        assert_eq!(moe.weights_bytes, 2 * matrices + 4 * vectors);
        let experts = 5 + 2 * 32 + 3 * 20 + 3 * 12 + 1;
        assert_eq!(moe.workspace_bytes, 4 * (64 * (3 * 32 + 64 + 32 + 3 * 64 + experts) + 8 * 132));
        let gpt = plan(
            r#"{"architectures": ["GPT2LMHeadModel"], "vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4,
            "n_positions": 256}"#,
        );
        assert_eq!(gpt.positions_bytes, 4 * 50 * 32);
        assert_eq!(gpt.workspace_bytes, 4 * (64 * (3 * 32 + 96 + 32 + 128) + 8 * 132));
        assert_eq!(gpt.step_weights_bytes(), gpt.weights_bytes);
    }

    #[test]
    fn budgets_round_to_whole_blocks_and_stay_within_memory() {
        let block = 2 * 2 * 2 * 8 * 16 * 2;
        assert_eq!(plan(KvBudget::Bytes(20 * block + 1), 1 << 30).unwrap().num_blocks, 20);
        let half = plan(KvBudget::Fraction(0.5), 1 << 24).unwrap();
        assert!(half.total_bytes() < 1 << 24 && half.kv_bytes() + block > ((1 << 24) - half.fixed_bytes()) / 2);
    }

    #[test]
    fn what_does_not_fit_is_said_with_numbers_and_a_way_out() {
        assert!(matches!(
            plan(KvBudget::Tokens(1_000_000), 1 << 24),
            Err(MemoryError::NotEnough { room_tokens: 0, .. })
        ));
        let error = plan(KvBudget::Fraction(0.9), 1000).unwrap_err().to_string();
        assert!(error.contains("1000 bytes are available") && error.contains("lower --max-total-tokens"), "{error}");
        let error = plan(KvBudget::Tokens(1_000_000), 1 << 24).unwrap_err().to_string();
        assert!(error.contains("122.1 MiB for 1000000 tokens"), "{error}");
        let error = plan(KvBudget::Tokens(100), 1 << 30).unwrap_err();
        assert_eq!(error, MemoryError::KvTooSmall { found: 112, needed: 250 });
        assert!(matches!(plan(KvBudget::Bytes(10), 1 << 30), Err(MemoryError::KvTooSmall { found: 0, .. })));
        assert!(matches!(plan(KvBudget::Tokens(usize::MAX), 1 << 30), Err(MemoryError::Budget { .. })));
        for share in [0.0, -1.0, 1.5, f64::NAN] {
            assert!(matches!(plan(KvBudget::Fraction(share), 1 << 30), Err(MemoryError::Budget { .. })));
        }
    }
}
