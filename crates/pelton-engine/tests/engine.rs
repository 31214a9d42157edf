//! The engine as its neighbours see it: requests in, events out.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use pelton_backend::{AdapterId, StepBatch, TokenId};
use pelton_engine::{
    ConstraintError, Ending, EngineConfig, EngineHandle, FakeConfig, FakeModel, FinishReason, Foretold, Newcomers,
    ReportParams, SampledToken, SamplingParams, SequenceError, SequenceRequest, ShutdownOutcome, StartError,
    StoppingParams, SubmitError, Timeline, TokenConstraint, TokenEvent, TokenMask, TokenStream, start,
};
use pelton_model::{Logits, Model, ModelError, ModelSpec};

const CONFIG: EngineConfig = EngineConfig {
    max_step_tokens: 64,
    max_sequences: 8,
    max_queued: 8,
    prefix_cache: true,
    newcomers: Newcomers::AT_ONCE,
    speculate: 0,
};

fn fake() -> FakeConfig {
    FakeConfig { vocab_size: 16, script: (0..16).map(TokenId).collect(), num_blocks: 64, ..FakeConfig::default() }
}

fn engine(config: EngineConfig, fake: FakeConfig) -> EngineHandle {
    start(Box::new(FakeModel::new(fake)), config).unwrap()
}

/// `num_prompt_tokens` of token 1, greedy.
fn request(num_prompt_tokens: usize, max_tokens: u32) -> SequenceRequest {
    SequenceRequest {
        prompt: vec![TokenId(1); num_prompt_tokens],
        adapter: None,
        sampling: SamplingParams::default(),
        stopping: StoppingParams { max_tokens, ..StoppingParams::default() },
        report: ReportParams::default(),
        constraint: None,
        num_choices: 1,
    }
}

fn submit_one(engine: &EngineHandle, request: SequenceRequest) -> TokenStream {
    let mut streams = engine.submit(request).unwrap();
    assert_eq!(streams.len(), 1);
    streams.remove(0)
}

/// A far deadline, for shutdowns that are to drain.
fn later() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

struct Answer {
    num_cached_tokens: u32,
    prompt_logprobs: Option<Vec<Option<Foretold>>>,
    tokens: Vec<SampledToken>,
    reason: FinishReason,
    timeline: Timeline,
}

impl Answer {
    fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id.0).collect()
    }
}

/// Reads a stream to its end and checks the order of events.
fn read(mut stream: TokenStream) -> Answer {
    let Some(TokenEvent::Started { num_cached_tokens, prompt_logprobs, .. }) = stream.blocking_next() else {
        panic!("a stream begins with Started");
    };
    let mut tokens = Vec::new();
    loop {
        match stream.blocking_next() {
            Some(TokenEvent::Token(token)) => tokens.push(token),
            Some(TokenEvent::Finished { reason, timeline }) => {
                assert_eq!(stream.blocking_next(), None, "nothing comes after Finished");
                return Answer { num_cached_tokens, prompt_logprobs, tokens, reason, timeline };
            }
            other => panic!("{other:?} after {} tokens", tokens.len()),
        }
    }
}

/// A model whose steps wait for the test: it says that a step began and waits until it may end.
struct Gated {
    model: FakeModel,
    began: Sender<usize>,
    go_on: Receiver<()>,
}

/// The test's side of [`Gated`].
struct Gate {
    began: Receiver<usize>,
    go_on: Sender<()>,
}

impl Gate {
    /// Waits until a step began; returns its rows.
    fn wait(&self) -> usize {
        self.began.recv_timeout(Duration::from_secs(30)).expect("a step begins")
    }

    /// Lets it end.
    fn open(&self) {
        self.go_on.send(()).unwrap();
    }
}

impl Model for Gated {
    fn spec(&self) -> &ModelSpec {
        self.model.spec()
    }

    fn forward(&mut self, batch: &StepBatch) -> Result<Logits<'_>, ModelError> {
        // After the test dropped its side, steps run freely.
        if self.began.send(batch.num_rows()).is_ok() {
            let _ = self.go_on.recv();
        }
        self.model.forward(batch)
    }
}

