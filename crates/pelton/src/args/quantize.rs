//! Flags of `pelton quantize`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::compute::ComputeArgs;
use super::hub::HubArgs;

#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct QuantizeArgs {
    /// The checkpoint: a directory, or a hub id such as org/name. Its weights are in float32, bfloat16 or float16.
    pub input: String,

    /// The folder to write, new or empty. It holds a whole checkpoint: weights, configuration, tokenizer.
    pub output: PathBuf,

    /// How weights are written. Embedding, head, norms and biases stay as they are.
    #[arg(long, value_enum)]
    pub format: FormatArg,

    /// Bits of a weight. Default: 4, and 8 with --format int8. GPTQ has both.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub bits: Option<u8>,

    /// Input features that share a scale: 32, 64, 128, or -1 for all of a row. Default: 128, and -1 with --format int8.
    #[arg(long, allow_negative_numbers = true)]
    pub group_size: Option<i32>,

    /// GPTQ: round the inputs that carry most first (desc_act). Somewhat better, and slower to serve on some servers.
    #[arg(long)]
    pub act_order: bool,

    /// Text that shows what the model's activations look like, in UTF-8: gptq and awq need it. Best is text of the kind that the model
    /// will be used for; a megabyte is plenty.
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,

    /// Tokens of the calibration text that are used, from its beginning.
    #[arg(long, default_value_t = 32_768, requires = "calibration", value_parser = clap::value_parser!(u32).range(1..))]
    pub calibration_tokens: u32,

    /// Tokens that the model reads at once. Default: what it can tell apart, 512 at most.
    #[arg(long, requires = "calibration", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub calibration_context: Option<u32>,

    #[command(flatten)]
    pub hub: HubArgs,

    #[command(flatten)]
    pub compute: ComputeArgs,

    /// No progress line.
    #[arg(long, short)]
    pub quiet: bool,
}

/// What can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// Each column of a matrix makes up for the rounding of those before it; the calibration text says how much they matter
    Gptq,
    /// Inputs that carry much get finer steps; four bits with zero points
    Awq,
    /// Rounded to nearest, a scale for each output feature (compressed-tensors)
    Int8,
    /// Rounded to nearest, in groups (compressed-tensors)
    Int4,
}

const EXAMPLES: &str = "\
Examples:
  pelton quantize org/name name-gptq --format gptq --calibration code.txt
  pelton quantize ./model ./model-int8 --format int8
  pelton eval perplexity --model-id ./model-gptq --text other.txt";
