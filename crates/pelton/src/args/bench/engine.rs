//! Flags of `pelton bench engine`.

use std::path::PathBuf;

use clap::builder::Resettable;
use clap::{Args, Command, FromArgMatches, value_parser};
use pelton_bench::batches::BatchSampling;
use pelton_model::Shape;

use super::Ui;
use super::target::MannerArgs;
use crate::args::compute::{ComputeArgs, PrecisionArgs};
use crate::args::hub::HubArgs;

/// Measure the engine: how long prompts and further tokens take, by batch size.
///
/// Two measurements. Steps of the model alone, without sampling, each beside what it reads from memory: that is the default. Whole
/// batches, from prompt to last token, with sampling, in the view and the tables of text-generation-benchmark: with any flag under
/// "Batches", and when this program is called by the name text-generation-benchmark, which then needs no `bench engine` before its flags.
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

    /// Tokens a prefill step computes; `pelton serve` has the same flag. Default: 256; for batches all their prompts at once, but at
    /// most 4096.
    #[arg(long, env = "MAX_BATCH_PREFILL_TOKENS", value_parser = value_parser!(u32).range(1..=65_536))]
    pub max_batch_prefill_tokens: Option<u32>,

    /// Sequences that decode together; several numbers, or the flag again, are several cases. Default: 1,8,32; for batches 1,2,4,8,16,32.
    #[arg(long, short, visible_alias = "batch-size", value_delimiter = ',', value_parser = value_parser!(u32).range(1..=4096))]
    pub batch: Vec<u32>,

    /// Tokens of a prompt: the length of a prefill, and what each sequence has behind it when it decodes. Several numbers are several
    /// cases; batches have one length. Default: 512; for batches 10.
    #[arg(long, short = 's', visible_alias = "sequence-length", value_delimiter = ',', value_parser = value_parser!(u32).range(1..=1_048_576))]
    pub input_tokens: Vec<u32>,

    /// Decode steps that are timed for each case in a round. Default: 32. Batches have --decode-length instead, which counts tokens.
    #[arg(long, value_parser = value_parser!(u32).range(1..=1_048_576))]
    pub output_tokens: Option<u32>,

    /// Times that every case is measured. More steadies the figures. Default: 3, all cases in turns; for batches 10, one size after another.
    #[arg(long, short, visible_alias = "runs", value_parser = value_parser!(u32).range(1..=1000))]
    pub rounds: Option<u32>,

    #[command(flatten)]
    pub batches: BatchArgs,

    #[command(flatten)]
    pub manner: MannerArgs,

    #[command(flatten)]
    pub compute: ComputeArgs,

    /// File for everything as JSON: command, machine, model, medians, and one row for each step; of batches one row for each run.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Nothing about how it goes on.
    #[arg(long, short)]
    pub quiet: bool,

    /// Whether this program was called text-generation-benchmark.
    #[arg(skip)]
    pub is_benchmark: bool,
}

impl EngineArgs {
    /// The flags of a program that is called text-generation-benchmark; wrong ones end it.
    pub fn of_benchmark() -> Self {
        let mut command = Self::benchmark_command();
        let parsed = Self::from_arg_matches(&command.get_matches_mut()).unwrap_or_else(|error| error.exit());
        Self { is_benchmark: true, ..parsed }
    }

    fn benchmark_command() -> Command {
        let command = Command::new("text-generation-benchmark").version(env!("CARGO_PKG_VERSION")).max_term_width(110);
        // MODEL_ID is the server's in a container that has both, and this program has a name of its own for it.
        let command = Self::augment_args(command).mut_arg("model_id", |arg| arg.env(Resettable::Reset));
        let with_env = |command: Command, (flag, variable): (&'static str, &'static str)| {
            command.mut_arg(flag, |arg| arg.env(variable))
        };
        BENCHMARK_ENV.into_iter().fold(command, with_env)
    }

    /// Whether batches shall be measured, not steps.
    pub fn measures_batches(&self) -> bool {
        self.is_benchmark || self.batches.is_given()
    }
}

/// What text-generation-benchmark has beside these.
#[derive(Debug, Args)]
#[command(next_help_heading = "Batches")]
pub struct BatchArgs {
    /// A running server to measure instead of an engine in this process: as many requests as the batch has start at once and stream their
    /// answers, so that scheduling, text and wire are in the times. Asked by OpenAI completions, which can go on after the end of text,
    /// unless --api names another dialect.
    #[arg(long)]
    pub url: Option<String>,

    /// The model, by text-generation-benchmark's name for it; --model-id is the same. With --url it is what the table calls the model, and
    /// if it is a tokenizer.json or a directory that holds one, that counts the tokens of prompts instead of the server.
    #[arg(long, short = 't', conflicts_with_all = ["model_id", "random_weights"])]
    pub tokenizer_name: Option<String>,

    /// Tokens that each sequence gets, the first of them by the prefill. Default: 8.
    #[arg(long, short, conflicts_with = "output_tokens", value_parser = value_parser!(u32).range(1..=1_048_576))]
    pub decode_length: Option<u32>,

    /// Runs of each size before those that count. Default: 1.
    #[arg(long, short, value_parser = value_parser!(u32).range(0..=1000))]
    pub warmups: Option<u32>,

    /// Divides the logits before a token is drawn.
    #[arg(long, value_parser = positive)]
    pub temperature: Option<f32>,

    /// Draw from so many likeliest tokens; 0 is all.
    #[arg(long)]
    pub top_k: Option<u32>,

