"""The `openai` package."""

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


def test_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError, match="no-such-model"):
        client.completions.create(model="no-such-model", prompt="x")


def test_what_is_not_built_is_refused_by_name(client, model):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}], tools=tools)


def test_prompt_too_long_names_limit_and_value(client, model):
    with pytest.raises(openai.BadRequestError, match=r"\d+.*\d+"):
        client.completions.create(model=model, prompt="word " * 20_000, max_tokens=4)
