#!/usr/bin/env python3
"""What formats of weights and of the KV cache cost in quality: the table of docs/quality.md.

    cargo build --release
    python3 bench/quality.py --out bench/runs/DATE-MACHINE-quality

The demo model predicts held-out text in each format. Formats that look at activations are calibrated with the first 50,000 bytes of it, and all of
them are measured on the rest. Only Python's standard library is needed; it takes some ten minutes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PELTON = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "pelton"
DEMO = ROOT / "models" / "demo"
CALIBRATION_BYTES = 50_000

# Name, what `pelton quantize` is told (nothing: the model as it is), what `pelton eval perplexity` is told.
FORMATS = [
    ("float32", None, ["--dtype", "float32"]),
    ("bfloat16", None, []),
    ("float16", None, ["--dtype", "float16"]),
    ("fp8 (e4m3)", None, ["--quantize", "fp8"]),
    ("int8", None, ["--quantize", "int8"]),
    ("gptq 8 bits, rows", ["--format", "gptq", "--bits", "8", "--group-size", "-1"], []),
    ("gptq 4 bits, groups of 64", ["--format", "gptq", "--group-size", "64"], []),
    ("gptq 4 bits, groups of 64, act-order", ["--format", "gptq", "--group-size", "64", "--act-order"], []),
    ("gptq 4 bits, groups of 32", ["--format", "gptq", "--group-size", "32"], []),
    ("awq 4 bits, groups of 64", ["--format", "awq", "--group-size", "64"], []),
    ("awq 4 bits, groups of 32", ["--format", "awq", "--group-size", "32"], []),
    ("nf4, blocks of 64", None, ["--quantize", "bitsandbytes-nf4"]),
    ("fp4, blocks of 64", None, ["--quantize", "bitsandbytes-fp4"]),
    ("int4 to nearest, groups of 64", ["--format", "int4", "--group-size", "64"], []),
    ("int4 to nearest, groups of 32", ["--format", "int4", "--group-size", "32"], []),
    ("`--quantize int4` (vocabulary int8)", None, ["--quantize", "int4"]),
    ("KV cache int8", None, ["--kv-cache-dtype", "int8"]),
    ("int8, KV cache int8", None, ["--quantize", "int8", "--kv-cache-dtype", "int8"]),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for raw rows")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    text = (DEMO / "heldout.txt").read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "calibration.txt").write_text(text[:CALIBRATION_BYTES].decode(errors="ignore"))
        (folder / "rest.txt").write_text(text[CALIBRATION_BYTES:].decode(errors="ignore"))
        print("| format | weights, MB | perplexity | above float32 | 95 % interval |\n| --- | --- | --- | --- | --- |")
        reference = None
        for number, (name, quantize, arguments) in enumerate(FORMATS):
            model = DEMO
            if quantize:
                model = folder / str(number)
                calibration = [] if "int4" in quantize else ["--calibration", folder / "calibration.txt"]
                subprocess.run([PELTON, "quantize", DEMO, model, *quantize, *calibration, "--quiet"], check=True, stdout=subprocess.DEVNULL)
            run = args.out / (name.strip("`-").translate(str.maketrans(" ,()`", "-____")) + ".json")
            against = ["--against", reference] if reference else []
            command = [PELTON, "eval", "perplexity", "--model-id", model, "--text", folder / "rest.txt", "--context", "512", "--quiet", "--output", run]
            told = subprocess.run([*command, *arguments, *against], check=True, text=True, stdout=subprocess.PIPE).stdout
            report = json.loads(run.read_text())
            above, _, interval = told.partition("against ")[2].rpartition(", 95 % interval ")
            percent = above.rpartition(": ")[2].split(" (")[0] if above else ""
            print(f"| {name} | {report['model']['weights_bytes'] / 1e6:.2f} | {report['perplexity']:.3f} | {percent} | {interval.split(':')[0].strip()} |")
            sys.stdout.flush()
            reference = reference or run


if __name__ == "__main__":
    main()
