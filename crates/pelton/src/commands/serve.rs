//! `pelton serve`: model, engine, text and server, joined.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pelton_backend::TokenId;
use pelton_cpu::CpuBackend;
use pelton_engine::{EngineConfig, FakeConfig, FakeModel, Watermark};
use pelton_model::{AdapterSource, KvBudget, LoadOptions, Model, ModelFiles, load};
use pelton_serve::{ServeConfig, ServeOutcome, ServedAdapter, Server};
use pelton_text::{TextModel, TextPool};
use tokio::net::TcpListener;

use super::checkpoint;
use crate::args::compute::{DtypeArg, KvCacheDtypeArg};
use crate::args::serve::ServeArgs;
use crate::args::serve::adapters::AdapterArg;
use crate::program::Program;
use crate::{env, logging};

/// Prints a line for the person who started the server. Nobody has to read it: a closed standard output does not end the server.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(io::stdout(), $($text)*);
    }};
}

/// Positions in a KV block: a block of few positions wastes less at a prompt's end and finds more prefixes.
pub const BLOCK_TOKENS: u32 = 16;

/// What the fake model says, in bytes, over and over.
const FAKE_SCRIPT: &str = "The quick brown fox jumps over the lazy dog. ";
const FAKE_POSITIONS: usize = 8192;

pub fn run(args: ServeArgs, program: Program) -> Result<ExitCode> {
    logging::start(args.json_output);
    check(&args)?;
    let port = env::vertex_port()?.unwrap_or(args.listen.port);
    let address = SocketAddr::new(hostname(&args, program), port);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(SERVER_THREADS)
        .enable_all()
        .build()
        .context("cannot start the server's threads")?;
    let loaded = load_model(&args)?;
    let engine = pelton_engine::start(
        loaded.model,
        EngineConfig {
            max_step_tokens: args.batching.max_batch_prefill_tokens,
            max_sequences: args.batching.max_batch_size,
            max_queued: args.limits.max_concurrent_requests.saturating_mul(u32::from(args.limits.max_best_of)),
            prefix_cache: !args.batching.disable_prefix_caching,
            ..EngineConfig::default()
        },
    )
    .context("cannot start the engine")?;
    let config = serve_config(&args, &loaded.name, &loaded.dtype);
    let pool = TextPool::new(
        loaded.text,
        usize::from(args.limits.validation_workers),
        args.limits.max_concurrent_requests as usize,
    );
    let server = Server::new(config, engine, pool)?;
    let outcome = runtime.block_on(serve(address, server, &loaded.name))?;
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
        Program::Pelton | Program::Benchmark => Ipv4Addr::LOCALHOST,
        Program::Launcher => Ipv4Addr::UNSPECIFIED,
    };
    args.listen.hostname.or_else(env::hostname).unwrap_or(IpAddr::V4(default))
}

/// Threads for sockets: they only move bytes, the cores belong to the compute pool.
const SERVER_THREADS: usize = 2;

/// Refuses what is not built, before anything is loaded.
fn check(args: &ServeArgs) -> Result<()> {
    let is_fake = args.model_id.as_deref() == Some("fake");
    if is_fake || args.model_id.is_none() {
        checkpoint::check_no_revision(&args.hub)?;
    }
    let precision = [
        ("--dtype", args.precision.dtype != DtypeArg::Auto),
        ("--quantize", args.precision.quantize.is_some()),
        ("--kv-cache-dtype", args.precision.kv_cache_dtype != KvCacheDtypeArg::Auto),
    ];
    args.precision.load_options()?;
    let precision = precision.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag);
    if let Some(flag) = precision.or(args.compute.given()).filter(|_| is_fake) {
        bail!("{flag} means nothing to --model-id fake, which computes nothing: leave it out");
    }
    if let Some(name) = &args.model_id
        && args.adapters.lora_adapters.0.iter().any(|adapter| adapter.name == *name)
    {
        bail!(
            "--lora-adapters calls an adapter {name}, which is the model's name: give it another, as in other={name}"
        );
    }
    if !is_fake && !(args.fake.fake_step_cost + args.fake.fake_token_cost).is_zero() {
        bail!("--fake-step-cost and --fake-token-cost need --model-id fake");
    }
    Ok(())
}

async fn serve(address: SocketAddr, server: Arc<Server>, name: &str) -> Result<ServeOutcome> {
    let listener = TcpListener::bind(address).await.with_context(|| match address.port() {
        0 => format!("cannot listen on {}", address.ip()),
        port => format!("cannot listen on {address} (is port {port} taken? --port 0 takes a free one)"),
    })?;
    let mut local = listener.local_addr().context("cannot tell the port")?;
    say!("\n{name} is served on http://{local}");
    if local.ip().is_unspecified() {
        // All addresses: this one works from here.
        local.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let url = format!("http://{local}");
    say!("try:");
    say!(
        "  curl {url}/generate -H 'Content-Type: application/json' \
         -d '{{\"inputs\":\"def fibonacci(n):\",\"parameters\":{{\"max_new_tokens\":64}}}}'"
    );
    Ok(pelton_serve::run(listener, server, stop_signal()).await)
}

/// Resolves at SIGTERM or Ctrl-C.
async fn stop_signal() {
    let interrupt = tokio::signal::ctrl_c();
    let mut terminate = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(terminate) => terminate,
        Err(error) => {
            tracing::warn!(%error, "cannot listen for SIGTERM, only Ctrl-C stops the server gracefully");
            let _ = interrupt.await;
            return;
        }
    };
    tokio::select! {
        _ = interrupt => {}
        _ = terminate.recv() => {}
    }
    tracing::info!("stopping: running requests may finish");
}

