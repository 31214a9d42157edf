//! KServe v2 as a client: with which tensors and parameters a model is asked, and what its answers say. HTTP `infer` and Triton's
//! `generate` are here; gRPC has the same tensors in another coat, see [`super::grpc`].
//!
//! What the model lists as its inputs decides, as Triton's generate extension does: a field that has the name of an input is a tensor, any
//! other a parameter. A model that lists nothing is asked as an ensemble of TensorRT-LLM.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use pelton_protocol::kserve::{InferInputTensor, InferTensorContents, TensorMetadata};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value, json};

use super::values::{Text, TokenCount};
use super::{malformed, server_error};
use crate::BenchError;
use crate::plan::{Api, TargetPlan, TensorRole};
use crate::recorder::{CountedBy, Failure, RowBuilder};
use crate::workload::Ask;

/// The model that is asked when nobody names one.
pub const DEFAULT_MODEL: &str = "ensemble";

/// What the ensemble of FasterTransformer calls its tensors; what is missing here has the usual name.
const FASTER_TRANSFORMER: [(TensorRole, &str); 5] = [
    (TensorRole::Prompt, "INPUT_0"),
    (TensorRole::Length, "INPUT_1"),
    (TensorRole::BadWords, "INPUT_2"),
    (TensorRole::StopWords, "INPUT_3"),
    (TensorRole::Text, "OUTPUT_0"),
];

/// Inputs by which a model of Triton's vLLM backend is known, and those that ask it to count.
const VLLM_INPUT: &str = "sampling_parameters";
const WISHES: [&str; 3] = ["exclude_input_in_output", "return_num_input_tokens", "return_num_output_tokens"];

/// A model as its server describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Its name.
    pub name: String,
    /// Its version, if one is asked for.
    pub version: Option<String>,
    /// Its inputs by name; `None` if the server does not tell.
    inputs: Option<BTreeMap<String, Input>>,
}

#[derive(Clone, Debug, PartialEq)]
struct Input {
    datatype: String,
    dims: usize,
}

impl Model {
    /// A model whose inputs are those of `metadata`; an empty list tells nothing.
    pub fn new(name: &str, version: Option<&str>, metadata: Vec<TensorMetadata>) -> Self {
        let inputs: BTreeMap<String, Input> = metadata
            .into_iter()
            .map(|tensor| (tensor.name, Input { datatype: tensor.datatype, dims: tensor.shape.len() }))
            .collect();
        let inputs = Some(inputs).filter(|inputs| !inputs.is_empty());
        Self { name: name.to_owned(), version: version.map(str::to_owned), inputs }
    }

    /// The same from the JSON of `/v2/models/M`.
    pub fn from_json(name: &str, version: Option<&str>, metadata: &Value) -> Self {
        let tensor = |tensor: &Value| {
            let text = |key: &str| tensor.get(key).and_then(Value::as_str).map(str::to_owned);
            let shape = tensor.get("shape")?.as_array()?.iter().filter_map(Value::as_i64).collect();
            Some(TensorMetadata { name: text("name")?, datatype: text("datatype")?, shape })
        };
        let inputs = metadata.get("inputs").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        Self::new(name, version, inputs.iter().filter_map(tensor).collect())
    }

    /// The route of the model, without a slash at its end.
    pub fn path(name: &str, version: Option<&str>) -> String {
        let version = version.map(|version| format!("/versions/{}", escaped(version))).unwrap_or_default();
        format!("/v2/models/{}{version}", escaped(name))
    }

    fn lists(&self, name: &str) -> bool {
        self.inputs.as_ref().is_some_and(|inputs| inputs.contains_key(name))
    }

    fn name_of(&self, role: TensorRole, plan: &TargetPlan) -> String {
        let is_faster_transformer = self.lists("INPUT_0") && !self.lists("text_input");
        let old = FASTER_TRANSFORMER.iter().filter(|_| is_faster_transformer);
        let mut names = old.chain(&TensorRole::ALL).filter(|(of, _)| *of == role).map(|(_, name)| *name);
        let usual = names.next().unwrap_or_default();
        plan.tensors.get(&role).map_or_else(|| usual.to_owned(), Clone::clone)
    }

