//! What the server says of itself: an OpenAPI document made from the wire types, and a page that shows it and tries the routes.
//!
//! The page (Swagger UI) and its files are inside the binary; it loads nothing from elsewhere.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use pelton_protocol::{openai, tgi, vertex};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

/// Where the document is: text-generation-inference's path, which the page reads, and vLLM's.
const DOCUMENTS: [&str; 2] = ["/api-doc/openapi.json", "/openapi.json"];

static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| document().to_string().into());

/// Routes of the document and the page.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let routes = DOCUMENTS.into_iter().fold(Router::new(), |routes, path| routes.route(path, get(send)));
    #[cfg(feature = "swagger-ui")]
    let routes = routes.merge(page());
    routes
}

async fn send() -> Response {
    ([(CONTENT_TYPE, "application/json")], DOCUMENT.clone()).into_response()
}

#[cfg(feature = "swagger-ui")]
fn page<S: Clone + Send + Sync + 'static>() -> Router<S> {
    // The validator is a service on the Internet.
    let config = utoipa_swagger_ui::Config::new([DOCUMENTS[0]]).validator_url("none").try_it_out_enabled(true);
    utoipa_swagger_ui::SwaggerUi::new("/docs").config(config).into()
}

/// The whole document.
fn document() -> Value {
    let mut document = Document::default();
    document.tgi();
    document.openai();
    document.clouds();
    document.about();
    let Document { paths, schemas } = document;
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "pelton",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Text generation under the APIs of text-generation-inference 3.3 and OpenAI (with vLLM's extras). \
                Unknown fields are ignored; fields that are known and not built are refused by name.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [
            {"name": TGI, "description": "Errors have the body `TgiError`."},
            {"name": OPENAI, "description": "Errors have the body `OpenAiError`."},
            {"name": CLOUDS, "description": "How SageMaker and Vertex AI call a container."},
            {"name": ABOUT, "description": "Health, metrics, and this document."},
        ],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {
                "type": "http",
                "scheme": "bearer",
                "description": "Needed where the server was started with --api-key.",
            }},
        },
    })
}

const TGI: &str = "text-generation-inference";
const OPENAI: &str = "OpenAI";
const CLOUDS: &str = "clouds";
const ABOUT: &str = "about";

#[derive(Default)]
struct Document {
    paths: Map<String, Value>,
    schemas: BTreeMap<String, Value>,
}

impl Document {
    fn tgi(&mut self) {
        let (error, request) = (self.schema::<tgi::ErrorBody>(), self.schema::<tgi::GenerateRequest>());
        let (answer, event) = (self.schema::<tgi::GenerateResponse>(), self.schema::<tgi::StreamResponse>());
        let token = self.schema::<tgi::TokenizedToken>();
        let chat = self.schema::<openai::ChatRequest>();
        let chat_tokens = self.schema::<tgi::ChatTokenizeResponse>();
        let example = json!({"inputs": "def fibonacci(n):", "parameters": {"max_new_tokens": 32}});
        let post = |request: &Value, example: &Value, summary: &str, answers: Value| {
            post(TGI, summary, request, example, answers, &TGI_ERRORS, &error)
        };

        let whole =
            json!({"description": "The generated text.", "headers": timing_headers(), "content": as_json(&answer)});
        let operation = post(&request, &example, "Generate text", whole);
        self.route("/generate", "post", operation);

        let stream = json!({"description": "An event for each token.", "headers": stream_headers(), "content": as_events(&event)});
        let operation = post(&request, &example, "Generate text, token by token", stream);
        self.route("/generate_stream", "post", operation);

        let mut content = as_json(&list_of(&answer));
        content["text/event-stream"] = json!({"schema": event});
        let either = json!({"description": "A list of one answer, or events if `stream`.", "headers": timing_headers(), "content": content});
        let operation = post(&request, &example, "Generate text, in one piece or token by token", either);
        self.route("/", "post", operation);
        self.route("/", "get", health("The same as /health"));

        let tokens = json!({"description": "The tokens of the prompt.", "content": as_json(&list_of(&token))});
        let operation = post(&request, &json!({"inputs": "def fibonacci(n):"}), "Tokens of a prompt", tokens);
        self.route("/tokenize", "post", operation);

        let tokens = json!({"description": "The text and its tokens.", "content": as_json(&chat_tokens)});
        let operation = post(&chat, &chat_example(), "What the chat template makes of messages", tokens);
        self.route("/chat_tokenize", "post", operation);

        let info = self.schema::<tgi::Info>();
        let answer = json!({"200": {"description": "What is served.", "content": as_json(&info)}});
        self.route(
            "/info",
            "get",
            json!({"tags": [TGI], "summary": "What is served, and its limits", "responses": answer}),
        );
    }

