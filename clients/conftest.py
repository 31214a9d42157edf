"""A real server for all tests: the binary named by PELTON_BINARY, serving the embedded demo model on a free port."""

import os
import re
import subprocess
import threading
from dataclasses import dataclass

import pytest


@dataclass
class Server:
    url: str
    example: str  # the line that the server tells its user to try
    process: subprocess.Popen


def start(*arguments: str) -> Server:
    """Starts the server and reads its first lines, until it has said where it listens and what to try."""
    process = subprocess.Popen(
        [os.environ["PELTON_BINARY"], "serve", "--port", "0", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"RUST_LOG": "warn"},
    )
    killer = threading.Timer(60, process.kill)
    killer.start()
    url = example = None
    lines = []
    for line in process.stdout:
        lines.append(line)
        url = url or (match := re.search(r"http://127\.0\.0\.1:\d+", line)) and match.group()
        if line.strip().startswith("curl "):
            example = line.strip()
        if url and example:
            break
    killer.cancel()
    if not (url and example):
        process.kill()
        raise RuntimeError(f"the server did not start: {''.join(lines)}{process.stderr.read()}")
    for stream in (process.stdout, process.stderr):
        threading.Thread(target=stream.read, daemon=True).start()
    return Server(url, example, process)


def stop(server: Server) -> int:
    """SIGTERM, and the exit code."""
    server.process.terminate()
    return server.process.wait(timeout=30)


@pytest.fixture(scope="session")
def server():
    running = start()
    yield running
    assert stop(running) == 0


@pytest.fixture(scope="session")
def url(server) -> str:
    return server.url


PROMPT = "def fibonacci(n):"
