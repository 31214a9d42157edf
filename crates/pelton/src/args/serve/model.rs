//! What is served beside the checkpoint itself: another tokenizer configuration, other weights, stretched positions.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use pelton_model::{RopeRule, RopeStretch};

#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// A tokenizer_config.json to read instead of the model's, for example to give a model another chat template: one in this file comes
    /// before a template file of the model.
    #[arg(long, env = "TOKENIZER_CONFIG_PATH")]
    pub tokenizer_config_path: Option<PathBuf>,

    /// Directory in which the model lies already (configuration, tokenizer and weights). --model-id is then only its name.
    #[arg(long, env = "WEIGHTS_CACHE_OVERRIDE")]
    pub weights_cache_override: Option<PathBuf>,

    /// Stretches rotary positions beyond the trained length, instead of what the checkpoint says: `linear` divides positions by --rope-factor,
    /// `dynamic` grows the base with the sequence beyond the trained length. Costs quality at short lengths (linear) or
    /// beyond the trained one (dynamic).
    #[arg(long, env = "ROPE_SCALING", value_enum)]
    pub rope_scaling: Option<RopeScalingArg>,

    /// How many times the trained length; needs --rope-scaling. Default: 1.
    #[arg(long, env = "ROPE_FACTOR")]
    pub rope_factor: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RopeScalingArg {
    Linear,
    Dynamic,
}

impl ModelArgs {
    /// `None`: positions as the checkpoint says.
    pub fn rope(&self) -> Option<RopeStretch> {
        let rule = match self.rope_scaling? {
            RopeScalingArg::Linear => RopeRule::Linear,
            RopeScalingArg::Dynamic => RopeRule::Dynamic,
        };
        Some(RopeStretch { rule, factor: self.rope_factor.unwrap_or(1.0) })
    }
}
