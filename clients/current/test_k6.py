"""k6 with our constant-vus script, reading the timing headers of /generate."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "k6" / "constant_vus.js"


def test_constant_virtual_users(url, tmp_path):
    summary = tmp_path / "summary.json"
    k6 = Path(sys.executable).parent / "k6"
    settings = dict(URL=url, VUS=4, DURATION="3s", MAX_NEW_TOKENS=8, SUMMARY=summary)
    flags = [part for name, value in settings.items() for part in ("-e", f"{name}={value}")]
    run = subprocess.run([k6, "run", "--quiet", "--no-usage-report", *flags, SCRIPT], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "| 4 | " in run.stdout
    metrics = json.loads(summary.read_text())["metrics"]
    assert metrics["checks"]["values"]["fails"] == 0
    assert metrics["iterations"]["values"]["count"] >= 4
    assert metrics["generated_tokens"]["values"]["count"] >= 4 * 8
    for name in ("total_time", "validation_time", "queue_time", "inference_time", "time_per_token"):
        assert metrics[name]["values"]["count"] == metrics["checks"]["values"]["passes"] / 2
