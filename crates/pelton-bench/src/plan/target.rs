//! Where the measured server is, and how it is spoken to.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::seconds;

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
}

impl Api {
    /// The name typed for it.
    pub fn name(self) -> &'static str {
        match self {
            Api::Tgi => "tgi",
            Api::Openai => "openai",
            Api::OpenaiChat => "openai-chat",
        }
    }
}

/// Where the server is and how it is spoken to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TargetPlan {
    /// Base address, `http://host[:port][/prefix]`.
    pub url: String,
    /// `None` asks the server.
    pub api: Option<Api>,
    /// Model name of OpenAI requests; `None` takes the first that the server lists.
    pub model: Option<String>,
    /// Whether answers are asked for token by token. Without it there is no time to first token.
    pub stream: bool,
    /// Sent as `Authorization: Bearer`. Never stored.
    #[serde(skip)]
    pub api_key: Option<String>,
    /// Further request headers. Only their names are stored: values may be secrets.
    #[serde(with = "names_only")]
    pub headers: BTreeMap<String, String>,
    /// Merged into every request body, objects member by member.
    pub extra_body: serde_json::Map<String, serde_json::Value>,
    /// Longest time of one request, connecting included.
    #[serde(with = "seconds", rename = "timeout_s")]
    pub timeout: Duration,
}

impl TargetPlan {
    /// The server at `url`, asked for streams; everything else is found by asking it.
    pub fn at(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            api: None,
            model: None,
            stream: true,
            api_key: None,
            headers: BTreeMap::new(),
            extra_body: serde_json::Map::new(),
            timeout: Duration::from_secs(300),
        }
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
