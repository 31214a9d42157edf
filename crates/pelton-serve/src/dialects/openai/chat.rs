//! `/v1/chat/completions`: parse, whole, chunk.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{AppendHeaders, IntoResponse, Json, Response};
use http::HeaderMap;
use pelton_protocol::openai::{
    AssistantMessage, ChatChoice, ChatChunk, ChatChunkChoice, ChatDelta, ChatLogprobs, ChatMessage, ChatRequest,
    ChatResponse, ChatTokenLogprob, ChatTopLogprob, Content,
};
use pelton_protocol::sse::DONE;
use pelton_text::TextModel;
use serde_json::{Map, Value, json};

use super::tool_text::{ToolStep, ToolText};
use super::tools::{NO_TOOL, Tools, next_call_id};
use super::{
    Names, UsageWanted, chosen, finite, id_suffix, prompt_logprobs, refusal_body, refuse, refuse_set, sampling,
    stop_reason, system_fingerprint, usage, usage_of, usage_wanted, wire_reason,
};
use crate::dialects::grammar;
use crate::generate::{
    Chat, DetailsRequest, Field, FinishReason, GenerateEvent, GenerateRequest, GenerateStream, GeneratedToken,
    Generation, Prompt, ServeError, submit, submit_instead,
};
use crate::metrics::RequestRecord;
use crate::server::{Server, unix_seconds};
use crate::trace::Arrival;
use crate::{body, sse, timing};

pub(in crate::dialects) async fn create(State(server): State<Arc<Server>>, request: Request) -> Response {
    let arrival = Arrival::now("/v1/chat/completions", &request);
    let headers = request.headers().clone();
    let mut names: Names = field_name;
    let answer = async {
        let wire: ChatRequest = body::read_json(&server, request).await?;
        if wire.max_completion_tokens.is_some() {
            names = field_name_with_completion_tokens;
        }
        let (request, asked) = parse(wire, &headers, &server)?;
        if asked.stream {
            stream(&server, request, asked, arrival).await
        } else {
            whole(&server, request, asked, arrival).await
        }
    };
    answer.await.unwrap_or_else(|error| refuse(&server, &error, names))
}

fn field_name(field: Field) -> &'static str {
    match field {
        Field::Prompt => "messages",
        Field::TopTokens => "top_logprobs",
        field => super::field_name(field),
    }
}

/// The limit of tokens has two names; requests are answered in theirs.
fn field_name_with_completion_tokens(field: Field) -> &'static str {
    match field {
        Field::MaxTokens => "max_completion_tokens",
        field => field_name(field),
    }
}

// Parse.

/// What the answer needs to know of the request beside the events.
pub(in crate::dialects) struct Asked {
    id: String,
    model: String,
    stream: bool,
    usage: UsageWanted,
    logprobs: bool,
    /// Alternatives in the list of the prompt, if that is wanted.
    prompt_top_tokens: Option<u32>,
    tokens_as_ids: bool,
    /// Set when the answer is a call.
    call_id: Option<String>,
    /// The same request without tools, for a model that has no use for them.
    without_tools: Option<Box<GenerateRequest>>,
}

impl Asked {
    pub(in crate::dialects) fn has_tools(&self) -> bool {
        self.call_id.is_some()
    }
}

