"""What every runner speaks: `convert` and `serve`, the latter one JSON line in and one JSON line out.

A runner is a file `run_PEER.py` with a class that has

- `convert(checkpoint, weights, out)`: writes what the peer loads from a Hugging Face checkpoint; `weights` is `bf16` or `int8`;
- `__init__(options)`: loads; `options` has `model`, `weights`, `threads`, `max_batch` and `max_tokens` (of one sequence);
- `facts()`: versions and settings, for the rows;
- `prefill(prompt)`: computes a prompt (token ids) anew, returns the first token of its continuation, and keeps what it computed;
- `decode(batch, num_steps, step_done)`: `batch` sequences continue the prompt of the last `prefill`, greedily, end of text ignored; calls
  `step_done()` after each step that gave every sequence one token, `num_steps` times or until it returns true.

Times are taken here, so that all peers are timed alike.
"""

import argparse
import json
import os
import random
import sys
import time
import traceback
from pathlib import Path

# Ids below are often special.
FIRST_TOKEN = 10


class Stopwatch:
    """Takes the times of steps, and says when there were enough of them."""

    def __init__(self, num_steps: int, max_s: float):
        self.num_steps, self.max_s = num_steps, max_s
        self.began = self.last = None
        self.steps_s = []

    def __call__(self) -> bool:
        now = time.perf_counter()
        if self.last is None:
            # The first step ends the setup (copies of the cache, buffers for this batch size): it is not counted.
            self.began = now
        else:
            self.steps_s.append(now - self.last)
        self.last = now
        # Two steps at least: a limit shall shorten a case, not empty it.
        return len(self.steps_s) >= self.num_steps or (len(self.steps_s) >= 2 and now - self.began > self.max_s)


def answer(peer, request: dict) -> dict:
    """Measures one case."""
    if request["case"] == "prefill":
        prompt = random.Random(request["seed"]).choices(range(FIRST_TOKEN, request["vocab_size"]), k=request["prompt_tokens"])
        cpu, began = time.process_time(), time.perf_counter()
        token = peer.prefill(prompt)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "busy_threads": (time.process_time() - cpu) / seconds, "first_token": int(token)}
    watch = Stopwatch(request["steps"], request["max_s"])
    cpu, began = time.process_time(), time.perf_counter()
    peer.decode(request["batch"], request["steps"] + 1, watch)
    busy_threads = (time.process_time() - cpu) / (time.perf_counter() - began)
    if not watch.steps_s:
        raise RuntimeError("no step was counted")
    return {"steps_s": watch.steps_s, "busy_threads": busy_threads}


def serve(load, options) -> None:
    # Libraries print what they like; the answers have a way of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(what: dict) -> None:
        answers.write(json.dumps(what) + "\n")

    try:
        peer = load(options)
        say(peer.facts())
    except Exception as error:
        traceback.print_exc()
        say({"error": f"{type(error).__name__}: {error}"})
        return
    for line in sys.stdin:
        try:
            say(answer(peer, json.loads(line)))
        except Exception as error:
            traceback.print_exc()
            say({"error": f"{type(error).__name__}: {error}"})


def main(peer) -> None:
    parser = argparse.ArgumentParser(description=peer.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert")
    convert.add_argument("--checkpoint", type=Path, required=True)
    convert.add_argument("--weights", choices=["bf16", "int8"], required=True)
    convert.add_argument("--out", type=Path, required=True)
    run = commands.add_parser("serve")
    run.add_argument("--model", type=Path, required=True)
    run.add_argument("--weights", choices=["bf16", "int8"], required=True)
    run.add_argument("--threads", type=int, required=True)
    run.add_argument("--max-batch", type=int, required=True)
    run.add_argument("--max-tokens", type=int, required=True)
    args = parser.parse_args()
    if args.command == "convert":
        peer.convert(args.checkpoint, args.weights, args.out)
    else:
        serve(peer, args)
    sys.stdout.flush()
    # Without the destructors of libraries, some of which hang or crash at the end of the interpreter.
    os._exit(0)
