//! The error body, written in one shape and read in all that are about.

use serde::de::{MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize};

/// Body of every error, and of an error event in a stream.
///
/// Also read from a bare string (`{"error": "Unauthorized"}`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = OpenAiError))]
pub struct ErrorBody {
    /// The error.
    #[serde(deserialize_with = "object_or_text")]
    pub error: ErrorObject,
}

/// What went wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ErrorObject {
    /// For people.
    pub message: String,
    /// Kind of error: `BadRequestError`, `NotFoundError`, ...
    #[serde(rename = "type", deserialize_with = "super::null_as_default")]
    pub kind: String,
    /// The request's field at fault.
    pub param: Option<String>,
    /// The HTTP status (vLLM, and `http_status_code` of TGI), or OpenAI's name of the error, or nothing.
    #[serde(alias = "http_status_code")]
    pub code: Option<ErrorCode>,
}

/// A code, of which both forms are in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(untagged)]
pub enum ErrorCode {
    /// An HTTP status.
    Number(u16),
    /// A name, or a number as text.
    Text(String),
}

fn object_or_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ErrorObject, D::Error> {
    struct ObjectOrText;

    impl<'de> Visitor<'de> for ObjectOrText {
        type Value = ErrorObject;

        fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
            f.write_str("an error object or text")
        }

        fn visit_str<E>(self, text: &str) -> Result<ErrorObject, E> {
            Ok(ErrorObject { message: text.to_owned(), ..ErrorObject::default() })
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ErrorObject, A::Error> {
            ErrorObject::deserialize(MapAccessDeserializer::new(map))
        }
    }

    deserializer.deserialize_any(ObjectOrText)
}
