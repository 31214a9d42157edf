//! From the engine's tokens to events with text: detokenizing, stop strings, counts.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use pelton_engine::{SampledToken, Timeline, TokenEvent, TokenId, TokenStream};
use pelton_text::{Detokenizer, StopMatcher};
use tokio::sync::OwnedSemaphorePermit;

use super::prepare::Prepared;
use super::{FinishReason, GenerateEvent, GeneratedToken, PreparedPrompt, ServeError};
use crate::metrics::{Counters, Outcome, RequestRecord};
use crate::server::Server;
use crate::trace::Origin;

/// Tokens of the prompt's end that the detokenizer is shown.
const PROMPT_TAIL_TOKENS: usize = 8;

/// The events of one request: all its prompts and choices. Dropping it cancels what is not finished, gives the permit back and counts the
/// request.
pub(crate) struct GenerateStream {
    choices: Vec<ChoiceStream>,
    prompts: Vec<PreparedPrompt>,
    num_choices: u32,
    /// By prompt: whether it has been told, which its first choice does. The others wait for that.
    has_begun: Vec<bool>,
    seed: u64,
    ends: Ends,
    /// Events that are known and not yet handed out.
    ready: VecDeque<GenerateEvent>,
    num_open: u32,
    /// The choice to look at first, so that none is served before all others.
    next: usize,
    has_failed: bool,
    tracker: Tracker,
    permit: OwnedSemaphorePermit,
}

/// What ends a choice; the same for all.
struct Ends {
    eos_tokens: Vec<u32>,
    stop_tokens: Vec<u32>,
    stop: Arc<[Arc<str>]>,
}

/// One choice under way.
struct ChoiceStream {
    /// `None` once it has ended: dropping it is what tells the engine.
    tokens: Option<TokenStream>,
    detokenizer: Detokenizer,
    stop_text: Option<StopText>,
    max_tokens: u32,
    num_generated: u32,
    /// The last token, held until the engine has told the times.
    last: Option<(GeneratedToken, FinishReason)>,
    last_token_at: Option<Instant>,
}

impl GenerateStream {
    pub(super) fn new(
        prepared: Prepared,
        streams: Vec<TokenStream>,
        tracker: Tracker,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let text = tracker.server.text();
        let Prepared { prompts, num_choices, sampling, eos_tokens, stop_tokens, stop, .. } = prepared;
        let num_choices = u32::from(num_choices);
        let matcher = (!stop.is_empty()).then(|| StopMatcher::new(stop.iter().cloned()));
        let stop: Arc<[Arc<str>]> = stop.into_iter().map(Arc::from).collect();
        let choices = streams.into_iter().enumerate().map(|(index, tokens)| {
            let prompt = &prompts[index / num_choices as usize];
            let tail = &prompt.tokens[prompt.tokens.len().saturating_sub(PROMPT_TAIL_TOKENS)..];
            let tail: Vec<u32> = tail.iter().map(|token| token.0).collect();
            ChoiceStream {
                tokens: Some(tokens),
                detokenizer: Detokenizer::new(text, prepared.skip_special_tokens, &tail),
                stop_text: matcher.clone().map(|matcher| StopText::new(matcher, &stop, prepared.include_stop)),
                max_tokens: prompt.max_tokens,
                num_generated: 0,
                last: None,
                last_token_at: None,
            }
        });
        let choices: Vec<_> = choices.collect();
        Self {
            num_open: choices.len() as u32,
            choices,
            has_begun: vec![false; prompts.len()],
            prompts,
            num_choices,
            seed: sampling.seed,
            ends: Ends { eos_tokens, stop_tokens, stop },
            ready: VecDeque::new(),
            next: 0,
            has_failed: false,
            tracker,
            permit,
        }
    }

    /// Cancels what is not finished; what is left counts and times the request.
    pub(super) fn into_place(self) -> (Tracker, OwnedSemaphorePermit) {
        (self.tracker, self.permit)
    }

