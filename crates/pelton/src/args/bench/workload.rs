//! Flags that say what is asked for.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use pelton_bench::{DatasetPlan, FilesPlan, Fim, Lengths, PromptMix, Source, ThinkTime, WorkloadPlan};

use crate::args::duration::duration;

#[derive(Debug, Args)]
#[command(next_help_heading = "Requests")]
pub struct WorkloadArgs {
    /// Tokens of each prompt, as the server counts them, chat template included; in a conversation, of each message.
    ///
    /// One number, or a distribution: uniform:100..600, normal:MEAN,DEVIATION, lognormal:MEDIAN,SIGMA (sigma of the natural
    /// logarithm: 0.6 puts 95 % between a third and three times the median), exponential:MEAN, file:LENGTHS.csv (lines drawn at
    /// random; first column prompts, second answers). Bounds may stand behind: lognormal:512,0.6,16..4096.
    /// Default: 512, or what the dataset or trace has.
    #[arg(long, value_name = "LENGTHS")]
    pub input_tokens: Option<Lengths>,

    /// Tokens of each answer: a number or a distribution as for --input-tokens. Default: 128, or what the dataset or trace has.
    ///
    /// OpenAI servers that know ignore_eos are asked to go on after the end of text; TGI has no such field, so its answers may
    /// end earlier, and the report says how many did.
    #[arg(long, value_name = "LENGTHS")]
    pub output_tokens: Option<Lengths>,

    /// Send one and the same prompt: the server's prefix cache will answer for most of the prefill.
    #[arg(long, conflicts_with_all = ["shared_prefix", "prefix_hit_rate"])]
    pub same_prompt: bool,

    /// Let prompts share their first N tokens, as a system prompt does. Without it they differ from the first token on.
    /// A warm prefix cache then finds N / (mean prompt length) of all prompt tokens.
    #[arg(long, value_name = "TOKENS", group = "prefix")]
    pub shared_prefix: Option<u32>,

    /// Let prompts share this part of their own tokens (0.6: the first 60 %), so that a warm prefix cache finds this share of
    /// all prompt tokens, whatever the lengths. Servers that cache whole blocks of B tokens find up to B - 1 fewer of each.
    #[arg(long, value_name = "SHARE", group = "prefix")]
    pub prefix_hit_rate: Option<f64>,

    /// How many different prefixes there are; each request draws one. The first request of each finds nothing: of R requests,
    /// G (1 - (1 - 1/G)^R) are such. More groups than the server's cache can hold show what eviction costs.
    #[arg(long, value_name = "N", requires = "prefix", default_value_t = 1)]
    pub prefix_groups: u32,

    /// Messages of the user in each conversation: a number or a distribution (uniform:2..8). What was said before, the server's
    /// answers too, is sent again each time: as messages to a chat server, as a growing text to others.
    #[arg(long, value_name = "LENGTHS", default_value = "1")]
    pub turns: Lengths,

    /// Time between an answer and the next message of its conversation: 2s, or exp:2s for exponentially distributed times.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = think_time)]
    pub think_time: ThinkTime,

    /// A folder of source files, cut into prompts of exact length that begin at a random line and end anywhere, as an editor
    /// sends them. Hidden files, links, files above 1 MiB and those that are no text are left out.
    #[arg(long, value_name = "DIR", conflicts_with = "dataset", help_heading = "Texts")]
    pub files: Option<PathBuf>,

    /// Endings of files to use, instead of those of common languages: rs,py,ts
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "files", help_heading = "Texts")]
    pub file_types: Vec<String>,

    /// Ask to fill a gap in the middle, by these three special tokens: '<|fim_prefix|>,<|fim_suffix|>,<|fim_middle|>' for Qwen,
    /// '<fim_prefix>,<fim_suffix>,<fim_middle>' for StarCoder. The gap is the rest of a line.
    #[arg(long, value_name = "P,S,M", requires = "files", value_parser = fim, help_heading = "Texts")]
    pub fim: Option<Fim>,

    /// A file of prompts or conversations: JSON lines or one array, with `conversations` (ShareGPT), `messages` (OpenAI),
    /// `prompt` or `text`. Lengths are those of the dataset, unless --input-tokens (texts are cut, or repeated until long
    /// enough) or --output-tokens say others. Without --turns the first message of each conversation is asked.
    #[arg(long, value_name = "FILE", help_heading = "Texts")]
    pub dataset: Option<PathBuf>,

    /// Leave out prompts of the dataset that are shorter.
    #[arg(long, value_name = "TOKENS", requires = "dataset", help_heading = "Texts")]
    pub dataset_min_tokens: Option<u32>,

    /// Leave out prompts of the dataset that are longer: what the model's context does not hold would be an error each time.
    #[arg(long, value_name = "TOKENS", requires = "dataset", help_heading = "Texts")]
    pub dataset_max_tokens: Option<u32>,

    /// A tokenizer.json, or the directory that holds it, to make prompts of exact length. Without it the server's /tokenize is
    /// asked (TGI, vLLM, llama.cpp); without that, words of one token are found by some twenty requests, if the server reports
    /// how many tokens a prompt had. The server's own count is compared afterwards in each case.
    #[arg(long, value_name = "PATH")]
    pub tokenizer: Option<PathBuf>,

    /// Seed of prompts and random arrivals. Default: a new one each time, since prompts of an earlier run may be in the
    /// server's prefix cache; it is printed and stored.
    #[arg(long)]
    pub seed: Option<u64>,
}

