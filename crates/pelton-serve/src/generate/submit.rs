//! Admission: a permit or a refusal at once, then checks, tokens, and one sequence per choice.

use std::sync::Arc;
use std::time::Instant;

use pelton_engine::{SequenceRequest, TokenConstraint, TokenStream};
use pelton_text::EncodedToken;
use tokio::sync::{OwnedSemaphorePermit, TryAcquireError};

use super::constraint;
use super::prepare::{self, Prepared};
use super::stream::Tracker;
use super::{GenerateRequest, GenerateStream, Prompt, ServeError};
use crate::metrics::{Counters, Outcome, RequestRecord};
use crate::server::Server;
use crate::trace::Arrival;

/// Takes `request` up. Never waits for other requests: what does not fit now is refused now. Dropping the future, and later the stream,
/// gives everything back.
pub(crate) async fn submit(
    server: &Arc<Server>,
    request: GenerateRequest,
    arrival: Arrival,
) -> Result<GenerateStream, ServeError> {
    Counters::add(&server.metrics().counters.requests, 1);
    server.check_open()?;
    prepare::check_shape(&request, server.config())?;
    let dialect = request.dialect;
    let num_sequences = request.prompts.len() as u32 * request.num_choices;
    let permit = admit(server, num_sequences)?;
    let (prepared, streams) = begin(server, request).await?;
    let now = Instant::now();
    let record = RequestRecord {
        dialect,
        outcome: Outcome::Cancelled,
        arrived_at: arrival.at,
        queued_at: now,
        scheduled_at: None,
        first_token_at: None,
        finished_at: now,
        num_prompt_tokens: prepared.num_prompt_tokens(),
        num_cached_tokens: 0,
        num_generated_tokens: 0,
        num_accepted_tokens: 0,
        max_tokens: prepared.prompts.iter().map(|prompt| prompt.max_tokens).max().unwrap_or(0),
        num_sequences,
    };
    let tracker = Tracker::new(Arc::clone(server), record, arrival.origin);
    Ok(GenerateStream::new(prepared, streams, tracker, permit))
}

/// Takes `request`, of as many sequences, up in the place of `stream`, which is cancelled. For the client both are one request: its times and counts go on.
pub(crate) async fn submit_instead(
    stream: GenerateStream,
    request: GenerateRequest,
) -> Result<GenerateStream, ServeError> {
    let (mut tracker, permit) = stream.into_place();
    let (prepared, streams) = begin(&tracker.server, request).await?;
    tracker.record.num_prompt_tokens += prepared.num_prompt_tokens();
    Ok(GenerateStream::new(prepared, streams, tracker, permit))
}

/// Checks `request` and hands its sequences to the engine.
async fn begin(server: &Server, mut request: GenerateRequest) -> Result<(Prepared, Vec<TokenStream>), ServeError> {
    let (grammar, stopping) = (request.grammar.take(), request.stopping.clone());
    let (prepared, constraint) = tokio::try_join!(
        prepare::prepare(request, server.config(), server.limits(), server.pool()),
        constraint::constraint(server, grammar, &stopping),
    )?;
    let streams = submit_sequences(server, &prepared, constraint)?;
    Ok((prepared, streams))
}

fn admit(server: &Server, num_sequences: u32) -> Result<OwnedSemaphorePermit, ServeError> {
    Arc::clone(server.permits()).try_acquire_many_owned(num_sequences).map_err(|error| match error {
        TryAcquireError::NoPermits => {
            ServeError::Overloaded { limit: "max_concurrent_requests", max: server.config().max_concurrent_requests }
        }
        TryAcquireError::Closed => ServeError::Stopping,
    })
}

/// Streams of all choices, prompt by prompt. When the engine refuses one, dropping the others cancels them.
fn submit_sequences(
    server: &Server,
    prepared: &Prepared,
    constraint: Option<Box<dyn TokenConstraint>>,
) -> Result<Vec<TokenStream>, ServeError> {
    let mut streams = Vec::with_capacity(prepared.prompts.len() * usize::from(prepared.num_choices));
    // The last prompt takes the constraint itself: a copy may be large.
    let constraints = std::iter::repeat_n(constraint, prepared.prompts.len());
    for (prompt, constraint) in prepared.prompts.iter().zip(constraints) {
        streams.extend(server.engine().submit(SequenceRequest {
            prompt: prompt.tokens.clone(),
            adapter: prepared.adapter,
            sampling: prepared.sampling.clone(),
            stopping: prepared.stopping_params(prompt),
            report: prepared.report,
            constraint,
            num_choices: prepared.num_choices,
        })?);
    }
    Ok(streams)
}

/// What `write` makes of the text of `prompt` and its tokens with their places. It runs on a text thread: the list may be long.
pub(crate) async fn tokenize<R: Send + 'static>(
    server: &Server,
    prompt: Prompt,
    add_special_tokens: bool,
    write: impl FnOnce(String, Vec<EncodedToken>) -> R + Send + 'static,
) -> Result<R, ServeError> {
    let written = server.pool().run(move |model| {
        let text = prepare::text_of(prompt, model)?;
        let tokens = model.encode_with_offsets(&text, add_special_tokens).map_err(prepare::text_error)?;
        Ok(write(text, tokens))
    });
    written.await.map_err(prepare::text_error)?
}
