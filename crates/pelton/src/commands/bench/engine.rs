//! `pelton bench engine`: loads or makes a model, times its steps, prints a table and writes rows; or measures batches.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use pelton_backend::Backend;
use pelton_cpu::CpuBackend;
use pelton_cpu::measure::{CpuFacts, ReadBandwidth};
use pelton_model::rates::{RatePlan, RateRow, RateSummary, RateTable, Rates};
use pelton_model::{Decoder, KvBudget, LoadOptions, load, load_random};
use serde::Serialize;

use super::{batches, command, unix_seconds};
use crate::args::bench::engine::EngineArgs;
use crate::commands::checkpoint;
use crate::commands::output::OutputFile;
use crate::commands::serve::BLOCK_TOKENS;

/// Made-up weights are the same every time.
const WEIGHTS_SEED: u64 = 0;

/// What `--output` holds.
#[derive(Serialize)]
struct Report<'a> {
    pelton_version: &'static str,
    command: Vec<String>,
    began_unix_s: u64,
    cpu: CpuFacts,
    device: String,
    model: ModelFacts,
    plan: &'a RatePlan,
    rounds: u32,
    /// Median of passes between the rounds.
    memory_bytes_per_s: f64,
    cases: &'a [RateSummary],
    rows: &'a [RateRow],
}

/// Which model was computed, and in what.
#[derive(Serialize)]
pub struct ModelFacts {
    pub name: String,
    random_weights: bool,
    architecture: &'static str,
    num_parameters: u64,
    pub dtype: String,
    kv_cache_dtype: String,
    weights_bytes: u64,
    /// Weights that every step with logits reads.
    step_weights_bytes: u64,
    /// Keys and values of one position.
    position_bytes: u64,
}

impl ModelFacts {
    pub fn of(decoder: &Decoder<CpuBackend>, name: String, is_random: bool) -> Self {
        let (memory, info) = (decoder.plan(), decoder.info());
        Self {
            name,
            random_weights: is_random,
            architecture: info.architecture,
            num_parameters: info.num_parameters,
            dtype: info.format.to_string(),
            kv_cache_dtype: info.kv_format.to_string(),
            weights_bytes: memory.weights_bytes,
            step_weights_bytes: memory.step_weights_bytes(),
            position_bytes: memory.position_bytes(),
        }
    }
}

/// Measures steps, or batches where those are asked for.
pub fn run(args: EngineArgs) -> Result<ExitCode> {
    if args.batches.master_shard_uds_path.is_some() {
        bail!(
            "--master-shard-uds-path (-m) names the socket of a shard, and there are none here: --url measures a running server, --model-id an \
             engine in this process"
        );
    }
    if let (None, Some(flag)) = (&args.batches.url, args.manner.given()) {
        bail!("{flag} says how a server is spoken to: name one with --url, or leave it out");
    }
    if args.measures_batches() { batches::run(args) } else { steps(&args) }
}