fn gated_engine(config: EngineConfig, fake: FakeConfig) -> (EngineHandle, Gate) {
    let (began, began_there) = channel();
    let (go_on_there, go_on) = channel();
    let model = Gated { model: FakeModel::new(fake), began, go_on };
    (start(Box::new(model), config).unwrap(), Gate { began: began_there, go_on: go_on_there })
}

/// Servers share one handle among their threads and move streams between them.
const _: () = {
    const fn shared<T: Clone + Send + Sync>() {}
    const fn moved<T: Send + Unpin>() {}
    shared::<EngineHandle>();
    moved::<TokenStream>();
};

#[test]
fn a_scripted_answer_arrives_in_order_with_its_timeline() {
    let engine = engine(CONFIG, fake());
    let answer = read(submit_one(&engine, request(14, 5)));
    assert_eq!(answer.ids(), [14, 15, 0, 1, 2], "the script goes by position");
    assert_eq!(answer.reason, FinishReason::Length);
    let timeline = answer.timeline;
    assert!(timeline.queued_at <= timeline.scheduled_at && timeline.scheduled_at <= timeline.first_token_at);
    assert!(timeline.first_token_at <= timeline.finished_at);
    assert_eq!((timeline.num_prompt_tokens, timeline.num_generated_tokens, timeline.num_preemptions), (14, 5, 0));
    let gauges = engine.gauges();
    assert_eq!(gauges.steps.load(Ordering::Relaxed), 5);
    assert_eq!(gauges.rows.load(Ordering::Relaxed), 14 + 4);
    assert_eq!(gauges.running.load(Ordering::Relaxed) + gauges.blocks_used.load(Ordering::Relaxed), 0);
    assert_eq!(gauges.blocks_total.load(Ordering::Relaxed), 64);
}

#[test]
fn guesses_save_steps_and_change_nothing() {
    // The script repeats itself after sixteen tokens, so that a sequence is guessed right from its second round on.
    let speculating = engine(EngineConfig { speculate: 4, ..CONFIG }, fake());
    let plain = engine(CONFIG, fake());
    let mut asked = request(3, 200);
    asked.report = ReportParams { logprobs: true, top_n: 2, prompt_logprobs: Some(1) };
    asked.stopping.stop_tokens = vec![TokenId(15)];
    asked.stopping.min_tokens = 120;
    for (temperature, frequency_penalty) in [(0.0, 0.0), (20.0, 0.0), (0.0, 0.5), (1000.0, 0.3)] {
        asked.sampling = SamplingParams { temperature, frequency_penalty, seed: 3, ..SamplingParams::default() };
        let [guessed, told] = [&speculating, &plain].map(|engine| read(submit_one(engine, asked.clone())));
        assert_eq!((guessed.tokens, guessed.reason), (told.tokens, told.reason), "temperature {temperature}");
        assert_eq!(guessed.prompt_logprobs, told.prompt_logprobs);
        let Timeline { num_generated_tokens, num_drafted_tokens, num_accepted_tokens, .. } = guessed.timeline;
        assert_eq!(num_generated_tokens, told.timeline.num_generated_tokens);
        assert!(num_accepted_tokens <= num_drafted_tokens);
        if temperature == 0.0 && frequency_penalty == 0.0 {
            assert!(num_accepted_tokens > 80, "{num_accepted_tokens} of {num_drafted_tokens}");
        }
        assert_eq!((told.timeline.num_drafted_tokens, told.timeline.num_accepted_tokens), (0, 0));
    }
    let counts = |engine: &EngineHandle| {
        let gauges = engine.gauges();
        let by_accepted: Vec<u64> =
            gauges.samples_by_accepted.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let accepted = (0..).zip(&by_accepted).map(|(accepted, count)| accepted * count).sum::<u64>();
        let tokens = accepted + by_accepted.iter().sum::<u64>();
        (gauges.steps.load(Ordering::Relaxed), gauges.drafted_tokens.load(Ordering::Relaxed), accepted, tokens)
    };
    let ((steps, drafted, accepted, tokens), (plain_steps, _, _, plain_tokens)) =
        (counts(&speculating), counts(&plain));
    assert_eq!(tokens, plain_tokens);
    assert_eq!(steps + accepted, plain_steps, "alone, each accepted token saves a step");
    assert!(drafted >= accepted && accepted > 80);
}

