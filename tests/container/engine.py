"""A real Docker engine, driven through its client: jobs and endpoints as the platform starts them."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

QUICK = {
    "model": "tiny",
    "pretrained": "false",
    "trainable": "all",
    "image-size": "32",
    "epochs": "2",
    "batch-size": "8",
}
TROUBLE = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|Traceback|Warning:")


@dataclass(frozen=True)
class Result:
    code: int
    log: str


def docker(*arguments: str, check: bool = True) -> Result:
    """Runs the docker client, for five minutes at most; the log is stdout and stderr together."""
    done = subprocess.run(["docker", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if check and done.returncode:
        pytest.fail(f"docker {' '.join(arguments)} exited with {done.returncode}:\n{done.stdout}")
    return Result(done.returncode, done.stdout)


def lay_out(
    ml: Path, hyperparameters: Mapping[str, str], *, hosts: Sequence[str] = ("algo-1",), current: str = "algo-1"
) -> None:
    """What the platform writes before it starts a job; Docker mounts the channel itself."""
    for folder in ("input/config", "model", "output"):
        (ml / folder).mkdir(parents=True)
    documents = {
        "hyperparameters": dict(hyperparameters),
        "inputdataconfig": {"train": {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated"}},
        "resourceconfig": {"current_host": current, "hosts": list(hosts), "network_interface_name": "eth0"},
    }
    for name, document in documents.items():
        (ml / "input" / "config" / f"{name}.json").write_text(json.dumps(document))


def mounts(ml: Path, data: Path) -> list[str]:
    return [
        f"--mount=type=bind,source={ml},target=/opt/ml",
        f"--mount=type=bind,source={data},target=/opt/ml/input/data/train,readonly",
    ]


def run_job(image: str, ml: Path, data: Path, hyperparameters: Mapping[str, str], command: Sequence[str]) -> Result:
    lay_out(ml, hyperparameters)
    name = container_name()
    try:
        # No network: a job under EnableNetworkIsolation has none either.
        return docker("run", "--name", name, "--network=none", *mounts(ml, data), image, *command, check=False)
    finally:
        docker("rm", "--force", name)


def trouble(log: str) -> list[str]:
    return [line for line in log.splitlines() if TROUBLE.search(line)]


@dataclass(frozen=True)
class Endpoint:
    name: str
    url: str

    def ask(self, path: str, body: bytes | None = None, content_type: str = "image/jpeg") -> tuple[int, str]:
        """Status and body of a GET, or of a POST with a body."""
        headers = {"Content-Type": content_type} if body is not None else {}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, body, headers), timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)


@contextmanager
def serving(image: str, model: Path) -> Iterator[Endpoint]:
    """A server on a port of its choice, with everything read-only but /tmp, as SageMaker mounts the model."""
    name = container_name()
    port = free_port()
    docker(
        *("run", "--detach", "--name", name, "--read-only", "--tmpfs=/tmp"),
        *("--publish", f"127.0.0.1:{port}:9000", "--env=SAGEMAKER_BIND_TO_PORT=9000"),
        f"--mount=type=bind,source={model},target=/opt/ml/model,readonly",
        *(image, "serve"),
    )
    endpoint = Endpoint(name, f"http://127.0.0.1:{port}")
    try:
        wait_for(lambda: endpoint.ask("/ping")[0] == 200, 120)
        yield endpoint
    finally:
        docker("rm", "--force", name)


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    """Waits until a callable is true; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not so after {seconds:g} s")
        time.sleep(0.2)


def container_name() -> str:
    return f"dogbreed-test-{uuid.uuid4().hex[:12]}"


def exit_code(name: str) -> int:
    return int(docker("inspect", "--format={{.State.ExitCode}}", name).log)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
