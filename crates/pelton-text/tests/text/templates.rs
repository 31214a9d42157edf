//! Chat templates of the shapes that models ship.

use crate::samples;
use pelton_text::{ChatInput, ChatTemplate, TextError, TextModel};
use serde_json::{Map, Value, json};

fn render(template: &str, messages: Value, add_generation_prompt: bool) -> Result<String, TextError> {
    render_with(template, messages, None, add_generation_prompt, json!({}))
}

fn render_with(
    template: &str,
    messages: Value,
    tools: Option<Value>,
    add_generation_prompt: bool,
    kwargs: Value,
) -> Result<String, TextError> {
    let template = ChatTemplate::new(template, &[("bos_token", "<s>"), ("eos_token", "</s>")])?;
    input(&template, messages, tools, add_generation_prompt, kwargs)
}

fn input(
    template: &ChatTemplate,
    messages: Value,
    tools: Option<Value>,
    add_generation_prompt: bool,
    kwargs: Value,
) -> Result<String, TextError> {
    let (messages, empty) = (messages.as_array().cloned().unwrap_or_default(), Map::new());
    let kwargs = kwargs.as_object().unwrap_or(&empty);
    template.render(&ChatInput { messages: &messages, tools: tools.as_ref(), add_generation_prompt, kwargs })
}

fn conversation() -> Value {
    json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Hi <b> & \"you\" "},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"},
    ])
}

/// Llama 2's shape: the system message goes into the first turn, roles must alternate.
const LLAMA_2: &str = concat!(
    r"{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}",
    r"{% set system = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}",
    r"{% set system = false %}{% endif %}{% for message in loop_messages %}",
    r"{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}",
    r"{% if loop.index0 == 0 and system != false %}",
    r"{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message['content'] %}{% else %}",
    r"{% set content = message['content'] %}{% endif %}",
    r"{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}",
    r"{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}",
    r"{% endfor %}",
);

#[test]
fn llama_2() {
    let expected =
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hi <b> & \"you\" [/INST] Hello. </s><s>[INST] Bye [/INST]";
    assert_eq!(render(LLAMA_2, conversation(), true).expect("roles alternate"), expected);
    let error =
        render(LLAMA_2, json!([{"role": "assistant", "content": "a"}]), true).expect_err("roles do not alternate");
    assert_eq!(error.to_string(), "chat template: roles must alternate (line 1)");
}

/// Llama 3's shape: headers, a date, tools as indented JSON.
const LLAMA_3: &str = r#"{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\n\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"#;

#[test]
fn llama_3() {
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}, "required": []}}]);
    let messages = json!([{"role": "user", "content": " a "}]);
    let kwargs = json!({"date_string": "26 Jul 2024"});
    let rendered = render_with(LLAMA_3, messages, Some(tools), true, kwargs).expect("the template fits");
    let expected = "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n\
        {\n    \"type\": \"function\",\n    \"function\": {\n        \"name\": \"f\",\n        \"parameters\": {},\n        \"required\": []\n    }\n}\n\n\
        <|eot_id|><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n";
    assert_eq!(rendered, expected);

    let today = render(LLAMA_3, json!([{"role": "user", "content": "a"}]), false).expect("the template fits");
    let date = today.split("Today Date: ").nth(1).and_then(|rest| rest.split('\n').next()).expect("a date");
    assert!(date.len() == 11 && date.contains(" 20"), "{date}");
}

