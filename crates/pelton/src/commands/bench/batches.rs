//! Prefill and decode by batch size, of an engine in this process or of a server: text-generation-benchmark.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pelton_backend::Backend;
use pelton_bench::batches::{BatchSight, BatchTimes, Batches};
use pelton_bench::watch::Control;
use pelton_bench::{Api, BenchError, WorkloadPlan};
use pelton_cpu::measure::CpuFacts;
use pelton_engine::{Batch, BatchEngine, ReportParams, SamplingParams};
use pelton_live::BatchView;
use pelton_report::recipes::engine::Engine;
use pelton_serve::ServeConfig;
use serde::Serialize;

use super::engine::{ModelFacts, Room, decoder};
use super::interrupts::stop_at_interrupt;
use super::{command, unix_seconds};
use crate::args::bench::Ui;
use crate::args::bench::engine::EngineArgs;
use crate::args::bench::workload::new_seed;
use crate::args::compute::{DtypeArg, KvCacheDtypeArg};
use crate::commands::output::OutputFile;
use crate::commands::serve::BLOCK_TOKENS;

/// Batch sizes of the original.
const SIZES: [u32; 6] = [1, 2, 4, 8, 16, 32];

/// Tokens of a prefill step, where nobody says it, at most: buffers grow with it.
const MAX_STEP_TOKENS: usize = 4096;

/// What `--output` holds.
#[derive(Serialize)]
struct Report<'a> {
    pelton_version: &'static str,
    command: Vec<String>,
    began_unix_s: u64,
    measured: &'a Measured,
    batches: &'a Batches,
    runs: &'a [BatchTimes],
    failures: &'a [FailedRun],
}

/// A run that is in no figure.
#[derive(Serialize)]
struct FailedRun {
    batch: usize,
    reason: String,
}

/// What was measured.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
enum Measured {
    /// In this process.
    Engine {
        model: Box<ModelFacts>,
        cpu: CpuFacts,
        device: String,
        max_batch_prefill_tokens: usize,
    },
    Server {
        url: String,
    },
}

impl Measured {
    /// For people.
    fn told(&self) -> String {
        match self {
            Measured::Engine { model, cpu, device, max_batch_prefill_tokens } => format!(
                "an engine in this process: {} in {}, {}; {device}; prefill in steps of at most {max_batch_prefill_tokens} tokens. Prefill \
                 ends when the last sequence has its first token, decode with the last token of all; scheduling and sampling are in the \
                 times, text and wire are not",
                model.name, model.dtype, cpu.model
            ),
            Measured::Server { url } => format!(
                "the server at {url}, over the wire: requests of a batch start at once. Prefill ends when the last of them has its first \
                 token, decode with the last token of all; scheduling, text and wire are in the times"
            ),
        }
    }
}

