//! `/tokenize` and `/chat_tokenize`: what text becomes, token by token.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use pelton_protocol::openai::ChatRequest;
use pelton_protocol::tgi::{ChatTokenizeResponse, GenerateRequest as WireRequest, TokenizedToken};
use pelton_text::EncodedToken;
use serde::Serialize;

use super::refuse;
use crate::body;
use crate::dialects::openai::chat;
use crate::generate::{self, Prompt, ServeError};
use crate::server::Server;

/// The tokens of `inputs` as `/generate` would read them; parameters change nothing.
pub(super) async fn tokenize(State(server): State<Arc<Server>>, request: Request) -> Response {
    let answer = async {
        let wire: WireRequest = body::read_json(&server, request).await?;
        tokens_of(&server, Prompt::Text(wire.inputs), true, |_, tokens| to_json(&wire_tokens(tokens))).await
    };
    answer.await.unwrap_or_else(|error| refuse(&server, &error))
}

/// The text that the template makes of a chat request, and its tokens.
pub(super) async fn chat_tokenize(State(server): State<Arc<Server>>, request: Request) -> Response {
    let headers = request.headers().clone();
    let answer = async {
        let wire: ChatRequest = body::read_json(&server, request).await?;
        let (request, _) = chat::parse(wire, &headers, &server)?;
        // A chat is one prompt.
        let prompt = request.prompts.into_iter().next().ok_or(ServeError::Internal)?;
        let write = |templated_text, tokens| {
            to_json(&ChatTokenizeResponse { tokenize_response: wire_tokens(tokens), templated_text })
        };
        tokens_of(&server, prompt, request.add_special_tokens, write).await
    };
    answer.await.unwrap_or_else(|error| refuse(&server, &error))
}

async fn tokens_of(
    server: &Server,
    prompt: Prompt,
    add_special_tokens: bool,
    write: impl FnOnce(String, Vec<EncodedToken>) -> Result<Vec<u8>, ServeError> + Send + 'static,
) -> Result<Response, ServeError> {
    let json = generate::tokenize(server, prompt, add_special_tokens, write).await??;
    body::long_answer(server.body_memory(), server.config().payload_limit, json)
}

fn to_json(answer: &impl Serialize) -> Result<Vec<u8>, ServeError> {
    serde_json::to_vec(answer).map_err(|error| {
        tracing::error!(%error, "tokens could not be written");
        ServeError::Internal
    })
}

fn wire_tokens(tokens: Vec<EncodedToken>) -> Vec<TokenizedToken> {
    let token = |EncodedToken { id, text, start, stop }| TokenizedToken { id, text, start, stop };
    tokens.into_iter().map(token).collect()
}
