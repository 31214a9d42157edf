//! Vertex AI's envelope around generating and chatting: instances in, predictions out.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::{openai, tgi};

/// Body of `POST /vertex`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VertexRequest {
    /// What to answer, each by itself.
    pub instances: Vec<Instance>,
}

/// One thing to answer: what has `messages` is a chat.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(untagged)]
pub enum Instance {
    /// A prompt with parameters.
    Generate(Box<tgi::GenerateRequest>),
    /// A chat.
    Chat(Box<openai::ChatRequest>),
}

impl<'de> Deserialize<'de> for Instance {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        fn read<T: serde::de::DeserializeOwned, E: Error>(value: Value) -> Result<Box<T>, E> {
            // A value has no places in the text: the path says where.
            serde_path_to_error::deserialize(value).map(Box::new).map_err(|error| {
                match error.path().to_string().as_str() {
                    "." => E::custom(error.inner()),
                    path => E::custom(format_args!("`{path}`: {}", error.inner())),
                }
            })
        }

        let value = Value::Object(serde_json::Map::deserialize(deserializer)?);
        if value.get("messages").is_some() { read(value).map(Self::Chat) } else { read(value).map(Self::Generate) }
    }
}

/// Answer of `/vertex`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Predictions {
    /// The generated texts, in the order of the instances.
    pub predictions: Vec<String>,
}
