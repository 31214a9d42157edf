//! JSON schemas from strangers: bounded, and closed where they leave open what else an object may have.

use serde_json::{Map, Value, json};

use super::{GrammarError, MAX_PATTERN_BYTES, check_depth, invalid};

/// Greatest number of items, characters and properties that a schema may demand or bound: each is a piece of the grammar.
const MAX_COUNT: u64 = 10_000;

/// Keywords that bound a count.
const COUNTS: [&str; 6] = ["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"];

/// Keywords whose value is a schema.
const SCHEMA: [&str; 9] =
    ["items", "additionalProperties", "additionalItems", "contains", "not", "if", "then", "else", "propertyNames"];

/// Keywords whose value is a list of schemas.
const SCHEMAS: [&str; 4] = ["anyOf", "oneOf", "allOf", "prefixItems"];

/// Keywords whose value is an object of schemas.
const NAMED_SCHEMAS: [&str; 5] = ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"];

/// Keywords that add conditions to those beside them.
const COMBINED: [&str; 5] = ["anyOf", "oneOf", "allOf", "$ref", "if"];

/// The schema of `text`, with this crate's way of writing JSON.
pub(super) fn prepare(text: &str) -> Result<Value, GrammarError> {
    // The parser refuses what is nested too deep for functions that call themselves.
    let mut schema: Value = serde_json::from_str(text).map_err(|error| invalid(&error))?;
    if !matches!(schema, Value::Object(_) | Value::Bool(_)) {
        return Err(GrammarError::Invalid("a schema is an object".to_owned()));
    }
    let mut puts_together = false;
    visit(&mut schema, &mut |object| {
        let adds = COMBINED.into_iter().any(|keyword| object.contains_key(keyword));
        puts_together |= object.contains_key("allOf") || adds && object.contains_key("properties");
        check_counts(object)?;
        check_patterns(object)
    })?;
    if !puts_together {
        visit(&mut schema, &mut |object| {
            close(object);
            Ok(())
        })?;
    }
    if let Some(object) = schema.as_object_mut() {
        let writing = json!({
            "item_separator": ",", "key_separator": ":", "whitespace_flexible": true, "whitespace_pattern": " ",
            "coerce_one_of": true, "lenient": false,
        });
        object.insert("x-guidance".to_owned(), writing);
    }
    Ok(schema)
}

/// What is done to a schema.
type Change<'a> = dyn FnMut(&mut Map<String, Value>) -> Result<(), GrammarError> + 'a;

/// Calls `change` for each object of `schema` that is a schema itself.
fn visit(schema: &mut Value, change: &mut Change<'_>) -> Result<(), GrammarError> {
    let Some(object) = schema.as_object_mut() else { return Ok(()) };
    change(object)?;
    for (keyword, value) in object {
        let keyword = keyword.as_str();
        if NAMED_SCHEMAS.contains(&keyword) {
            value.as_object_mut().into_iter().flatten().try_for_each(|(_, schema)| visit(schema, change))?;
        } else if SCHEMAS.contains(&keyword) || keyword == "items" && value.is_array() {
            value.as_array_mut().into_iter().flatten().try_for_each(|schema| visit(schema, change))?;
        } else if SCHEMA.contains(&keyword) {
            visit(value, change)?;
        }
    }
    Ok(())
}

fn check_counts(object: &Map<String, Value>) -> Result<(), GrammarError> {
    for keyword in COUNTS {
        let Some(value) = object.get(keyword) else { continue };
        if value.as_f64().is_some_and(|count| count > MAX_COUNT as f64) {
            return Err(GrammarError::TooMany { keyword, value: value.to_string(), limit: MAX_COUNT });
        }
    }
    Ok(())
}

/// Patterns within a schema are bounded as those that stand alone.
fn check_patterns(object: &Map<String, Value>) -> Result<(), GrammarError> {
    let of_text = object.get("pattern").and_then(Value::as_str);
    let of_names = object.get("patternProperties").and_then(Value::as_object).into_iter().flat_map(Map::keys);
    for pattern in of_text.into_iter().chain(of_names.map(String::as_str)) {
        if pattern.len() > MAX_PATTERN_BYTES {
            return Err(GrammarError::TooLong { num_bytes: pattern.len(), limit: MAX_PATTERN_BYTES });
        }
        check_depth(pattern)?;
    }
    Ok(())
}

/// Forbids properties that are not named, where the schema says nothing of them.
fn close(object: &mut Map<String, Value>) {
    let says = |keyword| object.contains_key(keyword);
    if says("properties")
        && !says("additionalProperties")
        && !says("patternProperties")
        && !says("unevaluatedProperties")
    {
        object.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
}
