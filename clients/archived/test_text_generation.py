"""The `text-generation` package, TGI's own client."""

import asyncio

import pytest
from text_generation import AsyncClient, Client
from text_generation.errors import ValidationError

from conftest import PROMPT


@pytest.fixture
def client(url) -> Client:
    return Client(url, timeout=60)


def test_generate(client):
    answer = client.generate(PROMPT, max_new_tokens=10)
    assert answer.details.generated_tokens == 10
    assert answer.details.finish_reason.value == "length"
    assert "".join(token.text for token in answer.details.tokens) == answer.generated_text


def test_generate_best_of(client):
    answer = client.generate(PROMPT, max_new_tokens=10, do_sample=True, temperature=1.2, best_of=2)
    score = lambda tokens: sum(token.logprob for token in tokens)
    assert len(answer.details.best_of_sequences) == 1
    assert score(answer.details.tokens) >= score(answer.details.best_of_sequences[0].tokens)


def test_generate_stream(client):
    events = list(client.generate_stream(PROMPT, max_new_tokens=10))
    assert "".join(event.token.text for event in events if not event.token.special) == events[-1].generated_text
    assert events[-1].details.generated_tokens == 10


def test_async_client_runs_many_at_once(url):
    async def together():
        client = AsyncClient(url, timeout=60)
        prompts = [f"# {index}\n{PROMPT}" for index in range(8)]
        return await asyncio.gather(*(client.generate(prompt, max_new_tokens=8) for prompt in prompts))

    answers = asyncio.run(together())
    assert all(answer.details.generated_tokens == 8 for answer in answers)


def test_validation_error(client):
    with pytest.raises(ValidationError, match="stop"):
        client.generate(PROMPT, stop_sequences=["x"] * 10_000)


def test_every_parameter_of_generate(client):
    answer = client.generate(
        PROMPT, do_sample=True, max_new_tokens=6, repetition_penalty=1.1, frequency_penalty=0.1, return_full_text=True, seed=5,
        stop_sequences=["never seen"], temperature=0.9, top_k=30, top_p=0.9, truncate=100, typical_p=0.9, watermark=False,
        decoder_input_details=True, top_n_tokens=2,
    )
    assert answer.generated_text.startswith(PROMPT) and answer.details.seed == 5
    assert answer.details.prefill[0].logprob is None and len(answer.details.top_tokens) == answer.details.generated_tokens


def test_chat_and_completion(client):
    from text_generation.types import Message
    answer = client.chat([Message(role="user", content="sort a list")], max_tokens=6, temperature=0.5, top_p=0.9, seed=1)
    assert answer.choices[0].message.role == "assistant" and answer.usage["completion_tokens"] <= 6


def test_unknown_paths_have_their_kind(url):
    from text_generation.errors import NotFoundError
    with pytest.raises(NotFoundError):
        Client(f"{url}/no/such/path", timeout=60).generate(PROMPT)
