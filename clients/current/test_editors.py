"""Requests as llm-ls sends them, the language server behind llm-vscode and llm.nvim."""

import json
import urllib.error
import urllib.request


def post(url: str, body: dict) -> tuple[int, object]:
    """As llm-ls: a JSON body, and a token in the header whether the server wants one or not."""
    headers = {"Content-Type": "application/json", "Authorization": "Bearer hf_none", "User-Agent": "llm-ls"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


FILL_IN = "<fim_prefix>def add(a, b):\n    <fim_suffix>\n\nprint(add(1, 2))\n<fim_middle>"


def test_the_answer_to_a_completion_is_an_object(url):
    parameters = {"max_new_tokens": 12, "temperature": 0.2, "top_p": 0.95, "do_sample": True, "stop": ["<|endoftext|>"]}
    status, answer = post(f"{url}/generate", {"inputs": FILL_IN, "parameters": parameters | {"return_full_text": False}})
    assert status == 200 and set(answer) == {"generated_text"} and FILL_IN not in answer["generated_text"]


def test_parameters_inside_parameters_change_nothing(url):
    plain = {"inputs": FILL_IN, "parameters": {"max_new_tokens": 8}}
    nested = {"inputs": FILL_IN, "parameters": {"max_new_tokens": 8, "parameters": {"temperature": -1, "max_new_tokens": 60}}}
    assert post(f"{url}/generate", nested) == post(f"{url}/generate", plain)


def test_an_error_is_told_under_its_key(url):
    status, answer = post(f"{url}/generate", {"inputs": "", "parameters": {"return_full_text": False}})
    assert status == 422 and answer["error"] == "Input validation error: `inputs` cannot be empty"


def test_hub_style_backends_read_the_array_of_the_root(url):
    status, answer = post(url, {"inputs": FILL_IN, "parameters": {"max_new_tokens": 4}})
    assert status == 200 and [set(entry) for entry in answer] == [{"generated_text"}]