#[test]
fn stop_tokens_end_a_sequence_and_are_sent() {
    let engine = engine(CONFIG, fake());
    let mut asked = request(2, 100);
    asked.stopping.stop_tokens = vec![TokenId(9), TokenId(5)];
    let answer = read(submit_one(&engine, asked.clone()));
    assert_eq!(answer.ids(), [2, 3, 4, 5]);
    assert_eq!(answer.reason, FinishReason::StopToken(TokenId(5)));

    asked.stopping.min_tokens = 4;
    let answer = read(submit_one(&engine, asked));
    assert_eq!(answer.reason, FinishReason::StopToken(TokenId(9)));
    assert_eq!(answer.tokens.len(), 8);
}

#[test]
fn max_tokens_are_cut_to_the_positions() {
    let engine = engine(CONFIG, FakeConfig { max_positions: 20, ..fake() });
    let answer = read(submit_one(&engine, request(17, 1000)));
    assert_eq!(answer.tokens.len(), 3);
    assert_eq!(answer.reason, FinishReason::Length);
    assert_eq!(read(submit_one(&engine, request(19, 1000))).tokens.len(), 1);
}

#[test]
fn bad_requests_are_refused_with_limit_and_value() {
    let engine = engine(CONFIG, FakeConfig { num_blocks: 2, max_positions: 40, ..fake() });
    let refusal = |request| engine.submit(request).unwrap_err();
    assert_eq!(refusal(request(0, 1)), SubmitError::EmptyPrompt);
    assert_eq!(refusal(request(32, 1)), SubmitError::TooLong { num_prompt_tokens: 32, limit: 31 });
    assert_eq!(refusal(request(30, 3)), SubmitError::TooManyTokens { num_tokens: 33, limit: 32 });
    assert_eq!(refusal(request(3, 0)), SubmitError::Nothing { field: "max_tokens" });
    assert_eq!(
        refusal(SequenceRequest { num_choices: 0, ..request(3, 1) }),
        SubmitError::Nothing { field: "num_choices" }
    );
    let mut outside = request(3, 1);
    outside.prompt[1] = TokenId(16);
    assert_eq!(refusal(outside), SubmitError::TokenOutOfRange { token: 16, vocab_size: 16 });
    let mut outside = request(3, 1);
    outside.sampling.logit_bias = vec![(TokenId(77), 1.0)];
    let error = refusal(outside);
    assert_eq!(error.to_string(), "token 77 is out of range, the vocabulary has 16 tokens");
    let error = refusal(SequenceRequest { adapter: Some(AdapterId(0)), ..request(3, 1) });
    assert_eq!(error.to_string(), "adapter 0 is out of range, the model has 0");
    assert_eq!(engine.max_sequence_tokens(), 32);
    assert_eq!(read(submit_one(&engine, request(30, 2))).tokens.len(), 2, "all blocks are of use");
}

#[test]
fn adapters_share_a_batch_and_no_blocks() {
    let engine = engine(CONFIG, FakeConfig { num_adapters: 2, ..fake() });
    let with = |adapter: Option<u16>| SequenceRequest { adapter: adapter.map(AdapterId), ..request(40, 3) };
    let error = engine.submit(with(Some(2))).unwrap_err();
    assert_eq!(error, SubmitError::NoSuchAdapter { adapter: 2, num_adapters: 2 });
    let adapters = [None, Some(0), Some(1)];
    // The same prompt for each: blocks of another adapter would be found here, and its own are when it comes again.
    for num_cached_tokens in [0, 32] {
        let streams = adapters.map(|adapter| submit_one(&engine, with(adapter)));
        for (stream, shift) in streams.into_iter().zip(0..) {
            let answer = read(stream);
            let ids: Vec<u32> = answer.tokens.iter().map(|token| token.id.0).collect();
            assert_eq!(ids, [(40 + shift) % 16, (41 + shift) % 16, (42 + shift) % 16]);
            assert_eq!(answer.num_cached_tokens, num_cached_tokens, "adapter {shift}");
        }
    }
}