/// A model with its text side.
struct Loaded {
    model: Box<dyn Model>,
    text: TextModel,
    name: String,
    dtype: String,
}

fn load_model(args: &ServeArgs) -> Result<Loaded> {
    if args.model_id.as_deref() == Some("fake") {
        return fake(args);
    }
    let (files, name) = checkpoint::find(args.model_id.as_deref(), &args.hub)?;
    from_files(args, &files, &name).with_context(|| format!("cannot load model {name}"))
}

fn from_files(args: &ServeArgs, files: &ModelFiles, name: &str) -> Result<Loaded> {
    let text =
        TextModel::from_files(&|name| Ok(files.read(name).map_err(io::Error::other)?.map(|bytes| bytes.into_owned())))?;
    let backend = CpuBackend::new(args.compute.config())?;
    let device = pelton_backend::Backend::describe(&backend);
    let max_step_rows = args.batching.max_batch_prefill_tokens as usize;
    let options = LoadOptions {
        block_tokens: BLOCK_TOKENS as usize,
        max_step_rows,
        max_logit_rows: max_step_rows.min(args.batching.max_batch_size as usize),
        max_positions: args.limits.max_total_tokens.map(|tokens| tokens as usize),
        kv_budget: match args.batching.max_batch_total_tokens {
            Some(tokens) => KvBudget::Tokens(tokens as usize),
            None => KvBudget::Sequences { count: args.batching.max_batch_size as usize, max_fraction: 0.5 },
        },
        adapters: adapters(args)?,
        show_progress: true,
        ..args.precision.load_options()?
    };
    let decoder = load(files, backend, &options)?;
    let info = decoder.info().clone();
    let millions = info.num_parameters as f64 / 1e6;
    say!("{name}: {}, {millions:.1} million parameters in {}; {device}", info.architecture, info.format);
    say!("{}", decoder.plan());
    for note in &info.notes {
        tracing::warn!("{note}");
    }
    Ok(Loaded { model: Box::new(decoder), text, name: name.to_owned(), dtype: info.format.to_string() })
}

fn adapters(args: &ServeArgs) -> Result<Vec<AdapterSource>> {
    let source = |adapter: &AdapterArg| {
        Ok(AdapterSource::Files { name: adapter.name.clone(), files: checkpoint::find_adapter(adapter, &args.hub)? })
    };
    args.adapters.lora_adapters.0.iter().map(source).collect()
}

fn fake(args: &ServeArgs) -> Result<Loaded> {
    let text = TextModel::bytes();
    let script = text.encode(FAKE_SCRIPT, false)?.into_iter().map(TokenId).collect();
    let max_positions = args.limits.max_total_tokens.map_or(FAKE_POSITIONS, |tokens| tokens as usize);
    let sequence_blocks = max_positions.div_ceil(BLOCK_TOKENS as usize);
    let num_blocks = match args.batching.max_batch_total_tokens {
        Some(tokens) => tokens.div_ceil(BLOCK_TOKENS),
        None => u32::try_from(sequence_blocks * args.batching.max_batch_size as usize)
            .context("--max-total-tokens is too large")?,
    };
    let max_step_rows = args.batching.max_batch_prefill_tokens as usize;
    let model = FakeModel::new(FakeConfig {
        vocab_size: text.vocab_size(),
        script,
        step_cost: args.fake.fake_step_cost,
        row_cost: args.fake.fake_token_cost,
        num_blocks,
        block_tokens: BLOCK_TOKENS,
        max_positions,
        max_step_rows,
        max_logit_rows: max_step_rows.min(args.batching.max_batch_size as usize),
        // Scripted adapters tell the script from further on.
        num_adapters: args.adapters.lora_adapters.0.len(),
        fail_at_step: None,
    });
    say!(
        "fake: scripted tokens, {:?} a step and {:?} a token in it; computes nothing",
        args.fake.fake_step_cost,
        args.fake.fake_token_cost
    );
    Ok(Loaded { model: Box::new(model), text, name: "fake".into(), dtype: "float32".into() })
}

fn served_adapter(adapter: &AdapterArg) -> ServedAdapter {
    ServedAdapter { name: adapter.name.clone(), root: adapter.id.clone() }
}

fn serve_config(args: &ServeArgs, name: &str, dtype: &str) -> ServeConfig {
    let [vertex_predict_route, vertex_health_route] = env::vertex_routes();
    ServeConfig {
        model_id: name.to_owned(),
        adapters: args.adapters.lora_adapters.0.iter().map(served_adapter).collect(),
        model_sha: args.hub.revision.clone(),
        model_dtype: dtype.to_owned(),
        compute_type: env::compute_type(),
        max_concurrent_requests: args.limits.max_concurrent_requests,
        max_best_of: u32::from(args.limits.max_best_of),
        max_choices: u32::from(args.limits.max_best_of),
        max_stop_sequences: args.limits.max_stop_sequences,
        max_top_n_tokens: u32::from(args.limits.max_top_n_tokens),
        max_logprobs: u32::from(args.limits.max_top_n_tokens),
        max_input_tokens: args.limits.max_input_tokens,
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
