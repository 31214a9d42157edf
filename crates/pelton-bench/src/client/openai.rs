//! The OpenAI dialect as a client: completions and chat completions.

use std::borrow::Cow;
use std::time::Instant;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::text::Text;
use super::{malformed, server_error};
use crate::recorder::{CountedBy, Failure, RowBuilder};
use crate::workload::{Ask, Prompt};

/// How an answer of exactly the wished length is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lengthening {
    /// `ignore_eos` and `min_tokens`: extensions of vLLM that many servers share.
    IgnoreEosMinTokens,
    /// `ignore_eos` alone.
    IgnoreEos,
    /// Nothing: the server knows neither.
    None,
}

/// The request body without prompt and length.
pub fn body(model: &str, stream: bool, lengthening: Lengthening) -> Map<String, Value> {
    let mut body = Map::new();
    body.insert("model".to_owned(), json!(model));
    body.insert("max_tokens".to_owned(), Value::Null);
    body.insert("temperature".to_owned(), json!(0.0));
    if lengthening != Lengthening::None {
        body.insert("ignore_eos".to_owned(), json!(true));
    }
    if lengthening == Lengthening::IgnoreEosMinTokens {
        body.insert("min_tokens".to_owned(), Value::Null);
    }
    if stream {
        body.insert("stream".to_owned(), json!(true));
        body.insert("stream_options".to_owned(), json!({ "include_usage": true }));
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
    if let Some(least) = body.get_mut("min_tokens") {
        *least = json!(ask.output_tokens);
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
    prompt_tokens: Option<u32>,
    #[serde(default)]
    completion_tokens: Option<u32>,
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
        if let Some(error) = chunk.error {
            return Err(server_error(&error));
        }
        row.touch(at);
        let choices = chunk.choices.as_deref().unwrap_or_default();
        let with_text = choices.iter().filter(|choice| choice.has_text()).count() as u32;
        if let Some(reason) = choices.iter().find_map(|choice| choice.finish_reason.as_deref())
            && !reason.is_empty()
        {
            row.finish_reason(reason);
            self.finished = true;
        }
        let usage = chunk.usage.filter(|usage| usage.completion_tokens.is_some());
        chunk.usage.and_then(|usage| usage.prompt_tokens).into_iter().for_each(|n| row.prompt_tokens(n));
        self.counted = usage.and_then(|usage| usage.completion_tokens).or(self.counted);
        if with_text > 0 {
            // A count in each chunk says how many tokens it completed; otherwise one per chunk is assumed until the end.
            let total = usage.and_then(|usage| usage.completion_tokens);
            self.uncounted |= total.is_none();
            let tokens = match total {
                Some(total) if !self.uncounted && total > self.placed => total - self.placed,
                _ => with_text,
            };
            self.placed += tokens;
            if row.wants_text() {
                choices.iter().for_each(|choice| choice.hand_over(row));
            }
            row.arrived(at, with_text, tokens);
        }
        Ok(())
    }

    /// The stream is over; false if that is too early.
    pub fn end(&mut self, row: &mut RowBuilder) -> bool {
        match self.counted {
            Some(tokens) => row.count(tokens, CountedBy::Server),
            None => row.count(row.tokens_so_far(), CountedBy::Chunks),
        }
        self.done || self.finished
    }
}

/// Reads an answer that is not streamed. Returns its number of generated tokens, if the server says it.
pub fn whole(body: &[u8], row: &mut RowBuilder) -> Result<Option<u32>, Failure> {
    let text = || String::from_utf8_lossy(body);
    let whole: Chunk<'_> = serde_json::from_slice(body).map_err(|error| malformed(error, &text()))?;
    if let Some(error) = whole.error {
        return Err(server_error(&error));
    }
    let Some(choice) = whole.choices.as_deref().and_then(|choices| choices.first()) else {
        return Err(malformed("answer has no choices", &text()));
    };
    choice.hand_over(row);
    choice.finish_reason.iter().for_each(|reason| row.finish_reason(reason));
    let usage = whole.usage;
    usage.and_then(|usage| usage.prompt_tokens).into_iter().for_each(|n| row.prompt_tokens(n));
    Ok(usage.and_then(|usage| usage.completion_tokens))
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
