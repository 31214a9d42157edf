//! The OpenAI dialect as a client: completions and chat completions.

use std::borrow::Cow;
use std::time::Instant;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::values::{Length, Text, TokenCount};
use super::{malformed, server_error};
use crate::plan::Provider;
use crate::recorder::{CountedBy, Failure, RowBuilder, ServerTimes};
use crate::workload::{Ask, Prompt};

/// How an answer of exactly the wished length is asked for, and what else goes beyond the dialect's beginnings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lengthening {
    /// `ignore_eos` and `min_tokens`: extensions of vLLM that many servers share.
    IgnoreEosMinTokens,
    /// `ignore_eos` alone.
    IgnoreEos,
    /// `ignore_eos` and `n_predict`, the length under the name that llama.cpp's server had first.
    IgnoreEosNPredict,
    /// `ban_eos_token` of text-generation-webui.
    BanEos,
    /// Nothing: the server knows none of these.
    None,
    /// Not even `stream_options`, which older servers refuse: such a server may not count tokens.
    Bare,
}

impl Lengthening {
    /// Whether answers go on after the end of text.
    pub fn ignores_end_of_text(self) -> bool {
        !matches!(self, Lengthening::None | Lengthening::Bare)
    }

    /// What a server may know, best first. One that refuses a form is asked in the next.
    pub fn trials(provider: Option<Provider>) -> &'static [Lengthening] {
        use Lengthening::*;
        match provider {
            Some(Provider::Openai) => &[None, Bare],
            Some(Provider::LlamaCpp) => &[IgnoreEosNPredict, None, Bare],
            Some(Provider::TextGenerationWebui) => &[BanEos, None, Bare],
            _ => &[IgnoreEosMinTokens, IgnoreEos, None, Bare],
        }
    }
}

/// The request body without prompt and length.
pub fn body(model: &str, stream: bool, lengthening: Lengthening, provider: Option<Provider>) -> Map<String, Value> {
    let mut body = Map::new();
    body.insert("model".to_owned(), json!(model));
    body.insert("max_tokens".to_owned(), Value::Null);
    body.insert("temperature".to_owned(), json!(0.0));
    match lengthening {
        Lengthening::IgnoreEosMinTokens => {
            body.insert("ignore_eos".to_owned(), json!(true));
            body.insert("min_tokens".to_owned(), Value::Null);
        }
        Lengthening::IgnoreEos => drop(body.insert("ignore_eos".to_owned(), json!(true))),
        Lengthening::IgnoreEosNPredict => {
            body.insert("ignore_eos".to_owned(), json!(true));
            body.insert("n_predict".to_owned(), Value::Null);
        }
        Lengthening::BanEos => drop(body.insert("ban_eos_token".to_owned(), json!(true))),
        Lengthening::None | Lengthening::Bare => {}
    }
    if stream {
        body.insert("stream".to_owned(), json!(true));
    }
    if stream && lengthening != Lengthening::Bare {
        let mut options = json!({ "include_usage": true });
        // These tell in each chunk how many tokens there are so far, so that a chunk of several is seen as that.
        if matches!(provider, Some(Provider::Vllm | Provider::Pelton)) && lengthening.ignores_end_of_text() {
            options["continuous_usage_stats"] = json!(true);
        }
        body.insert("stream_options".to_owned(), options);
    }
    body
}

/// Sets the prompt of a completion, and the length.
pub fn set_prompt(body: &mut Map<String, Value>, ask: &Ask) {
    body.insert("prompt".to_owned(), Value::String(ask.prompt.as_text().into_owned()));
    set_length(body, ask);
}

/// Sets the messages of a chat, and the length.
pub fn set_messages(body: &mut Map<String, Value>, ask: &Ask) {
    let messages = match &ask.prompt {
        Prompt::Text(text) => json!([{ "role": "user", "content": text }]),
        Prompt::Messages(messages) => json!(messages),
    };
    body.insert("messages".to_owned(), messages);
    set_length(body, ask);
}

fn set_length(body: &mut Map<String, Value>, ask: &Ask) {
    body.insert("max_tokens".to_owned(), json!(ask.output_tokens));
    for name in ["min_tokens", "n_predict"] {
        body.get_mut(name).into_iter().for_each(|value| *value = json!(ask.output_tokens));
    }
}