    /// The prompts as the model reads them.
    pub(crate) fn prompts(&self) -> &[PreparedPrompt] {
        &self.prompts
    }

    /// Choices of all prompts.
    pub(crate) fn num_sequences(&self) -> u32 {
        self.tracker.record.num_sequences
    }

    /// Seed of the draws.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// Times and counts so far.
    pub(crate) fn record(&self) -> RequestRecord {
        self.tracker.record.clone()
    }

    /// Waits for the next event. `None` after the last; an error is the last.
    pub(crate) async fn next(&mut self) -> Option<Result<GenerateEvent, ServeError>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Gives events back that were read: they come again, in the same order, before all others.
    pub(crate) fn put_back(&mut self, events: Vec<GenerateEvent>) {
        events.into_iter().rev().for_each(|event| self.ready.push_front(event));
    }

    /// The next event, or a wake-up when there is one.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<GenerateEvent, ServeError>>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if self.num_open == 0 || self.has_failed {
                return Poll::Ready(None);
            }
            let Some((index, event)) = self.poll_choices(cx) else { return Poll::Pending };
            match event {
                Some(TokenEvent::Failed(error)) => {
                    tracing::warn!(%error, "a sequence failed");
                    self.end_early();
                    return Poll::Ready(Some(Err(ServeError::Generation(error.to_string()))));
                }
                Some(event) => self.take(index, event),
                None => return Poll::Ready(Some(Err(self.fail()))),
            }
        }
    }

    /// The next event of any open choice; `None` inside means that its stream has ended.
    ///
    /// The engine goes on while the choices are looked at: without the wait for the first one, a sibling that is looked at later could be found ahead of it.
    fn poll_choices(&mut self, cx: &mut Context<'_>) -> Option<(usize, Option<TokenEvent>)> {
        let (count, num_choices) = (self.choices.len(), self.num_choices as usize);
        for offset in 0..count {
            let index = (self.next + offset) % count;
            if !index.is_multiple_of(num_choices) && !self.has_begun[index / num_choices] {
                continue;
            }
            let Some(tokens) = &mut self.choices[index].tokens else { continue };
            if let Poll::Ready(event) = tokens.poll_next(cx) {
                self.next = index + 1;
                return Some((index, event));
            }
        }
        None
    }

    fn take(&mut self, index: usize, event: TokenEvent) {
        match event {
            TokenEvent::Started { scheduled_at, num_cached_tokens, prompt_logprobs } => {
                self.tracker.scheduled(scheduled_at);
                if (index as u32).is_multiple_of(self.num_choices) {
                    let prompt = index as u32 / self.num_choices;
                    self.has_begun[prompt as usize] = true;
                    self.tracker.prompt_computed(self.prompts[prompt as usize].tokens.len() as u32, num_cached_tokens);
                    self.ready.push_back(GenerateEvent::Prompt { prompt, logprobs: prompt_logprobs });
                }
                if self.choices[index].max_tokens == 0 {
                    self.finish(index, FinishReason::Length, None);
                }
            }
            TokenEvent::Token(token) => self.take_token(index, token),
            // Ends the request, which is seen to before.
            TokenEvent::Failed(_) => {}
            TokenEvent::Finished { reason, timeline } => {
                let reason = match self.choices[index].last.take() {
                    Some((token, reason)) => {
                        self.ready.push_back(GenerateEvent::Token { choice: index as u32, token, is_last: true });
                        reason
                    }
                    None => match reason {
                        pelton_engine::FinishReason::Length => FinishReason::Length,
                        pelton_engine::FinishReason::StopToken(TokenId(token)) => FinishReason::StopToken(token),
                    },
                };
                self.finish(index, reason, Some(timeline));
            }
        }
    }

    fn take_token(&mut self, index: usize, sampled: SampledToken) {
        let choice = &mut self.choices[index];
        choice.num_generated += 1;
        self.tracker.token(&mut choice.last_token_at);

        let TokenId(id) = sampled.id;
        let by_token = self.ends.reason_of(id);
        let reason = by_token.or((choice.num_generated == choice.max_tokens).then_some(FinishReason::Length));
        let (text, matched) = choice.text_of(id, reason.as_ref());
        let top = sampled.top.into_iter().map(|(TokenId(id), logprob)| (id, logprob)).collect();
        let token = GeneratedToken { id, text, logprob: sampled.logprob, top };
        match (matched, reason) {
            (Some(stop), _) => {
                self.ready.push_back(GenerateEvent::Token { choice: index as u32, token, is_last: true });
                self.finish(index, FinishReason::StopString(Arc::clone(&self.ends.stop[stop])), None);
            }
            (None, Some(reason)) => choice.last = Some((token, reason)),
            (None, None) => {
                self.ready.push_back(GenerateEvent::Token { choice: index as u32, token, is_last: false });
            }
        }
    }

    fn finish(&mut self, index: usize, reason: FinishReason, timeline: Option<Timeline>) {
        self.choices[index].tokens = None;
        self.num_open -= 1;
        self.tracker.finished(&reason, timeline);
        if self.num_open == 0 {
            self.tracker.complete();
        }
        self.ready.push_back(GenerateEvent::Finished { choice: index as u32, reason });
    }

    /// Cancels what is not finished.
    fn end_early(&mut self) {
        self.has_failed = true;
        self.choices.clear();
        self.tracker.failed();
    }

    /// The engine has let a stream go without finishing it: it failed, or was stopped.
    fn fail(&mut self) -> ServeError {
        self.end_early();
        self.tracker.server.tell_failure();
        if self.tracker.server.is_stopping() { ServeError::Stopping } else { ServeError::EngineFailed }
    }
}

