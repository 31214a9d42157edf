//! The demo model through the whole engine: what a sequence says does not depend on its company, bit for bit.

use std::path::Path;
use std::time::{Duration, Instant};

use pelton_backend::TokenId;
use pelton_cpu::{CpuBackend, CpuConfig};
use pelton_engine::{
    EngineConfig, EngineHandle, ReportParams, SamplingParams, SequenceRequest, ShutdownOutcome, StoppingParams,
    TokenEvent, TokenStream,
};
use pelton_model::{KvBudget, LoadOptions, ModelFiles, Quantize, load};

const MAX_TOKENS: u32 = 12;

/// An answer: tokens, and the bits of their log-probabilities.
type Answer = Vec<(TokenId, u32)>;

#[derive(Clone, Copy)]
struct Settings {
    max_step_tokens: u32,
    max_sequences: u32,
    prefix_cache: bool,
    kv_tokens: usize,
    quantize: Option<Quantize>,
    speculate: u32,
}

const ROOMY: Settings = Settings {
    max_step_tokens: 128,
    max_sequences: 64,
    prefix_cache: true,
    kv_tokens: 40_000,
    quantize: None,
    speculate: 0,
};

fn engine(settings: Settings) -> EngineHandle {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    let options = LoadOptions {
        max_step_rows: settings.max_step_tokens as usize,
        max_logit_rows: (settings.max_sequences * (1 + settings.speculate)).min(settings.max_step_tokens) as usize,
        max_positions: Some(512),
        quantize: settings.quantize,
        kv_budget: KvBudget::Tokens(settings.kv_tokens),
        ..LoadOptions::default()
    };
    let backend = CpuBackend::new(CpuConfig::default()).unwrap();
    let decoder = load(&ModelFiles::directory(demo).unwrap(), backend, &options).unwrap();
    let config = EngineConfig {
        max_step_tokens: settings.max_step_tokens,
        max_sequences: settings.max_sequences,
        max_queued: 256,
        prefix_cache: settings.prefix_cache,
        speculate: settings.speculate,
        ..EngineConfig::default()
    };
    pelton_engine::start(Box::new(decoder), config).unwrap()
}

/// Prompts of 1 to about 200 tokens; every second one begins like its neighbour. Some are greedy, some drawn.
fn requests() -> Vec<SequenceRequest> {
    (0..64u32)
        .map(|index| {
            let family = index / 2;
            let length = 1 + (family * 37) % 190 + index % 2;
            let prompt = (0..length).map(|at| TokenId(20 + (family * 101 + at * 13) % 4000)).collect();
            let temperature = if index % 3 == 0 { 0.9 } else { 0.0 };
            SequenceRequest {
                prompt,
                adapter: None,
                sampling: SamplingParams {
                    temperature,
                    top_p: 0.95,
                    seed: u64::from(index),
                    ..SamplingParams::default()
                },
                stopping: StoppingParams { max_tokens: MAX_TOKENS, ..StoppingParams::default() },
                report: ReportParams { logprobs: true, ..ReportParams::default() },
                constraint: None,
                num_choices: 1,
            }
        })
        .collect()
}

fn read(stream: &mut TokenStream) -> (Answer, u32) {
    let mut answer = Answer::new();
    loop {
        match stream.blocking_next().expect("the engine goes on") {
            TokenEvent::Started { .. } => {}
            TokenEvent::Token(token) => answer.push((token.id, token.logprob.expect("asked for").to_bits())),
            TokenEvent::Finished { timeline, .. } => {
                assert_eq!(answer.len(), MAX_TOKENS as usize);
                return (answer, timeline.num_preemptions);
            }
            TokenEvent::Failed(error) => panic!("{error}"),
        }
    }
}

fn end(engine: &EngineHandle) {
    assert_eq!(engine.shutdown(Instant::now() + Duration::from_secs(10)), ShutdownOutcome::Drained);
}

/// Each request by itself, one after the other, nothing shared.
fn alone(quantize: Option<Quantize>) -> Vec<Answer> {
    let engine = engine(Settings { prefix_cache: false, max_step_tokens: 256, quantize, ..ROOMY });
    let answers = requests().into_iter().map(|request| read(&mut engine.submit(request).unwrap()[0]).0).collect();
    end(&engine);
    answers
}

/// All at once; also says how many sequences were preempted.
fn together(settings: Settings) -> (Vec<Answer>, u32) {
    let engine = engine(settings);
    let mut streams: Vec<_> = requests().into_iter().map(|request| engine.submit(request).unwrap()).collect();
    let read: Vec<_> = streams.iter_mut().map(|streams| read(&mut streams[0])).collect();
    end(&engine);
    let preemptions = read.iter().map(|(_, preemptions)| preemptions).sum();
    (read.into_iter().map(|(answer, _)| answer).collect(), preemptions)
}

