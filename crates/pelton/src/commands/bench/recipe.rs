//! `pelton bench recipe`: the load tests of a report, one after another, and the report.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use pelton_bench::results::Results;
use pelton_bench::watch::{Blind, Control, Sight, Watch};
use pelton_bench::{Api, Arrival, BenchPlan, TargetPlan};
use pelton_live::Line;
use pelton_report::recipes::{card, lengths, llm_bench, vus};
use serde_json::{Map, json};

use super::{command, unix_seconds};
use crate::args::bench::recipe::{
    CardArgs, LengthsArgs, LlmBenchArgs, QpsSpread, Recipe, RecipeOutput, Spread, VusArgs,
};
use crate::args::bench::target::TargetArgs;
use crate::args::bench::workload::new_seed;
use crate::commands::output::OutputFile;

/// Measures what the report needs, and prints it.
pub fn run(recipe: Recipe) -> anyhow::Result<ExitCode> {
    match recipe {
        Recipe::Vus(args) => vus(args),
        Recipe::Card(args) => card(args),
        Recipe::Lengths(args) => lengths(args),
        Recipe::LlmBench(args) => llm_bench(args),
    }
}

/// These recipes choose between streams and whole answers themselves.
fn refuse_no_stream(target: &TargetArgs) -> anyhow::Result<()> {
    if target.manner.no_stream {
        bail!("--no-stream has no meaning here: this recipe chooses itself how answers are asked for");
    }
    Ok(())
}

fn vus(args: VusArgs) -> anyhow::Result<ExitCode> {
    refuse_no_stream(&args.target)?;
    let mut target = args.target.plan();
    // The original is about this dialect; another one must be asked for.
    target.api.get_or_insert(Api::Tgi);
    let plan = vus::plan(target, &args.users, args.duration, new_seed());
    let measured = measure(&[plan], &args.output)?;
    for results in &measured {
        print(&vus::Vus(results));
    }
    Ok(exit_code(&measured))
}

fn lengths(args: LengthsArgs) -> anyhow::Result<ExitCode> {
    let target = args.target.plan();
    let plans = lengths::plans(&target, args.input_tokens, &args.lengths, args.users, args.duration, new_seed());
    let measured = measure(&plans, &args.output)?;
    print(&lengths::Lengths(&measured));
    Ok(exit_code(&measured))
}

fn card(args: CardArgs) -> anyhow::Result<ExitCode> {
    refuse_no_stream(&args.target)?;
    if !(args.step_live_metrics >= 0.01 && args.step_live_metrics <= 60.0) {
        bail!("step live metrics must be in 0.01..=60 seconds, given {}", args.step_live_metrics);
    }
    let interval = Duration::from_secs_f64(args.step_live_metrics);
    let mut extent = if args.quick { card::Extent::quick(interval) } else { card::Extent::full(interval) };
    for (input, output) in extent.fit(args.max_tokens) {
        eprintln!(
            "left out: prompts of {input} tokens with answers of {output}, more than --max-tokens {}",
            args.max_tokens
        );
    }
    // Before hours of measuring: the folder can be written to.
    std::fs::create_dir_all(&args.output).with_context(|| format!("{} cannot be written", args.output.display()))?;
    let mut target = args.target.plan();
    target.api.get_or_insert(Api::Openai);
    let plans = extent.plans(&target, new_seed());
    let mut watch = watcher(args.quiet);
    let control = Control::default();
    let mut measured = card::Measured::new();
    for (n, (scenario, plan)) in plans.iter().enumerate() {
        let left: Duration = plans[n..].iter().map(|(_, plan)| plan.limits.duration).sum();
        let text = format!("{} ({} of {}, at most {} left)", scenario.name(), n + 1, plans.len(), minutes(left));
        watch.see(Sight::Preparing(&text));
        let mut watch = Series { inner: watch.as_mut(), n, of: plans.len() };
        let results = pelton_bench::run(plan, command(std::env::args()), &mut watch, &control)?;
        let interrupted = results.is_interrupted();
        measured.insert(*scenario, results);
        if interrupted {
            break;
        }
    }
    let options = card::Options {
        machine: args.gpu_name,
        speed_threshold: args.speed_threshold,
        min_answers: if args.quick { 1 } else { 50 },
        suite_id: pelton_report::utc(unix_seconds()),
        metrics_interval_s: args.step_live_metrics,
        max_queries: extent.max_queries,
    };
    let path = card::write(&args.output, &measured, &options)?;
    println!("{}", path.display());
    Ok(exit_code(measured.values()))
}

