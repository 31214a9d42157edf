//! The ways in which requests spell grammars: text-generation-inference's type and value, OpenAI's `response_format`, vLLM's fields.

use pelton_protocol::openai::SamplingFields;
use pelton_text::Grammar;
use serde_json::Value;

use crate::generate::{GrammarRequest, ServeError};

/// Keywords of JSON Schema of which one at least says what a value must be.
const CONSTRAINING: [&str; 13] = [
    "properties",
    "type",
    "enum",
    "const",
    "anyOf",
    "oneOf",
    "allOf",
    "$ref",
    "items",
    "prefixItems",
    "required",
    "additionalProperties",
    "patternProperties",
];

/// The grammar of text-generation-inference's `{"type": ..., "value": ...}`, which stands at `field`.
pub(super) fn typed(field: &'static str, kind: &str, value: &Value) -> Result<GrammarRequest, ServeError> {
    let grammar = match kind {
        "json" | "json_object" => json_schema(field, value)?,
        "json_schema" => json_schema(field, value.get("schema").unwrap_or(value))?,
        "regex" => Grammar::Regex(text(field, ".value", value)?),
        kind => {
            let shown: String = kind.chars().take(40).collect();
            let problem = format!("must be json, json_object, json_schema or regex. Given: {shown}");
            return Err(ServeError::Shape { path: format!("{field}.type"), problem });
        }
    };
    Ok(GrammarRequest { field, grammar })
}

/// The one grammar that the fields of completions and chat ask for.
pub(super) fn of_fields(fields: &SamplingFields) -> Result<Option<GrammarRequest>, ServeError> {
    let mut asked = Vec::new();
    if let Some(format) = &fields.response_format {
        asked.extend(response_format(format)?);
    }
    if let Some(outputs) = &fields.structured_outputs {
        asked.extend(structured_outputs(outputs)?);
    }
    if let Some(schema) = &fields.guided_json {
        asked.push(GrammarRequest { field: "guided_json", grammar: json_schema("guided_json", schema)? });
    }
    if let Some(pattern) = &fields.guided_regex {
        let pattern = text("guided_regex", "", pattern)?;
        asked.push(GrammarRequest { field: "guided_regex", grammar: Grammar::Regex(pattern) });
    }
    if let Some(texts) = &fields.guided_choice {
        asked.push(GrammarRequest { field: "guided_choice", grammar: choices("guided_choice", "", texts)? });
    }
    if let Some(grammar) = &fields.guided_grammar {
        let grammar = text("guided_grammar", "", grammar)?;
        asked.push(GrammarRequest { field: "guided_grammar", grammar: Grammar::Lark(grammar) });
    }
    if let [first, second, ..] = &asked[..] {
        let message = format!("`{}` and `{}` exclude each other", first.field, second.field).into();
        return Err(ServeError::Conflict { field: second.field, message });
    }
    Ok(asked.pop())
}

/// `{"type": "json_schema", "json_schema": {"schema": ...}}`, `{"type": "json_object"}`, `{"type": "text"}`, or as [`typed`].
fn response_format(format: &Value) -> Result<Option<GrammarRequest>, ServeError> {
    const FIELD: &str = "response_format";
    let Some(kind) = format.get("type").and_then(Value::as_str) else {
        return Err(ServeError::Shape { path: "response_format.type".into(), problem: "must be a string".into() });
    };
    let value = format.get("value").filter(|value| !value.is_null());
    let grammar = match (kind, value) {
        ("text", _) => return Ok(None),
        (kind, Some(value)) => return typed(FIELD, kind, value).map(Some),
        ("json_object", None) => Grammar::json_object(),
        ("json_schema", None) => {
            let schema = format.pointer("/json_schema/schema").ok_or_else(|| ServeError::Shape {
                path: "response_format.json_schema.schema".into(),
                problem: "missing".into(),
            })?;
            json_schema(FIELD, schema)?
        }
        (_, None) => return Err(ServeError::Shape { path: "response_format.value".into(), problem: "missing".into() }),
    };
    Ok(Some(GrammarRequest { field: FIELD, grammar }))
}

/// vLLM's `{"json": ...}`, with one of `json`, `regex`, `choice`, `grammar` and `json_object`.
fn structured_outputs(outputs: &Value) -> Result<Option<GrammarRequest>, ServeError> {
    const FIELD: &str = "structured_outputs";
    let shape = |path: String, problem: &str| ServeError::Shape { path, problem: problem.into() };
    let object = outputs.as_object().ok_or_else(|| shape(FIELD.into(), "must be an object"))?;
    let mut asked = Vec::new();
    for (key, value) in object.iter().filter(|(_, value)| !value.is_null() && **value != Value::Bool(false)) {
        asked.push(match key.as_str() {
            "json" => json_schema(FIELD, value)?,
            "json_object" => Grammar::json_object(),
            "regex" => Grammar::Regex(text(FIELD, ".regex", value)?),
            "choice" => choices(FIELD, ".choice", value)?,
            "grammar" => Grammar::Lark(text(FIELD, ".grammar", value)?),
            key => {
                let key: String = key.chars().take(40).collect();
                return Err(shape(format!("{FIELD}.{key}"), "is not supported: this server does not have it"));
            }
        });
    }
    if asked.len() != 1 {
        return Err(shape(FIELD.into(), "must hold one of json, json_object, regex, choice and grammar"));
    }
    Ok(asked.pop().map(|grammar| GrammarRequest { field: FIELD, grammar }))
}

/// A schema as an object, or as an object in a string.
fn json_schema(field: &'static str, value: &Value) -> Result<Grammar, ServeError> {
    let invalid =
        |reason: &str| ServeError::Conflict { field, message: format!("grammar is not valid: {reason}").into() };
    let schema = match value {
        Value::Object(_) => value.clone(),
        Value::String(text) => serde_json::from_str(text).map_err(|error| invalid(&error.to_string()))?,
        _ => return Err(ServeError::Conflict { field, message: "grammar is not supported".into() }),
    };
    if !CONSTRAINING.iter().any(|keyword| schema.get(keyword).is_some()) {
        return Err(invalid("Grammar must have a 'properties' field"));
    }
    Ok(Grammar::JsonSchema(schema.to_string()))
}

fn text(field: &'static str, within: &str, value: &Value) -> Result<String, ServeError> {
    let problem = || ServeError::Shape { path: format!("{field}{within}"), problem: "must be a string".into() };
    value.as_str().map(str::to_owned).ok_or_else(problem)
}

fn choices(field: &'static str, within: &str, value: &Value) -> Result<Grammar, ServeError> {
    let problem =
        || ServeError::Shape { path: format!("{field}{within}"), problem: "must be a list of strings".into() };
    let texts = value.as_array().filter(|texts| !texts.is_empty()).ok_or_else(problem)?;
    let texts = texts.iter().map(|text| text.as_str().map(str::to_owned));
    Ok(Grammar::Choices(texts.collect::<Option<_>>().ok_or_else(problem)?))
}
