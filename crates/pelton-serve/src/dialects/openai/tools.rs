//! Tools of a chat request: which functions may be called, the grammar of a call, and how a prompt tells of them.
//!
//! A call is written as text-generation-inference has models write it: `{"function": {"_name": "add", "a": 1, "b": 2}}`, whatever syntax the template knows.

use pelton_protocol::openai::ChatMessage;
use pelton_text::Grammar;
use serde_json::{Map, Value, json};

use crate::generate::{ChatTools, GrammarRequest, ServeError};

/// The function that stands for an answer in words.
pub(super) const NO_TOOL: &str = "no_tool";

/// The key under which a call names its function, before its arguments.
pub(super) const NAME: &str = "_name";

/// Functions that one request may bring along.
const MAX_TOOLS: usize = 128;

/// Keywords that say what an object may hold without naming it in `properties`.
const BESIDE_PROPERTIES: [&str; 8] =
    ["$ref", "allOf", "anyOf", "oneOf", "not", "if", "patternProperties", "dependentSchemas"];

/// Characters of a function's name.
const MAX_NAME_CHARACTERS: usize = 256;

/// The functions of a request, and whether one must be called.
pub(super) struct Tools {
    functions: Vec<Function>,
    /// Whether the model may answer in words instead.
    pub(super) may_answer: bool,
    prompt: Option<String>,
}

struct Function {
    name: String,
    /// An object.
    parameters: Map<String, Value>,
    /// For the template.
    told: Value,
}

impl Tools {
    /// What `tools`, `tool_choice` and `tool_prompt` ask for; `None` when nothing shall be called.
    pub(super) fn parse(
        tools: Option<&Value>,
        choice: Option<&Value>,
        prompt: Option<String>,
    ) -> Result<Option<Self>, ServeError> {
        let list = tools.filter(|tools| !tools.is_null());
        let list = list.map(|tools| tools.as_array().ok_or_else(|| shape("tools", "must be a list"))).transpose()?;
        let list = list.map(Vec::as_slice).unwrap_or_default();
        if list.len() > MAX_TOOLS {
            return Err(shape("tools", format!("must hold at most {MAX_TOOLS} tools. Given: {}", list.len())));
        }
        let functions: Vec<_> =
            list.iter().enumerate().map(|(index, tool)| Function::parse(index, tool)).collect::<Result<_, _>>()?;
        let (named, may_answer) = match choice {
            None | Some(Value::Null) => (None, true),
            Some(Value::String(word)) => match word.as_str() {
                "auto" => (None, true),
                "none" => return Ok(None),
                "required" | "any" => (None, false),
                name => (Some(name), false),
            },
            Some(choice) => {
                let name = choice.pointer("/function/name").and_then(Value::as_str);
                let missing = || shape("tool_choice.function.name", "must be a string");
                (Some(name.ok_or_else(missing)?), false)
            }
        };
        if functions.is_empty() {
            let message = "`tool_choice` needs `tools` to choose from".into();
            return if may_answer { Ok(None) } else { Err(ServeError::Conflict { field: "tool_choice", message }) };
        }
        let functions = match named {
            None => functions,
            Some(name) => {
                let found: Vec<_> = functions.into_iter().filter(|function| function.name == name).take(1).collect();
                if found.is_empty() {
                    let name: String = name.chars().take(MAX_NAME_CHARACTERS).collect();
                    return Err(ServeError::Tool(format!("Tool with name {name} not found")));
                }
                found
            }
        };
        Ok(Some(Self { functions, may_answer, prompt: prompt.filter(|prompt| !prompt.is_empty()) }))
    }

    /// What the prompt tells.
    pub(super) fn told(&self) -> ChatTools {
        let mut list: Vec<Value> = self.functions.iter().map(|function| function.told.clone()).collect();
        let mut prompt = "Answer with one JSON object that calls one of the functions: {\"function\": {\"_name\": NAME, ...}}, \
                          with the function's name and beside it the arguments that fit the conversation, as plain values.\n"
            .to_owned();
        if self.may_answer {
            list.push(json!({"type": "function", "function": {
                "name": NO_TOOL, "description": "Answer in words, without a function.",
                "parameters": {"type": "object", "properties": {}},
            }}));
            prompt.push_str("If none of the functions helps, call no_tool.\n");
        }
        ChatTools { list: Value::Array(list), prompt: self.prompt.clone().unwrap_or(prompt) }
    }

