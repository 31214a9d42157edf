//! Flags that say which server is measured, and how it is spoken to.

use std::time::Duration;

use clap::{Args, ValueEnum};
use pelton_bench::{Api, TargetPlan};

use crate::args::duration::duration;

#[derive(Debug, Args)]
#[command(next_help_heading = "Server")]
pub struct TargetArgs {
    /// The server, for example http://127.0.0.1:3000; a path behind it is put before every route
    #[arg(long, default_value = "http://127.0.0.1:3000")]
    pub url: String,

    /// The dialect to speak. Without it the server is asked: TGI if /info answers, else OpenAI completions.
    #[arg(long, value_enum)]
    pub api: Option<ApiArg>,

    /// Model name in OpenAI requests. Without it the first of /v1/models.
    #[arg(long)]
    pub model: Option<String>,

    /// Ask for whole answers instead of streams: no time to first token, no gaps.
    #[arg(long)]
    pub no_stream: bool,

    /// Sent as `Authorization: Bearer`. Never written to the output.
    #[arg(long, env = "PELTON_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,

    /// Further request header, `name: value`; may be repeated. Values are never written to the output.
    #[arg(long, value_name = "HEADER", value_parser = header)]
    pub header: Vec<(String, String)>,

    /// JSON object merged into every request body, member by member: sampling, vendor fields.
    #[arg(long, value_name = "JSON", value_parser = object)]
    pub extra_body: Option<serde_json::Map<String, serde_json::Value>>,

    /// Longest time of one request. What takes longer is counted as an error.
    #[arg(long, default_value = "300s", value_parser = duration)]
    pub timeout: Duration,
}

impl TargetArgs {
    pub fn plan(self) -> TargetPlan {
        TargetPlan {
            url: self.url,
            api: self.api.map(Into::into),
            model: self.model,
            stream: !self.no_stream,
            api_key: self.api_key,
            headers: self.header.into_iter().collect(),
            extra_body: self.extra_body.unwrap_or_default(),
            timeout: self.timeout,
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
}

impl From<ApiArg> for Api {
    fn from(api: ApiArg) -> Self {
        match api {
            ApiArg::Tgi => Api::Tgi,
            ApiArg::Openai => Api::Openai,
            ApiArg::OpenaiChat => Api::OpenaiChat,
        }
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("a header is written as `name: value`")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn object(text: &str) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("not a JSON object: {error}"))
}