pub(in crate::dialects) fn parse(
    wire: ChatRequest,
    headers: &HeaderMap,
    server: &Server,
) -> Result<(GenerateRequest, Asked), ServeError> {
    refuse_unsupported(&wire)?;
    let fields = &wire.sampling;
    sampling::refuse_unsupported(fields)?;
    let (model, adapter) = chosen(server.config(), wire.model);
    let stream = wire.stream == Some(true);
    let usage = usage_wanted(stream, wire.stream_options)?;

    let logprobs = wire.logprobs == Some(true);
    if wire.top_logprobs.is_some_and(|top| top != 0) && !logprobs {
        let message = "`top_logprobs` needs `logprobs` to be true".into();
        return Err(ServeError::Conflict { field: "top_logprobs", message });
    }
    let top_tokens = sampling::top_tokens(wire.top_logprobs.unwrap_or(0), server.config().max_logprobs)?;
    let prompt_top_tokens = sampling::prompt_top_tokens(fields, stream, server.config().max_logprobs)?;
    let max_tokens = wire.max_completion_tokens.or(fields.max_tokens);
    if max_tokens == Some(0) {
        return Err(ServeError::value(Field::MaxTokens, "must be >= 1", 0));
    }
    // Unless told otherwise, what the assistant has begun to say is continued, as text-generation-inference does.
    let is_begun = |message: &ChatMessage| match &message.content {
        Some(Content::Text(text)) => message.role == "assistant" && !text.trim().is_empty(),
        Some(Content::Parts(_)) => message.role == "assistant",
        None => false,
    };
    let continue_final_message = match (wire.continue_final_message, wire.add_generation_prompt) {
        (Some(true), Some(true)) => {
            let message = "`continue_final_message` and `add_generation_prompt` exclude each other".into();
            return Err(ServeError::Conflict { field: "continue_final_message", message });
        }
        (None, None) => wire.messages.last().is_some_and(is_begun),
        (wanted, _) => wanted == Some(true),
    };
    let mut variables = wire.chat_template_kwargs.unwrap_or_default();
    let for_template = [("documents", wire.documents), ("reasoning_effort", wire.reasoning_effort)];
    for (name, value) in for_template {
        variables.extend(value.map(|value| (name.to_owned(), value)));
    }
    let tools = Tools::parse(wire.tools.as_ref(), wire.tool_choice.as_ref(), wire.tool_prompt)?;
    let grammar = grammar::of_fields(fields)?;
    if grammar.is_some() && wire.tools.is_some_and(|tools| !tools.is_null()) {
        return Err(ServeError::Tool("Grammar and tools are mutually exclusive".into()));
    }
    if tools.is_some() && fields.n.unwrap_or(1) > 1 {
        return Err(ServeError::unsupported("n", "with `tools` only 1 is possible"));
    }
    let call_id = tools.as_ref().map(|_| next_call_id(&wire.messages));
    let messages = wire.messages.into_iter().enumerate().map(|(index, message)| template_message(index, message));
    let chat = Chat {
        messages: messages.collect::<Result<_, _>>()?,
        add_generation_prompt: wire.add_generation_prompt.unwrap_or(!continue_final_message),
        continue_final_message,
        tools: None,
        variables,
    };
    let mut asked = Asked {
        id: format!("chatcmpl-{}", id_suffix(headers, fields.request_id.as_deref())),
        model,
        stream,
        usage,
        logprobs,
        prompt_top_tokens,
        tokens_as_ids: fields.return_tokens_as_token_ids == Some(true),
        call_id,
        without_tools: None,
    };
    let mut request = GenerateRequest {
        dialect: "openai.chat",
        adapter,
        prompts: vec![Prompt::Chat(chat)],
        // Templates write them.
        add_special_tokens: fields.add_special_tokens.unwrap_or(false),
        truncate: fields.truncate_prompt_tokens,
        num_choices: fields.n.unwrap_or(1),
        sampling: sampling::sampling(fields)?,
        stopping: sampling::stopping(fields, max_tokens, None),
        details: DetailsRequest {
            logprobs,
            top_tokens,
            prompt: prompt_top_tokens,
            skip_special_tokens: fields.skip_special_tokens.unwrap_or(true),
        },
        grammar,
    };
    if let Some(tools) = tools {
        asked.without_tools = tools.may_answer.then(|| Box::new(request.clone()));
        request.grammar = Some(tools.grammar());
        if let Some(Prompt::Chat(chat)) = request.prompts.first_mut() {
            chat.tools = Some(tools.told());
        }
    }
    Ok((request, asked))
}

