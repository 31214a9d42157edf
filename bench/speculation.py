#!/usr/bin/env python3
"""What speculation brings on this machine: the demo model completes held-out code, with and without it, side by side.

    cargo build --release
    python3 bench/speculation.py --out bench/runs/NAME/speculation.json

Prompts are cut out of models/demo/heldout.txt, files of the Python standard library that the model was not trained on. Two servers run,
one with `--speculate`, one without; they take turns, so that a busy machine slows both. Every answer is compared: tokens and
log-probabilities must be the same. Only the standard library is needed.

Read with care: a small model that completes greedily soon repeats itself, which is what n-gram speculation guesses best. The rows with
a temperature show text that repeats itself less.
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RELEASE = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
SAMPLING = {"greedy": {}, "temperature 0.2": {"do_sample": True, "temperature": 0.2},
            "temperature 0.8, top-p 0.95": {"do_sample": True, "temperature": 0.8, "top_p": 0.95}}
START_TIMEOUT_S = 120
REQUEST_TIMEOUT_S = 300


@contextmanager
def server(args: argparse.Namespace, speculate: int):
    """A server on a free port: its address."""
    model = ["--model-id", args.model_id] if args.model_id else []
    command = [args.pelton, "serve", "--port", "0", "--speculate", str(speculate), *model]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"RUST_LOG": "error"})
    watchdog = threading.Timer(START_TIMEOUT_S, process.kill)
    watchdog.start()
    try:
        for line in process.stdout:
            if match := re.search(r"is served on (http://\S+)", line):
                break
        else:
            raise RuntimeError("the server ended before it served")
        watchdog.cancel()
        yield match.group(1)
    finally:
        watchdog.cancel()
        process.terminate()
        process.wait(timeout=60)


def complete(url: str, prompt: str, seed: int, tokens: int, sampling: dict) -> list:
    """The tokens of one answer, each with its log-probability."""
    parameters = {"max_new_tokens": tokens, "details": True, "seed": seed, **sampling}
    body = json.dumps({"inputs": prompt, "parameters": parameters}).encode()
    request = urllib.request.Request(f"{url}/generate", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as answer:
        return [(token["id"], token["logprob"]) for token in json.load(answer)["details"]["tokens"]]


def counters(url: str) -> dict:
    """Steps, guesses and accepted guesses so far."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=REQUEST_TIMEOUT_S) as answer:
        text = answer.read().decode()
    names = {"steps": "pelton:steps_total", "drafts": "vllm:spec_decode_num_drafts_total",
             "drafted": "vllm:spec_decode_num_draft_tokens_total", "accepted": "vllm:spec_decode_num_accepted_tokens_total"}
    return {short: float(re.search(rf"^{name}\{{[^}}]*\}} (\S+)", text, re.M).group(1)) for short, name in names.items()}


def load(url: str, users: int, prompts: list, tokens: int, sampling: dict) -> dict:
    """All prompts, each user one after the other: answers, seconds, and what the server counted."""
    before, answers, waiting, lock = counters(url), [None] * len(prompts), iter(range(len(prompts))), threading.Lock()
    failures = []

    def user() -> None:
        while True:
            with lock:
                index = next(waiting, None)
            if index is None or failures:
                return
            try:
                answers[index] = complete(url, prompts[index], index + 1, tokens, sampling)
            except Exception as error:  # Told by the main thread.
                failures.append(error)

    threads = [threading.Thread(target=user) for _ in range(users)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - begin
    if failures:
        raise failures[0]
    after = counters(url)
    return {"answers": answers, "seconds": seconds, "tokens": sum(map(len, answers)),
            **{name: after[name] - before[name] for name in after}}


def cut_prompts(path: Path, count: int) -> list:
    """Pieces of 600 to 1,800 characters from random lines on; the comment at the top, which names the files, is left out."""
    lines = path.read_text().split("\n")
    first = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    rng = random.Random(1)
    starts = [rng.randrange(first, len(lines) - 80) for _ in range(count)]
    return ["\n".join(lines[start:start + 80])[:rng.randrange(600, 1800)] for start in starts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pelton", default=RELEASE / "pelton", type=Path)
    parser.add_argument("--model-id", help="default: the demo model")
    parser.add_argument("--speculate", default=8, type=int, help="guessed tokens (default: 8)")
    parser.add_argument("--users", default="1,4,16", help="numbers of users (default: 1,4,16)")
    parser.add_argument("--prompts", default=48, type=int, help="prompts of each round (default: 48)")
    parser.add_argument("--tokens", default=96, type=int, help="tokens of each answer (default: 96)")
    parser.add_argument("--rounds", default=3, type=int, help="rounds of each case (default: 3)")
    parser.add_argument("--text", default=ROOT / "models/demo/heldout.txt", type=Path, help="where prompts are cut from")
    parser.add_argument("--out", type=Path, help="raw rows as JSON")
    args = parser.parse_args()
    prompts = cut_prompts(args.text, args.prompts)
    rows, equal = [], True
    print(f"{args.prompts} prompts, {args.tokens} tokens each, --speculate {args.speculate}, {args.rounds} rounds\n")
    print("| sampling | users | tokens/s without | with | speed-up | accepted of guessed | tokens per sequence and step | equal |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    with server(args, 0) as plain, server(args, args.speculate) as guessing:
        for url in (plain, guessing):
            load(url, 4, prompts[:8], 16, {})
        for name, sampling in SAMPLING.items():
            for users in map(int, args.users.split(",")):
                pairs = []
                for _ in range(args.rounds):
                    pairs.append([load(url, users, prompts, args.tokens, sampling) for url in (plain, guessing)])
                rate = [statistics.median(pair[side]["tokens"] / pair[side]["seconds"] for pair in pairs) for side in (0, 1)]
                speed_up = statistics.median(pair[0]["seconds"] / pair[1]["seconds"] for pair in pairs)
                drafted, accepted, tokens = (sum(pair[1][key] for pair in pairs) for key in ("drafted", "accepted", "tokens"))
                same = all(pair[0]["answers"] == pair[1]["answers"] for pair in pairs)
                equal &= same
                print(f"| {name} | {users} | {rate[0]:.0f} | {rate[1]:.0f} | {speed_up:.2f} | {accepted / max(drafted, 1):.2f} | "
                      f"{tokens / (tokens - accepted):.2f} | {'yes' if same else 'NO'} |", flush=True)
                for index, pair in enumerate(pairs):
                    for speculate, run in zip((0, args.speculate), pair):
                        rows.append({"sampling": name, "users": users, "round": index, "speculate": speculate,
                                     **{key: value for key, value in run.items() if key != "answers"}})
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(rows, indent=1) + "\n")
    if not equal:
        sys.exit("answers differ")


if __name__ == "__main__":
    main()
