//! Asks a server, before the run, which dialect it speaks, what it serves, and how it counts tokens.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use super::{Client, Connection, Lengthening, Target, broken, message_of, read_body};
use crate::BenchError;
use crate::plan::{Api, BenchPlan};
use crate::recorder::{ErrorKind, Failure, Row, RowBuilder};
use crate::workload::{Ask, Prompt};

/// Largest answer to a question.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// A conversation outside of the run.
#[derive(Debug)]
pub struct Questions {
    target: Target,
    connection: Option<Connection>,
    /// Longest time of one question.
    timeout: Duration,
}

/// Which form of `/tokenize` a server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenizeForm {
    /// `{"inputs"}` to an array of tokens (TGI).
    Tgi,
    /// `{"model", "prompt"}` to an object with `count` (vLLM).
    Vllm,
    /// `{"content"}` to an object with `tokens` (llama.cpp).
    LlamaCpp,
}

/// What was learned.
#[derive(Debug)]
pub struct Found {
    /// The dialect that will be spoken.
    pub api: Api,
    /// The model's name for OpenAI requests; empty for TGI.
    pub model: String,
    /// What the server says of itself: `/info`, or else `/v1/models`.
    pub info: Value,
}

impl Questions {
    /// No connection is made yet.
    pub fn new(target: Target, timeout: Duration) -> Self {
        Self { target, connection: None, timeout }
    }

    async fn ask(&mut self, method: Method, path: &str, body: Bytes) -> Result<(u16, Vec<u8>), Failure> {
        let timeout = self.timeout;
        let late = |_| Failure::new(ErrorKind::Timeout, format!("{path} is not answered within {timeout:?}"));
        tokio::time::timeout(timeout, self.ask_untimed(method, path, body)).await.map_err(late)?
    }

    async fn ask_untimed(&mut self, method: Method, path: &str, body: Bytes) -> Result<(u16, Vec<u8>), Failure> {
        let mut idle = self.connection.take();
        if let Some(connection) = &mut idle
            && !connection.is_ready().await
        {
            idle = None;
        }
        let mut connection = match idle {
            Some(connection) => connection,
            None => self.target.connect().await.map_err(|error| Failure::new(ErrorKind::Connect, error))?,
        };
        let request = self.target.request(method, path, body);
        let (response, _) = connection.send(request).await.map_err(|error| broken(&error))?;
        let (head, body) = response.into_parts();
        let mut bytes = Vec::new();
        read_body(&mut connection, body, MAX_ANSWER_BYTES, &mut bytes).await?;
        self.connection = Some(connection);
        Ok((head.status.as_u16(), bytes))
    }

    /// A page as it is, whatever its status.
    pub async fn page(&mut self, path: &str) -> Result<(u16, Vec<u8>), Failure> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    /// A JSON answer, or `None` if the server has no such route or answers something else.
    async fn json(&mut self, method: Method, path: &str, body: Value) -> Result<Option<Value>, Failure> {
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let (status, bytes) = self.ask(method, path, body).await?;
        match status {
            200..=299 => Ok(serde_json::from_slice(&bytes).ok()),
            401 | 403 => Err(Failure::new(ErrorKind::Status(status), format!("{path}: {}", message_of(&bytes)))),
            _ => Ok(None),
        }
    }

    /// Finds the dialect and the model: what the plan names, else what the server says.
    pub async fn find(&mut self, plan: &BenchPlan) -> Result<Found, BenchError> {
        let info = self.json(Method::GET, "/info", Value::Null).await?;
        let is_tgi = info.as_ref().is_some_and(|info| info.get("model_id").is_some());
        let models = self.json(Method::GET, "/v1/models", Value::Null).await?;
        let listed = models.as_ref().and_then(|models| models.pointer("/data/0/id")).and_then(Value::as_str);
        let api = match plan.target.api {
            Some(api) => api,
            None if is_tgi => Api::Tgi,
            None if listed.is_some() => Api::Openai,
            None => return Err(BenchError::UnknownApi),
        };
        let model = match (api, &plan.target.model, listed) {
            (Api::Tgi, ..) => String::new(),
            (_, Some(model), _) => model.clone(),
            (_, None, Some(listed)) => listed.to_owned(),
            (_, None, None) => return Err(BenchError::NoModel),
        };
        Ok(Found { api, model, info: info.filter(|_| is_tgi).or(models).unwrap_or(Value::Null) })
    }

    /// What the server says it was launched with; null if it does not.
    pub async fn launch_arguments(&mut self) -> Result<Value, BenchError> {
        Ok(self.json(Method::GET, "/v1/launch_arguments", Value::Null).await?.unwrap_or(Value::Null))
    }