/// Measures, shows, prints the tables; also those of a measurement that was ended early.
pub fn run(args: EngineArgs) -> Result<ExitCode> {
    let began_unix_s = unix_seconds();
    let mut batches = asked(&args)?;
    let output = args.output.as_deref().map(OutputFile::create).transpose()?;
    let (quiet, ui) = (args.quiet, args.batches.ui.unwrap_or(Ui::Terminal));
    let (mut runs, mut failures) = (Vec::new(), Vec::new());
    let (measured, result) = match args.batches.url.clone() {
        Some(url) => server(args, url, &mut batches, &mut runs, &mut failures)?,
        None => engine(&args, &mut batches, &mut runs, quiet, ui)?,
    };
    // A reader that has seen enough (`| head`) is no error.
    let _ = write!(std::io::stdout().lock(), "{}", Engine { batches: &batches, runs: &runs });
    if !quiet {
        eprintln!("\nmeasured: {}", measured.told());
    }
    if let Some(FailedRun { batch, reason }) = failures.first() {
        let (failed, all) = (failures.len(), failures.len() + runs.len());
        eprintln!("error: {failed} of {all} runs failed and are in no figure; the first, of batch {batch}: {reason}");
    }
    if let Some(output) = output {
        output.write_json(&Report {
            pelton_version: env!("CARGO_PKG_VERSION"),
            command: command(std::env::args()),
            began_unix_s,
            measured: &measured,
            batches: &batches,
            runs: &runs,
            failures: &failures,
        })?;
    }
    result?;
    let is_complete = batches.sizes.iter().all(|&size| runs.iter().any(|times| times.batch == size));
    Ok(if is_complete && failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What was typed, with the defaults of the original.
fn asked(args: &EngineArgs) -> Result<Batches> {
    if args.output_tokens.is_some() {
        bail!("--output-tokens counts steps of a model alone; batches have --decode-length, which counts tokens");
    }
    let sequence_length = match args.input_tokens[..] {
        [] => 10,
        [length] => length,
        _ => bail!("batches have prompts of one length, given {:?}", args.input_tokens),
    };
    let sizes: Vec<u32> = if args.batch.is_empty() { SIZES.to_vec() } else { args.batch.clone() };
    let mut sizes: Vec<usize> = sizes.into_iter().map(|size| size as usize).collect();
    if sizes.len() > 64 {
        bail!("number of batch sizes is {}, limit is 64", sizes.len());
    }
    let mut seen = Vec::new();
    sizes.retain(|size| {
        !seen.contains(size) && {
            seen.push(*size);
            true
        }
    });
    Ok(Batches {
        model: args.batches.tokenizer_name.clone().unwrap_or_default(),
        sizes,
        sequence_length,
        decode_length: args.batches.decode_length.unwrap_or(8),
        runs: args.rounds.unwrap_or(10),
        warmups: args.batches.warmups.unwrap_or(1),
        sampling: args.batches.sampling(),
    })
}

/// Loads the model and measures an engine of its own. The inner error is of a measurement that began.
fn engine(
    args: &EngineArgs,
    batches: &mut Batches,
    runs: &mut Vec<BatchTimes>,
    quiet: bool,
    ui: Ui,
) -> Result<(Measured, Result<()>)> {
    let max_size = batches.sizes.iter().copied().max().unwrap_or(1);
    let whole = (max_size * batches.sequence_length as usize).clamp(max_size, MAX_STEP_TOKENS.max(max_size));
    let step_tokens = args.max_batch_prefill_tokens.map_or(whole, |tokens| (tokens as usize).max(max_size));
    let positions = (batches.sequence_length + batches.decode_length) as usize;
    let room = Room {
        step_rows: step_tokens,
        sequences: max_size,
        positions,
        num_blocks: max_size * positions.div_ceil(BLOCK_TOKENS as usize),
    };
    let id = args.model_id.as_deref().or(args.batches.tokenizer_name.as_deref());
    let (decoder, name) = decoder(args, id, &room)?;
    batches.model = name.clone();
    let measured = Measured::Engine {
        model: Box::new(ModelFacts::of(&decoder, name, args.random_weights.is_some())),
        cpu: CpuFacts::here(),
        device: decoder.backend().describe(),
        max_batch_prefill_tokens: step_tokens,
    };
    let engine = BatchEngine::start(Box::new(decoder))?;
    let control = Control::default();
    let mut show = Show::new(quiet, ui, batches, &control);
    stop_at_interrupt(&control, 1)?;
    let sampling = &batches.sampling;
    let draws = sampling.draws();
    let batch = Batch {
        size: 0,
        num_prompt_tokens: batches.sequence_length as usize,
        num_new_tokens: batches.decode_length,
        sampling: SamplingParams {
            temperature: if draws { sampling.temperature.unwrap_or(1.0) } else { 0.0 },
            top_k: sampling.top_k.unwrap_or(0),
            top_p: sampling.top_p.unwrap_or(1.0),
            typical_p: sampling.typical_p.unwrap_or(1.0),
            repetition_penalty: sampling.repetition_penalty.unwrap_or(1.0),
            frequency_penalty: sampling.frequency_penalty.unwrap_or(0.0),
            // As strong as a server marks unless it is told otherwise.
            watermark: sampling.watermark.then(|| ServeConfig::default().watermark),
            ..SamplingParams::default()
        },
        // Every token of that dialect comes with its log-probability.
        report: ReportParams { logprobs: true, top_n: sampling.top_n_tokens.unwrap_or(0), prompt_logprobs: None },
    };
    let mut measure = || -> Result<()> {
        for &size in &batches.sizes {
            show.see(BatchSight::Begins { batch: size });
            for run in 0..batches.warmups + batches.runs {
                if control.is_stopped() {
                    return Ok(());
                }
                let batch = Batch { size, ..batch.clone() };
                let Some(times) = engine.run(&batch, &|| control.is_stopped())? else { return Ok(()) };
                if run < batches.warmups {
                    show.see(BatchSight::Warmed);
                    continue;
                }
                let millis = |time: Duration| 1e3 * time.as_secs_f64();
                let times =
                    BatchTimes { batch: size, prefill_ms: millis(times.prefill), decode_ms: millis(times.decode) };
                runs.push(times);
                show.see(BatchSight::Ran(&times));
            }
        }
        Ok(())
    };
    let result = measure();
    show.finish(result.as_ref().err());
    Ok((measured, result))
}

/// Measures a running server. The inner error is of a measurement that began.
fn server(
    args: EngineArgs,
    url: String,
    batches: &mut Batches,
    runs: &mut Vec<BatchTimes>,
    failures: &mut Vec<FailedRun>,
) -> Result<(Measured, Result<()>)> {
    if let Some(flag) = of_engine(&args) {
        bail!(
            "--url measures a running server, but {flag} says what this process computes, and how: leave one of them out"
        );
    }
    if args.manner.no_stream {
        bail!("--no-stream has no meaning here: only streams tell when the first token came");
    }
    let (quiet, ui) = (args.quiet, args.batches.ui.unwrap_or(Ui::Terminal));
    let tokenizer = args.batches.tokenizer_name.as_deref().map(Path::new).filter(|path| path.exists());
    let workload = WorkloadPlan {
        tokenizer: tokenizer.map(Path::to_owned),
        ..WorkloadPlan::synthetic(batches.sequence_length, batches.decode_length, new_seed())
    };
    let mut target = args.manner.plan(url.clone());
    // Of what many servers speak, the one that can ask for answers of a length.
    let api = *target.api.get_or_insert(Api::Openai);
    for (name, value) in batches.sampling.body(api)? {
        target.extra_body.entry(name).or_insert(value);
    }
    if batches.model.is_empty() {
        batches.model.clone_from(&url);
    }
    let control = Control::default();
    stop_at_interrupt(&control, 2)?;
    let mut show = Show::new(quiet, ui, batches, &control);
    let named = batches.clone();
    let result = pelton_bench::batches::measure(
        &named,
        target,
        workload,
        &mut |sight| {
            match sight {
                BatchSight::Ran(times) => runs.push(*times),
                BatchSight::Failed { batch, reason } => {
                    failures.push(FailedRun { batch, reason: reason.to_owned() });
                }
                _ => {}
            }
            show.see(sight);
        },
        &control,
    );
    let result = match result {
        Ok(model) => {
            if args.batches.tokenizer_name.is_none() {
                batches.model = model;
            }
            Ok(())
        }
        Err(BenchError::Stopped) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot measure {url}")),
    };
    show.finish(result.as_ref().err());
    Ok((Measured::Server { url }, result))
}

/// A flag that says what is computed in this process.
fn of_engine(args: &EngineArgs) -> Option<&'static str> {
    let flags = [
        ("--model-id (or MODEL_ID)", args.model_id.is_some()),
        ("--random-weights", args.random_weights.is_some()),
        ("--dtype (or DTYPE)", args.precision.dtype != DtypeArg::Auto),
        ("--quantize (or QUANTIZE)", args.precision.quantize.is_some()),
        ("--kv-cache-dtype (or KV_CACHE_DTYPE)", args.precision.kv_cache_dtype != KvCacheDtypeArg::Auto),
        ("--max-batch-prefill-tokens (or MAX_BATCH_PREFILL_TOKENS)", args.max_batch_prefill_tokens.is_some()),
        ("--revision (or REVISION)", args.hub.revision.is_some()),
    ];
    flags.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag).or(args.compute.given())
}

