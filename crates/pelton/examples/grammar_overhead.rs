//! What following a grammar costs for each token at 32 users: the demo model, a model of a billion parameters with made-up weights (its tokens follow no
//! grammar by themselves, so each needs a mask), and vocabularies of other sizes without a model.
//!
//! `cargo run --release -p pelton --example grammar_overhead [DIRECTORY ...]`, with directories of tokenizers to measure beside those made
//! up here. The sampler follows grammars on the model's threads; the model without weights has one. Runs with and without grammars take turns. Told are
//! medians: of a step, and of the time spent in grammars for each token and as a share of the threads' time.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pelton_backend::{StepBatch, TokenId};
use pelton_cpu::{CpuBackend, CpuConfig};
use pelton_engine::{
    ConstraintError, Ending, EngineConfig, EngineHandle, ReportParams, SamplingParams, SequenceRequest, StoppingParams,
    TokenConstraint, TokenMask,
};
use pelton_model::{
    KvBudget, LoadOptions, Logits, Model, ModelError, ModelFiles, ModelSpec, Quantize, Shape, load, load_random,
};
use pelton_text::{Grammar, GrammarEnding, GrammarMatcher, MatchError, TextModel};
use serde_json::{Map, Value, json};

const NUM_USERS: usize = 32;
const NUM_ROUNDS: usize = 5;

/// Tokens of each answer.
const NUM_TOKENS: u32 = 96;
const NUM_TOKENS_OF_LARGE: u32 = 32;

/// A grammar as the server hands it to the engine.
struct Following(GrammarMatcher);

/// Nanoseconds spent in grammars, on all threads.
static SPENT_NS: AtomicU64 = AtomicU64::new(0);

fn timed<T>(call: impl FnOnce() -> Result<T, MatchError>) -> Result<T, ConstraintError> {
    let started = Instant::now();
    let result = call();
    SPENT_NS.fetch_add(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
    result.map_err(|error| ConstraintError(error.to_string()))
}

impl TokenConstraint for Following {
    fn allow(&mut self, mask: &mut TokenMask) -> Result<Ending, ConstraintError> {
        let ending = timed(|| self.0.next(|words| mask.allow_words(words)))?;
        Ok(match ending {
            GrammarEnding::No => Ending::No,
            GrammarEnding::May => Ending::May,
            GrammarEnding::Must => Ending::Must,
        })
    }

    fn accept(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        timed(|| self.0.accept(token.0))
    }

    fn try_accept(&mut self, token: TokenId) -> Result<bool, ConstraintError> {
        timed(|| self.0.try_accept(token.0))
    }

    fn fork(&self) -> Box<dyn TokenConstraint> {
        Box::new(Self(self.0.fork()))
    }
}

/// What `NUM_USERS` sequences took.
#[derive(Clone, Copy)]
struct Took {
    /// A step, in microseconds.
    step_us: f64,
    /// Grammars of a step, in microseconds on all threads together.
    grammars_us: f64,
}

/// Runs `NUM_USERS` sequences.
fn run(engine: &EngineHandle, text: &TextModel, grammar: Option<&Grammar>, max_tokens: u32) -> Took {
    let steps = || engine.gauges().steps.load(Ordering::Relaxed);
    let requests: Vec<SequenceRequest> = (0..NUM_USERS)
        .map(|user| SequenceRequest {
            prompt: vec![TokenId(user as u32 + 40)],
            adapter: None,
            sampling: SamplingParams { temperature: 0.8, seed: user as u64, ..SamplingParams::default() },
            stopping: StoppingParams { max_tokens, ..StoppingParams::default() },
            report: ReportParams::default(),
            constraint: grammar.map(|grammar| {
                Box::new(Following(text.grammar(grammar).expect("a valid grammar"))) as Box<dyn TokenConstraint>
            }),
            num_choices: 1,
        })
        .collect();
    let (before, started) = (steps(), Instant::now());
    SPENT_NS.store(0, Ordering::Relaxed);
    let mut streams: Vec<_> = requests.into_iter().flat_map(|request| engine.submit(request).expect("room")).collect();
    let mut num_tokens = 0;
    for stream in &mut streams {
        while let Some(event) = stream.blocking_next() {
            match event {
                pelton_engine::TokenEvent::Token(_) => num_tokens += 1,
                pelton_engine::TokenEvent::Failed(error) => panic!("{error}"),
                _ => {}
            }
        }
    }
    let elapsed = started.elapsed();
    assert_eq!(num_tokens, NUM_USERS as u32 * max_tokens, "no text ended before its time");
    let num_steps = (steps() - before) as f64;
    let spent_us = SPENT_NS.load(Ordering::Relaxed) as f64 / 1e3;
    Took { step_us: elapsed.as_secs_f64() * 1e6 / num_steps, grammars_us: spent_us / num_steps }
}

fn grammars() -> Vec<(&'static str, Option<Grammar>)> {
    let record = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 3, "maxLength": 30}, "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 2},
        },
        "required": ["name", "age", "tags"],
    });
    let records = json!({"type": "array", "items": record, "minItems": 500}).to_string();
    vec![
        ("none", None),
        ("JSON of records", Some(Grammar::JsonSchema(records))),
        ("a JSON string", Some(Grammar::JsonSchema(json!({"type": "string", "minLength": 2000}).to_string()))),
        ("a pattern of words", Some(Grammar::Regex(r"(\w{1,12}[ ,.]){400,}".into()))),
    ]
}

