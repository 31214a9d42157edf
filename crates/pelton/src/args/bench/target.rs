//! Flags that say which server is measured, and how it is spoken to.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use pelton_bench::{Api, Provider, TargetPlan, TensorRole};

use crate::args::duration::duration;

#[derive(Debug, Args)]
#[command(next_help_heading = "Server")]
pub struct TargetArgs {
    /// The server, for example http://127.0.0.1:3000; a path behind it is put before every route. https:// for TLS, grpc:// and
    /// grpcs:// for KServe over gRPC.
    #[arg(long, default_value = "http://127.0.0.1:3000")]
    pub url: String,

    #[command(flatten)]
    pub manner: MannerArgs,
}

impl TargetArgs {
    pub fn plan(self) -> TargetPlan {
        self.manner.plan(self.url)
    }
}

/// How a server is spoken to, wherever it is.
#[derive(Debug, Args)]
#[command(next_help_heading = "Server")]
pub struct MannerArgs {
    /// The dialect to speak. Without it the server is asked: TGI if /info answers, OpenAI completions if /v1/models does, KServe
    /// if /v2 does.
    #[arg(long, value_enum)]
    pub api: Option<ApiArg>,

    /// The program that serves: decides which fields beyond its dialect a request may carry, such as ignore_eos, and the dialect unless
    /// --api names one. Without it the server is asked.
    #[arg(long, value_enum)]
    pub provider: Option<ProviderArg>,

    /// Model name in requests. Without it the first of /v1/models, and `ensemble` for KServe.
    #[arg(long)]
    pub model: Option<String>,

    /// Version of a KServe model. Without it the server chooses.
    #[arg(long, value_name = "VERSION")]
    pub model_version: Option<String>,

    /// What a KServe model calls a tensor, `role=name`, where that does not follow from its metadata; may be repeated. Roles: prompt,
    /// length, bad-words, stop-words, temperature, and the output text. A model that lists nothing is asked for text_input, max_tokens,
    /// bad_words, stop_words, temperature and text_output.
    #[arg(long, value_name = "ROLE=NAME", value_parser = tensor)]
    pub tensor: Vec<(TensorRole, String)>,

    /// Ask for whole answers instead of streams: no time to first token, no gaps. kserve-infer has nothing else.
    #[arg(long)]
    pub no_stream: bool,

    /// Sent as `Authorization: Bearer`. Never written to the output.
    #[arg(long, env = "PELTON_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,

    /// Further request header, `name: value`; may be repeated. Metadata in gRPC. Values are never written to the output.
    #[arg(long, value_name = "HEADER", value_parser = header)]
    pub header: Vec<(String, String)>,

    /// JSON object merged into every request body, member by member: sampling, vendor fields. For KServe a member is a tensor where the
    /// model has an input of that name, else a request parameter.
    #[arg(long, value_name = "JSON", value_parser = object)]
    pub extra_body: Option<serde_json::Map<String, serde_json::Value>>,

    /// Longest time of one request. What takes longer is counted as an error.
    #[arg(long, default_value = "300s", value_parser = duration)]
    pub timeout: Duration,

    /// Certificates (PEM) to trust beside those of the system, for servers that signed their own.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,

    /// Accept any certificate. The traffic can then be read by whoever stands between; the results say so.
    #[arg(long, conflicts_with = "ca")]
    pub insecure: bool,
}

impl MannerArgs {
    /// A flag that was given, where there is no server.
    pub fn given(&self) -> Option<&'static str> {
        let flags = [
            ("--api", self.api.is_some()),
            ("--provider", self.provider.is_some()),
            ("--model", self.model.is_some()),
            ("--model-version", self.model_version.is_some()),
            ("--tensor", !self.tensor.is_empty()),
            ("--no-stream", self.no_stream),
            ("--header", !self.header.is_empty()),
            ("--extra-body", self.extra_body.is_some()),
            ("--ca", self.ca.is_some()),
            ("--insecure", self.insecure),
        ];
        flags.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag)
    }

    /// The server at `url`, spoken to in this manner.
    pub fn plan(self, url: String) -> TargetPlan {
        let api = self.api.map(Into::into).or(self.provider.and_then(ProviderArg::api));
        TargetPlan {
            url,
            api,
            provider: self.provider.map(ProviderArg::provider),
            model: self.model,
            model_version: self.model_version,
            tensors: self.tensor.into_iter().collect(),
            // A dialect without streams says so itself when it is named.
            stream: !self.no_stream && api != Some(Api::KserveInfer),
            api_key: self.api_key,
            headers: self.header.into_iter().collect(),
            extra_body: self.extra_body.unwrap_or_default(),
            timeout: self.timeout,
            ca: self.ca,
            insecure: self.insecure,
        }
    }
}

