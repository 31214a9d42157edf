//! Asks a server, before the run, which dialect it speaks, which program it is, what it serves, and how it counts tokens.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use pelton_protocol::kserve::{
    ModelMetadataRequest, ModelMetadataResponse, SERVICE, ServerMetadataRequest, ServerMetadataResponse,
};
use prost::Message;
use serde_json::{Value, json};

use super::{Client, Connection, Lengthening, Target, grpc, kserve, message_of, read_body};
use crate::BenchError;
use crate::plan::{Api, BenchPlan, Provider, TargetPlan};
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

/// Which way of counting the tokens of a text a server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenizeForm {
    /// `/tokenize`, `{"inputs"}` to an array of tokens (TGI).
    Tgi,
    /// `/tokenize`, `{"model", "prompt"}` to an object with `count` (vLLM).
    Vllm,
    /// `/tokenize`, `{"content"}` to an object with a list `tokens` (llama.cpp).
    LlamaCpp,
    /// `/extras/tokenize/count`, `{"input"}` to an object with `count` (llama-cpp-python).
    LlamaCppPython,
    /// `/v1/internal/token-count`, `{"text"}` to an object with `length` (text-generation-webui).
    TextGenerationWebui,
}

/// What was learned.
#[derive(Debug)]
pub struct Found {
    /// The dialect that will be spoken.
    pub api: Api,
    /// The program, if it can be told.
    pub provider: Option<Provider>,
    /// The model's name in requests; empty for TGI.
    pub model: String,
    /// What the server says of itself: `/info`, or else `/v1/models`; for KServe its metadata and that of the model.
    pub info: Value,
    /// The model's tensors. KServe only.
    pub(super) tensors: kserve::Model,
}