    fn openai(&mut self) {
        let error = self.schema::<openai::ErrorBody>();
        let models = self.schema::<openai::ModelList>();
        let card = self.schema::<openai::ModelCard>();
        let kinds = [
            (
                "/v1/chat/completions",
                "Answer a conversation",
                self.schema::<openai::ChatRequest>(),
                chat_example(),
                self.schema::<openai::ChatResponse>(),
                self.schema::<openai::ChatChunk>(),
            ),
            (
                "/v1/completions",
                "Continue a text",
                self.schema::<openai::CompletionRequest>(),
                json!({"prompt": "def fibonacci(n):", "max_tokens": 32, "temperature": 0}),
                self.schema::<openai::CompletionResponse>(),
                self.schema::<openai::CompletionChunk>(),
            ),
        ];
        for (path, summary, request, example, answer, chunk) in kinds {
            let mut content = as_json(&answer);
            content["text/event-stream"] = json!({"schema": chunk});
            let description = "The answer, or events if `stream`, the last of which is `[DONE]`.";
            let answer = json!({"description": description, "headers": timing_headers(), "content": content});
            self.route(path, "post", post(OPENAI, summary, &request, &example, answer, &OPENAI_ERRORS, &error));
        }
        let answer = json!({"200": {"description": "The served models.", "content": as_json(&models)}});
        self.route("/v1/models", "get", json!({"tags": [OPENAI], "summary": "The served models", "responses": answer}));
        let id = json!({"name": "id", "in": "path", "required": true, "description": "A model's name.", "schema": {"type": "string"}});
        let answers = json!({
            "200": {"description": "The model.", "content": as_json(&card)},
            "404": {"description": "No such model.", "content": as_json(&error)},
        });
        let operation = json!({"tags": [OPENAI], "summary": "One model", "parameters": [id], "responses": answers});
        self.route("/v1/models/{id}", "get", operation);
    }

    fn clouds(&mut self) {
        let error = self.schema::<tgi::ErrorBody>();
        let generate = self.schema::<tgi::GenerateRequest>();
        let (chat, completion) = (self.schema::<openai::ChatRequest>(), self.schema::<openai::CompletionRequest>());
        let any = json!({"oneOf": [generate, chat, completion]});
        let example = json!({"inputs": "def fibonacci(n):", "parameters": {"max_new_tokens": 32}});
        let answer = json!({"description": "The answer of `/`, `/v1/chat/completions` or `/v1/completions`, chosen by the body's shape."});
        let operation = post(CLOUDS, "SageMaker", &any, &example, answer, &TGI_ERRORS, &error);
        self.route("/invocations", "post", operation);

        let (request, predictions) = (self.schema::<vertex::VertexRequest>(), self.schema::<vertex::Predictions>());
        let example = json!({"instances": [example]});
        let answer = json!({"description": "A text for each instance.", "content": as_json(&predictions)});
        let operation = post(CLOUDS, "Vertex AI", &request, &example, answer, &TGI_ERRORS, &error);
        self.route("/vertex", "post", operation);
    }

    fn about(&mut self) {
        self.route("/health", "get", health("Whether requests can be answered"));
        self.route("/ping", "get", health("The same as /health, for SageMaker"));
        self.route("/ping", "post", health("The same as /health, for SageMaker"));
        let plain = |summary: &str, kind: &str, description: &str| {
            let answer =
                json!({"200": {"description": description, "content": {kind: {"schema": {"type": "string"}}}}});
            json!({"tags": [ABOUT], "summary": summary, "responses": answer})
        };
        let text = "Counters, gauges and histograms under the names of text-generation-inference and vLLM.";
        self.route("/metrics", "get", plain("Metrics", "text/plain", text));
        for path in DOCUMENTS {
            self.route(path, "get", plain("This document", "application/json", "An OpenAPI 3.1 document."));
        }
        #[cfg(feature = "swagger-ui")]
        self.route(
            "/docs",
            "get",
            plain("This document as a page", "text/html", "A page that needs nothing from elsewhere."),
        );
    }