    /// A listed input as a tensor, anything else as a parameter.
    fn place(&self, name: &str) -> Place {
        match self.inputs.as_ref().and_then(|inputs| inputs.get(name)) {
            Some(input) => Place::Tensor { datatype: input.datatype.clone(), dims: input.dims },
            None => Place::Parameter,
        }
    }
}

/// Percent-encodes what a path may not hold.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// One field of a question.
#[derive(Clone, Debug)]
struct Field {
    name: String,
    place: Place,
    value: FieldValue,
}

#[derive(Clone, Debug)]
enum Place {
    Tensor { datatype: String, dims: usize },
    Parameter,
}

#[derive(Clone, Debug)]
enum FieldValue {
    Prompt,
    Length,
    Fixed(Value),
}

/// Composes questions to one model.
#[derive(Clone, Debug)]
pub struct Composer {
    fields: Vec<Field>,
    /// Name of the output that holds the text.
    pub text: String,
    /// Whether answers of exactly the wished length are asked for.
    pub lengthens: bool,
}

/// A question before it is written.
pub struct Question {
    /// In the order of the fields.
    pub tensors: Vec<InferInputTensor>,
    /// What is no tensor.
    pub parameters: Vec<(String, Value)>,
}

impl Composer {
    /// Decides what a question holds. Errors if a field of the plan's extra body has no form in which it can be sent.
    pub fn new(model: &Model, plan: &TargetPlan, api: Api) -> Result<Self, BenchError> {
        let is_unknown = model.inputs.is_none();
        let is_vllm = model.lists(VLLM_INPUT);
        let mut fields: Vec<Field> = Vec::new();
        let mut add = |name: &str, place: Place, value| fields.push(Field { name: name.to_owned(), place, value });
        let fixed = |value: Value| FieldValue::Fixed(value);
        // An unknown model has these inputs, in this form; a known one only what it lists.
        let usual = |name: &str, datatype: &str| match model.place(name) {
            Place::Parameter if is_unknown => Place::Tensor { datatype: datatype.to_owned(), dims: 2 },
            place => place,
        };
        let prompt = model.name_of(TensorRole::Prompt, plan);
        if !is_unknown && !model.lists(&prompt) {
            let listed: Vec<&str> = model.inputs.iter().flatten().map(|(name, _)| name.as_str()).collect();
            let name = &model.name;
            return Err(BenchError::Plan(format!(
                "model {name:?} has no input {prompt:?} for the prompt, it has {}: name it with --tensor prompt=NAME",
                listed.join(", ")
            )));
        }
        add(&prompt, usual(&prompt, "BYTES"), FieldValue::Prompt);
        let length = model.name_of(TensorRole::Length, plan);
        add(&length, usual(&length, "UINT32"), FieldValue::Length);
        for role in [TensorRole::BadWords, TensorRole::StopWords] {
            let name = model.name_of(role, plan);
            if is_unknown || model.lists(&name) {
                add(&name, usual(&name, "BYTES"), fixed(json!("")));
            }
        }
        let temperature = model.name_of(TensorRole::Temperature, plan);
        if is_vllm {
            add(&temperature, model.place(&temperature), fixed(json!(0.0)));
        } else if is_unknown || model.lists(&temperature) {
            // Greedy, as long as neither top_k nor top_p is given; 0 is refused by some.
            add(&temperature, usual(&temperature, "FP32"), fixed(json!(1.0)));
        }
        let streaming = ["stream", "streaming"].into_iter().find(|name| model.lists(name));
        if let Some(name) = streaming.or((is_unknown && api == Api::KserveGenerate).then_some("stream")) {
            add(name, model.place(name), fixed(json!(plan.stream)));
        }
        for name in WISHES.into_iter().filter(|name| model.lists(name)) {
            add(name, model.place(name), fixed(json!(true)));
        }
        let least = ["min_tokens", "min_length"].into_iter().find(|name| model.lists(name));
        if let Some(name) = least.or(is_vllm.then_some("min_tokens")) {
            add(name, model.place(name), FieldValue::Length);
        }
        if is_vllm {
            add("ignore_eos", Place::Parameter, fixed(json!(true)));
        }
        let mut composer =
            Self { fields, text: model.name_of(TensorRole::Text, plan), lengthens: is_vllm || least.is_some() };
        for (name, value) in &plan.extra_body {
            match value {
                Value::Object(members) if name == "parameters" => {
                    members.iter().for_each(|(name, value)| composer.set(model, name, value));
                }
                _ => composer.set(model, name, value),
            }
        }
        composer.check(api)?;
        Ok(composer)
    }