/// Metadata of a KServe server and its model, as asked over HTTP or gRPC.
struct Metadata {
    server: Value,
    model: Value,
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
        let (response, _) = connection.send(request).await?;
        let (head, mut body) = response.into_parts();
        let mut bytes = Vec::new();
        read_body(&mut connection, &mut body, MAX_ANSWER_BYTES, &mut bytes).await?;
        if self.target.is_grpc() {
            let (trailers, _) = connection.trailers(&mut body).await?;
            let status = trailers.as_ref().and_then(grpc::status).or_else(|| grpc::status(&head.headers));
            status.unwrap_or(Ok(()))?;
        }
        self.connection = Some(connection);
        Ok((head.status.as_u16(), bytes))
    }

    /// A page as it is, whatever its status.
    pub async fn page(&mut self, path: &str) -> Result<(u16, Vec<u8>), Failure> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    /// An answer of gRPC, or `None` if the server has no such method, model, or answer.
    async fn message<M: Message + Default>(
        &mut self,
        method: &str,
        question: &impl Message,
    ) -> Result<Option<M>, Failure> {
        match self.ask(Method::POST, &format!("{SERVICE}{method}"), grpc::frame(question)).await {
            Ok((200..=299, bytes)) => {
                let mut frames = grpc::Frames::new(MAX_ANSWER_BYTES);
                frames.push(&bytes);
                frames.next()
            }
            Ok((status, bytes)) => Err(Failure::new(ErrorKind::Status(status), message_of(&bytes))),
            // Not found, invalid, not implemented, or unavailable, which is what an unknown model is to some.
            Err(failure) if matches!(failure.kind, ErrorKind::Grpc(3 | 5 | 12 | 14)) => Ok(None),
            Err(failure) => Err(failure),
        }
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

    /// Finds dialect, program and model: what the plan names, else what the server says.
    pub async fn find(&mut self, plan: &BenchPlan) -> Result<Found, BenchError> {
        let plan = &plan.target;
        if self.target.is_grpc() {
            let metadata = self.grpc_metadata(plan).await?;
            return Ok(kserve_found(plan, Api::KserveGrpc, metadata));
        }
        let kserve_api = if plan.stream { Api::KserveGenerate } else { Api::KserveInfer };
        let kserve_api = plan.api.filter(|api| api.is_kserve()).unwrap_or(kserve_api);
        if plan.api == Some(kserve_api) || (plan.api.is_none() && plan.provider == Some(Provider::Triton)) {
            let metadata = self.kserve_metadata(plan).await?;
            return Ok(kserve_found(plan, kserve_api, metadata));
        }
        let info = self.json(Method::GET, "/info", Value::Null).await?;
        let is_tgi = info.as_ref().is_some_and(|info| info.get("model_id").is_some());
        let models = self.json(Method::GET, "/v1/models", Value::Null).await?;
        let listed = models.as_ref().and_then(|models| models.pointer("/data/0/id")).and_then(Value::as_str);
        // A server that was named, and is no TGI, is asked in the dialect that such servers have.
        let named = plan.provider.filter(|&provider| !matches!(provider, Provider::Tgi | Provider::Pelton));
        let api = match plan.api {
            Some(api) => api,
            None if named.is_some() => Api::Openai,
            None if is_tgi => Api::Tgi,
            None if listed.is_some() => Api::Openai,
            None if self.json(Method::GET, "/v2", Value::Null).await?.is_some_and(|v2| v2.get("name").is_some()) => {
                let metadata = self.kserve_metadata(plan).await?;
                return Ok(kserve_found(plan, kserve_api, metadata));
            }
            None => return Err(BenchError::UnknownApi),
        };
        let model = match (api, &plan.model, listed) {
            (Api::Tgi, ..) => String::new(),
            (_, Some(model), _) => model.clone(),
            (_, None, Some(listed)) => listed.to_owned(),
            (_, None, None) => return Err(BenchError::NoModel),
        };
        let provider = match plan.provider {
            Some(provider) => Some(provider),
            None => self.provider(info.as_ref().filter(|_| is_tgi), models.as_ref()).await?,
        };
        // Servers around vLLM have it beside OpenAI's routes.
        let vllm = if is_tgi { None } else { self.json(Method::GET, "/v1/info", Value::Null).await? };
        let info = info.filter(|_| is_tgi).or(vllm.filter(|info| info.get("vllm_version").is_some()));
        let info = info.or(models).unwrap_or(Value::Null);
        Ok(Found { api, provider, tensors: kserve::Model::new(&model, None, Vec::new()), model, info })
    }

    /// What the server says it was launched with; null if it does not.
    pub async fn launch_arguments(&mut self, api: Api) -> Result<Value, BenchError> {
        if api.is_kserve() {
            return Ok(Value::Null);
        }
        Ok(self.json(Method::GET, "/v1/launch_arguments", Value::Null).await?.unwrap_or(Value::Null))
    }

    /// Which program serves, by what it says of itself.
    async fn provider(&mut self, info: Option<&Value>, models: Option<&Value>) -> Result<Option<Provider>, Failure> {
        if let Some(info) = info {
            let router = info.get("router").and_then(Value::as_str).unwrap_or_default();
            return Ok(Some(if router.starts_with("pelton") { Provider::Pelton } else { Provider::Tgi }));
        }
        let owner = models.and_then(|models| models.pointer("/data/0/owned_by")).and_then(Value::as_str);
        Ok(match owner.unwrap_or_default() {
            "vllm" => Some(Provider::Vllm),
            "llamacpp" => Some(Provider::LlamaCpp),
            "na" => Some(Provider::Openllm),
            "openai" | "openai-internal" | "system" => Some(Provider::Openai),
            // What llama-cpp-python says, and other small servers perhaps: only it has these routes.
            "me" if self.counts(TokenizeForm::LlamaCppPython, "").await? => Some(Provider::LlamaCpp),
            _ if self.has("/props", "default_generation_settings").await? => Some(Provider::LlamaCpp),
            _ if self.has("/v1/internal/model/info", "model_name").await? => Some(Provider::TextGenerationWebui),
            _ => None,
        })
    }

    async fn has(&mut self, path: &str, member: &str) -> Result<bool, Failure> {
        Ok(self.json(Method::GET, path, Value::Null).await?.is_some_and(|answer| answer.get(member).is_some()))
    }

    async fn kserve_metadata(&mut self, plan: &TargetPlan) -> Result<Metadata, BenchError> {
        let server = self.json(Method::GET, "/v2", Value::Null).await?.unwrap_or(Value::Null);
        let name = plan.model.as_deref().unwrap_or(kserve::DEFAULT_MODEL);
        let path = kserve::Model::path(name, plan.model_version.as_deref());
        if let Some(model) = self.json(Method::GET, &path, Value::Null).await? {
            return Ok(Metadata { server, model });
        }
        if plan.model.is_none()
            && let Some(index) = self.json(Method::POST, "/v2/repository/index", json!({ "ready": true })).await?
        {
            let names: Vec<&str> =
                index.as_array().into_iter().flatten().filter_map(|model| model.get("name")?.as_str()).collect();
            return Err(BenchError::Server(format!(
                "there is no model {name:?}: name one of {} with --model",
                names.join(", ")
            )));
        }
        // A server may tell nothing of its models, or the name is wrong, which the first request will show.
        Ok(Metadata { server, model: Value::Null })
    }

    async fn grpc_metadata(&mut self, plan: &TargetPlan) -> Result<Metadata, BenchError> {
        let server: Option<ServerMetadataResponse> = self.message("ServerMetadata", &ServerMetadataRequest {}).await?;
        let name = plan.model.clone().unwrap_or_else(|| kserve::DEFAULT_MODEL.to_owned());
        let question = ModelMetadataRequest { name, version: plan.model_version.clone().unwrap_or_default() };
        let model: Option<ModelMetadataResponse> = self.message("ModelMetadata", &question).await?;
        let tensors = |tensors: Vec<pelton_protocol::kserve::TensorMetadata>| -> Vec<Value> {
            let tensor = |tensor: pelton_protocol::kserve::TensorMetadata| json!({ "name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape });
            tensors.into_iter().map(tensor).collect()
        };
        // In the words of the HTTP form.
        let server = server.map_or(
            Value::Null,
            |server| json!({ "name": server.name, "version": server.version, "extensions": server.extensions }),
        );
        let model = model.map_or(Value::Null, |model| {
            json!({
                "name": model.name, "versions": model.versions, "platform": model.platform,
                "inputs": tensors(model.inputs), "outputs": tensors(model.outputs),
            })
        });
        Ok(Metadata { server, model })
    }

    /// How the server counts the tokens of a text, if it does. It is asked in the form of its dialect first.
    pub async fn tokenize_form(&mut self, found: &Found) -> Result<Option<TokenizeForm>, BenchError> {
        use TokenizeForm::*;
        let forms: &[TokenizeForm] = match (found.api, found.provider) {
            (Api::KserveInfer | Api::KserveGenerate | Api::KserveGrpc, _) => &[],
            (Api::Tgi, _) => &[Tgi, Vllm],
            (_, Some(Provider::LlamaCpp)) => &[LlamaCpp, LlamaCppPython],
            (_, Some(Provider::TextGenerationWebui)) => &[TextGenerationWebui],
            _ => &[Vllm, Tgi],
        };
        for &form in forms {
            if self.counts(form, &found.model).await? {
                return Ok(Some(form));
            }
        }
        Ok(None)
    }

    async fn counts(&mut self, form: TokenizeForm, model: &str) -> Result<bool, Failure> {
        Ok(self.try_count("one two", form, model).await?.is_some())
    }

    /// Number of tokens of a text as the server counts it, special tokens included.
    pub async fn count(&mut self, text: &str, form: TokenizeForm, model: &str) -> Result<usize, BenchError> {
        let count = self.try_count(text, form, model).await?;
        count.ok_or_else(|| BenchError::Server("/tokenize answered, but stopped doing so".to_owned()))
    }

    async fn try_count(&mut self, text: &str, form: TokenizeForm, model: &str) -> Result<Option<usize>, Failure> {
        let (path, question) = match form {
            TokenizeForm::Tgi => ("/tokenize", json!({ "inputs": text })),
            TokenizeForm::Vllm if model.is_empty() => ("/tokenize", json!({ "prompt": text })),
            TokenizeForm::Vllm => ("/tokenize", json!({ "model": model, "prompt": text })),
            TokenizeForm::LlamaCpp => ("/tokenize", json!({ "content": text, "add_special": true })),
            TokenizeForm::LlamaCppPython => ("/extras/tokenize/count", json!({ "input": text })),
            TokenizeForm::TextGenerationWebui => ("/v1/internal/token-count", json!({ "text": text })),
        };
        let answer = self.json(Method::POST, path, question).await?;
        Ok(answer.and_then(|answer| match form {
            TokenizeForm::Tgi => answer.as_array().map(Vec::len),
            // A server that does not know the field answers with no tokens at all.
            TokenizeForm::LlamaCpp => answer.get("tokens")?.as_array().map(Vec::len).filter(|&count| count > 0),
            TokenizeForm::Vllm | TokenizeForm::LlamaCppPython => answer.get("count")?.as_u64().map(|n| n as usize),
            TokenizeForm::TextGenerationWebui => answer.get("length")?.as_u64().map(|n| n as usize),
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
        let trials = match found.api {
            Api::Openai | Api::OpenaiChat => Lengthening::trials(found.provider),
            // The dialect, or the model's inputs, say what there is.
            Api::Tgi | Api::KserveInfer | Api::KserveGenerate | Api::KserveGrpc => &[Lengthening::None],
        };
        let ask = Ask { prompt: Prompt::Text(prompt.to_owned()), prompt_tokens: 0, output_tokens: 1 };
        let mut refused = None;
        for &length in trials {
            let client = Client::new(self.target.clone(), &plan.target, found, length)?;
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

fn kserve_found(plan: &TargetPlan, api: Api, metadata: Metadata) -> Found {
    let Metadata { server, model: described } = metadata;
    let name = plan.model.clone().unwrap_or_else(|| kserve::DEFAULT_MODEL.to_owned());
    let is_triton = server.get("name").and_then(Value::as_str) == Some("triton");
    Found {
        api,
        provider: plan.provider.or(is_triton.then_some(Provider::Triton)),
        tensors: kserve::Model::from_json(&name, plan.model_version.as_deref(), &described),
        model: name,
        info: json!({ "server": server, "model": described }),
    }
}