#[test]
fn configurations_without_room_are_refused() {
    let refused = start(Box::new(FakeModel::new(fake())), EngineConfig { max_sequences: 0, ..CONFIG });
    assert!(matches!(refused, Err(StartError::Zero("max_sequences"))));
    let refused = start(Box::new(FakeModel::new(FakeConfig { num_blocks: 0, ..fake() })), CONFIG);
    assert_eq!(refused.unwrap_err().to_string(), "the model's num_blocks must be at least 1");
    let refused = start(Box::new(FakeModel::new(fake())), EngineConfig { speculate: 17, ..CONFIG });
    assert_eq!(refused.unwrap_err().to_string(), "speculate is 17, limit is 16");
}

#[test]
fn a_full_queue_answers_at_once_and_takes_the_next_when_a_place_is_free() {
    let (engine, gate) = gated_engine(EngineConfig { max_sequences: 1, max_queued: 2, ..CONFIG }, fake());
    let running = submit_one(&engine, request(3, 1));
    gate.wait();
    let queued = submit_one(&engine, request(3, 1));
    let pair = SequenceRequest { num_choices: 2, ..request(3, 1) };
    assert_eq!(engine.submit(pair).unwrap_err(), SubmitError::QueueFull { limit: 2 }, "all choices or none");
    let dropped = submit_one(&engine, request(3, 1));
    assert_eq!(engine.submit(request(3, 1)).unwrap_err(), SubmitError::QueueFull { limit: 2 });

    drop(dropped);
    gate.open();
    assert_eq!(read(running).tokens.len(), 1);
    gate.wait();
    // The second step has begun: the queue holds nobody. One runs, so two may wait.
    let others = [submit_one(&engine, request(3, 1)), submit_one(&engine, request(3, 1))];
    assert!(matches!(engine.submit(request(3, 1)), Err(SubmitError::QueueFull { .. })));
    drop(gate);
    assert_eq!(read(queued).tokens.len(), 1);
    for other in others {
        read(other);
    }
}

#[test]
fn newcomers_gather_until_they_are_enough_or_have_waited() {
    let newcomers = Newcomers { waiting_served_ratio: 2.0, max_waiting_steps: 3 };
    let (engine, gate) = gated_engine(EngineConfig { newcomers, ..CONFIG }, fake());
    let _first = submit_one(&engine, request(3, 1000));
    assert_eq!(gate.wait(), 3);
    let alone = submit_one(&engine, request(5, 1000));
    for rows in [1, 1, 1, 1 + 5] {
        gate.open();
        assert_eq!(gate.wait(), rows, "one for one that runs waits three steps");
    }
    drop(alone);
    let _two = [submit_one(&engine, request(7, 1000)), submit_one(&engine, request(7, 1000))];
    gate.open();
    assert_eq!(gate.wait(), 1 + 7 + 7, "two for one that runs need not wait");
    let gauges = engine.gauges();
    assert_eq!(gauges.waiting.load(Ordering::Relaxed), 0);
    drop(gate);
}

#[test]
fn a_dropped_stream_is_freed_before_the_next_step() {
    let (engine, gate) = gated_engine(CONFIG, fake());
    let stays = submit_one(&engine, request(3, 20));
    assert_eq!(gate.wait(), 3);
    let goes = submit_one(&engine, request(5, 1000));
    gate.open();
    assert_eq!(gate.wait(), 1 + 5);
    gate.open();
    assert_eq!(gate.wait(), 2);
    drop(goes);
    gate.open();
    assert_eq!(gate.wait(), 1);
    let gauges = engine.gauges();
    drop(gate);
    assert_eq!(read(stays).tokens.len(), 20);
    assert_eq!(gauges.blocks_used.load(Ordering::Relaxed), 0);
}

