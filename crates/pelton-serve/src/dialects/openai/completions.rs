//! `/v1/completions`: parse, whole, chunk.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{AppendHeaders, IntoResponse, Json, Response};
use http::HeaderMap;
use pelton_engine::{Foretold, TokenId};
use pelton_protocol::openai::{
    CompletionChoice, CompletionChunk, CompletionLogprobs, CompletionRequest, CompletionResponse, Prompt as WirePrompt,
};
use pelton_protocol::sse::DONE;
use pelton_text::TextModel;

use super::{
    UsageWanted, chosen, field_name, finite, id_suffix, prompt_logprobs, refusal_body, refuse, sampling, stop_reason,
    system_fingerprint, usage, usage_of, usage_wanted, wire_reason,
};
use crate::dialects::grammar;
use crate::generate::{
    Choice, DetailsRequest, Field, GenerateEvent, GenerateRequest, GenerateStream, GeneratedToken, Generation,
    PreparedPrompt, Prompt, ServeError, submit,
};
use crate::metrics::RequestRecord;
use crate::server::{Server, unix_seconds};
use crate::trace::Arrival;
use crate::{body, sse, timing};

/// Tokens generated when the request does not say.
const DEFAULT_MAX_TOKENS: u32 = 16;

pub(in crate::dialects) async fn create(State(server): State<Arc<Server>>, request: Request) -> Response {
    let arrival = Arrival::now("/v1/completions", &request);
    let headers = request.headers().clone();
    let answer = async {
        let wire = body::read_json(&server, request).await?;
        let (request, asked) = parse(wire, &headers, &server)?;
        if asked.stream {
            stream(&server, request, asked, arrival).await
        } else {
            whole(&server, request, asked, arrival).await
        }
    };
    answer.await.unwrap_or_else(|error| refuse(&server, &error, field_name))
}

// Parse.

/// What the answer needs to know of the request beside the events.
struct Asked {
    id: String,
    model: String,
    stream: bool,
    usage: UsageWanted,
    /// Answers per prompt; the best of those generated.
    n: u32,
    logprobs: bool,
    /// Alternatives in them.
    top_tokens: u32,
    /// Alternatives in the list of the prompt, if that is wanted.
    prompt_top_tokens: Option<u32>,
    /// Text of each prompt, if the answers shall begin with it.
    echo: Option<Vec<String>>,
    tokens_as_ids: bool,
}

fn parse(
    wire: CompletionRequest,
    headers: &HeaderMap,
    server: &Server,
) -> Result<(GenerateRequest, Asked), ServeError> {
    let CompletionRequest { model, prompt, suffix, echo, best_of, logprobs, stream, stream_options, sampling: fields } =
        wire;
    let (model, adapter) = chosen(server.config(), model);
    sampling::refuse_unsupported(&fields)?;
    let (stream, echo) = (stream == Some(true), echo == Some(true));
    let usage = usage_wanted(stream, stream_options)?;

    let n = fields.n.unwrap_or(1);
    if n == 0 {
        return Err(ServeError::value(Field::Choices, "must be >= 1", n));
    }
    let best_of = best_of.unwrap_or(n);
    if best_of < n {
        return Err(ServeError::value(Field::BestOf, format!("must be >= {n} (`n`)"), best_of));
    }
    let max_choices = server.config().max_choices;
    if best_of > n && best_of > max_choices {
        return Err(ServeError::value(Field::BestOf, format!("must be <= {max_choices}"), best_of));
    }
    if stream && best_of > n {
        let message = "`best_of` > `n` cannot be streamed".into();
        return Err(ServeError::Conflict { field: "best_of", message });
    }
    let top_tokens = logprobs.map(|top| sampling::top_tokens(top, server.config().max_logprobs)).transpose()?;
    let prompt_top_tokens = sampling::prompt_top_tokens(&fields, stream, server.config().max_logprobs)?;
    if fields.max_tokens == Some(0) && !echo {
        return Err(ServeError::value(Field::MaxTokens, "must be >= 1 (or 0 with `echo`)", 0));
    }
    let prompts = prompts(prompt, suffix.filter(|suffix| !suffix.is_empty()), echo)?;
    let asked = Asked {
        id: format!("cmpl-{}", id_suffix(headers, fields.request_id.as_deref())),
        model,
        stream,
        usage,
        n,
        logprobs: top_tokens.is_some(),
        top_tokens: top_tokens.unwrap_or(0),
        prompt_top_tokens,
        echo: echo.then(|| prompts.iter().map(|prompt| prompt_text(prompt, server.text())).collect()),
        tokens_as_ids: fields.return_tokens_as_token_ids == Some(true),
    };
    let request = GenerateRequest {
        dialect: "openai.completions",
        adapter,
        prompts,
        add_special_tokens: fields.add_special_tokens.unwrap_or(true),
        truncate: fields.truncate_prompt_tokens,
        num_choices: best_of,
        sampling: sampling::sampling(&fields)?,
        stopping: sampling::stopping(&fields, fields.max_tokens, Some(DEFAULT_MAX_TOKENS)),
        details: DetailsRequest {
            logprobs: asked.logprobs || best_of > n,
            top_tokens: top_tokens.unwrap_or(0),
            // What is echoed has them too.
            prompt: prompt_top_tokens.max(top_tokens.filter(|_| echo)),
            skip_special_tokens: fields.skip_special_tokens.unwrap_or(true),
        },
        grammar: grammar::of_fields(&fields)?,
    };
    Ok((request, asked))
}

