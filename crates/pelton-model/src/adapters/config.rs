//! `adapter_config.json`: the scale of an adapter's products, and what PEFT knows that is not built.

use crate::config::{ConfigError, HfConfig};

pub(super) const FILE: &str = "adapter_config.json";

/// Far beyond every trained adapter.
const MAX_RANK: usize = 1 << 16;
const MAX_ALPHA: f64 = 1e6;

/// Settings under which an adapter is more than products of low rank beside linears.
const NOT_BUILT: [(&str, &str); 10] = [
    ("use_dora", "weights that are decomposed (DoRA) are not built"),
    ("lora_bias", "biases of an adapter are not built"),
    ("modules_to_save", "whole modules in place of the model's are not built"),
    ("trainable_token_indices", "trained embeddings of tokens are not built"),
    ("target_parameters", "adapters of parameters that are no module are not built"),
    ("layer_replication", "repeated layers are not built"),
    ("alora_invocation_tokens", "adapters that begin at tokens of the prompt (aLoRA) are not built"),
    ("use_qalora", "pooled inputs (QA-LoRA) are not built"),
    ("arrow_config", "mixtures of adapters chosen by token (Arrow) are not built"),
    ("megatron_config", "layers cut over machines are not built"),
];

/// Ways to begin a training that take something off the model's own weights.
const CHANGING: [&str; 4] = ["pissa", "olora", "corda", "loftq"];

/// What an adapter's configuration says of each of its modules. Source: PEFT's `LoraConfig`.
#[derive(Debug, Clone)]
pub(super) struct AdapterConfig {
    rank: usize,
    alpha: f64,
    /// Modules with other ranks, in the order of the file, which PEFT sorts: the first that fits counts.
    ranks: Vec<(Pattern, usize)>,
    alphas: Vec<(Pattern, f64)>,
    /// The scale is over the root of the rank (Kalajdzievski 2023) instead of the rank.
    over_root: bool,
}

/// The name of a module, or the end of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    name: String,
    /// Nothing may stand before it.
    whole: bool,
}

impl AdapterConfig {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let config = HfConfig::parse(FILE, bytes)?;
        if config.text("peft_type")? != "LORA" {
            return Err(config.unsupported("peft_type", "only LORA is built"));
        }
        if config.optional_text("bias")?.is_some_and(|bias| bias != "none") {
            return Err(config.unsupported("bias", "trained biases are not built, only \"none\""));
        }
        for (key, why) in NOT_BUILT {
            if config.says_something(key) {
                return Err(config.unsupported(key, why));
            }
        }
        // True, false and absent are no words.
        if let Ok(Some(way)) = config.optional_text("init_lora_weights")
            && CHANGING.iter().any(|changing| way.starts_with(changing))
        {
            let why = "training began by changing the model's own weights; save the adapter converted to a plain one";
            return Err(config.unsupported("init_lora_weights", why));
        }
        Ok(Self {
            rank: config.size("r", 1..=MAX_RANK)?,
            alpha: config.float("lora_alpha", 0.0..=MAX_ALPHA)?,
            ranks: patterns(&config, "rank_pattern", |section, key| section.size(key, 1..=MAX_RANK))?,
            alphas: patterns(&config, "alpha_pattern", |section, key| section.float(key, 0.0..=MAX_ALPHA))?,
            over_root: config.bool_or("use_rslora", false)?,
        })
    }

    /// The rank of `module`'s matrices, and the scale of their product.
    pub(super) fn of(&self, module: &str) -> (usize, f32) {
        let rank = first(&self.ranks, module).unwrap_or(self.rank);
        let alpha = first(&self.alphas, module).unwrap_or(self.alpha);
        let over = if self.over_root { (rank as f64).sqrt() } else { rank as f64 };
        (rank, (alpha / over) as f32)
    }
}

fn patterns<T>(
    config: &HfConfig,
    key: &str,
    value: impl Fn(&HfConfig, &str) -> Result<T, ConfigError>,
) -> Result<Vec<(Pattern, T)>, ConfigError> {
    let Some(section) = config.section(key)? else { return Ok(Vec::new()) };
    let read = |key: &str| match Pattern::parse(key) {
        Some(pattern) => Ok((pattern, value(&section, key)?)),
        None => Err(section.unsupported(key, "only names of modules, or ends of them, are read as patterns")),
    };
    section.keys().map(read).collect()
}

fn first<T: Copy>(patterns: &[(Pattern, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.fits(module)).map(|(_, value)| *value)
}

impl Pattern {
    /// `None` for regular expressions that are more than a name.
    fn parse(text: &str) -> Option<Self> {
        let (whole, name) = match text.strip_prefix('^') {
            Some(name) => (true, name),
            None => (false, text),
        };
        let name = name.strip_suffix('$').unwrap_or(name);
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        (!name.is_empty() && name.bytes().all(is_name)).then(|| Self { name: name.to_owned(), whole })
    }

    fn fits(&self, module: &str) -> bool {
        match module.strip_suffix(&self.name) {
            Some(before) => before.is_empty() || !self.whole && before.ends_with('.'),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parsed(changes: Value) -> Result<AdapterConfig, ConfigError> {
        let mut config =
            json!({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "bias": "none", "init_lora_weights": true});
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        AdapterConfig::parse(config.to_string().as_bytes())
    }

    #[test]
    fn scales_follow_from_ranks_alphas_and_patterns() {
        let config =
            parsed(json!({"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"^m.layers.0.up": 5, "up": 3.0}})).unwrap();
        assert_eq!(config.of("m.layers.0.q_proj"), (8, 2.0));
        assert_eq!(config.of("m.layers.0.k_proj"), (2, 8.0));
        assert_eq!(config.of("m.layers.0.up"), (8, 0.625));
        assert_eq!(config.of("x.m.layers.0.up"), (8, 0.375));
        assert_eq!(config.of("m.layers.0.big_up"), (8, 2.0), "a part of a word is another module");
        assert_eq!(parsed(json!({"use_rslora": true, "r": 16})).unwrap().of("a"), (16, 4.0));
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        for (changes, expected) in [
            (json!({"peft_type": "LOHA"}), "adapter_config.json: peft_type is \"LOHA\": only LORA is built"),
            (
                json!({"bias": "all"}),
                "adapter_config.json: bias is \"all\": trained biases are not built, only \"none\"",
            ),
            (
                json!({"use_dora": true}),
                "adapter_config.json: use_dora is true: weights that are decomposed (DoRA) are not built",
            ),
            (
                json!({"modules_to_save": ["lm_head"]}),
                "adapter_config.json: modules_to_save is [\"lm_head\"]: whole modules",
            ),
            (
                json!({"init_lora_weights": "pissa_niter_4"}),
                "adapter_config.json: init_lora_weights is \"pissa_niter_4\": training began",
            ),
            (json!({"rank_pattern": {".*q": 3}}), "adapter_config.json: rank_pattern..*q is 3: only names of modules"),
            (json!({"alpha_pattern": {"q": "x"}}), "adapter_config.json: alpha_pattern.q is \"x\", expected a number"),
            (json!({"r": 0}), "adapter_config.json: r is 0, expected a whole number from 1 to 65536"),
            (json!({"lora_alpha": null}), "adapter_config.json has no lora_alpha"),
        ] {
            let error = parsed(changes).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let nothing = json!({"use_dora": false, "modules_to_save": [], "layer_replication": null, "arrow_config": {}});
        assert!(parsed(nothing).is_ok());
        assert!(parsed(json!({"init_lora_weights": "gaussian"})).is_ok());
    }
}
