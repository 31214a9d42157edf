//! `pelton eval`: loads a model, lets it predict a text, prints how well it did.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use pelton_cpu::CpuBackend;
use pelton_model::perplexity::{PerplexityPlan, PerplexityScore};
use pelton_model::{Decoder, KvBudget, LoadOptions, Model, load};
use pelton_text::TextModel;
use serde::{Deserialize, Serialize};

use super::bench::command;
use super::checkpoint;
use super::output::OutputFile;
use super::serve::BLOCK_TOKENS;
use crate::args::eval::{EvalArgs, EvalCommand, PerplexityArgs};

/// Tokens of a window where nobody says: more costs much and changes little.
const CONTEXT: usize = 2048;
/// Rows of a step: more of them make no step faster, and their logits take memory.
const STEP_ROWS: usize = 256;

/// What `--output` holds, and `--against` reads.
#[derive(Serialize, Deserialize)]
struct Report {
    pelton_version: String,
    command: Vec<String>,
    model: ModelFacts,
    text: TextFacts,
    plan: PerplexityPlan,
    perplexity: f64,
    nats_per_token: f64,
    bits_per_byte: f64,
    #[serde(flatten)]
    score: PerplexityScore,
}

#[derive(Serialize, Deserialize)]
struct ModelFacts {
    name: String,
    architecture: String,
    num_parameters: u64,
    weights: String,
    weights_bytes: u64,
    kv_cache: String,
    /// Of one token, keys and values of all layers.
    kv_token_bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct TextFacts {
    file: String,
    tokens: usize,
    /// Of the tokens that were predicted.
    bytes: usize,
}

pub fn run(args: &EvalArgs) -> Result<ExitCode> {
    match &args.command {
        EvalCommand::Perplexity(args) => perplexity(args),
    }
}

fn perplexity(args: &PerplexityArgs) -> Result<ExitCode> {
    if args.model_id.as_deref() == Some("fake") {
        bail!("--model-id fake predicts nothing: name a checkpoint, or leave it out");
    }
    let source = std::fs::read_to_string(&args.text).with_context(|| format!("cannot read {}", args.text.display()))?;
    let earlier = args.against.as_deref().map(read_report).transpose()?;
    let output = args.output.as_deref().map(OutputFile::create).transpose()?;
    let (files, name) = checkpoint::find(args.model_id.as_deref(), &args.hub)?;
    let read = |name: &str| Ok(files.read(name).map_err(io::Error::other)?.map(|bytes| bytes.into_owned()));
    let text = TextModel::from_files(&read).with_context(|| format!("cannot load the tokenizer of {name}"))?;
    let mut tokens = text.encode(&source, false)?;
    tokens.truncate(args.max_tokens.map_or(usize::MAX, |most| most as usize));
    let plan_for = |max_positions: usize| {
        let context = args.context.map_or(CONTEXT.min(max_positions), |context| context as usize);
        let stride = args.stride.map_or((context / 2).max(1), |stride| stride as usize);
        PerplexityPlan { context, stride, prefix: text.encode("", true).unwrap_or_default() }
    };

    let backend = CpuBackend::new(args.compute.config())?;
    let options = LoadOptions {
        block_tokens: BLOCK_TOKENS as usize,
        max_step_rows: STEP_ROWS,
        max_logit_rows: STEP_ROWS,
        max_positions: args.context.map(|context| context as usize),
        kv_budget: KvBudget::Tokens(args.context.map_or(CONTEXT, |context| context as usize)),
        show_progress: !args.quiet,
        ..args.precision.load_options()?
    };
    let mut decoder = load(&files, backend, &options).with_context(|| format!("cannot load model {name}"))?;
    let plan = plan_for(decoder.spec().max_positions);
    plan.check(&tokens, decoder.spec().vocab_size, decoder.spec().max_positions)?;

    let bar = progress_bar(args.quiet, plan.num_windows(tokens.len()));
    let mut done = PerplexityScore { windows: Vec::new() };
    let score = plan.measure(&mut decoder, &tokens, &mut |window| {
        done.windows.push(*window);
        bar.set_message(format!("{:.3}", done.nats().mean.exp()));
        bar.inc(1);
    })?;
    bar.finish_and_clear();

    let bytes: usize = tokens[plan.num_unscored()..].iter().map(|&token| text.token_bytes(token).len()).sum();
    let nats = score.nats();
    let report = Report {
        pelton_version: env!("CARGO_PKG_VERSION").to_owned(),
        command: command(std::env::args()),
        model: model_facts(&decoder, name),
        text: TextFacts { file: args.text.display().to_string(), tokens: tokens.len(), bytes },
        plan,
        perplexity: nats.mean.exp(),
        nats_per_token: nats.mean,
        bits_per_byte: nats.mean * score.tokens() as f64 / std::f64::consts::LN_2 / bytes.max(1) as f64,
        score,
    };
    let mut out = io::stdout().lock();
    // A reader that has seen enough (`| head`) is no error.
    let _ = print(&report, &mut out);
    if let Some(earlier) = &earlier {
        let _ = write!(out, "{}", comparison(&report, earlier)?);
    }
    if let Some(output) = output {
        output.write_json(&report)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn read_report(path: &Path) -> Result<Report> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&bytes)
        .with_context(|| format!("{} is not what `pelton eval perplexity --output` writes", path.display()))
}

fn model_facts(decoder: &Decoder<CpuBackend>, name: String) -> ModelFacts {
    let (info, plan) = (decoder.info(), decoder.plan());
    ModelFacts {
        name,
        architecture: info.architecture.to_owned(),
        num_parameters: info.num_parameters,
        weights: info.format.to_string(),
        weights_bytes: plan.weights_bytes,
        kv_cache: info.kv_format.to_string(),
        kv_token_bytes: plan.position_bytes(),
    }
}

fn progress_bar(quiet: bool, windows: usize) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    // Drawn on standard error, and only when that is a terminal.
    let bar = ProgressBar::new(windows as u64);
    let template =
        "predicting [{bar:32}] {pos} of {len} windows, {elapsed} (about {eta} more), perplexity so far {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

fn print(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let Report { model, text, plan, score, .. } = report;
    writeln!(
        out,
        "model       {}, {}, {:.1} million parameters",
        model.name,
        model.architecture,
        model.num_parameters as f64 / 1e6
    )?;
    writeln!(
        out,
        "formats     weights {} ({:.2} MB), keys and values {} ({} bytes a token)",
        model.weights,
        model.weights_bytes as f64 / 1e6,
        model.kv_cache,
        model.kv_token_bytes
    )?;
    writeln!(
        out,
        "text        {}: {} tokens predicted ({} bytes) in {} windows of {}, each {} further",
        text.file,
        score.tokens(),
        text.bytes,
        score.windows.len(),
        plan.context,
        plan.stride
    )?;
    let nats = score.nats();
    write!(out, "perplexity  {:.4}", report.perplexity)?;
    if nats.half_width.is_finite() {
        let (low, high) = ((nats.mean - nats.half_width).exp(), (nats.mean + nats.half_width).exp());
        write!(out, " (95 % of such texts: {low:.4} to {high:.4})")?;
    }
    writeln!(out, "; {:.4} nats a token, {:.4} bits a byte", nats.mean, report.bits_per_byte)
}

/// One line: how far the perplexity is from that of `earlier`.
fn comparison(report: &Report, earlier: &Report) -> Result<String> {
    let same = report.plan == earlier.plan
        && (report.text.tokens, report.text.bytes) == (earlier.text.tokens, earlier.text.bytes);
    let Some(above) = report.score.nats_above(&earlier.score).filter(|_| same) else {
        bail!(
            "--against has {} tokens ({} bytes) in windows of {} each {} further, this run {} ({} bytes) in {} each {}: they do not compare",
            earlier.text.tokens,
            earlier.text.bytes,
            earlier.plan.context,
            earlier.plan.stride,
            report.text.tokens,
            report.text.bytes,
            report.plan.context,
            report.plan.stride
        );
    };
    let percent = |nats: f64| 100.0 * nats.exp_m1();
    let mut line =
        format!("against     {} in {}: {:+.3} %", earlier.model.name, earlier.model.weights, percent(above.mean));
    if earlier.model.kv_cache != report.model.kv_cache {
        line += &format!(" (keys and values there in {})", earlier.model.kv_cache);
    }
    if above.half_width.is_finite() {
        let (low, high) = (above.mean - above.half_width, above.mean + above.half_width);
        line += &format!(", 95 % interval {:+.3} % to {:+.3} %", percent(low), percent(high));
        if low < 0.0 && high > 0.0 {
            line += ": no significant difference";
        }
    }
    Ok(line + "\n")
}