fn prompts(prompt: WirePrompt, suffix: Option<String>, echo: bool) -> Result<Vec<Prompt>, ServeError> {
    let prompts: Vec<_> = match prompt {
        WirePrompt::Text(text) => vec![Prompt::Text(text)],
        WirePrompt::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
        WirePrompt::Tokens(tokens) => vec![Prompt::Tokens(tokens)],
        WirePrompt::TokenLists(lists) => lists.into_iter().map(Prompt::Tokens).collect(),
    };
    let Some(suffix) = suffix else { return Ok(prompts) };
    if echo {
        let message = "`suffix` and `echo` exclude each other".into();
        return Err(ServeError::Conflict { field: "suffix", message });
    }
    let fill = |prompt| match prompt {
        Prompt::Text(prefix) => Ok(Prompt::Infill { prefix, suffix: suffix.clone() }),
        _ => Err(ServeError::unsupported(
            "suffix",
            "prompts of token ids can name the fill-in-the-middle tokens themselves",
        )),
    };
    prompts.into_iter().map(fill).collect()
}

/// Tokens that do not exist are refused later.
fn prompt_text(prompt: &Prompt, text: &TextModel) -> String {
    match prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Tokens(tokens) => text.decode(tokens, false).unwrap_or_default(),
        Prompt::Infill { .. } | Prompt::Chat(_) => String::new(),
    }
}

// Whole.

async fn whole(
    server: &Arc<Server>,
    request: GenerateRequest,
    asked: Asked,
    arrival: Arrival,
) -> Result<Response, ServeError> {
    let num_choices = request.num_choices as usize;
    let stream = submit(server, request, arrival).await?;
    let prompts = stream.prompts().to_vec();
    let Generation { prompt_logprobs: foretold, choices, record } = Generation::fold(stream).await?;
    let headers = timing::whole_headers(server, &prompts, &record);

    let mut answers = Vec::with_capacity(prompts.len() * asked.n as usize);
    for (index, candidates) in choices.chunks(num_choices).enumerate() {
        let echo = asked.echo.as_ref().map(|texts| texts[index].as_str());
        let foretold = foretold[index].as_deref().unwrap_or_default();
        for choice in best(candidates, asked.n as usize) {
            let logprobs = asked.logprobs.then(|| {
                let mut list = LogprobList::new(server.text(), asked.tokens_as_ids);
                if echo.is_some() {
                    list.push_prompt(&prompts[index], foretold, asked.top_tokens);
                }
                choice.tokens.iter().for_each(|token| list.push(token));
                list.logprobs
            });
            answers.push(CompletionChoice {
                index: answers.len() as u32,
                text: echo.unwrap_or_default().to_owned() + &choice.text,
                logprobs,
                finish_reason: Some(wire_reason(&choice.reason).into()),
                stop_reason: stop_reason(&choice.reason),
                prompt_logprobs: asked
                    .prompt_top_tokens
                    .map(|top| prompt_logprobs(&prompts[index], foretold, top, server.text())),
            });
        }
    }
    let body = CompletionResponse {
        id: asked.id,
        object: "text_completion".into(),
        created: unix_seconds(),
        model: asked.model,
        system_fingerprint: Some(system_fingerprint()),
        choices: answers,
        usage: Some(usage_of(&record)),
    };
    Ok((AppendHeaders(headers), Json(body)).into_response())
}

