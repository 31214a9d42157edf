//! Where the measured server is, and how it is spoken to.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{MAX_DURATION, seconds};
use crate::BenchError;

/// The wire on which a server is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Api {
    /// Text Generation Inference: `/generate_stream` and `/generate`.
    Tgi,
    /// OpenAI `/v1/completions`.
    Openai,
    /// OpenAI `/v1/chat/completions`: the prompt is one user message.
    OpenaiChat,
    /// KServe v2 `/v2/models/M/infer`: tensors as JSON, whole answers only.
    KserveInfer,
    /// Triton's `/v2/models/M/generate_stream` and `/generate`: one flat JSON object.
    KserveGenerate,
    /// KServe v2 over gRPC: `ModelStreamInfer`, or `ModelInfer` for whole answers.
    KserveGrpc,
}

impl Api {
    /// All of them.
    pub const ALL: [Api; 6] =
        [Api::Tgi, Api::Openai, Api::OpenaiChat, Api::KserveInfer, Api::KserveGenerate, Api::KserveGrpc];

    /// The name typed for it.
    pub fn name(self) -> &'static str {
        match self {
            Api::Tgi => "tgi",
            Api::Openai => "openai",
            Api::OpenaiChat => "openai-chat",
            Api::KserveInfer => "kserve-infer",
            Api::KserveGenerate => "kserve-generate",
            Api::KserveGrpc => "kserve-grpc",
        }
    }

    /// Whether requests name tensors.
    pub fn is_kserve(self) -> bool {
        matches!(self, Api::KserveInfer | Api::KserveGenerate | Api::KserveGrpc)
    }
}

/// The program that serves. It decides which fields beyond its dialect a request may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Provider {
    /// Text Generation Inference.
    Tgi,
    /// OpenAI, or a server that allows its fields alone.
    Openai,
    /// vLLM.
    Vllm,
    /// llama.cpp's own server, or that of llama-cpp-python.
    LlamaCpp,
    /// OpenLLM.
    Openllm,
    /// text-generation-webui.
    TextGenerationWebui,
    /// Triton Inference Server.
    Triton,
    /// pelton.
    Pelton,
}

impl Provider {
    /// The name stored and shown.
    pub fn name(self) -> &'static str {
        match self {
            Provider::Tgi => "tgi",
            Provider::Openai => "openai",
            Provider::Vllm => "vllm",
            Provider::LlamaCpp => "llama-cpp",
            Provider::Openllm => "openllm",
            Provider::TextGenerationWebui => "text-generation-webui",
            Provider::Triton => "triton",
            Provider::Pelton => "pelton",
        }
    }
}

/// What a tensor of a KServe model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TensorRole {
    /// Text to continue.
    Prompt,
    /// Most tokens to generate.
    Length,
    /// Words never to generate: sent empty.
    BadWords,
    /// Words that end the answer: sent empty.
    StopWords,
    /// Divides the logits.
    Temperature,
    /// Output: the generated text.
    Text,
}

impl TensorRole {
    /// All of them, and the name that an ensemble of TensorRT-LLM gives to each.
    pub const ALL: [(TensorRole, &'static str); 6] = [
        (TensorRole::Prompt, "text_input"),
        (TensorRole::Length, "max_tokens"),
        (TensorRole::BadWords, "bad_words"),
        (TensorRole::StopWords, "stop_words"),
        (TensorRole::Temperature, "temperature"),
        (TensorRole::Text, "text_output"),
    ];

    /// The name typed for it.
    pub fn name(self) -> &'static str {
        match self {
            TensorRole::Prompt => "prompt",
            TensorRole::Length => "length",
            TensorRole::BadWords => "bad-words",
            TensorRole::StopWords => "stop-words",
            TensorRole::Temperature => "temperature",
            TensorRole::Text => "text",
        }
    }
}

/// Where the server is and how it is spoken to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TargetPlan {
    /// Base address, `http[s]://host[:port][/prefix]` or `grpc[s]://host[:port]`.
    pub url: String,
    /// `None` asks the server.
    pub api: Option<Api>,
    /// `None` asks the server.
    pub provider: Option<Provider>,
    /// Model name of requests; `None` takes the first that an OpenAI server lists, and `ensemble` of a KServe server.
    pub model: Option<String>,
    /// Version of a KServe model; `None` lets the server choose.
    pub model_version: Option<String>,
    /// Names of a KServe model's tensors where they differ from what its metadata suggests.
    pub tensors: BTreeMap<TensorRole, String>,
    /// Whether answers are asked for token by token. Without it there is no time to first token.
    pub stream: bool,
    /// Sent as `Authorization: Bearer`. Never stored.
    #[serde(skip)]
    pub api_key: Option<String>,
    /// Further request headers. Only their names are stored: values may be secrets.
    #[serde(with = "names_only")]
    pub headers: BTreeMap<String, String>,
    /// Merged into every request body, objects member by member. For KServe: tensors where the model has one of that name, else parameters.
    pub extra_body: serde_json::Map<String, serde_json::Value>,
    /// Longest time of one request, connecting included.
    #[serde(with = "seconds", rename = "timeout_s")]
    pub timeout: Duration,
    /// Certificates (PEM) to trust beside those of the system.
    pub ca: Option<PathBuf>,
    /// Whether any certificate is accepted.
    pub insecure: bool,
}

impl TargetPlan {
    /// The server at `url`, asked for streams; everything else is found by asking it.
    pub fn at(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            api: None,
            provider: None,
            model: None,
            model_version: None,
            tensors: BTreeMap::new(),
            stream: true,
            api_key: None,
            headers: BTreeMap::new(),
            extra_body: serde_json::Map::new(),
            timeout: Duration::from_secs(300),
            ca: None,
            insecure: false,
        }
    }

    /// Refuses combinations that no server can have.
    pub fn check(&self) -> Result<(), BenchError> {
        let refuse = |text: String| Err(BenchError::Plan(text));
        if self.timeout.is_zero() || self.timeout > MAX_DURATION {
            return refuse(format!("timeout must be in 1 ns..={MAX_DURATION:?}, given {:?}", self.timeout));
        }
        let scheme = self.url.split_once("://").map_or("", |(scheme, _)| scheme).to_ascii_lowercase();
        let is_grpc = scheme.starts_with("grpc");
        match self.api {
            Some(Api::KserveInfer) if self.stream => {
                return refuse("kserve-infer has no streams: ask for whole answers (--no-stream)".to_owned());
            }
            Some(Api::KserveGrpc) if !is_grpc => {
                return refuse(format!("kserve-grpc needs a url grpc://host:port, given {:?}", self.url));
            }
            Some(api) if is_grpc && api != Api::KserveGrpc => {
                return refuse(format!("{} is not spoken over gRPC: the url must begin with http://", api.name()));
            }
            Some(api) if !api.is_kserve() && !self.tensors.is_empty() => {
                return refuse(format!("tensors are named for KServe servers only, not for {}", api.name()));
            }
            Some(api) if !api.is_kserve() && self.provider == Some(Provider::Triton) => {
                return refuse(format!("triton does not speak {}", api.name()));
            }
            _ => {}
        }
        if (self.ca.is_some() || self.insecure) && !matches!(scheme.as_str(), "https" | "grpcs") {
            return refuse(format!("certificates mean nothing for {:?}: use https:// or grpcs://", self.url));
        }
        Ok(())
    }
}

/// Headers whose values are not stored: read back, they are empty.
mod names_only {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(headers: &BTreeMap<String, String>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(headers.keys())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?;
        Ok(names.into_iter().map(|name| (name, String::new())).collect())
    }
}
