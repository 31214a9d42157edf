//! `pelton bench recipe`: the load tests of a report, one after another, and the report.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use pelton_bench::{Api, Arrival, TargetPlan};
use pelton_report::recipes::{card, lengths, llm_bench, vus};
use serde_json::{Map, json};

use super::series::{Cut, Measured, Series, conclude, print};
use super::unix_seconds;
use crate::args::bench::recipe::{CardArgs, LengthsArgs, LlmBenchArgs, QpsSpread, Recipe, Spread, VusArgs};
use crate::args::bench::target::TargetArgs;
use crate::args::bench::workload::new_seed;

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
    let measured = Measured::by(&[plan], args.output.output.as_deref(), args.output.quiet)?;
    for results in &measured.results {
        print(&vus::Vus(results));
    }
    measured.conclude(args.output.allow_client_limit)
}

fn lengths(args: LengthsArgs) -> anyhow::Result<ExitCode> {
    let target = args.target.plan();
    let plans = lengths::plans(&target, args.input_tokens, &args.lengths, args.users, args.duration, new_seed());
    let measured = Measured::by(&plans, args.output.output.as_deref(), args.output.quiet)?;
    print(&lengths::Lengths(&measured.results));
    measured.conclude(args.output.allow_client_limit)
}

fn card(args: CardArgs) -> anyhow::Result<ExitCode> {
    refuse_no_stream(&args.target)?;
    if !(args.step_live_metrics >= 0.01 && args.step_live_metrics <= 60.0) {
        bail!("step live metrics must be in 0.01..=60 seconds, given {}", args.step_live_metrics);
    }
    let interval = Duration::from_secs_f64(args.step_live_metrics);
    let mut extent = if args.quick { card::Extent::quick(interval) } else { card::Extent::full(interval) };
    let couple_text = |(input, output): card::Couple| format!("prompts of {input} tokens with answers of {output}");
    let mut left_out = Vec::new();
    for couple in extent.fit(args.max_tokens) {
        left_out.push(format!(
            "left out: {}, more than {} tokens (--max-tokens)",
            couple_text(couple),
            args.max_tokens
        ));
    }
    left_out.iter().for_each(|note| eprintln!("{note}"));
    let options = card::Options {
        machine: args.gpu_name,
        speed_threshold: args.speed_threshold,
        min_answers: if args.quick { 1 } else { 50 },
        suite_id: pelton_report::utc(unix_seconds()),
        metrics_interval_s: args.step_live_metrics,
        max_queries: extent.max_queries,
    };
    // Before hours of measuring: the folder can be written to.
    std::fs::create_dir_all(&args.output).with_context(|| format!("{} cannot be written", args.output.display()))?;
    let mut target = args.target.plan();
    target.api.get_or_insert(Api::Openai);
    let plans = extent.plans(&target, new_seed());
    let mut series = Series::new(plans.len(), args.quiet)?;
    let mut measured = card::Measured::new();
    let mut spent = card::Spent::default();
    let mut cut = None;
    for (n, (scenario, plan)) in plans.iter().enumerate() {
        if let Some(couple) = spent.is_over(&extent, *scenario) {
            let note = format!("{}: no time left for more parallel requests", couple_text(couple));
            if !left_out.contains(&note) {
                left_out.push(note);
            }
            continue;
        }
        let left = minutes(spent.left(&extent, plans[n..].iter()));
        series.tell(&format!("at most {left} left"));
        let began = Instant::now();
        match series.run(n, plan) {
            Ok(results) => {
                // Hours of measuring are not lost with what comes after.
                card::store(&args.output, *scenario, &results, &options)?;
                cut = results.is_interrupted().then_some(Cut::Interrupted);
                measured.insert(*scenario, results);
            }
            Err(early) => cut = Some(early),
        }
        spent.add(*scenario, began.elapsed());
        if cut.is_some() {
            break;
        }
    }
    if !measured.is_empty() {
        let path = card::write(&args.output, &measured, &options, &left_out)?;
        println!("{}", path.display());
    }
    conclude(measured.values(), cut, args.allow_client_limit)
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
    let measured = Measured::by(&[plan], args.output.as_deref(), args.quiet)?;
    for (results, run) in measured.results.iter().flat_map(|results| results.runs.iter().map(move |run| (results, run)))
    {
        let lines = llm_bench::lines(results, run, &asked);
        print(&llm_bench::block(&lines));
        print(&llm_bench::Honest(run));
        if let Some(mut file) = summary_file.as_ref() {
            let (header, row) = llm_bench::csv(&lines)?;
            let is_empty = file.metadata().map(|meta| meta.len() == 0).unwrap_or(false);
            let text = if is_empty { [header, row].concat() } else { row };
            file.write_all(&text).context("summary file cannot be written")?;
        }
    }
    let runs = measured.results.iter().flat_map(|results| &results.runs);
    let failure = runs.flat_map(|run| run.summary.errors.values()).map(|errors| errors.example.clone()).next();
    let code = measured.conclude(args.allow_client_limit)?;
    let Some(first) = failure else { return Ok(code) };
    // As the original: a run with failures fails.
    eprintln!("test failed due to failed requests, first: {first}");
    Ok(ExitCode::FAILURE)
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
        // As the original, which asks a server that was not named for the models of OpenAI's API.
        (None, false) => Some(Api::Openai),
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
        Some(Api::OpenaiChat) => {
            extra_body.insert("temperature".to_owned(), json!(args.temperature));
            if let Some(n) = args.logprobs {
                extra_body.extend([("logprobs".to_owned(), json!(true)), ("top_logprobs".to_owned(), json!(n))]);
            }
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
