#!/usr/bin/env python3
"""Load time, memory and rates of checkpoints: the table of docs/measurements.md on real shapes.

    cargo build --release
    python3 bench/shapes.py --out bench/runs/DATE-MACHINE-families NAME=FOLDER[:ARGUMENTS] ...

Each NAME=FOLDER is served once a pass (time until it is ready, the largest memory it needed), then `pelton bench engine` measures it: a prefill of 256
tokens, decode steps for 1 and 32 sequences behind it. Passes take turns, and the table has their medians. Only Python's standard library is needed.

    python3 bench/shapes.py --out OUT codegen-350m-bf16=/tmp/codegen-350m codegen-350m-int8=/tmp/codegen-350m:--quantize,int8
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PELTON = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "pelton"


def start(folder: str, arguments: list[str]) -> dict:
    """Serves the checkpoint until it is ready: seconds, and the largest resident set by then, KV cache included as far as it is touched."""
    begin = time.monotonic()
    command = [PELTON, "serve", "--port", "0", "--model-id", folder, "--max-total-tokens", "2048", *arguments]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        for line in server.stdout:
            if re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            raise SystemExit(f"{folder} did not start")
        seconds = time.monotonic() - begin
        status = Path(f"/proc/{server.pid}/status").read_text()
        return {"load_s": round(seconds, 2), "peak_mb": round(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1e3)}
    finally:
        server.terminate()
        server.wait(timeout=30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", metavar="NAME=FOLDER[:ARGUMENTS]")
    parser.add_argument("--out", type=Path, required=True, help="folder for raw rows")
    parser.add_argument("--passes", type=int, default=3)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoints = []
    for checkpoint in args.checkpoints:
        name, _, place = checkpoint.partition("=")
        folder, _, arguments = place.partition(":")
        checkpoints.append((name, folder, arguments.split(",") if arguments else []))
    rows = {name: [] for name, *_ in checkpoints}
    for number in range(args.passes):
        for name, folder, arguments in checkpoints:
            row = start(folder, arguments)
            report = args.out / f"{name}.{number}.json"
            command = [PELTON, "bench", "engine", "--model-id", folder, *arguments, "--batch", "1,32", "--input-tokens", "256",
                       "--output-tokens", "8", "--rounds", "3", "--quiet", "--output", report]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            run = json.loads(report.read_text())
            rates = {(case["case"], case.get("batch")): case["tokens_per_s"] for case in run["cases"]}
            row |= {"weights_mb": run["model"]["weights_bytes"] / 1e6, "memory_gb_s": run["memory_bytes_per_s"] / 1e9,
                    "prefill": rates["prefill", None], "decode_1": rates["decode", 1], "decode_32": rates["decode", 32]}
            print(f"pass {number + 1}: {name} {row}", file=sys.stderr, flush=True)
            rows[name].append(row)
    (args.out / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")
    print("| checkpoint | load, s | memory, MB | weights, MB | prefill, tokens/s | 1 sequence | 32 sequences |\n| --- | --- | --- | --- | --- | --- | --- |")
    for name, passes in rows.items():
        median = {key: statistics.median(row[key] for row in passes) for key in passes[0]}
        print("| {} | {load_s:.1f} | {peak_mb:.0f} | {weights_mb:.0f} | {prefill:.0f} | {decode_1:.1f} | {decode_32:.0f} |".format(name, **median))


if __name__ == "__main__":
    main()
