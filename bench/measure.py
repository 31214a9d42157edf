#!/usr/bin/env python3
"""Measures what docs/measurements.md tells, on this machine, and keeps the raw rows. Nothing else should run meanwhile.

    cargo build --release
    python3 bench/random_checkpoint.py tinyllama-1.1b /tmp/tinyllama
    python3 bench/measure.py --checkpoint /tmp/tinyllama --out bench/runs/NAME

Only the standard library is needed. Each case starts a server of its own, so that no prefix cache helps the next one.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RELEASE = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
PELTON = RELEASE / "pelton"
START_TIMEOUT_S = 120


@contextmanager
def server(*arguments: str):
    """A server on a free port: its address and process id."""
    process = subprocess.Popen([PELTON, "serve", "--port", "0", *arguments], stdout=subprocess.PIPE, text=True,
                               env=os.environ | {"RUST_LOG": "warn"})
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        for line in process.stdout:
            if match := re.search(r"is served on (http://\S+)", line):
                break
            if time.monotonic() > deadline:
                raise RuntimeError("the server did not start in time")
        else:
            raise RuntimeError("the server ended before it served")
        yield match.group(1), process.pid
    finally:
        process.terminate()
        process.wait(timeout=60)


def bench(url: str, output: Path, *arguments: str) -> dict:
    """One run of the load tool; its report is kept in `output`."""
    command = [PELTON, "bench", "--url", url, "--quiet", "--seed", "1", "--output", output, *arguments]
    subprocess.run(command, check=True, timeout=1800)
    return json.loads(output.read_text())


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_bytes(pid: int) -> int:
    """Greatest resident memory of a process so far."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()).group(1))


def kernels(args: argparse.Namespace) -> None:
    """What the machine gives, and each kernel's share of it."""
    report = subprocess.run([PELTON, "kernels", "--json"], check=True, stdout=subprocess.PIPE).stdout
    (args.out / "kernels.json").write_bytes(report)
    for row in json.loads(report)["kernels"]:
        print(f"{row['kernel']:>8} {row['size']}, {row['rows']} rows: {row['share']:.2f} of {row['bound']}", flush=True)


def engine(args: argparse.Namespace) -> None:
    """Prefill and decode rates without a server, in bf16, int8 and int4."""
    for name, flags in (("bf16", []), ("int8", ["--quantize", "int8"]), ("int4", ["--quantize", "int4"])):
        print(f"\n== engine, {name}", flush=True)
        subprocess.run([PELTON, "bench", "engine", "--model-id", args.checkpoint, *flags, "--batch", "1,8,32", "--input-tokens", "512",
                        "--quiet", "--output", args.out / f"engine-{name}.json"], check=True, timeout=900)


def sizes(args: argparse.Namespace, name: str, model: list[str], load: dict[int, int]) -> None:
    """512 tokens in, 128 out, at each number of users; `load` says how many requests."""
    for users, requests in load.items():
        with server(*model) as (url, pid):
            print(f"\n== {name}, {users} users", flush=True)
            bench(url, args.out / f"{name}-{users}-users.json", "--api", "openai", "--users", str(users), "--requests",
                  str(requests), "--input-tokens", "512", "--output-tokens", "128", "--timeout", "1500s")
            print(f"peak memory {peak_bytes(pid) / 1e6:.0f} MB", flush=True)


def loading(args: argparse.Namespace) -> None:
    """Peak memory right after loading, against the size of the weights."""
    files = sum(path.stat().st_size for path in Path(args.checkpoint).glob("*.safetensors"))
    begin = time.monotonic()
    with server("--model-id", args.checkpoint) as (_, pid):
        peak = peak_bytes(pid)
        print(f"\n== loading: files {files / 1e6:.0f} MB, peak memory {peak / 1e6:.0f} MB = {peak / files:.3f} of it, "
              f"{time.monotonic() - begin:.1f} s", flush=True)


def own_cost(args: argparse.Namespace) -> None:
    """The server alone: a model that computes nothing, 256 users."""
    for api in ("tgi", "openai"):
        with server("--model-id", "fake", "--max-concurrent-requests", "512", "--max-batch-size", "256",
                    "--max-batch-prefill-tokens", "4096", "--max-total-tokens", "1024") as (url, pid):
            print(f"\n== fake model, 256 users, {api}", flush=True)
            before = cpu_seconds(pid)
            report = bench(url, args.out / f"fake-256-users-{api}.json", "--api", api, "--users", "256", "--requests", "4096",
                           "--input-tokens", "32", "--output-tokens", "256")
            spent = cpu_seconds(pid) - before
            tokens = 4096 * 256
            print(f"server: {spent:.2f} s of CPU for {tokens} tokens, {1e6 * spent / tokens:.2f} us a token", flush=True)
            # A million arrivals are too many to keep; the summary stays.
            for run in report["runs"]:
                del run["rows"]
            (args.out / f"fake-256-users-{api}.json").write_text(json.dumps(report))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="directory of the random 1.1-billion-parameter checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="directory for raw rows")
    parser.add_argument("--only", choices=["kernels", "engine", "loading", "fake", "demo", "tinyllama", "tinyllama-int8"], action="append")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    cases = {
        "kernels": lambda: kernels(args),
        "engine": lambda: engine(args),
        "loading": lambda: loading(args),
        "fake": lambda: own_cost(args),
        "demo": lambda: sizes(args, "demo", [], {1: 8, 8: 48, 32: 128}),
        "tinyllama": lambda: sizes(args, "tinyllama", ["--model-id", args.checkpoint], {1: 2, 8: 8, 32: 32}),
        "tinyllama-int8": lambda: sizes(args, "tinyllama-int8", ["--model-id", args.checkpoint, "--quantize", "int8"],
                                        {1: 2, 8: 8, 32: 32}),
    }
    for name, run in cases.items():
        if not args.only or name in args.only:
            run()
            sys.stdout.flush()


if __name__ == "__main__":
    main()
