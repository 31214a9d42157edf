//! Chat templates: Jinja, as transformers renders it.

mod clock;
mod json;

use crate::TextError;
use crate::files::ModelFiles;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Instructions that one rendering may take. Real templates take some hundreds per message.
const FUEL: u64 = 5_000_000;

/// Special tokens that templates may name.
const TOKEN_NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];

/// A model's chat template.
///
/// Rendered as transformers does: blocks trimmed on both sides, Python's string, list and dict methods, `tojson` without HTML escapes, `raise_exception`,
/// `strftime_now` (in UTC), and `generation` blocks without effect. A rendering is bounded, so that no template can hang.
#[derive(Clone)]
pub struct ChatTemplate {
    /// The templates `default` and, in some models, `tool_use`; or why they cannot be compiled.
    environment: Result<Environment<'static>, String>,
    /// Special tokens by name.
    tokens: BTreeMap<String, Value>,
    /// The text of all templates.
    source: Arc<str>,
}

/// What a chat template is given.
#[derive(Clone, Copy, Debug)]
pub struct ChatInput<'a> {
    /// The conversation: objects with `role`, `content` and what else the template knows.
    pub messages: &'a [serde_json::Value],
    /// The list of tools.
    pub tools: Option<&'a serde_json::Value>,
    /// End with the beginning of an answer.
    pub add_generation_prompt: bool,
    /// Further variables. They win over all others.
    pub kwargs: &'a serde_json::Map<String, serde_json::Value>,
}

impl ChatTemplate {
    /// The template of a model directory, if there is one. One that cannot be compiled says so when it is rendered: the model serves completions all the same.
    pub(crate) fn from_files(files: &ModelFiles) -> Option<Self> {
        if files.templates.is_empty() {
            return None;
        }
        let tokens =
            TOKEN_NAMES.iter().filter_map(|&name| Some((name.to_owned(), Value::from(files.special_token(name)?))));
        Some(Self {
            environment: compile(&files.templates).map_err(|error| describe(&error)),
            tokens: tokens.collect(),
            source: files.templates.iter().map(|(_, source)| source.as_str()).collect::<Vec<_>>().join("\n").into(),
        })
    }

    /// A template alone, with its special tokens by name (`bos_token`, `eos_token`, ...).
    ///
    /// # Errors
    /// [`TextError::Template`] if it cannot be compiled.
    pub fn new(source: &str, tokens: &[(&str, &str)]) -> Result<Self, TextError> {
        let environment = compile(&[("default".to_owned(), source.to_owned())])
            .map_err(|error| TextError::Template(describe(&error)))?;
        let tokens = tokens.iter().map(|&(name, token)| (name.to_owned(), Value::from(token))).collect();
        Ok(Self { environment: Ok(environment), tokens, source: source.into() })
    }

    /// Whether the template says `name` anywhere: one that never does has no use for the variable or field of that name.
    pub fn mentions(&self, name: &str) -> bool {
        self.source.contains(name)
    }

    /// Renders the prompt of a conversation.
    ///
    /// # Errors
    /// [`TextError::Template`]: the template does not compile, refuses the conversation, or takes too long.
    pub fn render(&self, input: &ChatInput<'_>) -> Result<String, TextError> {
        let environment = self.environment.as_ref().map_err(|reason| TextError::Template(reason.clone()))?;
        let mut context = self.tokens.clone();
        context.insert("messages".to_owned(), Value::from(Serde(input.messages)));
        context.insert("tools".to_owned(), Value::from(Serde(input.tools)));
        context.insert("documents".to_owned(), Value::from(()));
        context.insert("add_generation_prompt".to_owned(), Value::from(input.add_generation_prompt));
        for (name, value) in input.kwargs {
            context.insert(name.clone(), Value::from(Serde(value)));
        }
        let with_tools = input.tools.is_some().then(|| environment.get_template("tool_use").ok()).flatten();
        with_tools
            .map_or_else(|| environment.get_template("default"), Ok)
            .and_then(|template| template.render(Value::from(context)))
            .map_err(|error| TextError::Template(describe(&error)))
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

fn compile(templates: &[(String, String)]) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_fuel(Some(FUEL));
    environment.add_filter("tojson", json::tojson);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: &str| clock::strftime(format, std::time::SystemTime::now()));
    for (name, source) in templates {
        environment.add_template_owned(name.clone(), without_generation_tags(source))?;
    }
    Ok(environment)
}

/// Says what went wrong and where, without the chain of sources below it.
fn describe(error: &Error) -> String {
    let reason = match error.detail() {
        // What a template itself says through `raise_exception` stands alone.
        Some(detail) if error.kind() == ErrorKind::InvalidOperation => detail.to_owned(),
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => format!("{reason} (line {line})"),
        None => reason,
    }
}

/// Makes the tags `generation` and `endgeneration`, which mark what a model is trained on, into tags without effect. Their whitespace control stays.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let (before, tag) = rest.split_at(open);
        out.push_str(before);
        let Some(close) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(close);
        match tag[2..].trim_matches(['-', '+', ' ', '\t', '\n', '\r']) {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}