    /// What the user adds has the last word.
    fn set(&mut self, model: &Model, name: &str, value: &Value) {
        let value = FieldValue::Fixed(value.clone());
        match self.fields.iter_mut().find(|field| field.name == name) {
            Some(field) => field.value = value,
            None => self.fields.push(Field { name: name.to_owned(), place: model.place(name), value }),
        }
    }

    fn check(&self, api: Api) -> Result<(), BenchError> {
        if api == Api::KserveGenerate {
            return Ok(()); // The server itself makes tensors of the values.
        }
        for Field { name, place, value } in &self.fields {
            let example = match value {
                FieldValue::Prompt => &json!(""),
                FieldValue::Length => &json!(1),
                FieldValue::Fixed(value) => value,
            };
            match place {
                Place::Tensor { datatype, .. } if contents(datatype, &elements(example)).is_none() => {
                    return Err(BenchError::Plan(format!("{example} cannot be sent as {datatype} in tensor {name:?}")));
                }
                Place::Parameter if example.is_array() || example.is_object() || example.is_null() => {
                    return Err(BenchError::Plan(format!(
                        "{example} cannot be sent as parameter {name:?}, which must be a text, a number or a truth"
                    )));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn values<'a>(&'a self, ask: &Ask) -> impl Iterator<Item = (&'a Field, Value)> {
        let prompt = Value::String(ask.prompt.as_text().into_owned());
        let length = ask.output_tokens;
        self.fields.iter().map(move |field| {
            let value = match &field.value {
                FieldValue::Prompt => prompt.clone(),
                FieldValue::Length => json!(length),
                FieldValue::Fixed(value) => value.clone(),
            };
            (field, value)
        })
    }

    /// The body of `/generate` and `/generate_stream`.
    pub fn flat(&self, ask: &Ask) -> Value {
        Value::Object(self.values(ask).map(|(field, value)| (field.name.clone(), value)).collect())
    }

    /// The tensors and parameters of a question.
    pub fn question(&self, ask: &Ask) -> Question {
        let mut question = Question { tensors: Vec::new(), parameters: Vec::new() };
        for (field, value) in self.values(ask) {
            match &field.place {
                Place::Parameter => question.parameters.push((field.name.clone(), value)),
                Place::Tensor { datatype, dims } => {
                    let elements = elements(&value);
                    let mut shape = vec![1; *dims];
                    shape.last_mut().into_iter().for_each(|last| *last = elements.len() as i64);
                    question.tensors.push(InferInputTensor {
                        name: field.name.clone(),
                        datatype: datatype.clone(),
                        shape,
                        contents: contents(datatype, &elements),
                    });
                }
            }
        }
        question
    }

    /// The body of `/infer`.
    pub fn infer(&self, ask: &Ask) -> Value {
        let mut inputs = Vec::new();
        let mut parameters = Map::new();
        for (field, value) in self.values(ask) {
            match &field.place {
                Place::Parameter => {
                    parameters.insert(field.name.clone(), value);
                }
                Place::Tensor { datatype, dims } => {
                    let data = elements(&value);
                    let mut shape = vec![1; *dims];
                    shape.last_mut().into_iter().for_each(|last| *last = data.len());
                    inputs.push(json!({ "name": field.name, "shape": shape, "datatype": datatype, "data": data }));
                }
            }
        }
        let mut body = Map::from_iter([("inputs".to_owned(), Value::Array(inputs))]);
        if !parameters.is_empty() {
            body.insert("parameters".to_owned(), Value::Object(parameters));
        }
        Value::Object(body)
    }
}

fn elements(value: &Value) -> Cow<'_, [Value]> {
    match value {
        Value::Array(values) => Cow::Borrowed(values),
        value => Cow::Owned(vec![value.clone()]),
    }
}

/// Elements in the list of their datatype; `None` if one does not fit in it.
fn contents(datatype: &str, elements: &[Value]) -> Option<InferTensorContents> {
    fn all<T>(elements: &[Value], one: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
        elements.iter().map(one).collect()
    }
    let signed = |value: &Value| value.as_i64()?.try_into().ok();
    let unsigned = |value: &Value| value.as_u64()?.try_into().ok();
    let mut contents = InferTensorContents::default();
    match datatype {
        "BYTES" => contents.bytes_contents = all(elements, |value| Some(value.as_str()?.as_bytes().to_vec()))?,
        "BOOL" => contents.bool_contents = all(elements, Value::as_bool)?,
        "INT8" | "INT16" | "INT32" => contents.int_contents = all(elements, signed)?,
        "INT64" => contents.int64_contents = all(elements, Value::as_i64)?,
        "UINT8" | "UINT16" | "UINT32" => contents.uint_contents = all(elements, unsigned)?,
        "UINT64" => contents.uint64_contents = all(elements, Value::as_u64)?,
        "FP32" => contents.fp32_contents = all(elements, |value| Some(value.as_f64()? as f32))?,
        "FP64" => contents.fp64_contents = all(elements, Value::as_f64)?,
        _ => return None,
    }
    Some(contents)
}

/// What one response says.
#[derive(Debug, Default)]
pub struct Said<'a> {
    /// Text, if the response has that output.
    pub text: Option<Text<'a>>,
    /// Tokens of the text.
    pub output_tokens: Option<u32>,
    /// Tokens of the prompt.
    pub input_tokens: Option<u32>,
    /// Why the server ended.
    pub finish_reason: Option<String>,
    /// What went wrong.
    pub error: Option<Value>,
}

/// Reads a response of `generate`, whose text is in the named member.
struct SaidIn<'n>(&'n str);