#[test]
fn nothing_is_left_after_everyone_went_away() {
    let (engine, gate) = gated_engine(EngineConfig { max_sequences: 2, max_queued: 6, ..CONFIG }, fake());
    let streams: Vec<TokenStream> = (0..8).map(|_| submit_one(&engine, request(3, 1000))).collect();
    gate.wait();
    drop(streams);
    gate.open();
    // All eight places are free again once the engine has read its inbox, which it does before it looks for more work.
    let answer = loop {
        match engine.submit(SequenceRequest { num_choices: 8, ..request(3, 1) }) {
            Ok(streams) => break streams,
            Err(SubmitError::QueueFull { .. }) => std::thread::yield_now(),
            Err(other) => panic!("{other}"),
        }
    };
    drop(gate);
    for stream in answer {
        read(stream);
    }
    assert_eq!(engine.gauges().blocks_used.load(Ordering::Relaxed), 0);
    assert_eq!(engine.gauges().waiting.load(Ordering::Relaxed), 0);
}

#[test]
fn choices_share_the_prompt_and_draw_apart() {
    let fake = FakeConfig { script: vec![TokenId(0)], ..fake() };
    let engine = engine(CONFIG, fake);
    let mut asked = request(40, 30);
    // The script is certain; a high temperature makes the others likely again.
    asked.sampling = SamplingParams { temperature: 1000.0, seed: 5, ..SamplingParams::default() };
    let alone = read(submit_one(&engine, asked.clone()));
    asked.num_choices = 4;
    asked.prompt[0] = TokenId(2);
    let streams = engine.submit(asked).unwrap();
    let answers: Vec<Answer> = streams.into_iter().map(read).collect();
    assert_eq!(answers[0].ids(), alone.ids(), "the first draws as if it were alone");
    assert_eq!(answers.iter().map(|answer| answer.num_cached_tokens).collect::<Vec<_>>(), [0, 32, 32, 32]);
    for (index, answer) in answers.iter().enumerate() {
        assert!(answers[..index].iter().all(|other| other.ids() != answer.ids()), "choices draw apart");
    }
    assert_eq!(engine.gauges().prefix_hit_tokens.load(Ordering::Relaxed), 96);
    assert_eq!(engine.gauges().prefix_queried_tokens.load(Ordering::Relaxed), 200);
}

#[test]
fn log_probabilities_are_reported_as_asked() {
    let engine = engine(CONFIG, FakeConfig { max_logit_rows: 2, ..fake() });
    let mut asked = request(5, 2);
    asked.prompt = [0, 1, 2, 9, 4].map(TokenId).to_vec();
    asked.report = ReportParams { logprobs: true, top_n: 2, prompt_logprobs: Some(2) };
    let answer = read(submit_one(&engine, asked));
    // The script's token is certain, all others are equally impossible.
    let foretold = |logprob, rank, script| {
        Some(Foretold { logprob, rank, top: vec![(TokenId(script), 0.0), (TokenId(0), -64.0)] })
    };
    let expected = [None, foretold(0.0, 1, 1), foretold(0.0, 1, 2), foretold(-64.0, 2, 3), foretold(0.0, 1, 4)];
    assert_eq!(answer.prompt_logprobs.unwrap(), expected);
    let first = &answer.tokens[0];
    assert_eq!((first.id, first.logprob), (TokenId(5), Some(0.0)));
    assert_eq!(first.top, [(TokenId(5), 0.0), (TokenId(0), -64.0)]);
    let plain = read(submit_one(&engine, request(5, 1)));
    assert_eq!(plain.prompt_logprobs, None);
    assert_eq!(plain.tokens[0], SampledToken { id: TokenId(5), logprob: None, top: Vec::new() });
}

#[test]
fn shutdown_drains_what_was_taken_and_refuses_the_rest() {
    let (engine, gate) = gated_engine(EngineConfig { max_sequences: 1, ..CONFIG }, fake());
    let streams = [submit_one(&engine, request(3, 4)), submit_one(&engine, request(3, 4))];
    gate.wait();
    engine.stop_admission();
    assert_eq!(engine.submit(request(3, 1)).unwrap_err(), SubmitError::Stopping);
    assert!(engine.is_alive());
    drop(gate);
    let other = engine.clone();
    let there = std::thread::spawn(move || other.shutdown(later()));
    assert_eq!(engine.shutdown(later()), ShutdownOutcome::Drained);
    assert_eq!(there.join().unwrap(), ShutdownOutcome::Drained);
    assert!(!engine.is_alive());
    assert_eq!(engine.failure(), None);
    for stream in streams {
        assert_eq!(read(stream).tokens.len(), 4);
    }
    assert_eq!(engine.submit(request(3, 1)).unwrap_err(), SubmitError::Stopping);
}