/// Refuses the fields that are known and not built, unless they are set to what happens anyway.
fn refuse_unsupported(wire: &ChatRequest) -> Result<(), ServeError> {
    let is_none = |choice: &Value| choice == "none" || choice == "auto";
    let is_text = |kinds: &Value| kinds.as_array().is_some_and(|kinds| kinds.iter().all(|kind| kind == "text"));
    refuse_set("functions", &wire.functions)?;
    refuse_set("function_call", &wire.function_call.as_ref().filter(|choice| !is_none(choice)))?;
    refuse_set("echo", &wire.echo.filter(|&wanted| wanted))?;
    refuse_set("chat_template", &wire.chat_template)?;
    refuse_set("modalities", &wire.modalities.as_ref().filter(|kinds| !is_text(kinds)))
}

/// A message as templates read it: with its text in one string.
fn template_message(index: usize, message: ChatMessage) -> Result<Value, ServeError> {
    let ChatMessage { role, content, name, tool_calls, tool_call_id, other } = message;
    let content = match content {
        Some(Content::Text(text)) => Value::String(text),
        Some(Content::Parts(parts)) => {
            let mut text = String::new();
            for (part_index, part) in parts.into_iter().enumerate() {
                let path = |field| format!("messages[{index}].content[{part_index}].{field}");
                if part.kind != "text" {
                    let kind: String = part.kind.chars().take(40).collect();
                    let problem = format!("only text parts are supported. Given: {kind}");
                    return Err(ServeError::Shape { path: path("type"), problem });
                }
                let missing = || ServeError::Shape { path: path("text"), problem: "missing".into() };
                text.push_str(&part.text.ok_or_else(missing)?);
            }
            Value::String(text)
        }
        None if tool_calls.is_some() => Value::Null,
        None => {
            let problem = "must be a string or a list of text parts. Given: nothing".into();
            return Err(ServeError::Shape { path: format!("messages[{index}].content"), problem });
        }
    };
    let mut fields = Map::from_iter([("role".to_owned(), Value::String(role)), ("content".to_owned(), content)]);
    fields.extend(other);
    fields.extend(name.map(|name| ("name".to_owned(), Value::String(name))));
    fields.extend(tool_calls.map(|calls| ("tool_calls".to_owned(), Value::Array(calls))));
    fields.extend(tool_call_id.map(|id| ("tool_call_id".to_owned(), Value::String(id))));
    Ok(Value::Object(fields))
}

/// Submits `request`. A model that may call tools and will not is asked again without them, as soon as it says so; how many tokens it took to say it is
/// returned as well.
async fn begin(
    server: &Arc<Server>,
    request: GenerateRequest,
    asked: &mut Asked,
    arrival: Arrival,
) -> Result<(GenerateStream, u32), ServeError> {
    let mut stream = submit(server, request, arrival).await?;
    let Some(without_tools) = asked.without_tools.take() else { return Ok((stream, 0)) };
    let (mut seen, mut call) = (Vec::new(), ToolText::default());
    while call.name().is_none() {
        let Some(event) = stream.next().await.transpose()? else { break };
        if let GenerateEvent::Token { token, .. } = &event {
            call.push(&token.text);
        }
        seen.push(event);
    }
    if call.name() != Some(NO_TOOL) {
        stream.put_back(seen);
        return Ok((stream, 0));
    }
    let num_spent_tokens = stream.record().num_generated_tokens;
    asked.call_id = None;
    Ok((submit_instead(stream, *without_tools).await?, num_spent_tokens))
}

/// Why a choice ended; a whole call is an end of its own.
fn finish_reason(reason: &FinishReason, is_call: bool) -> &'static str {
    match reason {
        FinishReason::EndOfText | FinishReason::StopToken(_) if is_call => "tool_calls",
        reason => wire_reason(reason),
    }
}

// Whole.

