//! The one list of everything a client can be told.

use std::borrow::Cow;

use pelton_engine::SubmitError;

/// A request field as the server thinks of it; each dialect has its own spelling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// The text, tokens or messages to continue.
    Prompt,
    /// Most tokens to generate.
    MaxTokens,
    /// Fewest tokens to generate.
    MinTokens,
    /// Divides the logits.
    Temperature,
    /// Keep the likeliest.
    TopK,
    /// Keep the likeliest mass.
    TopP,
    /// Drop the unlikely.
    MinP,
    /// Keep the typical mass.
    TypicalP,
    /// Of tokens seen.
    RepetitionPenalty,
    /// Per occurrence.
    FrequencyPenalty,
    /// For occurring.
    PresencePenalty,
    /// Added to single logits.
    LogitBias,
    /// Stop strings.
    Stop,
    /// Stop tokens.
    StopTokens,
    /// Answers wanted.
    Choices,
    /// Candidates to choose the answers from.
    BestOf,
    /// Alternatives per token.
    TopTokens,
    /// Alternatives per prompt token.
    PromptTopTokens,
    /// Prompt tokens to keep.
    Truncate,
    /// What to compute with beside the model.
    Adapter,
}

/// What is wrong with a value. Texts follow text-generation-inference where it has one.
#[derive(Debug, Clone, PartialEq)]
pub enum Invalid {
    /// A field breaks a rule.
    Value {
        /// Which.
        field: Field,
        /// The rule with its limit: `must be >= 0 and <= 5`.
        rule: Cow<'static, str>,
        /// What was sent.
        given: String,
    },
    /// Nothing to continue.
    EmptyPrompt,
    /// More prompt tokens than may be, though the whole would not become too long.
    PromptTooLong {
        /// Tokens of the prompt.
        num_tokens: u64,
        /// Most that may be.
        max: u32,
    },
    /// Prompt and answer together may become too long.
    TotalTooLong {
        /// Tokens of the prompt.
        num_prompt_tokens: u64,
        /// Tokens asked for; 0 if that was left open.
        max_tokens: u32,
        /// Most that both may have.
        max: u32,
    },
}

impl Invalid {
    /// `field` breaks `rule`.
    pub fn value(field: Field, rule: impl Into<Cow<'static, str>>, given: impl ToString) -> Self {
        Self::Value { field, rule: rule.into(), given: given.to_string() }
    }

    /// The field that is to blame.
    pub fn field(&self) -> Field {
        match self {
            Self::Value { field, .. } => *field,
            Self::EmptyPrompt | Self::PromptTooLong { .. } | Self::TotalTooLong { max_tokens: 0, .. } => Field::Prompt,
            Self::TotalTooLong { .. } => Field::MaxTokens,
        }
    }

    /// The message, with the fields spelled by `name`.
    pub fn message(&self, name: fn(Field) -> &'static str) -> String {
        match self {
            Self::Value { field, rule, given } => format!("`{}` {rule}. Given: {given}", name(*field)),
            Self::EmptyPrompt => format!("`{}` cannot be empty", name(Field::Prompt)),
            Self::PromptTooLong { num_tokens, max } => {
                // Clients look for `less than`.
                let limit = u64::from(*max) + 1;
                format!("`{}` must have less than {limit} tokens. Given: {num_tokens}", name(Field::Prompt))
            }
            Self::TotalTooLong { num_prompt_tokens, max_tokens, max } => {
                let (prompt, limit) = (name(Field::Prompt), name(Field::MaxTokens));
                format!(
                    "`{prompt}` tokens + `{limit}` must be <= {max}. \
                     Given: {num_prompt_tokens} `{prompt}` tokens and {max_tokens} `{limit}`"
                )
            }
        }
    }
}