impl Ends {
    /// Why generation ends with this token, if it does. A token that the request named counts as that, even if it ends texts.
    fn reason_of(&self, token: u32) -> Option<FinishReason> {
        if self.stop_tokens.contains(&token) {
            Some(FinishReason::StopToken(token))
        } else {
            self.eos_tokens.contains(&token).then_some(FinishReason::EndOfText)
        }
    }
}

impl ChoiceStream {
    /// The text that `token` releases, and the stop string that it completes. With a reason to end, what is held back is released too;
    /// a stop token itself is no text.
    fn text_of(&mut self, token: u32, reason: Option<&FinishReason>) -> (String, Option<usize>) {
        let is_text = !matches!(reason, Some(FinishReason::EndOfText | FinishReason::StopToken(_)));
        // A token that the tokenizer does not know has no text.
        let mut text = if is_text { self.detokenizer.push(token).unwrap_or_default() } else { String::new() };
        if reason.is_some() {
            text.push_str(&self.detokenizer.finish());
        }
        let Some(stop_text) = &mut self.stop_text else { return (text, None) };
        let (mut text, matched) = stop_text.push(text);
        if matched.is_none() && reason.is_some() {
            text.push_str(&stop_text.finish());
        }
        (text, matched)
    }
}

/// Text between detokenizer and client, watched for stop strings.
struct StopText {
    matcher: StopMatcher,
    stops: Arc<[Arc<str>]>,
    /// The client gets the stop string too, so nothing need be held back for it.
    include_stop: bool,
    /// Bytes that went in.
    num_seen: usize,
    /// Bytes that the matcher has let go.
    num_released: usize,
}

impl StopText {
    fn new(matcher: StopMatcher, stops: &Arc<[Arc<str>]>, include_stop: bool) -> Self {
        Self { matcher, stops: Arc::clone(stops), include_stop, num_seen: 0, num_released: 0 }
    }

    fn push(&mut self, mut text: String) -> (String, Option<usize>) {
        let step = self.matcher.push(&text);
        let num_seen_before = self.num_seen;
        self.num_seen += text.len();
        self.num_released += step.text.len();
        if !self.include_stop {
            return (step.text, step.matched);
        }
        if let Some(stop) = step.matched {
            let end = self.num_released + self.stops[stop].len();
            text.truncate(end - num_seen_before);
        }
        (text, step.matched)
    }

