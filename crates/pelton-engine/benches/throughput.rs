//! What the engine itself costs: tokens per second from a model that takes no time.
//!
//! `cargo bench -p pelton-engine`. One line for each vocabulary (the fake model's logits are read for each token) and each kind of
//! reader: none until the end, or a second thread that is woken for events.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Instant;

use pelton_backend::TokenId;
use pelton_engine::{
    EngineConfig, FakeConfig, FakeModel, ReportParams, SamplingParams, SequenceRequest, StoppingParams, TokenEvent,
    TokenStream, start,
};

const NUM_STREAMS: usize = 256;
const NUM_TOKENS: u32 = 1000;
const NUM_PROMPT_TOKENS: usize = 16;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Polls all streams to their ends, parked while none has anything; returns the tokens seen.
fn read_all(mut streams: Vec<TokenStream>) -> usize {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut num_tokens = 0;
    while !streams.is_empty() {
        streams.retain_mut(|stream| {
            loop {
                match stream.poll_next(&mut context) {
                    Poll::Ready(Some(event)) => num_tokens += usize::from(matches!(event, TokenEvent::Token(_))),
                    Poll::Ready(None) => return false,
                    Poll::Pending => return true,
                }
            }
        });
        if !streams.is_empty() {
            std::thread::park();
        }
    }
    num_tokens
}

fn main() {
    for (vocab_size, reads_meanwhile) in [(256, false), (256, true), (4096, false), (4096, true), (32_000, true)] {
        let fake = FakeConfig {
            vocab_size,
            script: (0..97).map(TokenId).collect(),
            num_blocks: 32_768,
            ..FakeConfig::default()
        };
        let config =
            EngineConfig { max_step_tokens: 2048, max_sequences: 256, max_queued: 0, ..EngineConfig::default() };
        let engine = start(Box::new(FakeModel::new(fake)), config).expect("the limits are not zero");
        let started = Instant::now();
        let streams: Vec<TokenStream> = (0..NUM_STREAMS)
            .flat_map(|index| {
                let request = SequenceRequest {
                    prompt: vec![TokenId(index as u32 % 97); NUM_PROMPT_TOKENS],
                    adapter: None,
                    sampling: SamplingParams::default(),
                    stopping: StoppingParams { max_tokens: NUM_TOKENS, ..StoppingParams::default() },
                    report: ReportParams::default(),
                    constraint: None,
                    num_choices: 1,
                };
                engine.submit(request).expect("there is room")
            })
            .collect();
        let num_tokens = NUM_STREAMS * NUM_TOKENS as usize;
        if reads_meanwhile {
            assert_eq!(read_all(streams), num_tokens);
        } else {
            engine.shutdown(Instant::now() + std::time::Duration::from_secs(60));
        }
        let seconds = started.elapsed().as_secs_f64();
        let reader = if reads_meanwhile { "read meanwhile" } else { "not read" };
        println!("vocabulary {vocab_size:>6}, {reader:<14}: {:>9.0} tokens/s", num_tokens as f64 / seconds);
    }
}