/// Everything a client can be told instead of an answer. Each dialect matches on it once.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ServeError {
    /// The body is not JSON, or not UTF-8.
    #[error("the request body is not valid JSON: {0}")]
    Syntax(String),
    /// The body is JSON of another form.
    #[error("`{path}`: {problem}")]
    Shape {
        /// Where, as the client wrote it: `parameters.top_k`.
        path: String,
        /// What is wrong there.
        problem: String,
    },
    /// The body is longer than the limit.
    #[error("the request body has more than {limit} bytes, the limit (`payload_limit`)")]
    BodyTooLarge {
        /// `payload_limit`.
        limit: usize,
    },
    /// The body did not arrive in time, or broke off.
    #[error("the request body did not arrive: {0}")]
    BodyIncomplete(String),
    /// The body is said to be something else than JSON.
    #[error("`Content-Type` must be application/json. Given: {0}")]
    ContentType(String),
    /// A value that cannot be.
    #[error("{}", .0.message(internal_name))]
    Invalid(Invalid),
    /// A field that is known, and not built, or not for this model.
    #[error("`{field}` is not supported: {why}")]
    Unsupported {
        /// As the client wrote it.
        field: &'static str,
        /// What is missing.
        why: Cow<'static, str>,
    },
    /// Fields that exclude each other, or one that another one needs.
    #[error("{message}")]
    Conflict {
        /// The field to blame, as the client wrote it.
        field: &'static str,
        /// The whole message; names both fields.
        message: Cow<'static, str>,
    },
    /// The model is not served here.
    #[error("the model `{0}` does not exist")]
    UnknownModel(String),
    /// The grammar means nothing, or too much.
    #[error("grammar is not valid: {reason}")]
    Grammar {
        /// Where it stands, as the client wrote it.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The tools cannot be used as asked.
    #[error("Tool error: {0}")]
    Tool(String),
    /// The chat template refused, or there is none.
    #[error("template error: {0}")]
    Template(String),
    /// The key is missing or wrong.
    #[error("the API key is missing or wrong")]
    Unauthorized,
    /// No such path.
    #[error("not found: {0}")]
    NotFound(String),
    /// The path exists, the method does not.
    #[error("method not allowed: {0}")]
    MethodNotAllowed(String),
    /// As much work as may be is under way; try again.
    #[error("overloaded: {limit} is {max}")]
    Overloaded {
        /// Which limit.
        limit: &'static str,
        /// Its value.
        max: u32,
    },
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
    /// The engine cannot compute any more.
    #[error("the engine has failed")]
    EngineFailed,
    /// This request cannot go on; others can.
    #[error("{0}")]
    Generation(String),
    /// A bug of the server.
    #[error("internal error")]
    Internal,
}

impl ServeError {
    /// `field` breaks `rule`.
    pub fn value(field: Field, rule: impl Into<Cow<'static, str>>, given: impl ToString) -> Self {
        Self::Invalid(Invalid::value(field, rule, given))
    }

    /// `field` is known and not built.
    pub fn unsupported(field: &'static str, why: impl Into<Cow<'static, str>>) -> Self {
        Self::Unsupported { field, why: why.into() }
    }
}

impl From<Invalid> for ServeError {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid)
    }
}

impl From<SubmitError> for ServeError {
    /// What [`crate::generate`] checks before cannot come back from the engine, but for the limits that change with its load.
    fn from(error: SubmitError) -> Self {
        let to_u32 = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        match error {
            SubmitError::QueueFull { limit } => Self::Overloaded { limit: "max_queued", max: limit },
            SubmitError::TooLong { num_prompt_tokens, limit } => {
                Invalid::PromptTooLong { num_tokens: num_prompt_tokens as u64, max: to_u32(limit) }.into()
            }
            SubmitError::TooManyTokens { num_tokens, limit } => {
                Invalid::value(Field::MaxTokens, format!("and the prompt must fit into {limit} tokens"), num_tokens)
                    .into()
            }
            SubmitError::EmptyPrompt => Invalid::EmptyPrompt.into(),
            SubmitError::TokenOutOfRange { token, vocab_size } => {
                Self::value(Field::Prompt, format!("must hold tokens < {vocab_size}"), token)
            }
            SubmitError::NoSuchAdapter { adapter, num_adapters } => {
                Self::value(Field::Adapter, format!("must be one of {num_adapters} adapters"), adapter)
            }
            SubmitError::Nothing { field } => match field {
                "max_tokens" => Self::value(Field::MaxTokens, "must be >= 1", 0),
                _ => Self::value(Field::Choices, "must be >= 1", 0),
            },
            SubmitError::Stopping => Self::Stopping,
            SubmitError::Failed => Self::EngineFailed,
        }
    }
}

/// Names for the log, where no dialect is at hand.
fn internal_name(field: Field) -> &'static str {
    match field {
        Field::Prompt => "prompt",
        Field::MaxTokens => "max_tokens",
        Field::MinTokens => "min_tokens",
        Field::Temperature => "temperature",
        Field::TopK => "top_k",
        Field::TopP => "top_p",
        Field::MinP => "min_p",
        Field::TypicalP => "typical_p",
        Field::RepetitionPenalty => "repetition_penalty",
        Field::FrequencyPenalty => "frequency_penalty",
        Field::PresencePenalty => "presence_penalty",
        Field::LogitBias => "logit_bias",
        Field::Stop => "stop",
        Field::StopTokens => "stop_token_ids",
        Field::Choices => "choices",
        Field::BestOf => "best_of",
        Field::TopTokens => "top_tokens",
        Field::PromptTopTokens => "prompt_top_tokens",
        Field::Truncate => "truncate",
        Field::Adapter => "adapter",
    }
}
