"""The `openai` package."""

import json

import openai
import pytest

from conftest import PROMPT


@pytest.fixture
def client(url) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="not-checked", max_retries=0, timeout=60)


@pytest.fixture
def model(client) -> str:
    return client.models.list().data[0].id


def test_completion(client, model):
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=16, temperature=0)
    assert answer.object == "text_completion" and answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 16
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 16


def test_completion_stream(client, model):
    request = dict(model=model, prompt=PROMPT, max_tokens=16, temperature=0)
    whole = client.completions.create(**request).choices[0].text
    chunks = list(client.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 16


def test_choices_seed_and_logprobs(client, model):
    request = dict(model=model, prompt=PROMPT, max_tokens=8, temperature=1.3, n=3, seed=5, logprobs=2)
    first, second = (client.completions.create(**request) for _ in range(2))
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert [choice.text for choice in first.choices] == [choice.text for choice in second.choices]
    assert len({choice.text for choice in first.choices}) > 1
    logprobs = first.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 8
    assert all(value <= 0 for value in logprobs.token_logprobs)


def test_stop_string_is_cut(client, model):
    text = client.completions.create(model=model, prompt=PROMPT, max_tokens=64, temperature=0).choices[0].text
    stop = text[5:9]
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=64, temperature=0, stop=stop)
    assert answer.choices[0].text == text[:text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_ignore_eos_gives_every_token(client, model):
    answer = client.completions.create(model=model, prompt="x", max_tokens=200, temperature=0, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 200


def test_chat(client, model):
    messages = [{"role": "system", "content": "write code"}, {"role": "user", "content": "count words in a file"}]
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=16, temperature=0, logprobs=True,
                                            top_logprobs=2)
    assert answer.id.startswith("chatcmpl-") and answer.choices[0].message.role == "assistant"
    assert len(answer.choices[0].logprobs.content) == answer.usage.completion_tokens
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2


def test_chat_stream(client, model):
    request = dict(model=model, messages=[{"role": "user", "content": "sort a list"}], max_tokens=16, temperature=0)
    whole = client.chat.completions.create(**request).choices[0].message.content
    chunks = list(client.chat.completions.create(**request, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == whole
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


def test_a_name_that_nothing_has_is_the_model(client):
    answer = client.completions.create(model="no-such-model", prompt="x", max_tokens=2)
    assert answer.model == "no-such-model" and answer.usage.completion_tokens == 2
    with pytest.raises(openai.NotFoundError, match="no-such-model"):
        client.models.retrieve("no-such-model")


SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["celsius", "fahrenheit"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "unit", "days"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "forecast", "description": "the weather to come", "parameters": SCHEMA}}]
QUESTION = [{"role": "user", "content": "what will the weather be in Oslo?"}]


def check_arguments(text):
    arguments = json.loads(text)
    assert sorted(arguments) == ["city", "days", "unit"] and 1 <= arguments["days"] <= 9
    assert len(arguments["city"]) <= 12 and arguments["unit"] in ("celsius", "fahrenheit")


def test_response_format_json_schema(client, model):
    response_format = {"type": "json_schema", "json_schema": {"name": "forecast", "schema": SCHEMA, "strict": True}}
    for seed in range(3):
        answer = client.chat.completions.create(model=model, messages=QUESTION, seed=seed, max_tokens=200, response_format=response_format)
        assert answer.choices[0].finish_reason == "stop"
        check_arguments(answer.choices[0].message.content)


def test_guided_choice(client, model):
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=20, extra_body={"guided_choice": ["return n", "pass"]})
    assert answer.choices[0].text in ("return n", "pass")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "forecast"}}])
def test_tool_call(client, model, choice):
    answer = client.chat.completions.create(model=model, messages=QUESTION, tools=TOOLS, tool_choice=choice, max_tokens=200, seed=1)
    assert answer.choices[0].finish_reason == "tool_calls" and answer.choices[0].message.content is None
    [call] = answer.choices[0].message.tool_calls
    assert call.type == "function" and call.function.name == "forecast" and call.id == "0"
    check_arguments(call.function.arguments)
    turns = [*QUESTION, answer.choices[0].message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    after = client.chat.completions.create(model=model, messages=turns, tools=TOOLS, tool_choice="none", max_tokens=8)
    assert after.choices[0].message.tool_calls is None


def test_tool_call_stream(client, model):
    request = dict(model=model, messages=QUESTION, tools=TOOLS, tool_choice="required", max_tokens=200, seed=1)
    whole = client.chat.completions.create(**request).choices[0].message.tool_calls[0]
    chunks = list(client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    assert chunks[-2].choices[0].finish_reason == "tool_calls" and chunks[-1].usage.completion_tokens > 0
    pieces = [piece for chunk in chunks for choice in chunk.choices for piece in choice.delta.tool_calls or []]
    assert pieces[0].function.name == "forecast" and pieces[0].id == whole.id
    assert "".join(piece.function.arguments for piece in pieces) == whole.function.arguments
    with client.chat.completions.stream(**request) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls" and final.message.tool_calls[0].function.arguments == whole.function.arguments


def test_tool_choice_auto_answers_one_way_or_the_other(client, model):
    answer = client.chat.completions.create(model=model, messages=QUESTION, tools=TOOLS, max_tokens=200, seed=1)
    message, reason = answer.choices[0].message, answer.choices[0].finish_reason
    assert (reason == "tool_calls") == bool(message.tool_calls) and (message.content is None) == bool(message.tool_calls)


def test_grammar_and_tools_exclude_each_other(client, model):
    with pytest.raises(openai.UnprocessableEntityError, match="Tool error: Grammar and tools are mutually exclusive"):
        client.chat.completions.create(model=model, messages=QUESTION, tools=TOOLS, response_format={"type": "json_object"})


def test_what_is_not_built_is_refused_by_name(client, model):
    with pytest.raises(openai.BadRequestError, match="functions"):
        client.chat.completions.create(model=model, messages=QUESTION, extra_body={"functions": []})


def test_prompt_too_long_names_limit_and_value(client, model):
    with pytest.raises(openai.BadRequestError, match=r"\d+.*\d+"):
        client.completions.create(model=model, prompt="word " * 20_000, max_tokens=4)
