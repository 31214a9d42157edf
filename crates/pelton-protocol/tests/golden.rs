//! Every wire fixture is read and written again without a change.

use pelton_protocol::{openai, tgi};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::PathBuf;

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/wire")
}

fn round_trip<T: Serialize + DeserializeOwned>(json: &str) -> Result<String, String> {
    let message: T = serde_json::from_str(json).map_err(|error| error.to_string())?;
    serde_json::to_string(&message).map_err(|error| error.to_string())
}

type RoundTrip = fn(&str) -> Result<String, String>;

const FIXTURES: [(&str, RoundTrip); 21] = [
    ("tgi/generate_request.json", round_trip::<tgi::GenerateRequest>),
    ("tgi/generate_request_small.json", round_trip::<tgi::GenerateRequest>),
    ("tgi/generate_response.json", round_trip::<tgi::GenerateResponse>),
    ("tgi/generate_response_details.json", round_trip::<tgi::GenerateResponse>),
    ("tgi/generate_response_best_of.json", round_trip::<tgi::GenerateResponse>),
    ("tgi/stream_response.json", round_trip::<tgi::StreamResponse>),
    ("tgi/stream_response_last.json", round_trip::<tgi::StreamResponse>),
    ("tgi/error.json", round_trip::<tgi::ErrorBody>),
    ("tgi/tokenize_response.json", round_trip::<tgi::TokenizeResponse>),
    ("tgi/info.json", round_trip::<tgi::Info>),
    ("openai/completion_request.json", round_trip::<openai::CompletionRequest>),
    ("openai/completion_request_tokens.json", round_trip::<openai::CompletionRequest>),
    ("openai/completion_response.json", round_trip::<openai::CompletionResponse>),
    ("openai/completion_chunk.json", round_trip::<openai::CompletionChunk>),
    ("openai/completion_chunk_usage.json", round_trip::<openai::CompletionChunk>),
    ("openai/chat_request.json", round_trip::<openai::ChatRequest>),
    ("openai/chat_response.json", round_trip::<openai::ChatResponse>),
    ("openai/chat_chunk_first.json", round_trip::<openai::ChatChunk>),
    ("openai/chat_chunk_last.json", round_trip::<openai::ChatChunk>),
    ("openai/chat_chunk_usage.json", round_trip::<openai::ChatChunk>),
    ("openai/models.json", round_trip::<openai::ModelList>),
];

#[test]
fn every_fixture_is_written_as_it_was_read() {
    for (file, round_trip) in FIXTURES {
        let json = std::fs::read_to_string(directory().join(file)).expect(file);
        let written = round_trip(&json).unwrap_or_else(|error| panic!("{file}: {error}"));
        let (expected, actual): (Value, Value) =
            (serde_json::from_str(&json).expect(file), serde_json::from_str(&written).expect(file));
        assert_eq!(actual, expected, "{file}");
    }
}

#[test]
fn no_fixture_is_forgotten() {
    let mut found = BTreeSet::new();
    for dialect in ["tgi", "openai"] {
        for entry in std::fs::read_dir(directory().join(dialect)).expect("the fixtures are there") {
            let name = entry.expect("a directory entry").file_name();
            found.insert(format!("{dialect}/{}", name.to_string_lossy()));
        }
    }
    let known: BTreeSet<String> =
        FIXTURES.iter().map(|(file, _)| (*file).to_owned()).chain(["openai/error.json".to_owned()]).collect();
    assert_eq!(found, known);
}

#[test]
fn the_error_body_is_read_in_every_shape() {
    let json = std::fs::read_to_string(directory().join("openai/error.json")).expect("the fixture is there");
    let body: openai::ErrorBody = serde_json::from_str(&json).expect("an error body");
    assert_eq!(body.error.kind, "BadRequestError");
    assert_eq!(body.error.param.as_deref(), Some("temperature"));
    assert_eq!(body.error.code, Some(openai::ErrorCode::Number(400)));
    let written: Value = serde_json::to_value(&body).expect("an error body is written");
    assert_eq!(written, serde_json::from_str::<Value>(&json).expect("valid JSON"));

    let read = |json| serde_json::from_str::<openai::ErrorBody>(json).expect(json).error;
    assert_eq!(read(r#"{"error": "Unauthorized"}"#).message, "Unauthorized");
    let openai = read(r#"{"error": {"message": "m", "type": null, "param": null, "code": "context_length_exceeded"}}"#);
    assert_eq!(openai.code, Some(openai::ErrorCode::Text("context_length_exceeded".to_owned())));
    let tgi = read(r#"{"error": {"message": "m", "http_status_code": 422}}"#);
    assert_eq!((tgi.message.as_str(), tgi.code), ("m", Some(openai::ErrorCode::Number(422))));
}
