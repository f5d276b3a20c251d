"""The real server as a process, for the tests that talk to it over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 120
"""For what takes seconds on a quiet machine: starting, loading, leaving."""

MAX_PAYLOAD_MB = 16


@dataclass
class Answer:
    """One HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    elapsed_s: float

    @property
    def error(self) -> dict[str, str]:
        """The error of an answer that must be one JSON line without Python in it."""
        assert self.headers["Content-Type"] == "application/json"
        assert self.body.count(b"\n") == 1
        assert b"Traceback" not in self.body
        return json.loads(self.body)["error"]


@dataclass
class Server:
    """A running server and its log."""

    process: subprocess.Popen[bytes]
    port: int
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")

    def send(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """One request on a connection of its own; underscores in header names stand for hyphens."""
        began = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            # A body that is refused early breaks the pipe; the answer is there all the same.
            with contextlib.suppress(BrokenPipeError):
                connection.request(
                    method, path, body, {name.replace("_", "-"): value for name, value in headers.items()}
                )
            response = connection.getresponse()
            content = response.read()
            return Answer(response.status, dict(response.headers), content, time.monotonic() - began)
        finally:
            connection.close()

    def ping(self) -> Answer | None:
        """None while the port is closed."""
        try:
            return self.send("GET", "/ping")
        except OSError:
            return None

    def wait(self, condition: Callable[[Answer], bool]) -> Answer:
        """Asks /ping until the condition holds."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self.process.poll() is None:
            answer = self.ping()
            if answer is not None and condition(answer):
                return answer
            time.sleep(0.02)
        raise AssertionError(f"it never came to that; the log:\n{self.log}")

    def wait_for_log(self, text: str) -> None:
        """Waits until a line holds the text."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.log:
            assert time.monotonic() < deadline, f"no {text!r} in the log:\n{self.log}"
            time.sleep(0.02)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


def core() -> int:
    """The CPU that the servers of this process run on; with pytest-xdist, each worker's are on one of its own."""
    cores = sorted(os.sched_getaffinity(0))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return cores[worker % len(cores)]


def start(root: Path, **variables: str) -> Server:
    """Starts a server on one CPU, so that exactly one request computes at a time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ = {
        **os.environ,
        "SAGEMAKER_BASE_DIR": str(root),
        "SAGEMAKER_BIND_TO_PORT": str(port),
        "SAGEMAKER_MAX_PAYLOAD_IN_MB": str(MAX_PAYLOAD_MB),
        "DOGBREED_HOST": "127.0.0.1",
        "DOGBREED_MAX_WAITING": "1",
        **variables,
    }
    log_file = root / "server.log"
    # As the image does it: `dogbreed.serving.server` by itself imports torch's compiler, half of the time of a start.
    command = ["taskset", "--cpu-list", str(core()), sys.executable, "-m", "dogbreed", "serve"]
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=subprocess.STDOUT)
    return Server(process, port, log_file)


def stop_hard(server: Server) -> None:
    """For the end of a test, whatever happened in it. gunicorn's workers leave when their parent is gone."""
    if server.process.poll() is None:
        server.process.terminate()
        try:
            server.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait()


def is_ready(answer: Answer) -> bool:
    """For `Server.wait`."""
    return answer.status == 200
