//! `pelton serve`: model, engine, text and server, joined.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pelton_backend::TokenId;
use pelton_cpu::CpuBackend;
use pelton_engine::{EngineConfig, FakeConfig, FakeModel, Newcomers, Watermark};
use pelton_model::{AdapterSource, KvBudget, LoadOptions, Model, ModelFiles, hub, load};
use pelton_serve::{ServeConfig, ServeOutcome, ServedAdapter, Server};
use pelton_text::{TextModel, TextPool};
use tokio::net::TcpListener;

use super::checkpoint;
use super::environment::environment;
use crate::args::compute::{DtypeArg, KvCacheDtypeArg};
use crate::args::serve::ServeArgs;
use crate::args::serve::adapters::AdapterArg;
use crate::program::Program;
#[cfg(feature = "otlp")]
use crate::traces::Traces;
use crate::{demo, env, logging};

/// Tells whoever started the server: lines on standard output, as the launcher lines of the log. Nobody has to read them: a closed
/// standard output does not end the server.
fn say(program: Program, text: &str) {
    use std::io::Write;
    match program {
        Program::Launcher => text.lines().filter(|line| !line.is_empty()).for_each(|line| tracing::info!("{line}")),
        _ => drop(writeln!(io::stdout(), "{text}")),
    }
}

/// Positions in a KV block: a block of few positions wastes less at a prompt's end and finds more prefixes.
pub const BLOCK_TOKENS: u32 = 16;

/// What the fake model says, in bytes, over and over.
const FAKE_SCRIPT: &str = "The quick brown fox jumps over the lazy dog. ";
const FAKE_POSITIONS: usize = 8192;

pub fn run(args: ServeArgs, program: Program) -> Result<ExitCode> {
    logging::start(args.log.json_output, program);
    check(&args)?;
    if args.log.show_environment {
        let lines = environment(&CpuBackend::new(args.compute.config())?);
        lines.iter().for_each(|line| say(program, line));
    }
    if program == Program::Launcher && args.model_id.is_none() && args.model.weights_cache_override.is_none() {
        tracing::warn!(
            "no --model-id and no MODEL_ID: serving the demo model inside this program, which only shows that all works"
        );
    }
    for note in args.elsewhere.notes().into_iter().chain(env::notes()) {
        tracing::warn!("{note}");
    }
    let port = env::vertex_port()?.unwrap_or(args.listen.port);
    let address = SocketAddr::new(hostname(&args, program), port);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(SERVER_THREADS)
        .enable_all()
        .build()
        .context("cannot start the server's threads")?;
    let (stop, is_loading) = listen_for_stop(&runtime);
    let loaded = load_model(&args, program)?;
    is_loading.store(false, Ordering::Relaxed);
    let engine = pelton_engine::start(
        loaded.model,
        EngineConfig {
            max_step_tokens: args.batching.step_tokens(),
            max_sequences: args.batching.max_batch_size,
            max_queued: args.limits.max_concurrent_requests.saturating_mul(u32::from(args.limits.max_best_of)),
            prefix_cache: !args.batching.disable_prefix_caching && env::prefix_caching() != Some(false),
            newcomers: Newcomers {
                waiting_served_ratio: args.batching.waiting_served_ratio,
                max_waiting_steps: args.batching.max_waiting_tokens,
            },
            speculate: args.batching.speculate,
        },
    )
    .context("cannot start the engine")?;
    if args.batching.speculate > 0 {
        let most = args.batching.speculate;
        let what = format!("speculation: up to {most} tokens are guessed for each sequence and verified in one step");
        say(program, &what);
    }
    let config = serve_config(&args, &loaded.name, &loaded.dtype, loaded.sha);
    let pool = TextPool::new(
        loaded.text,
        usize::from(args.limits.validation_workers),
        args.limits.max_concurrent_requests as usize,
    );
    let server = Server::new(config, engine, pool)?;
    #[cfg(feature = "otlp")]
    let traces = start_traces(&args, &loaded.name, &runtime)?;
    #[cfg(feature = "otlp")]
    if let Some(traces) = &traces {
        server.trace_to(Arc::new(traces.clone()));
    }
    let outcome = runtime.block_on(serve(address, args.listen.prometheus_port, server, &loaded.name, program, stop))?;
    #[cfg(feature = "otlp")]
    if let Some(traces) = traces {
        traces.stop();
    }
    Ok(match outcome {
        ServeOutcome::Drained => ExitCode::SUCCESS,
        ServeOutcome::Cut => {
            eprintln!(
                "error: some requests were still running at the deadline, or the engine had failed; they were cut"
            );
            ExitCode::FAILURE
        }
    })
}