    /// Draw from the likeliest tokens whose probabilities reach this.
    #[arg(long, value_parser = share)]
    pub top_p: Option<f32>,

    /// Draw from the tokens nearest to the entropy whose probabilities reach this.
    #[arg(long, value_parser = share)]
    pub typical_p: Option<f32>,

    /// Divides the logits of tokens seen before.
    #[arg(long, value_parser = positive)]
    pub repetition_penalty: Option<f32>,

    /// Subtracted from a token's logit for each time that the answer has it.
    #[arg(long, allow_negative_numbers = true, value_parser = penalty)]
    pub frequency_penalty: Option<f32>,

    /// Mark the text, which changes logits before a token is chosen.
    #[arg(long)]
    pub watermark: bool,

    /// Draw tokens even if nothing else asks for it; without it and with neutral values the likeliest is taken.
    #[arg(long)]
    pub do_sample: bool,

    /// Find so many likeliest tokens for each position.
    #[arg(long, value_parser = value_parser!(u8).range(1..=200))]
    pub top_n_tokens: Option<u8>,

    /// Refused: there are no shards behind a socket. --url measures a running server, --model-id an engine in this process.
    #[arg(long, short, value_name = "PATH")]
    pub master_shard_uds_path: Option<PathBuf>,

    /// How it is shown. The view fills the terminal of standard error; without one, and by `line`, each run is a line. Default:
    /// terminal.
    #[arg(long, value_enum, conflicts_with = "quiet")]
    pub ui: Option<Ui>,
}

impl BatchArgs {
    /// Whether batches are asked for.
    pub fn is_given(&self) -> bool {
        self.url.is_some()
            || self.tokenizer_name.is_some()
            || self.decode_length.is_some()
            || self.warmups.is_some()
            || self.sampling() != BatchSampling::default()
            || self.ui.is_some()
    }

    pub fn sampling(&self) -> BatchSampling {
        BatchSampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            typical_p: self.typical_p,
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            watermark: self.watermark,
            do_sample: self.do_sample,
            top_n_tokens: self.top_n_tokens,
        }
    }
}

/// Environment variables of text-generation-benchmark. They count under that name alone: as variables of every `pelton bench engine`
/// they would be too common words.
const BENCHMARK_ENV: [(&str, &str); 15] = [
    ("tokenizer_name", "TOKENIZER_NAME"),
    ("input_tokens", "SEQUENCE_LENGTH"),
    ("decode_length", "DECODE_LENGTH"),
    ("rounds", "RUNS"),
    ("warmups", "WARMUPS"),
    ("master_shard_uds_path", "MASTER_SHARD_UDS_PATH"),
    ("temperature", "TEMPERATURE"),
    ("top_k", "TOP_K"),
    ("top_p", "TOP_P"),
    ("typical_p", "TYPICAL_P"),
    ("repetition_penalty", "REPETITION_PENALTY"),
    ("frequency_penalty", "FREQUENCY_PENALTY"),
    ("watermark", "WATERMARK"),
    ("do_sample", "DO_SAMPLE"),
    ("top_n_tokens", "TOP_N_TOKENS"),
];

fn positive(text: &str) -> Result<f32, String> {
    number(text, |value| value > 0.0, "above 0")
}

fn share(text: &str) -> Result<f32, String> {
    number(text, |value| value > 0.0 && value <= 1.0, "above 0 and at most 1")
}

fn penalty(text: &str) -> Result<f32, String> {
    number(text, |value| (-2.0..=2.0).contains(&value), "in -2..=2")
}

fn number(text: &str, fits: impl Fn(f32) -> bool, wanted: &str) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|_| "not a number".to_owned())?;
    if value.is_finite() && fits(value) { Ok(value) } else { Err(format!("must be {wanted}")) }
}

const EXAMPLES: &str = "\
Examples:
  pelton bench engine
  pelton bench engine --random-weights tinyllama-1.1b --batch 1,8,32 --input-tokens 512 --output run.json
  pelton bench engine --model-id PATH --dtype bfloat16 --batch 1 --input-tokens 128,2048
  pelton bench engine --model-id PATH --batch-size 1 --batch-size 8 --sequence-length 512 --decode-length 64
  pelton bench engine --url http://127.0.0.1:3000 --batch 1,4,16 --sequence-length 128 --decode-length 16";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_benchmark_has_its_variables_and_names() {
        EngineArgs::benchmark_command().debug_assert();
        let typed =
            ["text-generation-benchmark", "-t", "x", "-b", "1", "-b", "2", "-s", "10", "-d", "8", "-r", "3", "-w", "2"];
        let matches = EngineArgs::benchmark_command().try_get_matches_from(typed).expect("its flags");
        let args = EngineArgs::from_arg_matches(&matches).expect("its flags");
        assert_eq!((args.batch, args.input_tokens, args.rounds), (vec![1, 2], vec![10], Some(3)));
        assert_eq!((args.batches.decode_length, args.batches.warmups), (Some(8), Some(2)));
        assert_eq!(args.batches.tokenizer_name.as_deref(), Some("x"));
    }

    #[test]
    fn numbers_outside_their_range_are_told() {
        assert_eq!(share("1.5"), Err("must be above 0 and at most 1".into()));
        assert_eq!(positive("0"), Err("must be above 0".into()));
        assert_eq!(penalty("-2"), Ok(-2.0));
        assert_eq!(positive("NaN"), Err("must be above 0".into()));
        assert_eq!(positive("warm"), Err("not a number".into()));
    }
}