fn minutes(time: Duration) -> String {
    match time.as_secs() {
        seconds if seconds < 120 => format!("{seconds} s"),
        seconds if seconds < 7200 => format!("{} min", seconds.div_ceil(60)),
        seconds => format!("{:.1} h", seconds as f64 / 3600.0),
    }
}

fn llm_bench(args: LlmBenchArgs) -> anyhow::Result<ExitCode> {
    let asked = asked(&args)?;
    let plan = llm_bench::plan(target(&args)?, &asked);
    // Opened before the run: a wrong path shall not cost a measurement.
    let summary_file = args.summary_file.as_deref().map(append).transpose()?;
    let output = RecipeOutput { output: args.output.clone(), quiet: args.quiet };
    let measured = measure(&[plan], &output)?;
    for (results, run) in measured.iter().flat_map(|results| results.runs.iter().map(move |run| (results, run))) {
        let lines = llm_bench::lines(results, run, &asked);
        print(&llm_bench::block(&lines));
        print(&llm_bench::Honest(run));
        if let Some(mut file) = summary_file.as_ref() {
            let (header, row) = llm_bench::csv(&lines)?;
            let is_empty = file.metadata().map(|meta| meta.len() == 0).unwrap_or(false);
            let text = if is_empty { [header, row].concat() } else { row };
            file.write_all(&text).context("summary file cannot be written")?;
        }
        if let Some(errors) = run.summary.errors.values().next() {
            // As the original: a run with failures fails.
            eprintln!("test failed due to failed requests, first: {}", errors.example);
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(exit_code(&measured))
}

fn append(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().append(true).create(true).open(path);
    file.with_context(|| format!("{} cannot be written", path.display()))
}

fn target(args: &LlmBenchArgs) -> anyhow::Result<TargetPlan> {
    let api = match (args.provider.as_deref(), args.chat) {
        (Some("openai" | "vllm"), true) => Some(Api::OpenaiChat),
        (Some("openai" | "vllm"), false) => Some(Api::Openai),
        (Some("tgi"), false) => Some(Api::Tgi),
        (Some("triton-infer"), false) => Some(Api::KserveInfer),
        (Some("triton-generate"), false) => Some(Api::KserveGenerate),
        (Some(other @ ("tgi" | "triton-infer" | "triton-generate")), true) => bail!("provider {other} has no chat"),
        (Some(other), _) => {
            bail!("provider {other:?} is none of openai, vllm, tgi, triton-infer, triton-generate")
        }
        (None, true) => Some(Api::OpenaiChat),
        (None, false) => None,
    };
    let mut extra_body = Map::new();
    match api {
        Some(Api::Tgi) => {
            let mut parameters = Map::from_iter([("temperature".to_owned(), json!(args.temperature))]);
            parameters.extend(args.logprobs.map(|n| ("top_n_tokens".to_owned(), json!(n))));
            extra_body.insert("parameters".to_owned(), parameters.into());
        }
        Some(Api::KserveInfer | Api::KserveGenerate | Api::KserveGrpc) if args.logprobs.is_some() => {
            bail!("this provider has no log-probabilities")
        }
        _ => {
            extra_body.insert("temperature".to_owned(), json!(args.temperature));
            extra_body.extend(args.logprobs.map(|n| ("logprobs".to_owned(), json!(n))));
        }
    }
    Ok(TargetPlan {
        api,
        model: args.model.clone(),
        stream: args.stream && !args.no_stream,
        api_key: args.api_key.clone(),
        extra_body,
        ..TargetPlan::at(args.host.clone())
    })
}

fn asked(args: &LlmBenchArgs) -> anyhow::Result<llm_bench::Asked> {
    if !(args.spawn_rate > 0.0 && args.spawn_rate.is_finite()) {
        bail!("spawn rate must be above 0, given {}", args.spawn_rate);
    }
    let spread = match args.max_tokens_distribution {
        Spread::Constant => llm_bench::Spread::Constant,
        Spread::Uniform => llm_bench::Spread::Uniform,
        Spread::Exponential => llm_bench::Spread::Exponential,
        Spread::Normal => llm_bench::Spread::Normal,
    };
    let arrival = match args.qps_distribution {
        QpsSpread::Constant => Arrival::Constant,
        QpsSpread::Exponential => Arrival::Poisson,
    };
    Ok(llm_bench::Asked {
        provider: args.provider.clone(),
        users: args.users,
        spawn_rate: args.spawn_rate,
        run_time: args.run_time,
        prompt_tokens: args.prompt_tokens,
        randomize: args.prompt_randomize,
        max_tokens: args.max_tokens,
        spread,
        range: args.max_tokens_range,
        cap: args.max_tokens_cap,
        temperature: args.temperature,
        logprobs: args.logprobs,
        qps: args.qps.map(|rate| (rate, arrival)),
        tokenizer: args.tokenizer.clone(),
        seed: new_seed(),
    })
}

/// Runs the plans one after another, until one is interrupted, and stores what they gave: several load tests in one file would be no
/// results, so each has a file of its own.
fn measure(plans: &[BenchPlan], output: &RecipeOutput) -> anyhow::Result<Vec<Results>> {
    let files = match &output.output {
        Some(path) => (0..plans.len()).map(|n| OutputFile::create(&numbered(path, n, plans.len())).map(Some)).collect(),
        None => Ok(plans.iter().map(|_| None).collect::<Vec<_>>()),
    }?;
    let mut watch = watcher(output.quiet);
    let control = Control::default();
    let mut measured = Vec::new();
    for ((n, plan), file) in plans.iter().enumerate().zip(files) {
        let mut watch: Box<dyn Watch> = match plans.len() {
            1 => Box::new(Series { inner: watch.as_mut(), n: 0, of: 0 }),
            of => Box::new(Series { inner: watch.as_mut(), n, of }),
        };
        let results = pelton_bench::run(plan, command(std::env::args()), watch.as_mut(), &control)?;
        if let Some(file) = file {
            file.write_json(&results)?;
        }
        let interrupted = results.is_interrupted();
        measured.push(results);
        if interrupted {
            break;
        }
    }
    Ok(measured)
}

/// `run.json` for one, `run-2.json` for the second of several.
fn numbered(path: &Path, n: usize, of: usize) -> std::path::PathBuf {
    if of == 1 {
        return path.to_owned();
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let ending = path.extension().map(|ending| format!(".{}", ending.to_string_lossy())).unwrap_or_default();
    path.with_file_name(format!("{stem}-{}{ending}", n + 1))
}

fn watcher(quiet: bool) -> Box<dyn Watch> {
    if quiet { Box::new(Blind) } else { Box::new(Line::new()) }
}

/// Shows the one run of each plan as a run of the whole series.
struct Series<'a> {
    inner: &'a mut dyn Watch,
    n: usize,
    /// 0: the plan is the whole series.
    of: usize,
}

impl Watch for Series<'_> {
    fn see(&mut self, sight: Sight<'_>) {
        match sight {
            Sight::Begins { case, limits, .. } if self.of > 0 => {
                self.inner.see(Sight::Begins { case, limits, n: self.n, of: self.of });
            }
            other => self.inner.see(other),
        }
    }
}

fn exit_code<'a>(measured: impl IntoIterator<Item = &'a Results>) -> ExitCode {
    let has_results = measured.into_iter().all(Results::has_results);
    if has_results { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A reader that has seen enough (`| head`) is no error.
fn print(text: &dyn std::fmt::Display) {
    let _ = write!(std::io::stdout().lock(), "{text}");
}
