//! A small model with adapters through the whole engine: what a sequence says depends on its own adapter alone, bit for bit.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pelton_cpu::{CpuBackend, CpuConfig};
use pelton_engine::{
    AdapterId, EngineConfig, EngineHandle, ReportParams, SamplingParams, SequenceRequest, ShutdownOutcome,
    StoppingParams, TokenEvent, TokenId, TokenStream,
};
use pelton_model::{AdapterSource, KvBudget, LoadOptions, ModelFiles, load};

const ADAPTERS: [&str; 2] = ["llama_all", "llama_attention"];
const MAX_TOKENS: u32 = 100;

/// Cached prompt tokens, then tokens with the bits of their log-probabilities.
type Answer = (u32, Vec<(TokenId, u32)>);

#[derive(Clone, Copy, Debug)]
struct Settings {
    prefix_cache: bool,
    max_step_tokens: u32,
    speculate: u32,
    kv_tokens: usize,
}

const ROOMY: Settings = Settings { prefix_cache: true, max_step_tokens: 256, speculate: 0, kv_tokens: 8192 };

fn engine(settings: Settings) -> EngineHandle {
    let Settings { prefix_cache, max_step_tokens, speculate, kv_tokens } = settings;
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    let files = |folder: &str| ModelFiles::directory(fixtures.join(folder)).unwrap();
    let adapter =
        |name: &&str| AdapterSource::Files { name: (*name).to_owned(), files: files(&format!("adapters/{name}")) };
    let options = LoadOptions {
        max_step_rows: max_step_tokens as usize,
        max_logit_rows: 32,
        max_positions: Some(256),
        kv_budget: KvBudget::Tokens(kv_tokens),
        adapters: ADAPTERS.iter().map(adapter).collect(),
        ..LoadOptions::default()
    };
    let decoder = load(&files("models/gqa"), CpuBackend::new(CpuConfig::default()).unwrap(), &options).unwrap();
    let config =
        EngineConfig { max_step_tokens, max_sequences: 32, prefix_cache, speculate, ..EngineConfig::default() };
    pelton_engine::start(Box::new(decoder), config).unwrap()
}

/// Four prompts, each for every adapter and for none.
fn requests() -> Vec<SequenceRequest> {
    let adapters = [None, Some(AdapterId(0)), Some(AdapterId(1))];
    let request = |index: u32| SequenceRequest {
        prompt: (0..20 + 17 * (index / 3)).map(|at| TokenId((at * 13 + index / 3) % 199)).collect(),
        adapter: adapters[index as usize % 3],
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        stopping: StoppingParams { max_tokens: MAX_TOKENS, ..StoppingParams::default() },
        report: ReportParams { logprobs: true, ..ReportParams::default() },
        constraint: None,
        num_choices: 1,
    };
    (0..12).map(request).collect()
}

fn read(stream: &mut TokenStream) -> Answer {
    let (mut cached, mut tokens) = (0, Vec::new());
    loop {
        match stream.blocking_next().expect("the engine goes on") {
            TokenEvent::Started { num_cached_tokens, .. } => cached = num_cached_tokens,
            TokenEvent::Token(token) => tokens.push((token.id, token.logprob.expect("asked for").to_bits())),
            _ => return (cached, tokens),
        }
    }
}

fn alone(engine: &EngineHandle) -> Vec<Answer> {
    requests().into_iter().map(|request| read(&mut engine.submit(request).unwrap()[0])).collect()
}

fn end(engine: &EngineHandle) {
    assert_eq!(engine.shutdown(Instant::now() + Duration::from_secs(10)), ShutdownOutcome::Drained);
}

#[test]
fn sequences_of_several_adapters_in_one_batch_say_what_each_says_alone() {
    let single = engine(Settings { prefix_cache: false, ..ROOMY });
    let expected = alone(&single);
    end(&single);
    for three in expected.chunks(3) {
        assert!(three[0] != three[1] && three[0] != three[2] && three[1] != three[2], "adapters differ");
    }
    for settings in [
        ROOMY,
        Settings { max_step_tokens: 48, ..ROOMY },
        Settings { prefix_cache: false, max_step_tokens: 64, ..ROOMY },
        // Guesses, and room for a third of the sequences.
        Settings { speculate: 4, ..ROOMY },
        Settings { speculate: 4, kv_tokens: 600, ..ROOMY },
    ] {
        let engine = engine(settings);
        let mut streams: Vec<_> = requests().into_iter().map(|request| engine.submit(request).unwrap()).collect();
        for (index, streams) in streams.iter_mut().enumerate() {
            let (_, tokens) = read(&mut streams[0]);
            assert_eq!(tokens, expected[index].1, "request {index}, {settings:?}");
        }
        let gauges = engine.gauges();
        // Where blocks are short, there may never be one for a guess.
        if settings.speculate == 0 || settings.kv_tokens > 1000 {
            assert_eq!(gauges.drafted_tokens.load(Ordering::Relaxed) > 0, settings.speculate > 0, "{settings:?}");
        }
        assert_eq!(gauges.preemptions.load(Ordering::Relaxed) > 0, settings.kv_tokens < 1000, "{settings:?}");
        end(&engine);
    }
}

#[test]
fn prefixes_are_found_again_within_an_adapter_and_never_between_two() {
    let engine = engine(ROOMY);
    let (cold, warm) = (alone(&engine), alone(&engine));
    for (index, (cold, warm)) in cold.into_iter().zip(warm).enumerate() {
        let num_prompt_tokens = requests()[index].prompt.len() as u32;
        assert_eq!(cold.0, 0, "request {index}: another adapter computed this prompt");
        assert_eq!(warm.0, (num_prompt_tokens - 1) / 16 * 16, "request {index}: its own adapter did");
        assert_eq!(warm.1, cold.1, "request {index}");
    }
    end(&engine);
}