impl<'de> DeserializeSeed<'de> for SaidIn<'_> {
    type Value = Said<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Said<'de>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for SaidIn<'_> {
    type Value = Said<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Said<'de>, A::Error> {
        let mut said = Said::default();
        while let Some(Text(key)) = members.next_key::<Text<'de>>()? {
            match &*key {
                key if key == self.0 => said.text = Some(members.next_value()?),
                "num_output_tokens" => said.output_tokens = members.next_value::<Option<TokenCount>>()?.map(|n| n.0),
                "num_input_tokens" => said.input_tokens = members.next_value::<Option<TokenCount>>()?.map(|n| n.0),
                "finish_reason" => said.finish_reason = Some(members.next_value::<Text<'de>>()?.as_str().to_owned()),
                "error" => said.error = Some(members.next_value()?),
                _ => {
                    members.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(said)
    }
}

fn said<'a>(json: &'a str, text: &str) -> Result<Said<'a>, Failure> {
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let said = SaidIn(text).deserialize(&mut deserializer).and_then(|said| deserializer.end().map(|()| said));
    said.map_err(|error| malformed(error, json))
}

/// Reads one streamed answer: of `generate_stream`, or of gRPC.
#[derive(Debug, Default)]
pub struct StreamReader {
    /// Sum of the counts so far.
    counted: u32,
    /// A response with text came without a count.
    uncounted: bool,
    /// A response came.
    answered: bool,
}

impl StreamReader {
    /// One event of `generate_stream`, from a read at `at`.
    pub fn event(&mut self, data: &str, text: &str, at: Instant, row: &mut RowBuilder) -> Result<(), Failure> {
        if data.trim() == pelton_protocol::sse::DONE_DATA {
            row.touch(at); // Triton sends none, but some that imitate it do.
            return Ok(());
        }
        self.response(said(data, text)?, at, row)
    }

    /// One response.
    pub fn response(&mut self, said: Said<'_>, at: Instant, row: &mut RowBuilder) -> Result<(), Failure> {
        if let Some(error) = said.error {
            return Err(server_error(&error));
        }
        row.touch(at);
        self.answered = true;
        said.input_tokens.into_iter().for_each(|n| row.prompt_tokens(n));
        said.finish_reason.iter().filter(|reason| !reason.is_empty()).for_each(|reason| row.finish_reason(reason));
        let text = said.text.unwrap_or_default();
        let tokens = said.output_tokens.unwrap_or_default();
        self.counted = self.counted.saturating_add(tokens);
        if !text.is_empty() || tokens > 0 {
            self.uncounted |= said.output_tokens.is_none();
            row.piece(text.as_str());
            row.arrived(at, 1, if said.output_tokens.is_some() { tokens } else { 1 });
        }
        Ok(())
    }