/// `num_threads` compute the steps and sample.
fn report(name: &str, engine: &EngineHandle, text: &TextModel, max_tokens: u32, num_threads: usize) {
    let grammars = grammars();
    let mut took = vec![Vec::new(); grammars.len()];
    for _ in 0..NUM_ROUNDS {
        for ((_, grammar), took) in grammars.iter().zip(&mut took) {
            took.push(run(engine, text, grammar.as_ref(), max_tokens));
        }
    }
    let median = |took: &[Took], of: fn(&Took) -> f64| {
        let mut values: Vec<f64> = took.iter().map(of).collect();
        values.sort_unstable_by(f64::total_cmp);
        values[NUM_ROUNDS / 2]
    };
    for ((grammar, _), took) in grammars.iter().zip(&took) {
        let step = median(took, |took| took.step_us);
        let per_token = median(took, |took| took.grammars_us) / NUM_USERS as f64;
        let share = 100.0 * median(took, |took| took.grammars_us / took.step_us) / num_threads as f64;
        println!("{name:<24}{:>9}  {grammar:<20}{step:>10.0}{per_token:>12.1}{share:>9.1} %", text.vocab_size());
    }
}

fn demo() -> (EngineHandle, TextModel) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    let files = ModelFiles::directory(directory.clone()).expect("files");
    let decoder = load(&files, backend(), &options(None)).expect("a model");
    (start(Box::new(decoder)), TextModel::from_dir(&directory).expect("a tokenizer"))
}

/// Made-up weights of a StarCoder in int8, and a vocabulary as large as its own.
fn large() -> (EngineHandle, TextModel) {
    let config = Shape::named("starcoderbase-1b").expect("a known shape").config().expect("a configuration");
    let decoder = load_random(&config, 1, backend(), &options(Some(Quantize::Int8))).expect("a model");
    let text = made_up(decoder.spec().vocab_size);
    (start(Box::new(decoder)), text)
}

fn backend() -> CpuBackend {
    CpuBackend::new(CpuConfig::default()).expect("a processor")
}

fn options(quantize: Option<Quantize>) -> LoadOptions {
    LoadOptions {
        quantize,
        max_step_rows: 256,
        max_logit_rows: NUM_USERS,
        max_positions: Some(512),
        kv_budget: KvBudget::Tokens(NUM_USERS * 512),
        ..LoadOptions::default()
    }
}

fn start(model: Box<dyn Model>) -> EngineHandle {
    let config = EngineConfig {
        max_step_tokens: 256,
        max_sequences: NUM_USERS as u32,
        max_queued: 0,
        prefix_cache: false,
        ..EngineConfig::default()
    };
    pelton_engine::start(model, config).expect("limits that are not zero")
}

/// Rows of random numbers, the same in each step, at no cost.
struct Rows {
    spec: ModelSpec,
    logits: Arc<[f32]>,
}

impl Model for Rows {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&mut self, batch: &StepBatch) -> Result<Logits<'_>, ModelError> {
        Ok(Logits::from(&self.logits[..batch.logit_rows.len() * self.spec.vocab_size]))
    }
}

fn rows(vocab_size: usize) -> EngineHandle {
    let mut state = 7u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let logits = (0..NUM_USERS * vocab_size).map(|_| random() * 8.0).collect();
    let spec = ModelSpec {
        vocab_size,
        max_positions: 4096,
        num_blocks: 4096,
        block_tokens: 16,
        max_step_rows: 256,
        max_logit_rows: NUM_USERS,
        num_adapters: 0,
    };
    start(Box::new(Rows { spec, logits }))
}

/// A byte-level vocabulary of made-up words of one to ten letters, half of them after a space.
fn made_up(vocab_size: usize) -> TextModel {
    let bytes = TextModel::bytes();
    let mut vocab = Map::new();
    let mut chars = (0..=255u32).scan(0x100, |next, byte| {
        let printable = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        let code = if printable { byte } else { *next };
        *next += u32::from(!printable);
        char::from_u32(code).map(String::from)
    });
    let mut state = 1u64;
    while vocab.len() < vocab_size - 1 {
        let word = chars.next().unwrap_or_else(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (mut letters, len) = (state >> 8, 1 + (state >> 60) % 10);
            let letter = |_| {
                letters = letters.rotate_left(9).wrapping_mul(31);
                char::from(b'a' + (letters % 26) as u8)
            };
            let word: String = (0..len).map(letter).collect();
            if state >> 33 & 1 == 0 { format!("Ġ{word}") } else { word }
        });
        let id = vocab.len();
        vocab.entry(word).or_insert(Value::from(id));
    }
    let end = json!({
        "id": vocab.len(), "content": bytes.token_text(256), "special": true,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
    });
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [end], "pre_tokenizer": level, "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    TextModel::from_files(&|file| Ok((file == "tokenizer.json").then(|| tokenizer.to_string().into_bytes())))
        .expect("a tokenizer")
}

fn main() {
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!("model                  vocabulary  grammar              step, us  us a token    of step");
    let (engine, text) = demo();
    report("demo model", &engine, &text, NUM_TOKENS, num_threads);
    engine.shutdown(Instant::now() + Duration::from_secs(10));
    let (engine, text) = large();
    report("starcoderbase-1b, int8", &engine, &text, NUM_TOKENS_OF_LARGE, num_threads);
    engine.shutdown(Instant::now() + Duration::from_secs(10));
    let directories = std::env::args().skip(1).map(|directory| {
        let text = TextModel::from_dir(Path::new(&directory)).expect("a directory with a tokenizer");
        (directory, text)
    });
    let made_up = [32_000, 151_936].map(|size| ("made up, no model".to_owned(), made_up(size)));
    for (name, text) in made_up.into_iter().chain(directories) {
        let engine = rows(text.vocab_size());
        report(&name, &engine, &text, NUM_TOKENS, 1);
        engine.shutdown(Instant::now() + Duration::from_secs(10));
    }
}