/// What shows a measurement while it goes on.
enum Show {
    View(BatchView),
    /// A line of text for each run.
    Lines {
        /// Of this size.
        failures: u32,
    },
    Nothing,
}

impl Show {
    fn new(quiet: bool, ui: Ui, batches: &Batches, control: &Control) -> Self {
        let lines = Show::Lines { failures: 0 };
        match (quiet, ui) {
            (true, _) => Show::Nothing,
            (false, Ui::Line) => lines,
            (false, Ui::Terminal) => match BatchView::open(batches, control.clone()) {
                Ok(view) => Show::View(view),
                Err(_) => lines,
            },
        }
    }

    fn see(&mut self, sight: BatchSight<'_>) {
        match self {
            Show::View(view) => view.see(sight),
            Show::Lines { failures } => match sight {
                BatchSight::Preparing(what) => eprintln!("{what}"),
                BatchSight::Begins { batch } => {
                    *failures = 0;
                    eprintln!("batch {batch}");
                }
                BatchSight::Failed { batch, reason } => {
                    // One is enough to know why.
                    if *failures == 0 {
                        eprintln!("batch {batch}: a run failed: {reason}");
                    }
                    *failures += 1;
                }
                BatchSight::Warmed => {}
                BatchSight::Ran(times) => {
                    let BatchTimes { batch, prefill_ms, decode_ms } = times;
                    eprintln!("batch {batch}: prefill {prefill_ms:.2} ms, decode {decode_ms:.2} ms");
                }
            },
            Show::Nothing => {}
        }
    }

    /// The view stays until its user has seen enough.
    fn finish(self, failure: Option<&anyhow::Error>) {
        if let Show::View(view) = self {
            view.finish(failure.map(|error| format!("{error:#}")));
        }
    }
}