#[test]
fn shutdown_cuts_at_the_deadline() {
    let (engine, gate) = gated_engine(EngineConfig { max_sequences: 1, ..CONFIG }, fake());
    let mut streams = engine.submit(SequenceRequest { num_choices: 2, ..request(3, 1000) }).unwrap();
    gate.wait();
    let handle = engine.clone();
    let there = std::thread::spawn(move || handle.shutdown(Instant::now()));
    // Steps go on until the message is read.
    while !there.is_finished() {
        let _ = gate.go_on.send(());
        let _ = gate.began.try_recv();
        std::thread::yield_now();
    }
    assert_eq!(there.join().unwrap(), ShutdownOutcome::Cut { sequences: 2 });
    for stream in &mut streams {
        let mut last = None;
        while let Some(event) = stream.blocking_next() {
            last = Some(event);
        }
        assert!(!matches!(last, Some(TokenEvent::Finished { .. })));
    }
}

#[test]
fn a_failed_step_ends_every_stream_and_the_engine() {
    let engine = engine(CONFIG, FakeConfig { fail_at_step: Some(2), ..fake() });
    let mut streams = engine.submit(SequenceRequest { num_choices: 3, ..request(3, 1000) }).unwrap();
    for stream in &mut streams {
        let events: Vec<TokenEvent> = std::iter::from_fn(|| stream.blocking_next()).collect();
        assert!(events.iter().all(|event| !matches!(event, TokenEvent::Finished { .. })));
        assert_eq!(events.len(), 1 + 2, "two steps went well");
    }
    assert!(!engine.is_alive());
    assert_eq!(engine.failure(), Some("the model failed: scripted failure at step 2"));
    assert_eq!(engine.submit(request(3, 1)).unwrap_err(), SubmitError::Failed);
    assert_eq!(engine.shutdown(later()), ShutdownOutcome::Cut { sequences: 3 });
}

/// A model that says nothing good.
struct Broken {
    spec: ModelSpec,
    logits: Vec<f32>,
}

impl Model for Broken {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&mut self, batch: &StepBatch) -> Result<Logits<'_>, ModelError> {
        assert!(batch.token_ids[0] != TokenId(7), "seven is too much");
        self.logits.clear();
        for _ in &batch.logit_rows {
            self.logits.extend([f32::NAN; 16]);
        }
        Ok(self.logits.as_slice().into())
    }
}

fn broken() -> Box<dyn Model> {
    Box::new(Broken { spec: FakeModel::new(fake()).spec().clone(), logits: Vec::new() })
}

#[test]
fn a_panic_of_the_model_is_a_failure_of_the_engine() {
    let engine = start(broken(), CONFIG).unwrap();
    let mut asked = request(3, 5);
    asked.prompt[0] = TokenId(7);
    let mut stream = submit_one(&engine, asked);
    assert_eq!(stream.blocking_next(), None);
    assert!(!engine.is_alive());
    assert_eq!(engine.failure(), Some("the engine thread panicked: seven is too much"));
    assert_eq!(engine.submit(request(3, 1)).unwrap_err(), SubmitError::Failed);
}

#[test]
fn a_row_without_a_possible_token_ends_its_sequence_alone() {
    let engine = start(broken(), CONFIG).unwrap();
    for _ in 0..2 {
        let mut stream = submit_one(&engine, request(3, 5));
        assert_eq!(stream.blocking_next(), Some(TokenEvent::Failed(SequenceError::NoToken)));
        assert_eq!(stream.blocking_next(), None);
        assert!(engine.is_alive());
    }
    assert_eq!(engine.shutdown(later()), ShutdownOutcome::Drained);
}