fn steps(args: &EngineArgs) -> Result<ExitCode> {
    let began_unix_s = unix_seconds();
    let numbers = |list: &[u32], default: &[u32]| {
        let list = if list.is_empty() { default } else { list };
        list.iter().map(|&number| number as usize).collect()
    };
    let rounds = args.rounds.unwrap_or(3);
    let plan = RatePlan {
        batch: numbers(&args.batch, &[1, 8, 32]),
        input_tokens: numbers(&args.input_tokens, &[512]),
        output_tokens: args.output_tokens.unwrap_or(32) as usize,
        step_tokens: args.max_batch_prefill_tokens.unwrap_or(256) as usize,
    };
    let mut rates = Rates::new(plan.clone())?;
    let output = args.output.as_deref().map(OutputFile::create).transpose()?;
    let cpu = CpuFacts::here();
    let room = Room {
        step_rows: plan.max_step_rows(),
        sequences: plan.max_batch(),
        positions: plan.max_positions(),
        num_blocks: plan.num_blocks(BLOCK_TOKENS as usize),
    };
    let (mut decoder, name) = decoder(args, args.model_id.as_deref(), &room)?;
    let mut bandwidth = ReadBandwidth::new(decoder.backend(), &cpu)?;
    decoder.fill_kv(plan.num_blocks(BLOCK_TOKENS as usize) as u32)?;

    let bar = progress_bar(args, u64::from(rounds) * rates.round_steps() as u64);
    rates.warm_up(&mut decoder)?;
    for _ in 0..rounds {
        bandwidth.measure(decoder.backend());
        rates.round(&mut decoder, &mut || bar.inc(1))?;
    }
    bandwidth.measure(decoder.backend());
    bar.finish_and_clear();

    let memory = decoder.plan();
    let memory_bytes_per_s = bandwidth.bytes_per_s();
    let cases = rates.summaries(memory, memory_bytes_per_s);
    let report = Report {
        pelton_version: env!("CARGO_PKG_VERSION"),
        command: command(std::env::args()),
        began_unix_s,
        cpu,
        device: decoder.backend().describe(),
        model: ModelFacts::of(&decoder, name, args.random_weights.is_some()),
        plan: &plan,
        rounds,
        memory_bytes_per_s,
        cases: &cases,
        rows: rates.rows(),
    };
    // A reader that has seen enough (`| head`) is no error.
    let _ = print(&report);
    if let Some(output) = output {
        output.write_json(&report)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What a model must have room for.
pub struct Room {
    pub step_rows: usize,
    pub sequences: usize,
    /// Of each sequence, input and output together.
    pub positions: usize,
    pub num_blocks: usize,
}

/// The model to measure, with its name.
pub fn decoder(args: &EngineArgs, id: Option<&str>, room: &Room) -> Result<(Decoder<CpuBackend>, String)> {
    if id == Some("fake") {
        bail!("--model-id fake computes nothing that could be measured: name a checkpoint, or leave it out");
    }
    let backend = CpuBackend::new(args.compute.config())?;
    let options = LoadOptions {
        block_tokens: BLOCK_TOKENS as usize,
        max_step_rows: room.step_rows,
        max_logit_rows: room.sequences,
        max_positions: Some(room.positions),
        kv_budget: KvBudget::Tokens(room.num_blocks * BLOCK_TOKENS as usize),
        show_progress: !args.quiet,
        ..args.precision.load_options()?
    };
    let told = format!("with room for {} sequences of {} tokens", room.sequences, room.positions);
    match &args.random_weights {
        Some(shape) => {
            checkpoint::check_no_revision(&args.hub)?;
            let decoder = load_random(&shape.config()?, WEIGHTS_SEED, backend, &options)
                .with_context(|| format!("cannot make {} {told}", shape.name))?;
            Ok((decoder, shape.name.to_owned()))
        }
        None => {
            let (files, name) = checkpoint::find(id, &args.hub)?;
            let decoder =
                load(&files, backend, &options).with_context(|| format!("cannot load model {name} {told}"))?;
            Ok((decoder, name))
        }
    }
}

fn progress_bar(args: &EngineArgs, num_steps: u64) -> ProgressBar {
    if args.quiet {
        return ProgressBar::hidden();
    }
    // Drawn on standard error, and only when that is a terminal.
    let bar = ProgressBar::new(num_steps);
    if let Ok(style) =
        ProgressStyle::with_template("measuring [{bar:32}] {pos} of {len} steps, {elapsed} (about {eta} more)")
    {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

fn print(report: &Report<'_>) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let Report { model, plan, .. } = report;
    let weights = if model.random_weights { "made-up weights" } else { "its weights" };
    writeln!(
        out,
        "model     {}, {:.1} million parameters, {weights} in {}, keys and values in {}",
        model.name,
        model.num_parameters as f64 / 1e6,
        model.dtype,
        model.kv_cache_dtype
    )?;
    writeln!(out, "machine   {}; {}", report.cpu.model, report.device)?;
    writeln!(out, "memory    {:.1} GB/s read", report.memory_bytes_per_s / 1e9)?;
    writeln!(
        out,
        "plan      {} rounds, prefill in steps of {} tokens, {} decode steps a round\n",
        report.rounds, plan.step_tokens, plan.output_tokens
    )?;
    write!(out, "{}", RateTable(report.cases))
}
