//! Flags of `pelton bench engine`.

use std::path::PathBuf;

use clap::Args;
use pelton_model::Shape;

use crate::args::compute::{ComputeArgs, PrecisionArgs};
use crate::args::hub::HubArgs;

#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct EngineArgs {
    /// What to compute: a directory with a Hugging Face checkpoint, or a hub id such as org/name. Default: the demo model inside this
    /// binary.
    #[arg(long, env = "MODEL_ID")]
    pub model_id: Option<String>,

    /// Made-up weights of a named shape instead of a checkpoint: no files, the speed is that of the released model. An unknown name
    /// is refused with the list of all.
    #[arg(long, value_name = "SHAPE", value_parser = Shape::named, conflicts_with = "model_id")]
    pub random_weights: Option<Shape>,

    #[command(flatten)]
    pub hub: HubArgs,

    #[command(flatten)]
    pub precision: PrecisionArgs,

    /// Tokens a prefill step computes; `pelton serve` has the same flag.
    #[arg(long, env = "MAX_BATCH_PREFILL_TOKENS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_batch_prefill_tokens: u32,

    /// Sequences that decode together. Several numbers are several cases.
    #[arg(long, value_delimiter = ',', default_value = "1,8,32", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch: Vec<u32>,

    /// Tokens of a prompt: the length of a prefill, and what each sequence has behind it when it decodes. Several numbers are several
    /// cases.
    #[arg(long, value_delimiter = ',', default_value = "512", value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub input_tokens: Vec<u32>,

    /// Decode steps that are timed for each case in a round.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub output_tokens: u32,

    /// Times that every case is measured, in turns. More steadies the medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,

    #[command(flatten)]
    pub compute: ComputeArgs,

    /// File for everything as JSON: command, machine, model, medians, and one row for each step.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// No progress line.
    #[arg(long, short)]
    pub quiet: bool,
}

const EXAMPLES: &str = "\
Examples:
  pelton bench engine
  pelton bench engine --random-weights tinyllama-1.1b --batch 1,8,32 --input-tokens 512 --output run.json
  pelton bench engine --model-id PATH --dtype bfloat16 --batch 1 --input-tokens 128,2048";