    fn finish(&mut self) -> String {
        let held = self.matcher.finish();
        if self.include_stop { String::new() } else { held }
    }
}

/// Writes the request's record, and counts, traces and logs it at the end, whatever the end is.
pub(super) struct Tracker {
    pub(super) server: Arc<Server>,
    pub(super) record: RequestRecord,
    origin: Origin,
    /// Whether a choice ended at its token limit.
    reached_length: bool,
}

impl Tracker {
    pub(super) fn new(server: Arc<Server>, record: RequestRecord, origin: Origin) -> Self {
        Self { server, record, origin, reached_length: false }
    }

    fn scheduled(&mut self, at: Instant) {
        self.record.scheduled_at = Some(self.record.scheduled_at.map_or(at, |earlier| earlier.min(at)));
    }

    fn prompt_computed(&mut self, num_tokens: u32, num_cached_tokens: u32) {
        self.record.num_cached_tokens += num_cached_tokens;
        Counters::add(&self.server.metrics().counters.prompt_tokens, num_tokens);
    }

    fn token(&mut self, last_token_at: &mut Option<Instant>) {
        let now = Instant::now();
        self.record.num_generated_tokens += 1;
        self.record.first_token_at.get_or_insert(now);
        self.record.finished_at = now;
        Counters::add(&self.server.metrics().counters.generated_tokens, 1);
        if let Some(before) = last_token_at.replace(now) {
            self.server.metrics().token_gaps.observe((now - before).as_secs_f64());
        }
    }

    /// One choice has ended. The engine's times are nearer to the truth than those of reading its events.
    fn finished(&mut self, reason: &FinishReason, timeline: Option<Timeline>) {
        self.reached_length |= *reason == FinishReason::Length;
        if let Some(timeline) = timeline {
            self.scheduled(timeline.scheduled_at);
            self.record.num_accepted_tokens += timeline.num_accepted_tokens;
            let first = timeline.first_token_at;
            self.record.first_token_at = Some(self.record.first_token_at.map_or(first, |seen| seen.min(first)));
        }
    }

    fn complete(&mut self) {
        self.record.finished_at = Instant::now();
        self.record.outcome = if self.reached_length { Outcome::Length } else { Outcome::Stop };
    }