#[test]
fn an_engine_that_nobody_can_reach_ends() {
    struct SaysGoodbye(FakeModel, Sender<()>);
    impl Model for SaysGoodbye {
        fn spec(&self) -> &ModelSpec {
            self.0.spec()
        }
        fn forward(&mut self, batch: &StepBatch) -> Result<Logits<'_>, ModelError> {
            self.0.forward(batch)
        }
    }
    impl Drop for SaysGoodbye {
        fn drop(&mut self) {
            let _ = self.1.send(());
        }
    }
    let (sender, goodbye) = channel();
    let engine = start(Box::new(SaysGoodbye(FakeModel::new(fake()), sender)), CONFIG).unwrap();
    let stream = submit_one(&engine, request(3, 7));
    drop(engine);
    assert_eq!(read(stream).tokens.len(), 7, "the stream keeps the engine going");
    goodbye.recv_timeout(Duration::from_secs(30)).expect("the model is dropped with its thread");
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        std::thread::park();
    }
}

#[test]
fn streams_can_be_awaited_polled_and_tried() {
    let (engine, gate) = gated_engine(CONFIG, fake());
    let mut stream = submit_one(&engine, request(3, 2));
    gate.wait();
    assert_eq!(stream.try_next(), Poll::Pending);
    assert_eq!(stream.poll_next(&mut Context::from_waker(Waker::noop())), Poll::Pending);
    gate.open();
    assert!(matches!(block_on(stream.next()), Some(TokenEvent::Started { .. })));
    assert!(matches!(block_on(stream.next()), Some(TokenEvent::Token(_))));
    drop(gate);
    assert!(matches!(block_on(stream.next()), Some(TokenEvent::Token(_))));
    assert!(matches!(block_on(stream.next()), Some(TokenEvent::Finished { .. })));
    assert_eq!(block_on(stream.next()), None);
    assert_eq!(stream.try_next(), Poll::Ready(None));
}

#[test]
fn steps_cost_what_they_are_said_to_cost() {
    let (step_cost, row_cost) = (Duration::from_millis(2), Duration::from_micros(100));
    let mut model = FakeModel::new(FakeConfig { step_cost, row_cost, ..fake() });
    let mut batch = StepBatch::default();
    batch.push_span(&[TokenId(0); 5], 0, &[pelton_backend::BlockId(0)], 16);
    batch.logit_rows.push(4);
    let cost = step_cost + row_cost * 5;
    // The fastest of a few: others may be interrupted, none may be too fast.
    let took = (0..20).map(|_| {
        let started = Instant::now();
        model.forward(&batch).unwrap();
        started.elapsed()
    });
    let fastest = took.min().unwrap();
    assert!(fastest >= cost && fastest < cost + Duration::from_micros(200), "{fastest:?}");
}

#[test]
fn readers_that_come_and_go_on_many_threads_leave_nothing_behind() {
    let config = EngineConfig { max_step_tokens: 24, max_sequences: 6, max_queued: 10, speculate: 3, ..CONFIG };
    let engine = engine(config, FakeConfig { num_blocks: 12, block_tokens: 4, ..fake() });
    std::thread::scope(|scope| {
        for reader in 0..4u64 {
            let engine = engine.clone();
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(reader);
                for _ in 0..100 {
                    let num_prompt_tokens = rng.usize(1..20);
                    let mut asked = request(num_prompt_tokens, rng.u32(1..20));
                    asked.num_choices = rng.u16(1..3);
                    let max_tokens = asked.stopping.max_tokens as usize;
                    let streams = match engine.submit(asked) {
                        Ok(streams) => streams,
                        Err(SubmitError::QueueFull { limit: 10 }) => continue,
                        Err(other) => panic!("{other}"),
                    };
                    for mut stream in streams {
                        if rng.bool() {
                            let expected: Vec<u32> =
                                (0..max_tokens).map(|at| (num_prompt_tokens + at) as u32 % 16).collect();
                            assert_eq!(read(stream).ids(), expected);
                        } else if rng.bool() {
                            assert!(matches!(stream.blocking_next(), Some(TokenEvent::Started { .. })));
                        }
                    }
                }
            });
        }
    });
    // Every place is free: the whole of them can be taken at once, as soon as the last cancellation is read.
    let all = loop {
        match engine.submit(SequenceRequest { num_choices: 16, ..request(1, 1) }) {
            Ok(streams) => break streams,
            Err(SubmitError::QueueFull { .. }) => std::thread::yield_now(),
            Err(other) => panic!("{other}"),
        }
    };
    all.into_iter().for_each(|stream| assert_eq!(read(stream).tokens.len(), 1));
    let gauges = engine.gauges();
    assert_eq!(gauges.blocks_used.load(Ordering::Relaxed), 0);
    assert_eq!(engine.shutdown(later()), ShutdownOutcome::Drained);
}

