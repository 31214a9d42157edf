//! The timing headers of text-generation-inference, which load tests read.

use std::fmt::Display;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::generate::PreparedPrompt;
use crate::metrics::RequestRecord;
use crate::server::Server;

type Headers = Vec<(HeaderName, HeaderValue)>;

/// Headers of a stream, which are sent before anything is computed.
pub(crate) fn stream_headers(server: &Server, prompts: &[PreparedPrompt]) -> Headers {
    let num_characters: u64 = prompts.iter().map(|prompt| prompt.num_characters).sum();
    let mut headers = Vec::new();
    push(&mut headers, "x-compute-type", &server.config().compute_type);
    push(&mut headers, "x-compute-characters", num_characters);
    headers
}

/// Headers of a whole answer. Milliseconds are truncated to integers, as clients parse them.
pub(crate) fn whole_headers(server: &Server, prompts: &[PreparedPrompt], record: &RequestRecord) -> Headers {
    let mut headers = stream_headers(server, prompts);
    let ms = |duration: Duration| duration.as_millis();
    push(&mut headers, "x-compute-time", record.total().as_secs_f64());
    push(&mut headers, "x-total-time", ms(record.total()));
    push(&mut headers, "x-validation-time", ms(record.validation()));
    push(&mut headers, "x-queue-time", ms(record.queue()));
    push(&mut headers, "x-inference-time", ms(record.inference()));
    push(&mut headers, "x-time-per-token", ms(record.time_per_token()));
    push(&mut headers, "x-prompt-tokens", record.num_prompt_tokens);
    push(&mut headers, "x-generated-tokens", record.num_generated_tokens);
    headers
}

fn push(headers: &mut Headers, name: &'static str, value: impl Display) {
    // Only a compute type of odd characters is no header value; it is left out then.
    if let Ok(value) = HeaderValue::from_str(&value.to_string()) {
        headers.push((HeaderName::from_static(name), value));
    }
}