/// The `n` likeliest candidates, likeliest first; all of them in their order when there are no more.
fn best(candidates: &[Choice], n: usize) -> Vec<&Choice> {
    let mut chosen: Vec<_> = candidates.iter().collect();
    if n < chosen.len() {
        chosen.sort_by(|a, b| b.logprob().total_cmp(&a.logprob()));
        chosen.truncate(n);
    }
    chosen
}

/// The four lists, token by token.
struct LogprobList<'a> {
    text: &'a TextModel,
    tokens_as_ids: bool,
    /// Characters so far.
    offset: usize,
    logprobs: CompletionLogprobs,
}

impl<'a> LogprobList<'a> {
    fn new(text: &'a TextModel, tokens_as_ids: bool) -> Self {
        Self { text, tokens_as_ids, offset: 0, logprobs: CompletionLogprobs::default() }
    }

    fn push_prompt(&mut self, prompt: &PreparedPrompt, foretold: &[Option<Foretold>], top: u32) {
        for (token, foretold) in prompt.tokens.iter().zip(foretold) {
            match foretold {
                None => self.push_one(token.0, None, None),
                Some(Foretold { logprob, top: likeliest, .. }) => {
                    let likeliest = likeliest.iter().take(top as usize).map(|&(TokenId(id), logprob)| (id, logprob));
                    let top = self.by_name(likeliest, (token.0, *logprob));
                    self.push_one(token.0, Some(*logprob), Some(top));
                }
            }
        }
    }

    fn push(&mut self, token: &GeneratedToken) {
        let sampled = (token.id, token.logprob.unwrap_or(0.0));
        let top = self.by_name(token.top.iter().copied(), sampled);
        self.push_one(token.id, token.logprob, Some(top));
    }

    fn by_name(&self, top: impl Iterator<Item = (u32, f32)>, own: (u32, f32)) -> BTreeMap<String, f32> {
        // The token itself last: it wins over an alternative of the same text.
        top.chain([own]).map(|(id, logprob)| (self.name(id), finite(logprob))).collect()
    }

    fn push_one(&mut self, id: u32, logprob: Option<f32>, top: Option<BTreeMap<String, f32>>) {
        self.logprobs.text_offset.push(self.offset);
        self.offset += self.text.token_text(id).chars().count();
        self.logprobs.tokens.push(self.name(id));
        self.logprobs.token_logprobs.push(logprob.map(finite));
        self.logprobs.top_logprobs.push(top);
    }

    fn name(&self, id: u32) -> String {
        if self.tokens_as_ids { format!("token_id:{id}") } else { self.text.token_text(id) }
    }
}

// Chunk.

async fn stream(
    server: &Arc<Server>,
    request: GenerateRequest,
    asked: Asked,
    arrival: Arrival,
) -> Result<Response, ServeError> {
    let stream = submit(server, request, arrival).await?;
    let headers = timing::stream_headers(server, stream.prompts());
    let chunks = Chunks::new(server.text().clone(), asked, &stream);
    Ok(sse::response(headers, stream, chunks))
}