/// What is read of one chunk; `null` reads as absent.
#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(default, borrow)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<Value>,
    /// llama.cpp's server, in its last chunk, or in each if asked.
    #[serde(default)]
    timings: Option<Timings>,
    /// `error` in chunks that are one, with `message` beside it.
    #[serde(default, borrow)]
    object: Text<'a>,
    #[serde(default, borrow)]
    message: Text<'a>,
    /// Usage in the place where Groq has it.
    #[serde(default)]
    x_groq: Option<HasUsage>,
    /// Chunks in llama.cpp's own form, which its older servers give on OpenAI's routes too.
    #[serde(default, borrow)]
    content: Text<'a>,
    #[serde(default)]
    tokens: Length,
    #[serde(default)]
    stop: Option<bool>,
    #[serde(default)]
    tokens_predicted: Option<TokenCount>,
    #[serde(default)]
    tokens_evaluated: Option<TokenCount>,
}

#[derive(Deserialize)]
struct HasUsage {
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Timings {
    #[serde(default)]
    prompt_ms: Option<f64>,
    #[serde(default)]
    predicted_ms: Option<f64>,
    #[serde(default)]
    predicted_per_token_ms: Option<f64>,
    #[serde(default)]
    predicted_n: Option<TokenCount>,
}

impl Timings {
    fn server_times(&self) -> ServerTimes {
        let inference = self.prompt_ms.zip(self.predicted_ms).map(|(prompt, generation)| prompt + generation);
        ServerTimes { inference, per_token: self.predicted_per_token_ms, ..ServerTimes::default() }
    }
}

impl Chunk<'_> {
    /// Errs if the chunk is an error, in whatever form.
    fn check(&self) -> Result<(), Failure> {
        match &self.error {
            Some(error) => Err(server_error(error)),
            None if self.object.as_str() == "error" => Err(server_error(&json!(self.message.as_str()))),
            None => Ok(()),
        }
    }

    /// Wherever it stands; the last one that says something, where there are several.
    fn usage(&self) -> Option<Usage> {
        let in_choice = || self.choices.as_ref()?.iter().find_map(|choice| choice.usage);
        self.usage.or_else(in_choice).or_else(|| self.x_groq.as_ref()?.usage)
    }

    /// Tokens generated so far, as the chunk says.
    fn counted(&self) -> Option<u32> {
        let in_timings = || self.timings.as_ref()?.predicted_n;
        let counted = self.usage().and_then(|usage| usage.completion_tokens).or(self.tokens_predicted);
        // Servers that do not count may say so with a zero.
        counted.or_else(in_timings).map(|count| count.0).filter(|&count| count > 0)
    }

    /// Notes what the chunk says beside its text. True if it says that the answer has ended.
    fn facts(&self, row: &mut RowBuilder) -> bool {
        let prompt = self.usage().and_then(|usage| usage.prompt_tokens).or(self.tokens_evaluated);
        prompt.filter(|count| count.0 > 0).into_iter().for_each(|count| row.prompt_tokens(count.0));
        self.timings.iter().for_each(|timings| row.server_times(timings.server_times()));
        let choices = self.choices.as_deref().unwrap_or_default();
        let reason = choices.iter().find_map(|choice| choice.finish_reason.as_deref());
        if let Some(reason) = reason.filter(|reason| !reason.is_empty()) {
            row.finish_reason(reason);
            return true;
        }
        self.stop == Some(true)
    }
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(default, borrow)]
    text: Text<'a>,
    #[serde(default, borrow)]
    delta: Option<Delta<'a>>,
    /// In whole answers; beside `delta`, where some servers repeat it, it says nothing new.
    #[serde(default, borrow)]
    message: Option<Delta<'a>>,
    #[serde(default, borrow)]
    finish_reason: Option<Cow<'a, str>>,
    /// Usage in the place where Moonshot has it.
    #[serde(default)]
    usage: Option<Usage>,
    /// vLLM's `return_token_ids`.
    #[serde(default)]
    token_ids: Length,
    #[serde(default)]
    logprobs: Option<Logprobs>,
}

/// One entry for each token of the chunk: `tokens` of completions, `content` of chats.
#[derive(Deserialize)]
struct Logprobs {
    #[serde(default)]
    tokens: Length,
    #[serde(default)]
    content: Length,
}