/// Qwen's shape of ChatML: tools as one line of JSON each, namespaces, thinking stripped from history.
const CHATML: &str = r##"{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {{- "# Tools\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- endif %}
{%- set ns = namespace(last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.last_query_index = index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content or '' %}
    {%- if message.role == 'assistant' and '</think>' in content and loop.index0 < ns.last_query_index %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\n' + content }}
    {%- for tool_call in message.tool_calls or [] %}
        {{- '\n<tool_call>' ~ tool_call.function.name ~ ' ' ~ tool_call.function.arguments | tojson ~ '</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"##;

#[test]
fn chatml_with_tools_and_thinking() {
    let messages = json!([
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>hm</think>\n\nb"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1.0, "é": ["<"]}}}]},
    ]);
    let tools = json!([{"type": "function", "z": 1, "a": [true, null]}]);
    let rendered =
        render_with(CHATML, messages, Some(tools), true, json!({"enable_thinking": false})).expect("the template fits");
    let expected = "<|im_start|>system\n# Tools\n<tools>\n{\"type\": \"function\", \"z\": 1, \"a\": [true, null]}\n</tools><|im_end|>\n\
        <|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n\
        <|im_start|>assistant\n\n<tool_call>f {\"x\": 1.0, \"é\": [\"<\"]}</tool_call><|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";
    assert_eq!(rendered, expected);
}

/// Mistral's shape: filters over the conversation, tools before the last question.
const MISTRAL: &str = r#"{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] " + (tools | tojson) + "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
"#;

#[test]
fn mistral() {
    let rendered = render(MISTRAL, conversation(), true).expect("the template fits");
    assert_eq!(rendered, "<s>[INST]  Hi <b> & \"you\" [/INST] Hello.</s>[INST] Be brief.\n\nBye[/INST]");
    let rendered =
        render_with(MISTRAL, conversation(), Some(json!([{"f": 1}])), true, json!({})).expect("the template fits");
    assert!(rendered.contains("[AVAILABLE_TOOLS] [{\"f\": 1}][/AVAILABLE_TOOLS][INST] Be brief."), "{rendered}");
    let error = render(MISTRAL, json!([{"role": "user", "content": "a"}, {"role": "robot", "content": "b"}]), true)
        .expect_err("unknown role");
    assert!(error.to_string().contains("Only user and assistant roles are supported"), "{error}");
}

/// Zephyr's shape: blocks on lines of their own, which must not leave their line ends.
const ZEPHYR: &str = "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n\
    {% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n\
    {% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n\
    {% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}";

#[test]
fn zephyr() {
    let messages = json!([{"role": "system", "content": ""}, {"role": "user", "content": "a"}]);
    assert_eq!(
        render(ZEPHYR, messages, true).expect("the template fits"),
        "<|system|>\n</s>\n<|user|>\na</s>\n<|assistant|>\n"
    );
}

#[test]
fn generation_tags_have_no_effect_but_their_whitespace_control() {
    let template = concat!(
        "{% for m in messages %}\n  {%- generation -%}\n  {{ m.content }}\n  {%- endgeneration %}\n",
        "|{% generation %}x{% endgeneration %}{% endfor %}",
    );
    assert_eq!(render(template, json!([{"content": "a"}]), false).expect("the template fits"), "a|x");
    assert_eq!(
        render("{{ 'generation' }}{# {% generation %} #}", json!([]), false).expect("the template fits"),
        "generation"
    );
}

#[test]
fn json_is_written_as_python_writes_it() {
    let json = |filter: &str| {
        let template = format!("{{{{ value|tojson{filter} }}}}");
        let kwargs = json!({"value": {"b": [1, 2.5, "é<\n'"], "a": {}, "c": []}});
        render_with(&template, json!([]), None, false, kwargs)
    };
    let ok = |filter| json(filter).expect("the filter takes this");
    assert_eq!(ok(""), r#"{"b": [1, 2.5, "é<\n'"], "a": {}, "c": []}"#);
    assert_eq!(ok("(ensure_ascii=true)"), r#"{"b": [1, 2.5, "\u00e9<\n'"], "a": {}, "c": []}"#);
    assert_eq!(ok("(sort_keys=true, separators=(',', ':'))"), r#"{"a":{},"b":[1,2.5,"é<\n'"],"c":[]}"#);
    assert_eq!(ok("(indent=2)"), "{\n  \"b\": [\n    1,\n    2.5,\n    \"é<\\n'\"\n  ],\n  \"a\": {},\n  \"c\": []\n}");
    assert!(json("(separators=[','])").is_err());
    assert!(json("(colour=1)").is_err());
}

#[test]
fn templates_that_would_not_end_are_stopped() {
    let nested = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
    let error = render(nested, json!([]), false).expect_err("the template takes too long");
    assert!(error.to_string().contains("fuel"), "{error}");
    let recursion = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    assert!(matches!(render(recursion, json!([]), false), Err(TextError::Template(_))));
}

#[test]
fn broken_templates_say_where() {
    let error = ChatTemplate::new("a\n{% if %}", &[]).expect_err("the template is broken");
    assert!(error.to_string().ends_with("(line 2)"), "{error}");
    let files = [
        ("tokenizer.json", samples::words().to_string()),
        ("tokenizer_config.json", json!({"chat_template": "{% if %}"}).to_string()),
    ];
    let model = samples::with_files(&files).expect("completions work without a template");
    let template = model.chat_template().expect("there is one");
    assert!(input(template, json!([]), None, false, json!({})).is_err());
}

#[test]
fn templates_are_found_in_each_file_and_the_tool_template_is_used_for_tools() {
    let load = |more: &[(&str, String)]| {
        let mut files = vec![("tokenizer.json", samples::words().to_string())];
        files.extend_from_slice(more);
        samples::with_files(&files).expect("the files are valid")
    };
    let rendered = |model: &TextModel, tools| {
        let template = model.chat_template().expect("there is a template");
        input(template, json!([]), tools, false, json!({})).expect("the template fits")
    };
    assert!(load(&[]).chat_template().is_none());

    let list = json!({
        "bos_token": {"content": "<s>"},
        "chat_template": [{"name": "default", "template": "plain {{ bos_token }}"}, {"name": "tool_use", "template": "tools"}],
    });
    let mut files = vec![("tokenizer_config.json", list.to_string())];
    assert_eq!(rendered(&load(&files), None), "plain <s>");
    assert_eq!(rendered(&load(&files), Some(json!([]))), "tools");
    files.push(("chat_template.json", json!({"chat_template": "from json"}).to_string()));
    assert_eq!(rendered(&load(&files), None), "from json");
    files.push(("chat_template.jinja", "from jinja".to_owned()));
    assert_eq!(rendered(&load(&files), None), "from jinja");
}

#[test]
fn the_built_in_template_is_chatml() {
    let model = TextModel::bytes();
    let template = model.chat_template().expect("there is one");
    let rendered =
        input(template, json!([{"role": "user", "content": "Hi"}]), None, true, json!({})).expect("the template fits");
    assert_eq!(rendered, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}