    /// What a call may be.
    pub(super) fn grammar(&self) -> GrammarRequest {
        let mut definitions = Map::new();
        let mut calls: Vec<Value> = Vec::with_capacity(self.functions.len() + 1);
        for (index, function) in self.functions.iter().enumerate() {
            calls.push(function.call(index, &mut definitions));
        }
        if self.may_answer {
            calls.push(call_of(NO_TOOL, Map::new(), Vec::new(), Value::Bool(false)));
        }
        let schema = json!({
            "type": "object", "properties": {"function": {"anyOf": calls}}, "required": ["function"],
            "additionalProperties": false, "$defs": definitions,
        });
        GrammarRequest { field: "tools", grammar: Grammar::JsonSchema(schema.to_string()) }
    }
}

impl Function {
    fn parse(index: usize, tool: &Value) -> Result<Self, ServeError> {
        let path = |field: &str| format!("tools[{index}]{field}");
        if tool.get("type").is_some_and(|kind| kind != "function") {
            return Err(shape(path(".type"), "must be function"));
        }
        let function = tool.get("function").and_then(Value::as_object);
        let function = function.ok_or_else(|| shape(path(".function"), "must be an object"))?;
        let name = function.get("name").and_then(Value::as_str);
        let name = name.filter(|name| !name.is_empty() && name.chars().count() <= MAX_NAME_CHARACTERS);
        let rule =
            || shape(path(".function.name"), format!("must be a string of 1 to {MAX_NAME_CHARACTERS} characters"));
        let name = name.ok_or_else(rule)?.to_owned();
        let parameters = function.get("parameters").or_else(|| function.get("arguments"));
        let parameters = match parameters {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(parameters)) => resolved(parameters),
            Some(_) => return Err(shape(path(".function.parameters"), "must be an object")),
        };
        // What stands beside the properties of a call would have to hold for `_name` too.
        if let Some(keyword) = BESIDE_PROPERTIES.into_iter().find(|keyword| parameters.contains_key(*keyword)) {
            return Err(shape(path(&format!(".function.parameters.{keyword}")), "is not supported at the top level"));
        }
        let mut told = Map::from_iter([("name".to_owned(), Value::String(name.clone()))]);
        told.extend(function.get("description").map(|text| ("description".to_owned(), text.clone())));
        told.insert("parameters".to_owned(), Value::Object(parameters.clone()));
        Ok(Self { name, parameters, told: json!({"type": "function", "function": told}) })
    }

    /// The schema of a call. Definitions move to those of the whole, under names that no other function has.
    fn call(&self, index: usize, definitions: &mut Map<String, Value>) -> Value {
        let mut parameters = Value::Object(self.parameters.clone());
        rename_references(&mut parameters, index);
        for group in ["$defs", "definitions"] {
            let group =
                parameters.get_mut(group).and_then(Value::as_object_mut).map(std::mem::take).unwrap_or_default();
            definitions.extend(group.into_iter().map(|(name, schema)| (format!("{index}:{name}"), schema)));
        }
        let properties = parameters.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
        let required = parameters.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
        let others = match parameters.get("additionalProperties") {
            Some(Value::String(word)) => Value::Bool(word == "true"),
            Some(others) => others.clone(),
            None => Value::Bool(false),
        };
        call_of(&self.name, properties, required, others)
    }
}

/// `parameters`, or what they refer to: generators of schemas write `{"$ref": "#/$defs/Arguments", "$defs": ...}`.
fn resolved(parameters: &Map<String, Value>) -> Map<String, Value> {
    let target = parameters.get("$ref").and_then(Value::as_str).and_then(|path| path.strip_prefix('#'));
    let all = Value::Object(parameters.clone());
    let Some(Value::Object(target)) = target.and_then(|path| all.pointer(path)) else { return parameters.clone() };
    let others = parameters.iter().filter(|(keyword, _)| *keyword != "$ref");
    target.iter().chain(others).map(|(keyword, value)| (keyword.clone(), value.clone())).collect()
}

