"""huggingface_hub's InferenceClient, as people use it with a text-generation-inference endpoint."""

import json
import re

import pytest
from huggingface_hub import InferenceClient

from conftest import PROMPT


@pytest.fixture
def client(url) -> InferenceClient:
    return InferenceClient(url)


def test_text_generation(client):
    text = client.text_generation(PROMPT, max_new_tokens=20)
    assert text.strip()
    assert client.text_generation(PROMPT, max_new_tokens=20, return_full_text=True) == PROMPT + text


def test_text_generation_with_details(client):
    output = client.text_generation(PROMPT, max_new_tokens=12, details=True, top_n_tokens=2)
    assert output.details.generated_tokens == 12 and output.details.finish_reason == "length"
    assert "".join(token.text for token in output.details.tokens) == output.generated_text
    for token, top in zip(output.details.tokens, output.details.top_tokens):
        assert top[0]["id"] == token.id and top[0]["logprob"] >= top[1]["logprob"]


def test_text_generation_stream(client):
    whole = client.text_generation(PROMPT, max_new_tokens=20)
    assert "".join(client.text_generation(PROMPT, max_new_tokens=20, stream=True)) == whole
    events = list(client.text_generation(PROMPT, max_new_tokens=20, stream=True, details=True))
    assert events[-1].generated_text == whole
    assert events[-1].details.generated_tokens == len(events) == 20
    assert events[-1].details.finish_reason == "length"


def test_stop_sequence(client):
    output = client.text_generation(PROMPT, max_new_tokens=100, stop=["\n"], details=True)
    assert output.details.finish_reason == "stop_sequence"
    assert output.generated_text.count("\n") == 1


def test_seeded_sampling_repeats(client):
    draw = lambda seed: client.text_generation(PROMPT, max_new_tokens=20, do_sample=True, temperature=1.5, seed=seed)
    assert draw(7) == draw(7)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_chat_completion(client):
    messages = [{"role": "user", "content": "a function that adds two numbers"}]
    answer = client.chat_completion(messages, max_tokens=16, temperature=0)
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.completion_tokens <= 16
    pieces = client.chat_completion(messages, max_tokens=16, temperature=0, stream=True)
    text = "".join(choice.delta.content or "" for piece in pieces for choice in piece.choices)
    assert text == answer.choices[0].message.content


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 10}, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["name", "age"],
}


def check_person(text):
    person = json.loads(text)
    assert list(person) == ["name", "age"] and len(person["name"]) <= 10 and 0 <= person["age"] <= 120


def test_grammar(client):
    check_person(client.text_generation(PROMPT, max_new_tokens=100, grammar={"type": "json", "value": SCHEMA}))
    text = client.text_generation(PROMPT, max_new_tokens=20, grammar={"type": "regex", "value": "[a-c]{3}-[0-9]+"})
    assert re.fullmatch("[a-c]{3}-[0-9]+", text)
    with pytest.raises(Exception, match="grammar is not valid"):
        client.text_generation(PROMPT, grammar={"type": "regex", "value": "("})


def test_response_format(client):
    response_format = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    answer = client.chat_completion([{"role": "user", "content": "who?"}], max_tokens=100, response_format=response_format)
    check_person(answer.choices[0].message.content)


def test_tools(client):
    tools = [{"type": "function", "function": {"name": "meet", "description": "meet someone", "parameters": SCHEMA}}]
    request = dict(messages=[{"role": "user", "content": "meet Ada"}], tools=tools, tool_choice="required", max_tokens=200, seed=3)
    answer = client.chat_completion(**request)
    [call] = answer.choices[0].message.tool_calls
    assert call.function.name == "meet" and answer.choices[0].finish_reason == "tool_calls"
    check_person(call.function.arguments)
    pieces = list(client.chat_completion(**request, stream=True))
    assert pieces[-1].choices[0].finish_reason == "tool_calls"
    calls = [call_piece for piece in pieces for choice in piece.choices for call_piece in choice.delta.tool_calls or []]
    assert "".join(piece.function.arguments for piece in calls) == call.function.arguments


def test_watermark(client):
    assert client.text_generation(PROMPT, max_new_tokens=20, watermark=True).strip()


def test_mistake_reaches_the_user(client):
    with pytest.raises(Exception, match="temperature"):
        client.text_generation(PROMPT, temperature=-1.0)


def test_every_parameter_of_text_generation(client):
    output = client.text_generation(
        "unused\n" + PROMPT, details=True, decoder_input_details=True, do_sample=True, frequency_penalty=0.1, max_new_tokens=8,
        repetition_penalty=1.1, return_full_text=False, seed=3, stop=["never seen"], temperature=0.8, top_k=20, top_n_tokens=3,
        top_p=0.95, truncate=4, typical_p=0.9, watermark=False, stream=False,
    )
    details = output.details
    assert details.seed == 3 and details.generated_tokens == len(details.tokens) == len(details.top_tokens) <= 8
    assert len(details.prefill) == 4 and details.prefill[0].logprob is None
    assert all(token.logprob <= 0 for token in details.prefill[1:])
    assert all(len(top) == 3 for top in details.top_tokens)
    best = client.text_generation(PROMPT, details=True, do_sample=True, temperature=1.5, best_of=2, max_new_tokens=8).details
    mean = lambda sequence: sum(token.logprob for token in sequence.tokens) / len(sequence.tokens)
    assert mean(best) >= mean(best.best_of_sequences[0])


def test_endpoint_info_and_health(url):
    client = InferenceClient(url, provider="hf-inference")
    info = client.get_endpoint_info()
    assert info["max_input_tokens"] < info["max_total_tokens"] and info["version"].startswith("3.3")
    assert client.health_check() is True


def test_mistakes_of_a_stream_are_of_their_kind(client):
    from huggingface_hub.errors import ValidationError
    with pytest.raises(ValidationError, match="top_p"):
        list(client.text_generation(PROMPT, stream=True, top_p=7.0))