    /// The stream is over; false if nothing came. Its end has no sign of its own: a clean end of the body is one.
    pub fn end(&mut self, row: &mut RowBuilder) -> bool {
        if self.answered && !self.uncounted {
            row.count(self.counted, CountedBy::Server);
        } else {
            row.count(row.tokens_so_far(), CountedBy::Chunks);
        }
        self.answered
    }
}

/// Hands over the text of a whole answer. Returns its number of tokens, if the server says it.
pub fn whole(said: Said<'_>, prompt: &str, row: &mut RowBuilder) -> Result<Option<u32>, Failure> {
    if let Some(error) = said.error {
        return Err(server_error(&error));
    }
    let Some(text) = &said.text else {
        return Err(malformed("answer has no output with the text", ""));
    };
    row.piece(without_echo(text.as_str(), prompt));
    said.input_tokens.into_iter().for_each(|n| row.prompt_tokens(n));
    said.finish_reason.iter().filter(|reason| !reason.is_empty()).for_each(|reason| row.finish_reason(reason));
    Ok(said.output_tokens)
}

/// Reads the answer of `/generate`.
pub fn generated(body: &str, text: &str, prompt: &str, row: &mut RowBuilder) -> Result<Option<u32>, Failure> {
    whole(said(body, text)?, prompt, row)
}

/// Reads the answer of `/infer`.
pub fn inferred(body: &str, text: &str, prompt: &str, row: &mut RowBuilder) -> Result<Option<u32>, Failure> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        outputs: Vec<Output>,
        #[serde(default)]
        error: Option<Value>,
    }
    #[derive(Deserialize)]
    struct Output {
        name: String,
        #[serde(default)]
        data: Value,
    }
    let answer: Answer = serde_json::from_str(body).map_err(|error| malformed(error, body))?;
    // The members of `generate`'s answer, one for each tensor.
    let mut flat = Map::new();
    answer.error.into_iter().for_each(|error| drop(flat.insert("error".to_owned(), error)));
    flat.extend(answer.outputs.into_iter().map(|output| (output.name, output.data)));
    generated(&Value::Object(flat).to_string(), text, prompt, row)
}

