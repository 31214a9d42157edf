//! Flags of `pelton eval`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::compute::{ComputeArgs, PrecisionArgs};
use super::hub::HubArgs;

#[derive(Debug, Args)]
pub struct EvalArgs {
    #[command(subcommand)]
    pub command: EvalCommand,
}

#[derive(Debug, Subcommand)]
pub enum EvalCommand {
    /// Perplexity on a text: how well a model predicts it, token by token. Lower is better.
    ///
    /// Shows what a format of weights or of the KV cache costs: measure the checkpoint in float32 with --output, then each other form of
    /// it --against that file. Perplexities of models with different tokenizers do not compare; their bits per byte do.
    Perplexity(Box<PerplexityArgs>),
}

#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct PerplexityArgs {
    /// The model: a directory with a Hugging Face checkpoint, or a hub id such as org/name. Default: the demo model inside this binary.
    #[arg(long, env = "MODEL_ID")]
    pub model_id: Option<String>,

    /// The text, in UTF-8: something the model was not trained on.
    #[arg(long, value_name = "FILE")]
    pub text: PathBuf,

    /// Tokens of a window; what stands before it is not seen. Default: what the model can tell apart, 2048 at most.
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(2..=1_048_576))]
    pub context: Option<u32>,

    /// New tokens of each window; those before them are context. Smaller predicts better and takes longer. Default: half of the context.
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub stride: Option<u32>,

    /// Measure the beginning of the text only.
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(2..))]
    pub max_tokens: Option<u32>,

    #[command(flatten)]
    pub hub: HubArgs,

    #[command(flatten)]
    pub precision: PrecisionArgs,

    #[command(flatten)]
    pub compute: ComputeArgs,

    /// File of an earlier run (its --output) to compare with, window by window; it must have had the same text, context and stride.
    #[arg(long, value_name = "FILE")]
    pub against: Option<PathBuf>,

    /// File for everything as JSON: command, model, plan, and one row for each window.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// No progress line.
    #[arg(long, short)]
    pub quiet: bool,
}

const EXAMPLES: &str = "\
Examples:
  pelton eval perplexity --text book.txt
  pelton eval perplexity --text book.txt --dtype float32 --output f32.json
  pelton eval perplexity --text book.txt --quantize int8 --against f32.json";