    fn route(&mut self, path: &str, method: &str, operation: Value) {
        self.paths.entry(path).or_insert_with(|| json!({}))[method] = operation;
    }

    /// A reference to the description of `T`, which is taken in with all that it holds.
    fn schema<T: ToSchema>(&mut self) -> Value {
        let mut found = vec![(T::name().into_owned(), T::schema())];
        T::schemas(&mut found);
        for (name, schema) in found {
            // Descriptions are plain data.
            self.schemas.entry(name).or_insert_with(|| serde_json::to_value(schema).unwrap_or_default());
        }
        json!({"$ref": format!("#/components/schemas/{}", T::name())})
    }
}

/// Refusals: status and reason.
type Errors = [(u16, &'static str)];

const TGI_ERRORS: [(u16, &str); 8] = [
    (400, "The body is not JSON."),
    (401, "The API key is missing or wrong."),
    (413, "The body is longer than `--payload-limit`."),
    (415, "The body is said to be something else than JSON."),
    (422, "A field has another type, is beyond its bounds, or is not supported; the message names it."),
    (424, "The engine has failed."),
    (429, "As much work as may be is under way; try again after `Retry-After` seconds."),
    (503, "The server is stopping."),
];

const OPENAI_ERRORS: [(u16, &str); 8] = [
    (
        400,
        "The body is not JSON, or a field has another type, is beyond its bounds, or is not supported; `param` names it.",
    ),
    (401, "The API key is missing or wrong."),
    (404, "The model is not served here."),
    (413, "The body is longer than `--payload-limit`."),
    (415, "The body is said to be something else than JSON."),
    (429, "As much work as may be is under way; try again after `Retry-After` seconds."),
    (500, "The engine has failed."),
    (503, "The server is stopping."),
];

fn post(
    tag: &str,
    summary: &str,
    request: &Value,
    example: &Value,
    answer: Value,
    errors: &Errors,
    error: &Value,
) -> Value {
    let mut responses = json!({"200": answer});
    for (status, reason) in errors {
        responses[status.to_string()] = json!({"description": reason, "content": as_json(error)});
    }
    json!({
        "tags": [tag],
        "summary": summary,
        "requestBody": {"required": true, "content": {"application/json": {"schema": request, "example": example}}},
        "responses": responses,
        "security": [{"key": []}, {}],
    })
}

fn health(summary: &str) -> Value {
    let answers = json!({"200": {"description": "They can."}, "503": {"description": "They cannot."}});
    json!({"tags": [ABOUT], "summary": summary, "responses": answers})
}

fn chat_example() -> Value {
    json!({"messages": [{"role": "user", "content": "a function that adds two numbers"}], "max_tokens": 32})
}

fn as_json(schema: &Value) -> Value {
    json!({"application/json": {"schema": schema}})
}

fn as_events(schema: &Value) -> Value {
    json!({"text/event-stream": {"schema": schema}})
}

fn list_of(schema: &Value) -> Value {
    json!({"type": "array", "items": schema})
}

/// Headers of every generated answer.
fn stream_headers() -> Value {
    json!({
        "x-compute-type": header("string", "Kind of device (COMPUTE_TYPE)."),
        "x-compute-characters": header("integer", "Characters of the prompts, templates included."),
    })
}

/// Those and the headers of answers in one piece.
fn timing_headers() -> Value {
    let mut headers = stream_headers();
    for (name, kind, text) in [
        ("x-compute-time", "number", "Seconds from arrival to the end."),
        ("x-total-time", "integer", "Milliseconds from arrival to the end."),
        ("x-validation-time", "integer", "Milliseconds of checking and tokenizing."),
        ("x-queue-time", "integer", "Milliseconds from the queue to the first step."),
        ("x-inference-time", "integer", "Milliseconds from the first step to the end."),
        ("x-time-per-token", "integer", "Milliseconds of inference for each generated token."),
        ("x-prompt-tokens", "integer", "Tokens of the prompts."),
        ("x-generated-tokens", "integer", "Tokens generated, over all choices."),
    ] {
        headers[name] = header(kind, text);
    }
    headers
}

fn header(kind: &str, description: &str) -> Value {
    json!({"description": description, "schema": {"type": kind}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialects;

    /// Paths of the routers, as their debug form tells them.
    fn mounted_paths() -> Vec<String> {
        let shown = format!("{:?}", dialects::mounted());
        let paths = shown.split("RouteId(").filter_map(|part| {
            let path = part.split_once("): \"")?.1.split_once('"')?.0;
            Some(path.replace("{*id}", "{id}"))
        });
        // Not the nest of OpenAI's routes itself, nor fallbacks and the files of the page.
        let is_route = |path: &String| {
            path.starts_with('/')
                && path != "/v1"
                && !path.contains("__private")
                && !path.starts_with("/docs/")
                && !path.ends_with("{*rest}")
        };
        let mut paths: Vec<_> = paths.filter(is_route).collect();
        paths.sort();
        paths.dedup();
        paths
    }

    #[test]
    fn every_route_is_described_and_no_other() {
        let document = document();
        let mut described: Vec<_> = document["paths"].as_object().expect("paths").keys().cloned().collect();
        described.sort();
        assert_eq!(described, mounted_paths());
        assert!(described.len() > 15, "{described:?}");
    }

    #[test]
    fn every_reference_leads_to_a_schema() {
        let document = document();
        let text = document.to_string();
        let schemas = document["components"]["schemas"].as_object().expect("schemas");
        let references =
            text.split("#/components/schemas/").skip(1).map(|rest| rest.split('"').next().expect("a name"));
        let mut count = 0;
        for name in references {
            assert!(schemas.contains_key(name), "{name}");
            count += 1;
        }
        assert!(count > 30, "{count}");
        assert!(!schemas.contains_key("Vec"), "a type that stands for another hides what it holds");
    }

    /// Names of the properties of a schema, those of its parts included.
    fn properties(document: &Value, schema: &Value) -> Vec<String> {
        if let Some(reference) = schema["$ref"].as_str() {
            return properties(document, document.pointer(&reference[1..]).expect("a schema"));
        }
        let own = schema["properties"].as_object().into_iter().flat_map(|own| own.keys().cloned());
        let parts = schema["allOf"].as_array().into_iter().flatten();
        own.chain(parts.flat_map(|part| properties(document, part))).collect()
    }

    #[test]
    fn every_field_is_described() {
        let document = document();
        let described = |name: &str| properties(&document, &document["components"]["schemas"][name]);
        let written = |value: Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
        for (name, fields) in [
            ("GenerateParameters", written(serde_json::to_value(all_parameters()).expect("plain data"))),
            ("Info", written(serde_json::to_value(tgi::Info::default()).expect("plain data"))),
        ] {
            let described = described(name);
            for field in fields {
                assert!(described.contains(&field), "{name}.{field}");
            }
        }
        for (name, fields) in [
            ("ChatRequest", ["messages", "max_tokens", "top_logprobs", "stream_options", "tools", "response_format"]),
            ("CompletionRequest", ["prompt", "suffix", "echo", "logprobs", "prompt_logprobs", "ignore_eos"]),
        ] {
            let described = described(name);
            assert!(fields.iter().all(|field| described.contains(&(*field).to_owned())), "{name}: {described:?}");
        }
    }

    fn all_parameters() -> tgi::GenerateParameters {
        tgi::GenerateParameters {
            best_of: Some(1),
            temperature: Some(1.0),
            repetition_penalty: Some(1.0),
            frequency_penalty: Some(0.0),
            top_k: Some(1),
            top_p: Some(0.5),
            typical_p: Some(0.5),
            do_sample: true,
            max_new_tokens: Some(1),
            return_full_text: Some(true),
            stop: vec!["x".into()],
            truncate: Some(1),
            watermark: true,
            details: true,
            decoder_input_details: true,
            seed: Some(1),
            top_n_tokens: Some(1),
            grammar: None,
            adapter_id: Some("x".into()),
        }
    }
}
