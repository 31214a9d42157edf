//! The server's settings, and the limits that follow from them and the model.

use std::time::Duration;

use pelton_engine::{AdapterId, EngineHandle, Watermark};

use crate::ServeRunError;

/// A LoRA adapter that requests may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedAdapter {
    /// What requests call it.
    pub name: String,
    /// Path or hub name of its files.
    pub root: String,
}

/// Settings of the server, under text-generation-inference's names where it has one.
#[derive(Debug, Clone, PartialEq)]
pub struct ServeConfig {
    /// Name of the model: path, hub id or alias.
    pub model_id: String,
    /// Names that clients may ask for; the first is the one reported. Empty means `model_id`.
    pub served_model_names: Vec<String>,
    /// Adapters of the model, in the order of their ids.
    pub adapters: Vec<ServedAdapter>,
    /// Revision of the model, if known.
    pub model_sha: Option<String>,
    /// Task of the model on the hub, if known.
    pub model_pipeline_tag: Option<String>,
    /// Number format of the computation.
    pub model_dtype: String,
    /// Kind of device.
    pub model_device_type: String,
    /// Value of the `x-compute-type` header.
    pub compute_type: String,
    /// Sequences (prompts times choices) in the server at once, waiting ones included; more are refused with 429.
    pub max_concurrent_requests: u32,
    /// Limit of TGI's `best_of`.
    pub max_best_of: u32,
    /// Limit of OpenAI's `n` and `best_of`; bounded by `max_concurrent_requests`.
    pub max_choices: u32,
    /// Limit of the list of stop strings.
    pub max_stop_sequences: u32,
    /// Limit of TGI's `top_n_tokens`.
    pub max_top_n_tokens: u32,
    /// Limit of OpenAI's `logprobs` and `top_logprobs`.
    pub max_logprobs: u32,
    /// Limit of prompt tokens; `None` leaves room for one token to generate.
    pub max_input_tokens: Option<u32>,
    /// Limit of prompt and generated tokens together; `None` is what model and KV cache can hold.
    pub max_total_tokens: Option<u32>,
    /// Limit of prompts in one request.
    pub max_client_batch_size: u32,
    /// Tokenizer threads, for `/info`; the pool is made by the caller.
    pub validation_workers: u32,
    /// Limit of a request's body in bytes.
    pub payload_limit: usize,
    /// Tokens generated for TGI requests that do not say; `None` fills the context.
    pub default_max_new_tokens: Option<u32>,
    /// Whether `POST /` puts the prompt before the text when the request does not say.
    pub compat_return_full_text: bool,
    /// `/invocations` takes chats alone, whatever the body looks like.
    pub messages_api_enabled: bool,
    /// Another path of `/vertex`.
    pub vertex_predict_route: Option<String>,
    /// Another path of `/health`.
    pub vertex_health_route: Option<String>,
    /// Whether texts may be made to keep to a grammar, which tools do too.
    pub grammar_support: bool,
    /// How strongly texts are marked for requests that ask for it.
    pub watermark: Watermark,
    /// Key that generating requests must carry as a bearer token.
    pub api_key: Option<String>,
    /// Origins that browsers may call from; empty means any.
    pub cors_allow_origin: Vec<String>,
    /// How long running requests may go on after the shutdown signal.
    pub graceful_termination_timeout: Duration,
    /// How long a client may take to send a request's header, or stay idle between requests, and how long it may take to send a body.
    pub read_timeout: Duration,
    /// Connections at once; more wait in the operating system's queue. Raised to twice `max_concurrent_requests`, so that the request that does not
    /// fit has a connection on which it is refused.
    pub max_connections: usize,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            model_id: "model".into(),
            served_model_names: Vec::new(),
            adapters: Vec::new(),
            model_sha: None,
            model_pipeline_tag: None,
            model_dtype: "float32".into(),
            model_device_type: "cpu".into(),
            compute_type: "cpu".into(),
            max_concurrent_requests: 128,
            max_best_of: 2,
            max_choices: 16,
            max_stop_sequences: 16,
            max_top_n_tokens: 5,
            max_logprobs: 20,
            max_input_tokens: None,
            max_total_tokens: None,
            max_client_batch_size: 4,
            validation_workers: 2,
            payload_limit: 2_000_000,
            default_max_new_tokens: None,
            compat_return_full_text: false,
            messages_api_enabled: false,
            vertex_predict_route: None,
            vertex_health_route: None,
            grammar_support: true,
            watermark: Watermark { gamma: 0.5, delta: 2.0 },
            api_key: None,
            cors_allow_origin: Vec::new(),
            graceful_termination_timeout: Duration::from_secs(60),
            read_timeout: Duration::from_secs(75),
            max_connections: 1024,
        }
    }
}

impl ServeConfig {
    /// The name reported to clients.
    pub fn model_name(&self) -> &str {
        self.served_model_names.first().unwrap_or(&self.model_id)
    }

    /// The adapter of that name.
    pub(crate) fn adapter(&self, name: &str) -> Option<AdapterId> {
        let index = self.adapters.iter().position(|adapter| adapter.name == name)?;
        u16::try_from(index).ok().map(AdapterId)
    }

    /// Places for connections.
    pub(crate) fn num_connections(&self) -> usize {
        self.max_connections.max(2 * self.max_concurrent_requests as usize)
    }

    /// Whether a request for `name` is for this model. `tgi` and `dummy` are what clients of text-generation-inference send when
    /// they were given an address and no name.
    pub fn serves(&self, name: &str) -> bool {
        name == self.model_id
            || self.served_model_names.iter().any(|served| served == name)
            || matches!(name, "tgi" | "dummy")
    }
}

/// Token limits, resolved against the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most prompt tokens.
    pub max_input_tokens: u32,
    /// Most prompt and generated tokens together.
    pub max_total_tokens: u32,
    /// Tokens of the vocabulary.
    pub vocab_size: u32,
}

impl Limits {
    /// Fails when `config` promises what the model or its KV cache cannot hold.
    pub fn resolve(config: &ServeConfig, engine: &EngineHandle) -> Result<Self, ServeRunError> {
        let to_u32 = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let can_hold = to_u32(engine.max_sequence_tokens());
        let max_total_tokens = config.max_total_tokens.unwrap_or(can_hold);
        if max_total_tokens > can_hold {
            return Err(ServeRunError::Limit { name: "max_total_tokens", value: max_total_tokens, max: can_hold });
        }
        let longest = max_total_tokens.saturating_sub(1);
        let max_input_tokens = config.max_input_tokens.unwrap_or(longest);
        if max_input_tokens > longest {
            return Err(ServeRunError::Limit { name: "max_input_tokens", value: max_input_tokens, max: longest });
        }
        if max_input_tokens == 0 {
            return Err(ServeRunError::Zero { name: "max_input_tokens" });
        }
        for (name, value) in [
            ("max_concurrent_requests", config.max_concurrent_requests),
            ("max_best_of", config.max_best_of),
            ("max_choices", config.max_choices),
            ("max_client_batch_size", config.max_client_batch_size),
            ("payload_limit", to_u32(config.payload_limit)),
            ("max_connections", to_u32(config.max_connections)),
        ] {
            if value == 0 {
                return Err(ServeRunError::Zero { name });
            }
        }
        Ok(Self { max_input_tokens, max_total_tokens, vocab_size: to_u32(engine.spec().vocab_size) })
    }
}