/// The flag, else `HOSTNAME` when it is an address, else what the program is known to listen on.
fn hostname(args: &ServeArgs, program: Program) -> IpAddr {
    let default = match program {
        Program::Launcher => Ipv4Addr::UNSPECIFIED,
        _ => Ipv4Addr::LOCALHOST,
    };
    args.listen.hostname.or_else(env::hostname).unwrap_or(IpAddr::V4(default))
}

#[cfg(feature = "otlp")]
fn start_traces(args: &ServeArgs, name: &str, runtime: &tokio::runtime::Runtime) -> Result<Option<Traces>> {
    // The connection to the collector lives in the server's runtime.
    let _entered = runtime.enter();
    args.collector().map(|endpoint| Traces::start(endpoint, &args.otlp_service_name, name)).transpose()
}

/// Threads for sockets: they only move bytes, the cores belong to the compute pool.
const SERVER_THREADS: usize = 2;

/// Refuses what is not built, before anything is loaded.
fn check(args: &ServeArgs) -> Result<()> {
    args.check()?;
    let is_fake = args.model_id.as_deref() == Some("fake");
    if is_fake || args.model_id.is_none() {
        checkpoint::check_no_revision(&args.hub)?;
    }
    let of_a_model = [
        ("--tokenizer-config-path", args.model.tokenizer_config_path.is_some()),
        ("--weights-cache-override", args.model.weights_cache_override.is_some()),
        ("--rope-scaling", args.model.rope_scaling.is_some()),
        ("--dtype", args.precision.dtype != DtypeArg::Auto),
        ("--quantize", args.precision.quantize.is_some()),
        ("--kv-cache-dtype", args.precision.kv_cache_dtype != KvCacheDtypeArg::Auto),
    ];
    args.precision.load_options()?;
    let given = of_a_model.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag);
    if let Some(flag) = given.or(args.compute.given()).filter(|_| is_fake) {
        bail!("{flag} means nothing to --model-id fake, which computes nothing: leave it out");
    }
    // Clients of text-generation-inference call every model tgi.
    let name = args.model_id.as_deref().unwrap_or(demo::NAME);
    if let Some(adapter) = args.adapters.lora_adapters.0.iter().find(|adapter| [name, "tgi"].contains(&&*adapter.name))
    {
        let AdapterArg { name, id, .. } = adapter;
        bail!("--lora-adapters calls an adapter {name}, which is the model's name: give it another, as in other={id}");
    }
    #[cfg(feature = "otlp")]
    if let Some(endpoint) = args.collector()
        && !endpoint.starts_with("http://")
    {
        bail!("--otlp-endpoint cannot be {endpoint:?}: it must begin with http:// (traces are sent without TLS)");
    }
    if !is_fake && !(args.fake.fake_step_cost + args.fake.fake_token_cost).is_zero() {
        bail!("--fake-step-cost and --fake-token-cost need --model-id fake");
    }
    Ok(())
}

/// Opens `address`, whose port `flag` names.
async fn listen(address: SocketAddr, flag: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| match address.port() {
        0 => format!("cannot listen on {}", address.ip()),
        port => format!("cannot listen on {address} (is port {port} taken? {flag} 0 takes a free one)"),
    })
}

