"""curl, as a user would type it."""

import json
import subprocess

from conftest import PROMPT


def curl(*arguments: str) -> str:
    return subprocess.run(["curl", "-sS", "--max-time", "60", *arguments], check=True, capture_output=True, text=True).stdout


def post(url: str, body: str, *arguments: str) -> str:
    return curl("-X", "POST", "-H", "Content-Type: application/json", "-d", body, *arguments, url)


def test_the_line_that_the_server_prints_works(server):
    output = subprocess.run(server.example, shell=True, check=True, capture_output=True, text=True, timeout=60).stdout
    assert json.loads(output)["generated_text"].strip()


def test_greedy_answers_are_equal_alone_and_streamed(url):
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 24, "details": True}}
    whole = json.loads(post(f"{url}/generate", json.dumps(body)))
    events = [json.loads(line[5:]) for line in post(f"{url}/generate_stream", json.dumps(body), "-N").splitlines() if line]
    assert "".join(event["token"]["text"] for event in events) == whole["generated_text"]
    assert events[-1]["generated_text"] == whole["generated_text"]
    assert [event["index"] for event in events] == list(range(1, len(events) + 1))
    assert [event["token"]["id"] for event in events] == [token["id"] for token in whole["details"]["tokens"]]


def test_info_health_metrics_and_models(url):
    info = json.loads(curl(f"{url}/info"))
    assert info["max_input_tokens"] < info["max_total_tokens"]
    assert curl("-o", "/dev/null", "-w", "%{http_code}", f"{url}/health") == "200"
    metrics = curl(f"{url}/metrics")
    assert "tgi_request_count" in metrics and "vllm:num_requests_running" in metrics
    assert json.loads(curl(f"{url}/v1/models"))["data"][0]["id"] == info["model_id"]


def test_tokenize_gives_back_the_text(url):
    tokens = json.loads(post(f"{url}/tokenize", json.dumps({"inputs": PROMPT})))
    assert "".join(PROMPT[token["start"]:token["stop"]] for token in tokens) == PROMPT


def test_timing_headers(url):
    body = json.dumps({"inputs": PROMPT, "parameters": {"max_new_tokens": 8}})
    headers = post(f"{url}/generate", body, "-D", "-", "-o", "/dev/null").lower()
    for name in ("x-total-time", "x-validation-time", "x-queue-time", "x-inference-time", "x-time-per-token"):
        assert f"{name}: " in headers
    assert "x-generated-tokens: 8" in headers


def test_mistakes_are_told_by_name(url):
    code = ("-w", "\n%{http_code}")
    for body, word in [
        ('{"inputs":', "json"),
        ('{"inputs": 3}', "inputs"),
        ('{"inputs": ""}', "inputs"),
        ('{"inputs": "x", "parameters": {"temperature": -1}}', "temperature"),
        ('{"inputs": "x", "parameters": {"max_new_tokens": 1000000}}', "max_new_tokens"),
        ('{"inputs": "x", "parameters": {"top_p": 7}}', "top_p"),
        ('{"inputs": "x", "parameters": {"adapter_id": "nobody"}}', "nobody"),
    ]:
        text, status = post(f"{url}/generate", body, *code).rsplit("\n", 1)
        assert status in ("400", "422"), (body, status, text)
        assert word in json.loads(text)["error"].lower(), (body, text)