struct Chunks {
    text: TextModel,
    asked: Asked,
    prompts: Vec<PreparedPrompt>,
    /// Characters of each choice's tokens so far, for the offsets of log-probabilities.
    offsets: Vec<usize>,
    num_generated_tokens: u32,
    /// Written again and again with other contents; always one choice.
    chunk: CompletionChunk,
}

impl Chunks {
    fn new(text: TextModel, mut asked: Asked, stream: &GenerateStream) -> Self {
        let choice = CompletionChoice {
            index: 0,
            text: String::new(),
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
            prompt_logprobs: None,
        };
        let chunk = CompletionChunk {
            id: std::mem::take(&mut asked.id),
            object: "text_completion".into(),
            created: unix_seconds(),
            model: std::mem::take(&mut asked.model),
            system_fingerprint: Some(system_fingerprint()),
            choices: vec![choice],
            usage: None,
        };
        let offsets = vec![0; stream.num_sequences() as usize];
        Self { text, asked, prompts: stream.prompts().to_vec(), offsets, num_generated_tokens: 0, chunk }
    }

    fn num_prompt_tokens(&self) -> u32 {
        self.prompts.iter().map(|prompt| prompt.tokens.len() as u32).sum()
    }

    /// Starts a list where the choice's text is.
    fn logprobs(&self, choice: u32) -> LogprobList<'_> {
        let mut list = LogprobList::new(&self.text, self.asked.tokens_as_ids);
        list.offset = self.offsets[choice as usize];
        list
    }

    /// Writes the chunk and empties it.
    fn send(&mut self, out: &mut Vec<u8>) {
        if self.asked.usage.with_every_chunk {
            self.chunk.usage = Some(usage(self.num_prompt_tokens(), self.num_generated_tokens));
        }
        sse::write(&self.chunk, out);
        let piece = &mut self.chunk.choices[0];
        piece.text.clear();
        (piece.logprobs, piece.finish_reason, piece.stop_reason) = (None, None, None);
    }

    fn echo(&mut self, prompt: u32, foretold: Option<Vec<Option<Foretold>>>, out: &mut Vec<u8>) {
        let Some(echo) = &self.asked.echo else { return };
        let text = echo[prompt as usize].clone();
        for choice in prompt * self.asked.n..(prompt + 1) * self.asked.n {
            let list = foretold.as_deref().map(|foretold| {
                let mut list = self.logprobs(choice);
                list.push_prompt(&self.prompts[prompt as usize], foretold, self.asked.top_tokens);
                (list.offset, list.logprobs)
            });
            let (offset, logprobs) = list.map_or((0, None), |(offset, logprobs)| (offset, Some(logprobs)));
            self.offsets[choice as usize] = offset;
            let piece = &mut self.chunk.choices[0];
            piece.index = choice;
            piece.text.clone_from(&text);
            piece.logprobs = logprobs;
            self.send(out);
        }
    }

    /// Fills the chunk; says whether there is anything in it.
    fn fill(&mut self, choice: u32, token: GeneratedToken) -> bool {
        self.num_generated_tokens += 1;
        let logprobs = self.asked.logprobs.then(|| {
            let mut list = self.logprobs(choice);
            list.push(&token);
            (list.offset, list.logprobs)
        });
        let piece = &mut self.chunk.choices[0];
        piece.index = choice;
        piece.text = token.text;
        piece.logprobs = logprobs.map(|(offset, logprobs)| {
            self.offsets[choice as usize] = offset;
            logprobs
        });
        !piece.text.is_empty() || piece.logprobs.is_some()
    }
}

impl sse::Chunks for Chunks {
    fn event(&mut self, event: GenerateEvent, out: &mut Vec<u8>) {
        match event {
            GenerateEvent::Prompt { prompt, logprobs } => self.echo(prompt, logprobs, out),
            GenerateEvent::Token { choice, token, is_last } => {
                if self.fill(choice, token) && !is_last {
                    self.send(out);
                }
            }
            // What a last token has filled in goes out with the reason.
            GenerateEvent::Finished { choice, reason } => {
                let piece = &mut self.chunk.choices[0];
                piece.index = choice;
                piece.finish_reason = Some(wire_reason(&reason).into());
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