fn call_of(name: &str, arguments: Map<String, Value>, required: Vec<Value>, others: Value) -> Value {
    let mut properties = Map::from_iter([(NAME.to_owned(), json!({"const": name}))]);
    properties.extend(arguments.into_iter().filter(|(argument, _)| argument != NAME));
    let required: Vec<Value> = std::iter::once(Value::String(NAME.to_owned())).chain(required).collect();
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": others})
}

fn rename_references(schema: &mut Value, index: usize) {
    match schema {
        Value::Object(object) => {
            for (keyword, value) in object {
                let name = value.as_str().filter(|_| keyword == "$ref");
                let name =
                    name.and_then(|path| path.strip_prefix("#/$defs/").or_else(|| path.strip_prefix("#/definitions/")));
                match name.map(|name| format!("#/$defs/{index}:{name}")) {
                    Some(renamed) => *value = Value::String(renamed),
                    None => rename_references(value, index),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| rename_references(value, index)),
        _ => {}
    }
}

fn shape(path: impl Into<String>, problem: impl Into<String>) -> ServeError {
    ServeError::Shape { path: path.into(), problem: problem.into() }
}

/// The id of a new call: the number after those of the calls in `messages`, or a random one where they are no numbers.
pub(super) fn next_call_id(messages: &[ChatMessage]) -> String {
    let ids = messages.iter().flat_map(|message| message.tool_calls.iter().flatten());
    let ids = ids.filter_map(|call| call.get("id").and_then(Value::as_str));
    let greatest =
        ids.map(|id| id.parse::<u32>().ok()).try_fold(None, |greatest, id| id.map(|id| greatest.max(Some(id))));
    match greatest {
        Some(None) => "0".to_owned(),
        Some(Some(greatest)) => (u64::from(greatest) + 1).to_string(),
        None => format!("call_{:032x}", fastrand::u128(..)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_of_each_function_keep_apart() {
        let tool = |name: &str, kind: &str| {
            json!({"type": "function", "function": {"name": name, "parameters": {
                "type": "object", "properties": {"x": {"$ref": "#/$defs/T"}}, "required": ["x"], "$defs": {"T": {"type": kind}},
            }}})
        };
        let list = json!([tool("f", "integer"), tool("g", "boolean")]);
        let tools = Tools::parse(Some(&list), None, None).expect("valid").expect("tools");
        let Grammar::JsonSchema(schema) = tools.grammar().grammar else { panic!("no schema") };
        let schema: Value = serde_json::from_str(&schema).expect("JSON");
        assert_eq!(schema["$defs"], json!({"0:T": {"type": "integer"}, "1:T": {"type": "boolean"}}));
        let calls = schema["properties"]["function"]["anyOf"].as_array().expect("a list");
        let names: Vec<_> = calls.iter().map(|call| call["properties"][NAME]["const"].as_str().unwrap_or("")).collect();
        assert_eq!(names, ["f", "g", NO_TOOL]);
        assert_eq!(calls[1]["properties"]["x"]["$ref"], "#/$defs/1:T");
        assert_eq!(calls[1]["required"], json!([NAME, "x"]));
        let model = pelton_text::TextModel::bytes();
        model.grammar(&tools.grammar().grammar).expect("it can be followed");
    }

    #[test]
    fn ids_count_on() {
        let messages = |ids: &[&str]| -> Vec<ChatMessage> {
            let calls: Vec<Value> =
                ids.iter().map(|id| json!({"id": id, "type": "function", "function": {"name": "f"}})).collect();
            vec![serde_json::from_value(json!({"role": "assistant", "tool_calls": calls})).expect("a message")]
        };
        assert_eq!(next_call_id(&[]), "0");
        assert_eq!(next_call_id(&messages(&["0", "7", "3"])), "8");
        assert!(next_call_id(&messages(&["0", "call_x"])).starts_with("call_"));
    }
}