/// The generated part of a text: models behind `infer` may answer with a beginning-of-text mark, the prompt, and padding at the end.
fn without_echo<'a>(text: &'a str, prompt: &str) -> &'a str {
    let text = text.split("<|endoftext|>").next().unwrap_or_default();
    let unmarked = text.strip_prefix("<s>").map_or(text, |rest| rest.strip_prefix(' ').unwrap_or(rest));
    unmarked.strip_prefix(prompt).unwrap_or(unmarked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Prompt;

    fn ask() -> Ask {
        Ask { prompt: Prompt::Text("hi".to_owned()), prompt_tokens: 1, output_tokens: 7 }
    }

    fn model(inputs: &[(&str, &str, usize)]) -> Model {
        let tensor = |&(name, datatype, dims): &(&str, &str, usize)| TensorMetadata {
            name: name.to_owned(),
            datatype: datatype.to_owned(),
            shape: vec![-1; dims],
        };
        Model::new("m", None, inputs.iter().map(tensor).collect())
    }

    fn plan(extra: Value) -> TargetPlan {
        let Value::Object(extra_body) = extra else { panic!("an object") };
        TargetPlan { extra_body, ..TargetPlan::at("http://localhost") }
    }

    #[test]
    fn a_model_that_tells_nothing_is_asked_as_tensorrt_llm() {
        let composer = Composer::new(&model(&[]), &plan(json!({})), Api::KserveInfer).expect("can be sent");
        let tensor = |name: &str, datatype: &str, value: Value| json!({ "name": name, "shape": [1, 1], "datatype": datatype, "data": [value] });
        let expected = json!({ "inputs": [
            tensor("text_input", "BYTES", json!("hi")),
            tensor("max_tokens", "UINT32", json!(7)),
            tensor("bad_words", "BYTES", json!("")),
            tensor("stop_words", "BYTES", json!("")),
            tensor("temperature", "FP32", json!(1.0)),
        ]});
        assert_eq!(composer.infer(&ask()), expected);
        let composer = Composer::new(&model(&[]), &plan(json!({})), Api::KserveGenerate).expect("can be sent");
        let expected = json!({ "text_input": "hi", "max_tokens": 7, "bad_words": "", "stop_words": "", "temperature": 1.0, "stream": true });
        assert_eq!(composer.flat(&ask()), expected);
        assert!(!composer.lengthens);
    }

    #[test]
    fn a_model_is_asked_for_what_it_lists() {
        let old = model(&[
            ("INPUT_0", "BYTES", 2),
            ("INPUT_1", "UINT32", 2),
            ("INPUT_2", "BYTES", 2),
            ("INPUT_3", "BYTES", 2),
        ]);
        let composer = Composer::new(&old, &plan(json!({})), Api::KserveInfer).expect("can be sent");
        let names: Vec<_> = composer.question(&ask()).tensors.into_iter().map(|tensor| tensor.name).collect();
        assert_eq!(
            (names, composer.text.as_str()),
            (["INPUT_0", "INPUT_1", "INPUT_2", "INPUT_3"].map(str::to_owned).into(), "OUTPUT_0")
        );

        let vllm = model(&[
            ("text_input", "BYTES", 1),
            ("stream", "BOOL", 1),
            ("sampling_parameters", "BYTES", 1),
            ("exclude_input_in_output", "BOOL", 1),
            ("return_num_output_tokens", "BOOL", 1),
        ]);
        let composer = Composer::new(&vllm, &plan(json!({ "top_k": 5 })), Api::KserveGrpc).expect("can be sent");
        let question = composer.question(&ask());
        let names: Vec<_> =
            question.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice())).collect();
        let expected = ["text_input", "stream", "exclude_input_in_output", "return_num_output_tokens"];
        assert_eq!(names, expected.map(|name| (name, &[1][..])));
        let parameters = Value::Object(question.parameters.into_iter().collect());
        assert_eq!(
            parameters,
            json!({ "max_tokens": 7, "temperature": 0.0, "min_tokens": 7, "ignore_eos": true, "top_k": 5 })
        );
        assert!(composer.lengthens);
    }

    #[test]
    fn extra_fields_are_tensors_where_the_model_has_them_and_refused_where_they_have_no_form() {
        let model = model(&[
            ("text_input", "BYTES", 2),
            ("max_tokens", "INT32", 2),
            ("top_k", "INT32", 2),
            ("half", "FP16", 2),
        ]);
        let plan_with = |extra| plan(extra);
        let composer =
            Composer::new(&model, &plan_with(json!({ "top_k": 3, "parameters": { "priority": 1 } })), Api::KserveGrpc);
        let question = composer.expect("can be sent").question(&ask());
        let top_k = question.tensors.last().expect("tensors");
        assert_eq!(
            (top_k.name.as_str(), top_k.contents.as_ref().map(|c| c.int_contents.clone())),
            ("top_k", Some(vec![3]))
        );
        assert_eq!(question.parameters, [("priority".to_owned(), json!(1))]);
        for (bad, words) in [
            (json!({ "top_k": "x" }), "\"x\" cannot be sent as INT32 in tensor \"top_k\""),
            (json!({ "half": 0.5 }), "0.5 cannot be sent as FP16"),
            (json!({ "other": [1] }), "[1] cannot be sent as parameter \"other\""),
        ] {
            let error = Composer::new(&model, &plan_with(bad), Api::KserveInfer).expect_err("has no form").to_string();
            assert!(error.contains(words), "{error}");
        }
        let nameless = Model::new("m", None, vec![TensorMetadata { name: "q".to_owned(), ..Default::default() }]);
        let error = Composer::new(&nameless, &plan(json!({})), Api::KserveInfer).expect_err("no prompt").to_string();
        assert!(error.contains("--tensor prompt=NAME"), "{error}");
    }

    #[test]
    fn echo_mark_and_padding_are_no_part_of_the_answer() {
        assert_eq!(without_echo("<s> hi there", "hi"), " there");
        assert_eq!(without_echo("<s>hi there", "hi"), " there");
        assert_eq!(without_echo("hi there<|endoftext|><|endoftext|>", "hi"), " there");
        assert_eq!(without_echo("there", "hi"), "there");
    }

    #[test]
    fn names_cannot_leave_their_place_in_a_path() {
        assert_eq!(Model::path("a/b c", Some("1")), "/v2/models/a%2Fb%20c/versions/1");
    }
}