/// Anything that a user could see, thinking and tool calls included, counts as text.
#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(default, borrow)]
    content: Text<'a>,
    #[serde(default, borrow)]
    reasoning_content: Text<'a>,
    #[serde(default, borrow)]
    reasoning: Text<'a>,
    #[serde(default)]
    tool_calls: Option<IgnoredAny>,
}

#[derive(Clone, Copy, Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: Option<TokenCount>,
    #[serde(default)]
    completion_tokens: Option<TokenCount>,
}

impl<'a> Choice<'a> {
    fn said(&self) -> Option<&Delta<'a>> {
        self.delta.as_ref().or(self.message.as_ref())
    }

    fn has_text(&self) -> bool {
        let in_delta = self.said().is_some_and(|delta| {
            !delta.content.is_empty()
                || !delta.reasoning_content.is_empty()
                || !delta.reasoning.is_empty()
                || delta.tool_calls.is_some()
        });
        !self.text.is_empty() || in_delta
    }

    /// Tokens of the chunk, where it lists them.
    fn listed_tokens(&self) -> u32 {
        let logprobs = self.logprobs.as_ref().map_or(0, |logprobs| logprobs.tokens.0.max(logprobs.content.0));
        self.token_ids.0.max(logprobs)
    }

    fn hand_over(&self, row: &mut RowBuilder) {
        if let Some(delta) = self.said() {
            row.thought(delta.reasoning_content.as_str());
            row.thought(delta.reasoning.as_str());
            row.piece(delta.content.as_str());
        }
        row.piece(self.text.as_str());
    }
}

/// Reads one streamed answer.
#[derive(Debug, Default)]
pub struct StreamReader {
    /// `[DONE]` came.
    done: bool,
    /// A choice said why it ended.
    finished: bool,
    /// The newest count of generated tokens: servers may send it once, or growing in each chunk.
    counted: Option<u32>,
    /// Tokens of arrivals so far.
    placed: u32,
    /// A chunk with text came without a count, so a later count is not of its own chunk alone.
    uncounted: bool,
}

impl StreamReader {
    /// One event, from a read at `at`.
    pub fn event(&mut self, data: &str, at: Instant, row: &mut RowBuilder) -> Result<(), Failure> {
        if data.trim() == pelton_protocol::sse::DONE_DATA {
            self.done = true;
            row.touch(at);
            return Ok(());
        }
        let chunk: Chunk<'_> = serde_json::from_str(data).map_err(|error| malformed(error, data))?;
        chunk.check()?;
        row.touch(at);
        self.finished |= chunk.facts(row);
        let total = chunk.counted();
        self.counted = total.or(self.counted);
        let choices = chunk.choices.as_deref().unwrap_or_default();
        let with_text =
            choices.iter().filter(|choice| choice.has_text()).count() + usize::from(!chunk.content.is_empty());
        let listed = choices.iter().map(Choice::listed_tokens).sum::<u32>() + chunk.tokens.0;
        if with_text > 0 || listed > 0 {
            let events = with_text.max(1) as u32;
            // Tokens that are listed are exact. A count in each chunk says how many it completed; otherwise one per chunk is assumed until
            // the end.
            self.uncounted |= listed == 0 && total.is_none();
            let tokens = match total {
                _ if listed > 0 => listed,
                Some(total) if !self.uncounted && total > self.placed => total - self.placed,
                _ => events,
            };
            self.placed = self.placed.saturating_add(tokens);
            if row.wants_text() {
                choices.iter().for_each(|choice| choice.hand_over(row));
                row.piece(chunk.content.as_str());
            }
            row.arrived(at, events, tokens);
        }
        Ok(())
    }

    /// The stream is over; false if that is too early.
    pub fn end(&mut self, row: &mut RowBuilder) -> bool {
        match self.counted {
            Some(tokens) => row.count(tokens, CountedBy::Server),
            None if self.placed > 0 && !self.uncounted => row.count(self.placed, CountedBy::Server),
            None => row.count(row.tokens_so_far(), CountedBy::Chunks),
        }
        self.done || self.finished
    }
}