#[test]
fn company_chunks_prefixes_and_preemption_change_nothing() {
    let alone = alone(None);
    assert_eq!(together(ROOMY).0, alone, "in a batch of 64");
    assert_eq!(together(Settings { max_sequences: 7, ..ROOMY }).0, alone, "in batches of 7");
    assert_eq!(together(Settings { max_step_tokens: 64, ..ROOMY }).0, alone, "in chunks of 64 and less");
    assert_eq!(together(Settings { prefix_cache: false, ..ROOMY }).0, alone, "without prefix hits");
    let (answers, preemptions) = together(Settings { kv_tokens: 1024, ..ROOMY });
    assert!(preemptions > 0, "1,024 tokens of cache are too few for 64 sequences");
    assert_eq!(answers, alone, "after preemption");
}

#[test]
fn company_changes_nothing_in_integers() {
    for quantize in [Quantize::Int8, Quantize::Int4] {
        let settings = Settings { quantize: Some(quantize), ..ROOMY };
        let alone = alone(settings.quantize);
        assert_eq!(together(settings).0, alone, "{quantize:?} in a batch of 64");
        let chunks = Settings { max_sequences: 7, max_step_tokens: 64, ..settings };
        assert_eq!(together(chunks).0, alone, "{quantize:?} in small chunks");
    }
}

#[test]
fn prefix_hits_change_nothing() {
    let engine = engine(ROOMY);
    for request in requests() {
        let cold = read(&mut engine.submit(request.clone()).unwrap()[0]).0;
        let mut streams = engine.submit(request.clone()).unwrap();
        if let Some(TokenEvent::Started { num_cached_tokens, .. }) = streams[0].blocking_next() {
            assert_eq!(
                num_cached_tokens,
                (request.prompt.len() as u32 - 1) / 16 * 16,
                "full blocks of 16 are found again"
            );
        }
        assert_eq!(read(&mut streams[0]).0, cold);
    }
    end(&engine);
}

/// What is said with guesses, and how many of them were made and accepted: long answers to prompts that repeat themselves, greedy and
/// drawn, penalised, several choices of one.
fn repeating(settings: Settings) -> (Vec<Answer>, u32, u32) {
    let engine = engine(settings);
    let requests = (0..24u32).map(|index| {
        let period = 5 + index % 7;
        let prompt = (0..60 + index).map(|at| TokenId(300 + index / 2 * 31 + at % period)).collect();
        let temperature = if index % 2 == 0 { 0.0 } else { 0.4 };
        let frequency_penalty = if index % 3 == 0 { 0.02 } else { 0.0 };
        let sampling =
            SamplingParams { temperature, frequency_penalty, seed: u64::from(index), ..SamplingParams::default() };
        SequenceRequest {
            prompt,
            sampling,
            stopping: StoppingParams { max_tokens: MAX_TOKENS * 4, ..StoppingParams::default() },
            report: ReportParams {
                logprobs: true,
                prompt_logprobs: (index % 5 == 0).then_some(0),
                ..ReportParams::default()
            },
            adapter: None,
            constraint: None,
            num_choices: 1 + u16::from(index % 4 == 1),
        }
    });
    let streams: Vec<_> = requests.flat_map(|request| engine.submit(request).unwrap()).collect();
    let (mut drafted, mut accepted) = (0, 0);
    let answers = streams.into_iter().map(|mut stream| {
        let mut answer = Answer::new();
        loop {
            match stream.blocking_next().expect("the engine goes on") {
                TokenEvent::Started { .. } => {}
                TokenEvent::Token(token) => answer.push((token.id, token.logprob.expect("asked for").to_bits())),
                TokenEvent::Failed(error) => panic!("{error}"),
                TokenEvent::Finished { timeline, .. } => {
                    drafted += timeline.num_drafted_tokens;
                    accepted += timeline.num_accepted_tokens;
                    return answer;
                }
            }
        }
    });
    let answers = answers.collect();
    end(&engine);
    (answers, drafted, accepted)
}

#[test]
fn guesses_change_nothing() {
    for quantize in [None, Some(Quantize::Int8)] {
        let settings = Settings { quantize, ..ROOMY };
        let (plain, drafted, _) = repeating(settings);
        assert_eq!(drafted, 0);
        for speculating in [
            Settings { speculate: 1, ..settings },
            Settings { speculate: 4, max_sequences: 3, ..settings },
            Settings { speculate: 8, max_sequences: 12, max_step_tokens: 64, kv_tokens: 600, ..settings },
        ] {
            let (answers, drafted, accepted) = repeating(speculating);
            assert_eq!(answers, plain, "{quantize:?}, {} guesses", speculating.speculate);
            assert!(accepted > 0 && accepted < drafted, "{accepted} of {drafted}");
        }
    }
}
