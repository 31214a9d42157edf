//! The Text Generation Inference dialect as a client: `/generate_stream` and `/generate`.

use std::borrow::Cow;
use std::time::Instant;

use http::HeaderMap;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::values::{Text, TokenCount};
use super::{malformed, server_error};
use crate::recorder::{CountedBy, Failure, RowBuilder, ServerTimes};
use crate::workload::Ask;

/// The request body without prompt and length.
///
/// Greedy, as `parameters` without `do_sample` mean. The dialect cannot ask for an answer that goes on after the end of text.
pub fn body() -> Map<String, Value> {
    Map::from_iter([("inputs".to_owned(), Value::Null), ("parameters".to_owned(), json!({ "details": true }))])
}

/// Sets prompt and length.
pub fn set(body: &mut Map<String, Value>, ask: &Ask) {
    body.insert("inputs".to_owned(), Value::String(ask.prompt.as_text().into_owned()));
    if let Some(Value::Object(parameters)) = body.get_mut("parameters") {
        parameters.insert("max_new_tokens".to_owned(), json!(ask.output_tokens));
    }
}

/// What is read of one streamed event; `null` reads as absent.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(default, borrow)]
    token: Option<Token<'a>>,
    #[serde(default)]
    generated_text: Option<IgnoredAny>,
    #[serde(default, borrow)]
    details: Option<Details<'a>>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Token<'a> {
    #[serde(default, borrow)]
    text: Text<'a>,
    /// Special tokens (end of text) are tokens of the answer, but their text is none of it.
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Details<'a> {
    #[serde(default, borrow)]
    finish_reason: Option<Cow<'a, str>>,
    #[serde(default)]
    generated_tokens: Option<TokenCount>,
    #[serde(default)]
    input_length: Option<TokenCount>,
}

/// Reads one streamed answer.
#[derive(Debug, Default)]
pub struct StreamReader {
    ended: bool,
    counted: Option<u32>,
}

impl StreamReader {
    /// One event, from a read at `at`.
    pub fn event(&mut self, data: &str, at: Instant, row: &mut RowBuilder) -> Result<(), Failure> {
        let event: Event<'_> = serde_json::from_str(data).map_err(|error| malformed(error, data))?;
        if let Some(error) = event.error {
            return Err(server_error(&error));
        }
        row.touch(at);
        if let Some(token) = event.token {
            if row.wants_text() && !token.special {
                row.piece(token.text.as_str());
            }
            row.arrived(at, 1, 1);
        }
        if let Some(details) = event.details {
            self.counted = details.generated_tokens.map(|count| count.0);
            details.input_length.into_iter().for_each(|count| row.prompt_tokens(count.0));
            details.finish_reason.iter().for_each(|reason| row.finish_reason(reason));
        }
        self.ended |= event.generated_text.is_some();
        Ok(())
    }

    /// The stream is over; false if that is too early.
    pub fn end(&mut self, row: &mut RowBuilder) -> bool {
        match self.counted {
            Some(tokens) => row.count(tokens, CountedBy::Server),
            None => row.count(row.tokens_so_far(), CountedBy::Events),
        }
        self.ended
    }
}

#[derive(Deserialize)]
struct Whole<'a> {
    #[serde(borrow)]
    generated_text: Text<'a>,
    #[serde(default, borrow)]
    details: Option<Details<'a>>,
}

/// What the server's headers say of its time: whole milliseconds in each of them. Streamed answers have none.
pub fn server_times(headers: &HeaderMap) -> Option<ServerTimes> {
    let ms = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok().filter(|ms| ms.is_finite());
    let times = ServerTimes {
        total: ms("x-total-time"),
        validation: ms("x-validation-time"),
        queue: ms("x-queue-time"),
        inference: ms("x-inference-time"),
        per_token: ms("x-time-per-token"),
    };
    (times != ServerTimes::default()).then_some(times)
}

/// Reads an answer that is not streamed. Returns its number of generated tokens, if the server says it.
pub fn whole(body: &[u8], row: &mut RowBuilder) -> Result<Option<u32>, Failure> {
    let whole: Whole<'_> =
        serde_json::from_slice(body).map_err(|error| malformed(error, &String::from_utf8_lossy(body)))?;
    row.piece(whole.generated_text.as_str());
    let Some(details) = whole.details else { return Ok(None) };
    details.finish_reason.iter().for_each(|reason| row.finish_reason(reason));
    Ok(details.generated_tokens.map(|count| count.0))
}