    fn failed(&mut self) {
        self.record.finished_at = Instant::now();
        self.record.outcome = Outcome::Failed;
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        if self.record.outcome == Outcome::Cancelled {
            self.record.finished_at = Instant::now();
        }
        let record = &self.record;
        self.server.metrics().observe(record);
        if let Some(traces) = self.server.traces() {
            traces.ended(&self.origin, record);
        }
        let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1e3;
        tracing::info!(
            trace = self.origin.parent.as_ref().map(|parent| format!("{:032x}", parent.trace_id)),
            dialect = record.dialect,
            outcome = ?record.outcome,
            sequences = record.num_sequences,
            prompt_tokens = record.num_prompt_tokens,
            cached_tokens = record.num_cached_tokens,
            generated_tokens = record.num_generated_tokens,
            accepted_tokens = record.num_accepted_tokens,
            queue_ms = ms(record.queue()),
            ttft_ms = record.time_to_first_token().map(ms),
            total_ms = ms(record.total()),
            "request"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Mutex;
    use std::time::Duration;

    use pelton_engine::{EngineConfig, FakeConfig, FakeModel, ReportParams, SamplingParams, SequenceRequest};
    use pelton_text::{TextModel, TextPool};

    use super::*;
    use crate::ServeConfig;

    const NUM_TOKENS: u32 = 20;

    /// Runs one sequence at a time.
    fn server(fake: FakeConfig) -> Arc<Server> {
        let fake = FakeConfig { vocab_size: 262, ..fake };
        let config = EngineConfig { max_step_tokens: 64, max_sequences: 1, max_queued: 8, ..EngineConfig::default() };
        let engine = pelton_engine::start(Box::new(FakeModel::new(fake)), config).expect("the engine starts");
        Server::new(ServeConfig::default(), engine, TextPool::new(TextModel::bytes(), 1, 1)).expect("a server")
    }

    fn prepared(num_choices: u16) -> Prepared {
        Prepared {
            adapter: None,
            prompts: vec![PreparedPrompt { tokens: vec![TokenId(97)], num_characters: 1, max_tokens: NUM_TOKENS }],
            num_choices,
            sampling: SamplingParams::default(),
            report: ReportParams::default(),
            eos_tokens: Vec::new(),
            stop_tokens: Vec::new(),
            min_tokens: 0,
            stop: Vec::new(),
            include_stop: false,
            skip_special_tokens: true,
        }
    }

    fn submit(server: &Server) -> TokenStream {
        let prepared = prepared(1);
        let prompt = &prepared.prompts[0];
        let request = SequenceRequest {
            prompt: prompt.tokens.clone(),
            adapter: None,
            sampling: prepared.sampling.clone(),
            stopping: prepared.stopping_params(prompt),
            report: prepared.report,
            constraint: None,
            num_choices: 1,
        };
        server.engine().submit(request).expect("there is room").pop().expect("one choice")
    }

    fn stream(server: &Arc<Server>, choices: Vec<TokenStream>) -> GenerateStream {
        let now = Instant::now();
        let num_sequences = choices.len() as u32;
        let record = RequestRecord {
            dialect: "test",
            outcome: Outcome::Cancelled,
            arrived_at: now,
            queued_at: now,
            scheduled_at: None,
            first_token_at: None,
            finished_at: now,
            num_prompt_tokens: 1,
            num_cached_tokens: 0,
            num_generated_tokens: 0,
            num_accepted_tokens: 0,
            max_tokens: NUM_TOKENS,
            num_sequences,
        };
        let permit = Arc::clone(server.permits()).try_acquire_many_owned(num_sequences).expect("there are permits");
        let origin = Origin { route: "/test", parent: None };
        let tracker = Tracker::new(Arc::clone(server), record, origin);
        GenerateStream::new(prepared(num_sequences as u16), choices, tracker, permit)
    }

    #[tokio::test]
    async fn a_prompt_is_told_before_the_tokens_of_any_choice() {
        let server = server(FakeConfig { step_cost: Duration::from_millis(2), ..FakeConfig::default() });
        // The second choice comes to the engine first: it tells tokens while the first one waits.
        let second = submit(&server);
        let first = submit(&server);
        let mut stream = stream(&server, vec![first, second]);

        let event = stream.next().await.expect("an event").expect("no error");
        assert_eq!(event, GenerateEvent::Prompt { prompt: 0, logprobs: None });
        let mut num_tokens = [0; 2];
        while let Some(event) = stream.next().await {
            if let GenerateEvent::Token { choice, .. } = event.expect("no error") {
                num_tokens[choice as usize] += 1;
            }
        }
        assert_eq!(num_tokens, [NUM_TOKENS; 2]);
    }

    /// What was logged.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no writer panics").write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn why_the_engine_failed_is_logged_once() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
        let _guard = tracing::subscriber::set_default(subscriber);

        let server = server(FakeConfig { fail_at_step: Some(0), ..FakeConfig::default() });
        // Both are in one submission, so that the engine does not fail between them.
        let Prepared { prompts, sampling, report, .. } = prepared(1);
        let stopping = prepared(1).stopping_params(&prompts[0]);
        let request = SequenceRequest {
            prompt: prompts[0].tokens.clone(),
            adapter: None,
            sampling,
            stopping,
            report,
            constraint: None,
            num_choices: 2,
        };
        for choice in server.engine().submit(request).expect("there is room") {
            assert_eq!(stream(&server, vec![choice]).next().await, Some(Err(ServeError::EngineFailed)));
        }
        let log = String::from_utf8(log.0.lock().expect("no writer panics").clone()).expect("text");
        assert_eq!(log.matches("scripted failure at step 0").count(), 1, "{log}");
    }
}
