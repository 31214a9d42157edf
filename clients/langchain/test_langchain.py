"""langchain-huggingface, as chains use it with a text-generation-inference endpoint."""

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint

from conftest import PROMPT


@pytest.fixture
def model(url) -> HuggingFaceEndpoint:
    """What it sends unless told otherwise: max_new_tokens 512, top_p 0.95, typical_p 0.95, temperature 0.8."""
    return HuggingFaceEndpoint(endpoint_url=url, max_new_tokens=16, seed=7)


def test_invoke_and_batch(model):
    text = model.invoke(PROMPT)
    assert text.strip() and not text.startswith(PROMPT)
    assert model.invoke(PROMPT) == text
    assert model.batch([PROMPT, PROMPT]) == [text, text]


def test_stream_says_the_same(model):
    assert "".join(model.stream(PROMPT)) == model.invoke(PROMPT)


def test_stop_strings_are_cut_by_the_client(model):
    text = model.invoke(PROMPT)
    stop = text.strip()[:3]
    assert stop not in model.invoke(PROMPT, stop=[stop])


def test_chain(model):
    chain = PromptTemplate.from_template("def {name}(n):") | model | StrOutputParser()
    assert chain.invoke({"name": "fibonacci"}) == model.invoke(PROMPT)


def test_chat(model):
    chat = ChatHuggingFace(llm=model, max_tokens=12, temperature=0.0001)
    messages = [SystemMessage("write code"), HumanMessage("count words in a file")]
    answer = chat.invoke(messages)
    assert answer.usage_metadata["output_tokens"] <= 12
    assert "".join(chunk.content for chunk in chat.stream(messages)) == answer.content
