//! What adapters cost: decode steps of one model without adapters, with one for all sequences, and with all of them mixed, in turns.
//!
//! ```text
//! cargo run --release -p pelton-model --example adapter_cost -- [SHAPE [RANK [ADAPTERS [BATCH [none|int8|int4]]]]]
//! ```
//!
//! Defaults: tinyllama-1.1b, rank 16, 4 adapters on every linear, 32 sequences with 256 tokens behind them, int8. Prints medians, and medians of
//! the ratios of steps that lie next to each other in time.

use std::time::Instant;

use pelton_backend::{AdapterId, BlockId, StepBatch, TokenId};
use pelton_cpu::{CpuBackend, CpuConfig};
use pelton_model::{AdapterSource, Decoder, KvBudget, LoadOptions, Model, Quantize, Shape, load_random};

const BLOCK_TOKENS: usize = 16;
const CONTEXT: usize = 256;
const WARM_UP: usize = 2;
const ROUNDS: usize = 15;

/// Which adapter a sequence has, of so many.
type Choice = fn(sequence: usize, adapters: usize) -> Option<AdapterId>;

const CASES: [(&str, Choice); 3] = [
    ("no adapter", |_, _| None),
    ("one for all", |_, _| Some(AdapterId(0))),
    ("all mixed", |sequence, adapters| Some(AdapterId((sequence % adapters) as u16))),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: usize| args.get(index).map_or(Ok(default), |text| text.parse());
    let shape = Shape::named(args.first().map_or("tinyllama-1.1b", String::as_str))?;
    let (rank, adapters, batch) = (number(1, 16)?, number(2, 4)?.max(1), number(3, 32)?.max(1));
    let quantize = match args.get(4).map(String::as_str) {
        None | Some("int8") => Some(Quantize::Int8),
        Some("int4") => Some(Quantize::Int4),
        Some("none") => None,
        Some(other) => return Err(format!("{other} is not none, int8 or int4").into()),
    };
    let options = LoadOptions {
        quantize,
        block_tokens: BLOCK_TOKENS,
        max_step_rows: batch,
        max_logit_rows: batch,
        max_positions: Some(CONTEXT),
        kv_budget: KvBudget::Tokens(batch * CONTEXT),
        adapters: vec![AdapterSource::Random { rank }; adapters],
        show_progress: true,
        ..LoadOptions::default()
    };
    let backend = CpuBackend::new(CpuConfig::default())?;
    let mut decoder = load_random(&shape.config()?, 1, backend, &options)?;
    println!("{}, {}, {adapters} adapters of rank {rank}, {batch} sequences", shape.name, decoder.info().format);
    println!("{}", decoder.plan());
    decoder.fill_kv((batch * CONTEXT / BLOCK_TOKENS) as u32)?;

    let mut times_ms = CASES.map(|_| Vec::new());
    for round in 0..WARM_UP + ROUNDS {
        for ((_, choice), times_ms) in CASES.iter().zip(&mut times_ms) {
            let time_ms = step(&mut decoder, batch, |sequence| choice(sequence, adapters))?;
            if round >= WARM_UP {
                times_ms.push(time_ms);
            }
        }
    }
    let [plain, ..] = &times_ms;
    println!("{:<12}{:>12}{:>16}", "", "median", "to no adapter");
    for ((name, _), times_ms) in CASES.iter().zip(&times_ms) {
        let ratios = times_ms.iter().zip(plain).map(|(time, plain)| time / plain).collect();
        println!("{name:<12}{:>9.2} ms{:>16.3}", median(times_ms.clone()), median(ratios));
    }
    Ok(())
}

/// Computes the last token of each sequence; milliseconds.
fn step(
    decoder: &mut Decoder<CpuBackend>,
    batch: usize,
    adapter: impl Fn(usize) -> Option<AdapterId>,
) -> Result<f64, Box<dyn std::error::Error>> {
    let mut step = StepBatch::default();
    let blocks = CONTEXT / BLOCK_TOKENS;
    for sequence in 0..batch {
        let blocks: Vec<BlockId> = (sequence * blocks..(sequence + 1) * blocks).map(|id| BlockId(id as u32)).collect();
        let token = TokenId(17 * sequence as u32 % 1000);
        step.push_span(&[token], CONTEXT as u32 - 1, &blocks, BLOCK_TOKENS as u32).adapter = adapter(sequence);
        step.logit_rows.push(sequence as u32);
    }
    let start = Instant::now();
    decoder.forward(&step)?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