async fn serve(
    address: SocketAddr,
    prometheus_port: Option<u16>,
    server: Arc<Server>,
    name: &str,
    program: Program,
    stop: impl Future<Output = ()>,
) -> Result<ServeOutcome> {
    let listener = listen(address, "--port").await?;
    let mut local = listener.local_addr().context("cannot tell the port")?;
    if let Some(port) = prometheus_port {
        let metrics = listen(SocketAddr::new(address.ip(), port), "--prometheus-port").await?;
        let at = metrics.local_addr().context("cannot tell the port of metrics")?;
        say(program, &format!("metrics are on http://{at}/metrics"));
        // Ends when the server stops.
        tokio::spawn(pelton_serve::run_metrics(metrics, Arc::clone(&server)));
    }
    say(program, &format!("\n{name} is served on http://{local}"));
    if local.ip().is_unspecified() {
        // All addresses: this one works from here.
        local.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let url = format!("http://{local}");
    say(
        program,
        &format!(
            "try:\n  curl {url}/generate -H 'Content-Type: application/json' \
             -d '{{\"inputs\":\"def fibonacci(n):\",\"parameters\":{{\"max_new_tokens\":64}}}}'"
        ),
    );
    // Scripts of text-generation-inference wait for this word.
    tracing::info!("Connected");
    Ok(pelton_serve::run(listener, server, stop).await)
}

/// Listens for SIGTERM and Ctrl-C from now on; the first process of a container ignores them otherwise. While the model is loaded (the flag says so) they end
/// the process, afterwards they are what is waited for.
fn listen_for_stop(runtime: &tokio::runtime::Runtime) -> (impl Future<Output = ()>, Arc<AtomicBool>) {
    let is_loading = Arc::new(AtomicBool::new(true));
    let loading = Arc::clone(&is_loading);
    let stopped = runtime.spawn(async move {
        if let Err(error) = pelton_bench::interrupt::interrupted().await {
            tracing::warn!(%error, "cannot listen for signals: they end the server without grace");
            std::future::pending::<()>().await;
        }
        if loading.load(Ordering::Relaxed) {
            eprintln!("error: stopped while the model was loaded");
            std::process::exit(1);
        }
        tracing::info!("stopping: running requests may finish");
    });
    let stop = async {
        // It neither panics nor is aborted.
        let _ = stopped.await;
    };
    (stop, is_loading)
}

/// A model with its text side.
struct Loaded {
    model: Box<dyn Model>,
    text: TextModel,
    name: String,
    dtype: String,
    /// The commit on the hub, if the model came from there.
    sha: Option<String>,
}

fn load_model(args: &ServeArgs, program: Program) -> Result<Loaded> {
    if args.model_id.as_deref() == Some("fake") {
        return fake(args, program);
    }
    let (files, name) = match &args.model.weights_cache_override {
        Some(directory) => {
            let name = args.model_id.clone().unwrap_or_else(|| directory.display().to_string());
            (ModelFiles::at(directory).context("--weights-cache-override")?, name)
        }
        None => checkpoint::find(args.model_id.as_deref(), &args.hub)?,
    };
    from_files(args, &files, &name, program).with_context(|| format!("cannot load model {name}"))
}

/// The text side of the model in `files`, with another `tokenizer_config.json` if one is given.
fn text_of(files: &ModelFiles, tokenizer_config: Option<&Path>) -> Result<TextModel> {
    let of_model = |name: &str| -> io::Result<Option<Vec<u8>>> {
        Ok(files.read(name).map_err(io::Error::other)?.map(|bytes| bytes.into_owned()))
    };
    let Some(path) = tokenizer_config else { return Ok(TextModel::from_files(&of_model)?) };
    let given = fs::read(path).with_context(|| format!("--tokenizer-config-path: cannot read {}", path.display()))?;
    let config: serde_json::Value = serde_json::from_slice(&given)
        .with_context(|| format!("--tokenizer-config-path: {} is not JSON", path.display()))?;
    let has_template = !config["chat_template"].is_null();
    Ok(TextModel::from_files(&|name| match name {
        "tokenizer_config.json" => Ok(Some(given.clone())),
        // Otherwise it would come before the one that was given.
        "chat_template.jinja" | "chat_template.json" if has_template => Ok(None),
        _ => of_model(name),
    })?)
}

fn from_files(args: &ServeArgs, files: &ModelFiles, name: &str, program: Program) -> Result<Loaded> {
    let text = text_of(files, args.model.tokenizer_config_path.as_deref())?;
    let backend = CpuBackend::new(args.compute.config())?;
    let device = pelton_backend::Backend::describe(&backend);
    let max_step_rows = args.batching.step_tokens() as usize;
    let options = LoadOptions {
        block_tokens: BLOCK_TOKENS as usize,
        max_step_rows,
        max_logit_rows: args.batching.max_logit_rows(),
        max_positions: args.limits.max_total_tokens.map(|tokens| tokens as usize),
        kv_budget: match args.batching.max_batch_total_tokens {
            Some(tokens) => KvBudget::Tokens(tokens as usize),
            None => KvBudget::Sequences { count: args.batching.max_batch_size as usize, max_fraction: 0.5 },
        },
        adapters: adapters(args)?,
        rope: args.model.rope(),
        show_progress: true,
        ..args.precision.load_options()?
    };
    let decoder = load(files, backend, &options)?;
    let info = decoder.info().clone();
    let millions = info.num_parameters as f64 / 1e6;
    let what = format!("{name}: {}, {millions:.1} million parameters in {}; {device}", info.architecture, info.format);
    say(program, &what);
    say(program, &decoder.plan().to_string());
    for note in &info.notes {
        tracing::warn!("{note}");
    }
    let sha = files.path().and_then(hub::commit_of).map(str::to_owned);
    Ok(Loaded { model: Box::new(decoder), text, name: name.to_owned(), dtype: info.format.to_string(), sha })
}

fn adapters(args: &ServeArgs) -> Result<Vec<AdapterSource>> {
    let source = |adapter: &AdapterArg| {
        Ok(AdapterSource::Files { name: adapter.name.clone(), files: checkpoint::find_adapter(adapter, &args.hub)? })
    };
    args.adapters.lora_adapters.0.iter().map(source).collect()
}

fn fake(args: &ServeArgs, program: Program) -> Result<Loaded> {
    let text = TextModel::bytes();
    let script = text.encode(FAKE_SCRIPT, false)?.into_iter().map(TokenId).collect();
    let max_positions = args.limits.max_total_tokens.map_or(FAKE_POSITIONS, |tokens| tokens as usize);
    let sequence_blocks = max_positions.div_ceil(BLOCK_TOKENS as usize);
    let num_blocks = match args.batching.max_batch_total_tokens {
        Some(tokens) => tokens.div_ceil(BLOCK_TOKENS),
        None => u32::try_from(sequence_blocks * args.batching.max_batch_size as usize)
            .context("--max-total-tokens is too large")?,
    };
    let max_step_rows = args.batching.step_tokens() as usize;
    let model = FakeModel::new(FakeConfig {
        vocab_size: text.vocab_size(),
        script,
        step_cost: args.fake.fake_step_cost,
        row_cost: args.fake.fake_token_cost,
        num_blocks,
        block_tokens: BLOCK_TOKENS,
        max_positions,
        max_step_rows,
        max_logit_rows: args.batching.max_logit_rows(),
        // Scripted adapters tell the script from further on.
        num_adapters: args.adapters.lora_adapters.0.len(),
        fail_at_step: None,
    });
    let cost = [args.fake.fake_step_cost, args.fake.fake_token_cost];
    say(
        program,
        &format!("fake: scripted tokens, {:?} a step and {:?} a token in it; computes nothing", cost[0], cost[1]),
    );
    Ok(Loaded { model: Box::new(model), text, name: "fake".into(), dtype: "float32".into(), sha: None })
}

fn served_adapter(adapter: &AdapterArg) -> ServedAdapter {
    ServedAdapter { name: adapter.name.clone(), root: adapter.id.clone() }
}

fn serve_config(args: &ServeArgs, name: &str, dtype: &str, sha: Option<String>) -> ServeConfig {
    let [vertex_predict_route, vertex_health_route] = env::vertex_routes();
    ServeConfig {
        model_id: name.to_owned(),
        adapters: args.adapters.lora_adapters.0.iter().map(served_adapter).collect(),
        model_sha: sha,
        model_dtype: dtype.to_owned(),
        compute_type: env::compute_type(),
        max_concurrent_requests: args.limits.max_concurrent_requests,
        max_best_of: u32::from(args.limits.max_best_of),
        max_choices: u32::from(args.limits.max_best_of),
        max_stop_sequences: args.limits.max_stop_sequences,
        max_top_n_tokens: u32::from(args.limits.max_top_n_tokens),
        max_logprobs: u32::from(args.limits.max_top_n_tokens),
        max_input_tokens: args.limits.longest_prompt(),
        max_total_tokens: args.limits.max_total_tokens,
        max_client_batch_size: args.limits.max_client_batch_size,
        validation_workers: u32::from(args.limits.validation_workers),
        payload_limit: args.listen.payload_limit,
        messages_api_enabled: env::messages_api_enabled(),
        vertex_predict_route,
        vertex_health_route,
        grammar_support: !args.grammar.disable_grammar_support,
        watermark: Watermark { gamma: args.grammar.watermark_gamma, delta: args.grammar.watermark_delta },
        api_key: args.listen.api_key.clone(),
        cors_allow_origin: args.listen.cors_allow_origin.clone(),
        graceful_termination_timeout: Duration::from_secs(args.listen.graceful_termination_timeout),
        ..ServeConfig::default()
    }
}