async fn whole(
    server: &Arc<Server>,
    request: GenerateRequest,
    mut asked: Asked,
    arrival: Arrival,
) -> Result<Response, ServeError> {
    let (stream, _) = begin(server, request, &mut asked, arrival).await?;
    let prompts = stream.prompts().to_vec();
    let Generation { prompt_logprobs: foretold, choices, record } = Generation::fold(stream).await?;
    let headers = timing::whole_headers(server, &prompts, &record);
    let answer = |(index, choice): (usize, crate::generate::Choice)| ChatChoice {
        index: index as u32,
        finish_reason: Some(finish_reason(&choice.reason, asked.call_id.is_some()).into()),
        message: message(choice.text, asked.call_id.as_deref()),
        logprobs: asked.logprobs.then(|| ChatLogprobs {
            content: choice.tokens.iter().map(|token| logprob(token, server.text(), asked.tokens_as_ids)).collect(),
        }),
        stop_reason: stop_reason(&choice.reason),
    };
    let body = ChatResponse {
        id: asked.id,
        object: "chat.completion".into(),
        created: unix_seconds(),
        model: asked.model,
        system_fingerprint: Some(system_fingerprint()),
        choices: choices.into_iter().enumerate().map(answer).collect(),
        usage: Some(usage_of(&record)),
        prompt_logprobs: asked.prompt_top_tokens.zip(prompts.first()).map(|(top, prompt)| {
            let foretold = foretold.first().and_then(Option::as_deref).unwrap_or_default();
            prompt_logprobs(prompt, foretold, top, server.text())
        }),
    };
    Ok((AppendHeaders(headers), Json(body)).into_response())
}

/// What the assistant says: a text, or a call as far as it came.
fn message(text: String, call_id: Option<&str>) -> AssistantMessage {
    let (content, tool_calls) = match call_id {
        None => (Some(text), None),
        Some(id) => {
            let ToolStep { name, arguments } = ToolText::default().push(&text);
            let function = |name| json!({"name": name, "arguments": arguments});
            (None, name.map(|name| vec![json!({"id": id, "type": "function", "function": function(name)})]))
        }
    };
    AssistantMessage { role: "assistant".into(), content, refusal: None, tool_calls, reasoning_content: None }
}

fn logprob(token: &GeneratedToken, text: &TextModel, tokens_as_ids: bool) -> ChatTokenLogprob {
    let name = |id| if tokens_as_ids { format!("token_id:{id}") } else { text.token_text(id) };
    let top = token.top.iter().map(|&(id, logprob)| ChatTopLogprob {
        token: name(id),
        logprob: finite(logprob),
        bytes: Some(text.token_bytes(id)),
    });
    ChatTokenLogprob {
        token: name(token.id),
        logprob: finite(token.logprob.unwrap_or(0.0)),
        bytes: Some(text.token_bytes(token.id)),
        top_logprobs: top.collect(),
    }
}

// Chunk.

async fn stream(
    server: &Arc<Server>,
    request: GenerateRequest,
    mut asked: Asked,
    arrival: Arrival,
) -> Result<Response, ServeError> {
    let (stream, num_spent_tokens) = begin(server, request, &mut asked, arrival).await?;
    let headers = timing::stream_headers(server, stream.prompts());
    let chunks = Chunks::new(server.text().clone(), asked, num_spent_tokens, &stream);
    Ok(sse::response(headers, stream, chunks))
}

struct Chunks {
    text: TextModel,
    asked: Asked,
    /// Whether the role of each choice was told.
    has_begun: Vec<bool>,
    num_prompt_tokens: u32,
    num_generated_tokens: u32,
    /// The call, if the answer is one.
    call: ToolText,
    /// Written again and again with other contents; always one choice.
    chunk: ChatChunk,
}