/// Reads an answer that is not streamed. Returns its number of generated tokens, if the server says it.
pub fn whole(body: &[u8], row: &mut RowBuilder) -> Result<Option<u32>, Failure> {
    let text = || String::from_utf8_lossy(body);
    let whole: Chunk<'_> = serde_json::from_slice(body).map_err(|error| malformed(error, &text()))?;
    whole.check()?;
    let choice = whole.choices.as_deref().and_then(|choices| choices.first());
    let is_native = whole.stop.is_some();
    if choice.is_none() && !is_native {
        return Err(malformed("answer has no choices", &text()));
    }
    whole.facts(row);
    row.piece(whole.content.as_str());
    choice.into_iter().for_each(|choice| choice.hand_over(row));
    Ok(whole.counted())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorder::{Arrival, Row};
    use std::time::Duration;

    /// Feeds one event per millisecond.
    fn read(events: &[&str]) -> (Row, bool) {
        let start = Instant::now();
        let mut row = RowBuilder::new(start, start);
        let mut reader = StreamReader::default();
        for (n, event) in events.iter().enumerate() {
            reader.event(event, start + Duration::from_millis(n as u64 + 1), &mut row).expect("event is well formed");
        }
        let complete = reader.end(&mut row);
        (row.finish(None, start), complete)
    }

    fn arrival(ms: u32, events: u32, tokens: u32) -> Arrival {
        Arrival { at_us: ms * 1000, events, tokens }
    }

    #[test]
    fn role_only_null_and_empty_chunks_are_not_text() {
        let (row, complete) = read(&[
            r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
            r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":null}}],"usage":null}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"a"}}]}"#,
            r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10}}"#,
            "[DONE]",
        ]);
        assert_eq!(row.arrivals, [arrival(3, 1, 1)]);
        assert_eq!((row.output_tokens, row.prompt_tokens_reported), (1, Some(9)));
        assert_eq!((row.finish_reason.as_deref(), complete), (Some("stop"), true));
        assert_eq!(row.counted_by, CountedBy::Server);
    }

    #[test]
    fn usage_that_grows_in_each_chunk_is_not_summed() {
        let (row, complete) = read(&[
            r#"{"choices":[{"text":"ab","finish_reason":""}],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#,
            r#"{"choices":[{"text":"cde","finish_reason":"length"}],"usage":{"prompt_tokens":3,"completion_tokens":5}}"#,
        ]);
        assert_eq!(row.arrivals, [arrival(1, 1, 2), arrival(2, 1, 3)]);
        assert_eq!((row.output_tokens, complete), (5, true));
    }

    #[test]
    fn usage_beside_the_last_text_spreads_over_all_chunks() {
        let (row, _) = read(&[
            r#"{"choices":[{"text":"a"}]}"#,
            r#"{"choices":[{"text":"b","finish_reason":"length"}],"usage":{"completion_tokens":4}}"#,
        ]);
        assert_eq!(row.output_tokens, 4);
        assert_eq!(row.arrivals, [arrival(1, 1, 2), arrival(2, 1, 2)]);
    }

    #[test]
    fn chunks_are_counted_when_there_is_no_usage() {
        let (row, complete) = read(&[r#"{"choices":[{"text":"a"}]}"#, r#"{"choices":[{"text":"é\n"}]}"#]);
        assert_eq!((row.output_tokens, row.counted_by, complete), (2, CountedBy::Chunks, false));
    }

    #[test]
    fn text_is_handed_over_to_those_who_want_it() {
        let start = Instant::now();
        let mut row = RowBuilder::new(start, start).keeping_text();
        let mut reader = StreamReader::default();
        for event in [
            r#"{"choices":[{"delta":{"role":"assistant","content":null}}]}"#,
            r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#,
            r#"{"choices":[{"delta":{"content":"a\n\u00e9"}}]}"#,
            r#"{"choices":[{"text":" b"}]}"#,
        ] {
            reader.event(event, start, &mut row).expect("event is well formed");
        }
        assert_eq!(row.take_pieces(), ["a\né", " b"]);
        let mut row = RowBuilder::new(start, start).keeping_text();
        whole(br#"{"choices":[{"message":{"content":"all","reasoning_content":"x"}}]}"#, &mut row)
            .expect("well formed");
        assert_eq!(row.take_pieces(), ["all"]);
    }

    #[test]
    fn thoughts_and_tool_calls_are_text() {
        let (row, _) = read(&[
            r#"{"choices":[{"delta":{"reasoning_content":"hm","content":null}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#,
        ]);
        assert_eq!(row.arrivals.len(), 2);
    }
}