/// See [`Api`].
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ApiArg {
    /// Text Generation Inference: /generate_stream, /generate
    Tgi,
    /// /v1/completions
    Openai,
    /// /v1/chat/completions
    OpenaiChat,
    /// KServe v2: /v2/models/M/infer, tensors as JSON; whole answers only
    KserveInfer,
    /// Triton: /v2/models/M/generate_stream, /generate
    KserveGenerate,
    /// KServe v2 over gRPC: ModelStreamInfer, ModelInfer
    KserveGrpc,
}

impl From<ApiArg> for Api {
    fn from(api: ApiArg) -> Self {
        match api {
            ApiArg::Tgi => Api::Tgi,
            ApiArg::Openai => Api::Openai,
            ApiArg::OpenaiChat => Api::OpenaiChat,
            ApiArg::KserveInfer => Api::KserveInfer,
            ApiArg::KserveGenerate => Api::KserveGenerate,
            ApiArg::KserveGrpc => Api::KserveGrpc,
        }
    }
}

/// See [`Provider`]; those of Triton name a dialect too, as in llm_bench.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ProviderArg {
    /// Text Generation Inference
    Tgi,
    /// OpenAI, or a server that allows its fields alone
    Openai,
    /// vLLM, and servers with its ignore_eos and min_tokens
    Vllm,
    /// llama.cpp's server, or that of llama-cpp-python
    LlamaCpp,
    /// OpenLLM
    Openllm,
    /// text-generation-webui
    TextGenerationWebui,
    /// Triton, --api kserve-infer
    TritonInfer,
    /// Triton, --api kserve-generate
    TritonGenerate,
    /// Triton, --api kserve-grpc
    KserveGrpc,
    /// pelton
    Pelton,
}

impl ProviderArg {
    fn provider(self) -> Provider {
        match self {
            ProviderArg::Tgi => Provider::Tgi,
            ProviderArg::Openai => Provider::Openai,
            ProviderArg::Vllm => Provider::Vllm,
            ProviderArg::LlamaCpp => Provider::LlamaCpp,
            ProviderArg::Openllm => Provider::Openllm,
            ProviderArg::TextGenerationWebui => Provider::TextGenerationWebui,
            ProviderArg::TritonInfer | ProviderArg::TritonGenerate | ProviderArg::KserveGrpc => Provider::Triton,
            ProviderArg::Pelton => Provider::Pelton,
        }
    }

    /// The dialect that the name says; of the others the server is asked.
    fn api(self) -> Option<Api> {
        match self {
            ProviderArg::Tgi => Some(Api::Tgi),
            ProviderArg::TritonInfer => Some(Api::KserveInfer),
            ProviderArg::TritonGenerate => Some(Api::KserveGenerate),
            ProviderArg::KserveGrpc => Some(Api::KserveGrpc),
            _ => None,
        }
    }
}

fn tensor(text: &str) -> Result<(TensorRole, String), String> {
    let (role, name) =
        text.split_once('=').ok_or("a tensor is named as `role=name`, such as length=request_output_len")?;
    let roles = TensorRole::ALL.map(|(role, _)| role);
    let found = roles.into_iter().find(|known| known.name() == role);
    let role =
        found.ok_or_else(|| format!("{role:?} is no role; there are {}", roles.map(TensorRole::name).join(", ")))?;
    Ok((role, name.to_owned()))
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("a header is written as `name: value`")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn object(text: &str) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("not a JSON object: {error}"))
}