impl Chunks {
    fn new(text: TextModel, mut asked: Asked, num_spent_tokens: u32, stream: &GenerateStream) -> Self {
        let choice = ChatChunkChoice {
            index: 0,
            delta: ChatDelta::default(),
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
        };
        let chunk = ChatChunk {
            id: std::mem::take(&mut asked.id),
            object: "chat.completion.chunk".into(),
            created: unix_seconds(),
            model: std::mem::take(&mut asked.model),
            system_fingerprint: Some(system_fingerprint()),
            choices: vec![choice],
            usage: None,
        };
        let has_begun = vec![false; stream.num_sequences() as usize];
        Self {
            text,
            asked,
            has_begun,
            num_prompt_tokens: stream.record().num_prompt_tokens,
            num_generated_tokens: num_spent_tokens,
            call: ToolText::default(),
            chunk,
        }
    }

    /// Writes the chunk and empties it.
    fn send(&mut self, out: &mut Vec<u8>) {
        if self.asked.usage.with_every_chunk {
            self.chunk.usage = Some(usage(self.num_prompt_tokens, self.num_generated_tokens));
        }
        sse::write(&self.chunk, out);
        let piece = &mut self.chunk.choices[0];
        piece.delta = ChatDelta::default();
        (piece.logprobs, piece.finish_reason, piece.stop_reason) = (None, None, None);
    }

    /// The first chunk of a choice, right before its first text.
    fn begin(&mut self, choice: u32, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.has_begun[choice as usize], true) {
            let piece = &mut self.chunk.choices[0];
            piece.index = choice;
            piece.delta.role = Some("assistant".into());
            piece.delta.content = self.asked.call_id.is_none().then(String::new);
            self.send(out);
        }
    }

    /// Fills the chunk; says whether there is anything in it.
    fn fill(&mut self, choice: u32, token: GeneratedToken) -> bool {
        self.num_generated_tokens += 1;
        let piece = &mut self.chunk.choices[0];
        piece.index = choice;
        piece.logprobs = self
            .asked
            .logprobs
            .then(|| ChatLogprobs { content: vec![logprob(&token, &self.text, self.asked.tokens_as_ids)] });
        let has_content = !token.text.is_empty() || self.asked.logprobs;
        let Some(id) = &self.asked.call_id else {
            piece.delta.content = Some(token.text);
            return has_content;
        };
        let ToolStep { name, arguments } = self.call.push(&token.text);
        piece.delta.tool_calls = match name {
            Some(name) => {
                let function = json!({"name": name, "arguments": arguments});
                Some(vec![json!({"index": 0, "id": id, "type": "function", "function": function})])
            }
            None if arguments.is_empty() => None,
            None => Some(vec![json!({"index": 0, "function": {"arguments": arguments}})]),
        };
        piece.delta.tool_calls.is_some() || self.asked.logprobs
    }
}

impl sse::Chunks for Chunks {
    fn event(&mut self, event: GenerateEvent, out: &mut Vec<u8>) {
        match event {
            GenerateEvent::Prompt { .. } => {}
            GenerateEvent::Token { choice, token, is_last } => {
                self.begin(choice, out);
                if self.fill(choice, token) && !is_last {
                    self.send(out);
                }
            }
            // What a last token has filled in goes out with the reason.
            GenerateEvent::Finished { choice, reason } => {
                let piece = &mut self.chunk.choices[0];
                piece.index = choice;
                piece.finish_reason = Some(finish_reason(&reason, self.call.is_complete()).into());
                piece.stop_reason = stop_reason(&reason);
                self.send(out);
            }
        }
    }

    fn end(&mut self, record: &RequestRecord, out: &mut Vec<u8>) {
        if self.asked.usage.at_end {
            self.chunk.choices.clear();
            self.chunk.usage = Some(usage_of(record));
            sse::write(&self.chunk, out);
        }
        out.extend_from_slice(DONE);
    }

    fn error(&mut self, error: &ServeError, out: &mut Vec<u8>) {
        sse::write(&refusal_body(error, field_name).1, out);
        out.extend_from_slice(DONE);
    }
}