    /// Which `/tokenize` the server has, if any. It is asked in the form of its dialect first.
    pub async fn tokenize_form(&mut self, found: &Found) -> Result<Option<TokenizeForm>, BenchError> {
        let forms = match found.api {
            Api::Tgi => [TokenizeForm::Tgi, TokenizeForm::Vllm, TokenizeForm::LlamaCpp],
            Api::Openai | Api::OpenaiChat => [TokenizeForm::Vllm, TokenizeForm::LlamaCpp, TokenizeForm::Tgi],
        };
        for form in forms {
            if self.try_count("one two", form, &found.model).await?.is_some() {
                return Ok(Some(form));
            }
        }
        Ok(None)
    }

    /// Number of tokens of a text as the server counts it, special tokens included.
    pub async fn count(&mut self, text: &str, form: TokenizeForm, model: &str) -> Result<usize, BenchError> {
        let count = self.try_count(text, form, model).await?;
        count.ok_or_else(|| BenchError::Server("/tokenize answered, but stopped doing so".to_owned()))
    }

    async fn try_count(&mut self, text: &str, form: TokenizeForm, model: &str) -> Result<Option<usize>, Failure> {
        let question = match form {
            TokenizeForm::Tgi => json!({ "inputs": text }),
            TokenizeForm::Vllm if model.is_empty() => json!({ "prompt": text }),
            TokenizeForm::Vllm => json!({ "model": model, "prompt": text }),
            // As for a completion: with the beginning of text.
            TokenizeForm::LlamaCpp => json!({ "content": text, "add_special": true }),
        };
        let answer = self.json(Method::POST, "/tokenize", question).await?;
        Ok(answer.and_then(|answer| match form {
            TokenizeForm::Tgi => answer.as_array().map(Vec::len),
            TokenizeForm::Vllm => answer.get("count")?.as_u64().map(|count| count as usize),
            // A server that does not know the field answers with no tokens at all.
            TokenizeForm::LlamaCpp => answer.get("tokens")?.as_array().map(Vec::len).filter(|&count| count > 0),
        }))
    }

    /// Number of tokens that the server reports for a prompt, learned by a request for one token; `None` if it does not say.
    pub async fn prompt_tokens(&mut self, client: &Client, text: &str) -> Result<Option<u32>, BenchError> {
        let ask = Ask { prompt: Prompt::Text(text.to_owned()), prompt_tokens: 0, output_tokens: 1 };
        let row = self.try_generate(client, &ask).await;
        match row.failure {
            None => Ok(row.prompt_tokens_reported),
            Some(failure) => Err(failure.into()),
        }
    }

    async fn try_generate(&mut self, client: &Client, ask: &Ask) -> Row {
        let start = Instant::now();
        let mut row = RowBuilder::new(start, start);
        let exchange = client.exchange(&mut self.connection, client.body(ask), &mut row);
        let late =
            |_| Failure::new(ErrorKind::Timeout, format!("one token is not generated within {:?}", self.timeout));
        let result = tokio::time::timeout(self.timeout, exchange).await.map_err(late);
        row.finish(result.and_then(|result| result).err(), Instant::now())
    }

    /// Finds by trial how an answer of exactly the wished length can be asked for. Each trial is a request for one token; the row of the
    /// one that worked tells how the server counts the prompt.
    pub async fn lengthening(
        &mut self,
        plan: &BenchPlan,
        found: &Found,
        prompt: &str,
    ) -> Result<(Lengthening, Row), BenchError> {
        let trials: &[Lengthening] = match found.api {
            Api::Tgi => &[Lengthening::None],
            Api::Openai | Api::OpenaiChat => {
                &[Lengthening::IgnoreEosMinTokens, Lengthening::IgnoreEos, Lengthening::None]
            }
        };
        let ask = Ask { prompt: Prompt::Text(prompt.to_owned()), prompt_tokens: 0, output_tokens: 1 };
        let mut refused = None;
        for &length in trials {
            let client = Client::new(self.target.clone(), &plan.target, found.api, &found.model, length);
            let row = self.try_generate(&client, &ask).await;
            match row.failure {
                None => return Ok((length, row)),
                // Servers that know no such field may say so.
                Some(failure) if matches!(failure.kind, ErrorKind::Status(400 | 422)) => refused = Some(failure),
                Some(failure) => return Err(failure.into()),
            }
        }
        Err(refused.map_or(BenchError::UnknownApi, BenchError::from))
    }
}
