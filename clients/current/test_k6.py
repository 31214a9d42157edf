"""k6 with our scripts, reading the timing headers of /generate; and the same figures from `pelton bench`."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import start, stop

SCRIPTS = Path(__file__).resolve().parents[2] / "bench" / "k6"
TIMINGS = ("total_time", "validation_time", "queue_time", "inference_time", "time_per_token")


def k6(script: str, summary: Path, **settings) -> tuple[str, dict]:
    """Runs a script; gives back what it printed and k6's own summary."""
    settings |= {"SUMMARY": summary}
    flags = [part for name, value in settings.items() for part in ("-e", f"{name}={value}")]
    command = [Path(sys.executable).parent / "k6", "run", "--quiet", "--no-usage-report", *flags, SCRIPTS / script]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout, json.loads(summary.read_text())["metrics"]


def checks(metrics: dict) -> int:
    return metrics["checks"]["values"]["fails"]


@pytest.fixture(scope="module")
def slow():
    """A model whose steps take 10 ms, so that whole milliseconds mean something."""
    running = start("--model-id", "fake", "--fake-step-cost", "10ms", "--max-batch-size", "4")
    yield running.url
    assert stop(running) == 0


def test_constant_virtual_users(url, tmp_path):
    printed, metrics = k6("constant_vus.js", tmp_path / "summary.json", HOST=url, VUS=4, DURATION="3s", MAX_NEW_TOKENS=8, TEMPERATURE=0)
    assert "| VU | time per token (p95) | queue time (p95) |" in printed and "| 4 | " in printed
    assert metrics["failed"]["values"]["passes"] == 0
    answers = metrics["time_per_token"]["values"]["count"]
    assert answers >= 4 and metrics["iterations"]["values"]["count"] == answers
    assert all(metrics[name]["values"]["count"] == answers for name in TIMINGS)


def test_constant_arrival_rate(slow, tmp_path):
    host = slow.removeprefix("http://")
    printed, metrics = k6("constant_arrival_rate.js", tmp_path / "summary.json", HOST=host, RATE=5, VUS=20, DURATION="4s", MAX_NEW_TOKENS=10)
    assert "| rate | time per token (p95) | queue time (p95) |" in printed and "| 5 | " in printed
    assert checks(metrics) == 0
    # The first start is at once; a busy machine may be late with the last.
    assert 15 <= metrics["iterations"]["values"]["count"] <= 21
    assert metrics["generated_tokens"]["values"]["count"] == 10 * metrics["iterations"]["values"]["count"]


def test_a_crossed_threshold_fails(slow, tmp_path):
    with pytest.raises(AssertionError):
        k6("constant_vus.js", tmp_path / "summary.json", HOST=slow, VUS=1, DURATION="1s", MAX_NEW_TOKENS=10, MAX_TIME_PER_TOKEN_MS=5)


def recipe(url: str, users: int, seconds: int, output: Path) -> tuple[str, dict]:
    """`pelton bench recipe vus`: what it printed, and the medians of the server's own times."""
    command = [os.environ["PELTON_BINARY"], "bench", "recipe", "vus", "--quiet", "--url", url, "--users", str(users),
               "--duration", f"{seconds}s", "--output", output]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    rows = [row for row in json.loads(output.read_text())["runs"][0]["rows"] if row["error"] is None]
    assert all(row["output_tokens"] == 60 for row in rows)
    times = [row["server_ms"] for row in rows]
    return run.stdout, {name: statistics.median(time[name] for time in times) for name in ("per_token", "queue", "inference", "total")}


def near(one: float, other: float) -> bool:
    """Within a tenth, or the rounding of both and a step."""
    return abs(one - other) <= max(12, 0.1 * max(one, other))


def test_k6_and_pelton_bench_agree(slow, tmp_path):
    """Eight users of four places: each waits as long as it is served. Other work on the machine slows both: they are asked until it was quiet enough."""
    for attempt in range(5):
        _, metrics = k6("constant_vus.js", tmp_path / "k6.json", HOST=slow, VUS=8, DURATION="6s", MAX_NEW_TOKENS=60)
        assert checks(metrics) == 0
        median = {name: metrics[name]["values"]["med"] for name in TIMINGS}
        table, ours = recipe(slow, 8, 6, tmp_path / "vus.json")
        assert "VU" in table and "time per token (p95)" in table and "queue time (p95)" in table
        pairs = [("queue_time", "queue"), ("inference_time", "inference"), ("total_time", "total")]
        agree = all(near(median[one], ours[other]) for one, other in pairs) and abs(median["time_per_token"] - ours["per_token"]) <= 1
        meaningful = 10 <= ours["per_token"] <= 15 and ours["queue"] > 300
        if agree and meaningful:
            return
    pytest.fail(f"k6 says {median}, pelton bench {ours}")