/// Wants the tokens of a list, one after the other; then the end.
struct Recital {
    tokens: Vec<u32>,
    at: usize,
    /// Where it breaks.
    breaks_at: Option<usize>,
}

impl Recital {
    fn of(tokens: &[u32]) -> Box<dyn TokenConstraint> {
        Box::new(Self { tokens: tokens.to_vec(), at: 0, breaks_at: None })
    }
}

impl TokenConstraint for Recital {
    fn allow(&mut self, mask: &mut TokenMask) -> Result<Ending, ConstraintError> {
        if self.breaks_at == Some(self.at) {
            return Err(ConstraintError("a string broke".into()));
        }
        self.tokens.get(self.at).into_iter().for_each(|&token| mask.allow(TokenId(token)));
        Ok(if self.at < self.tokens.len() { Ending::No } else { Ending::Must })
    }

    fn accept(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        assert_eq!(token.0, self.tokens[self.at]);
        self.at += 1;
        Ok(())
    }

    fn try_accept(&mut self, token: TokenId) -> Result<bool, ConstraintError> {
        let is_next = self.breaks_at != Some(self.at) && self.tokens.get(self.at) == Some(&token.0);
        self.at += usize::from(is_next);
        Ok(is_next)
    }

    fn fork(&self) -> Box<dyn TokenConstraint> {
        Box::new(Self { tokens: self.tokens.clone(), ..*self })
    }
}

#[test]
fn a_constraint_decides_what_is_said_and_when_it_ends() {
    let engine = engine(CONFIG, fake());
    let mut asked = request(3, 9);
    asked.stopping.stop_tokens = vec![TokenId(7)];
    asked.constraint = Some(Recital::of(&[2, 9, 2]));
    let plain = submit_one(&engine, request(3, 4));
    for (max_tokens, min_tokens, expected, reason) in [
        (9, 0, &[2, 9, 2, 7][..], FinishReason::StopToken(TokenId(7))),
        (9, 8, &[2, 9, 2, 7], FinishReason::StopToken(TokenId(7))),
        (2, 0, &[2, 9], FinishReason::Length),
    ] {
        asked.stopping = StoppingParams { max_tokens, min_tokens, ..asked.stopping };
        let choices = engine.submit(SequenceRequest { num_choices: 3, ..asked.clone() }).unwrap();
        for answer in choices.into_iter().map(read) {
            assert_eq!((answer.ids().as_slice(), answer.reason), (expected, reason));
        }
    }
    assert_eq!(read(plain).ids(), [3, 4, 5, 6], "others are not concerned");
}

#[test]
fn a_constraint_that_breaks_ends_its_sequence_alone() {
    let engine = engine(CONFIG, fake());
    let other = submit_one(&engine, request(3, 20));
    let breaking = Recital { tokens: vec![1, 2, 3], at: 0, breaks_at: Some(2) };
    let endless = Recital { tokens: vec![1, 2], at: 0, breaks_at: None };
    for (constraint, reason) in [(breaking, "a string broke"), (endless, "no token that ends it")] {
        let request = SequenceRequest { constraint: Some(Box::new(constraint)), ..request(1, 9) };
        let mut stream = submit_one(&engine, request);
        assert!(matches!(stream.blocking_next(), Some(TokenEvent::Started { .. })));
        for token in [1, 2] {
            let Some(TokenEvent::Token(said)) = stream.blocking_next() else { panic!("{token}") };
            assert_eq!(said.id, TokenId(token));
        }
        let Some(TokenEvent::Failed(error)) = stream.blocking_next() else { panic!("it goes on") };
        assert!(error.to_string().contains(reason), "{error}");
        assert_eq!(stream.blocking_next(), None);
    }
    assert_eq!(read(other).tokens.len(), 20);
    assert!(engine.is_alive());
    assert_eq!(engine.shutdown(later()), ShutdownOutcome::Drained);
}
