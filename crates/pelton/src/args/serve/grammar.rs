//! What is done to texts: grammars and the watermark.

use clap::Args;

#[derive(Debug, Args)]
#[command(next_help_heading = "Grammars and watermark")]
pub struct GrammarArgs {
    /// Refuse requests for JSON, patterns, grammars and tools. Saves the memory of the vocabulary's prefix tree (some ten bytes for each
    /// byte of all tokens), which is made when the first of them comes.
    #[arg(long, env = "DISABLE_GRAMMAR_SUPPORT", value_parser = clap::builder::BoolishValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub disable_grammar_support: bool,

    /// Share of the vocabulary that is made likelier after each token, for requests with `watermark`.
    #[arg(long, env = "WATERMARK_GAMMA", default_value_t = 0.5, value_parser = share)]
    pub watermark_gamma: f32,

    /// How much likelier: what is added to their logits. More is found in shorter texts and harms them more.
    #[arg(long, env = "WATERMARK_DELTA", default_value_t = 2.0, value_parser = bias)]
    pub watermark_delta: f32,
}

fn share(text: &str) -> Result<f32, String> {
    let share: f32 = text.parse().map_err(|_| "not a number".to_owned())?;
    if share > 0.0 && share < 1.0 { Ok(share) } else { Err("must be between 0 and 1".to_owned()) }
}

fn bias(text: &str) -> Result<f32, String> {
    let bias: f32 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=100.0).contains(&bias) { Ok(bias) } else { Err("must be between 0 and 100".to_owned()) }
}