impl WorkloadArgs {
    /// `trace` is the file whose times are replayed, if one is: it has lengths too.
    pub fn plan(self, trace: Option<&Path>) -> WorkloadPlan {
        let groups = self.prefix_groups;
        let prompts = match (self.same_prompt, self.shared_prefix, self.prefix_hit_rate) {
            (true, ..) => PromptMix::Same,
            (false, Some(tokens), _) => PromptMix::SharedPrefix { tokens, groups },
            (false, None, Some(rate)) => PromptMix::HitRate { rate, groups },
            (false, None, None) => PromptMix::Distinct,
        };
        let source = match (self.files, self.dataset, trace) {
            (Some(dir), ..) => Source::Files(FilesPlan { dir, extensions: endings(self.file_types), fim: self.fim }),
            (None, Some(file), _) => Source::Dataset(DatasetPlan {
                file,
                min_tokens: self.dataset_min_tokens,
                max_tokens: self.dataset_max_tokens,
            }),
            // Its own lengths, unless others are wished at its times.
            (None, None, Some(trace)) if self.input_tokens.is_none() && self.output_tokens.is_none() => {
                Source::Trace(trace.to_owned())
            }
            (None, None, _) => Source::Synthetic,
        };
        WorkloadPlan {
            source,
            input_tokens: self.input_tokens,
            output_tokens: self.output_tokens,
            prompts,
            turns: self.turns,
            think: self.think_time,
            seed: self.seed.unwrap_or_else(new_seed),
            tokenizer: self.tokenizer,
        }
    }
}

/// As typed, with or without a dot.
fn endings(typed: Vec<String>) -> Vec<String> {
    if typed.is_empty() {
        return FilesPlan::EXTENSIONS.map(str::to_owned).to_vec();
    }
    typed.iter().map(|ending| ending.trim().trim_start_matches(['*', '.']).to_ascii_lowercase()).collect()
}

fn think_time(text: &str) -> Result<ThinkTime, String> {
    match text.strip_prefix("exp:") {
        Some(mean) => duration(mean).map(ThinkTime::Exponential),
        None => duration(text).map(ThinkTime::Fixed),
    }
}

fn fim(text: &str) -> Result<Fim, String> {
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    match parts[..] {
        [prefix, suffix, middle] if parts.iter().all(|part| !part.is_empty()) => {
            Ok(Fim { prefix: prefix.to_owned(), suffix: suffix.to_owned(), middle: middle.to_owned() })
        }
        _ => Err("three special tokens are written as `PREFIX,SUFFIX,MIDDLE`".to_owned()),
    }
}

/// Short enough to be typed again.
pub fn new_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) ^ (now.as_secs() & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn think_times_are_fixed_or_exponential() {
        assert_eq!(think_time("2s"), Ok(ThinkTime::Fixed(Duration::from_secs(2))));
        assert_eq!(think_time("exp:500ms"), Ok(ThinkTime::Exponential(Duration::from_millis(500))));
        assert!(think_time("exp:2").is_err());
    }

    #[test]
    fn three_special_tokens_ask_for_the_middle() {
        let expected = Fim { prefix: "<P>".to_owned(), suffix: "<S>".to_owned(), middle: "<M>".to_owned() };
        assert_eq!(fim("<P>, <S>,<M>"), Ok(expected));
        assert!(fim("<P>,<S>").is_err() && fim("<P>,,<M>").is_err());
    }

    #[test]
    fn endings_are_typed_in_any_form() {
        assert_eq!(endings(vec!["*.RS".to_owned(), ".py".to_owned(), "ts".to_owned()]), ["rs", "py", "ts"]);
        assert!(endings(Vec::new()).contains(&"rs".to_owned()));
    }
}
