"""The image, in a real Docker engine: train, serve, stop, and what stands in it. `make test-image` runs this.

Builds the image through `make build`, or tests the one that DOGBREED_TEST_IMAGE names. A run's log is read as well: a
job that exits 0 with a warning in its log has not passed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
QUICK = {
    "model": "tiny",
    "pretrained": "false",
    "trainable": "all",
    "image-size": "32",
    "epochs": "2",
    "batch-size": "8",
}
# SIGKILL comes after this for an endpoint (your-algorithms-inference-code).
SERVING_STOP_GRACE_S = 30
TROUBLE = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|Traceback|Warning:")


@dataclass(frozen=True)
class Result:
    code: int
    log: str


def docker(*arguments: str, check: bool = True) -> Result:
    """Runs the docker client, for five minutes at most; the log is stdout and stderr together."""
    done = subprocess.run(["docker", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    if check and done.returncode:
        pytest.fail(f"docker {' '.join(arguments)} exited with {done.returncode}:\n{done.stdout}")
    return Result(done.returncode, done.stdout)


def missing_engine() -> str | None:
    """Why there is no Docker engine to test with, or None."""
    if shutil.which("docker") is None:
        return "there is no docker client"
    info = docker("info", check=False)
    return f"no Docker engine answers: {info.log.strip().splitlines()[-1]}" if info.code else None


@pytest.fixture(scope="session")
def image() -> str:
    """Tag of the image under test."""
    reason = missing_engine()
    if reason:
        pytest.skip(reason)
    given = os.environ.get("DOGBREED_TEST_IMAGE")
    if given:
        return given
    tag = "dogbreed:test"
    built = subprocess.run(["make", "build", f"TAG={tag}"], capture_output=True, text=True, cwd=ROOT)
    if built.returncode:
        pytest.fail(f"make build failed:\n{built.stdout[-3000:]}{built.stderr[-3000:]}")
    return tag


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    script = ROOT / "local_test" / "make_data.py"
    options = ["--classes", "3", "--train", "12", "--valid", "6", "--test", "6", "--size", "48"]
    subprocess.run([sys.executable, str(script), str(folder), *options], check=True, capture_output=True)
    return folder


def lay_out(ml: Path, hyperparameters: Mapping[str, str]) -> None:
    """What the platform writes before it starts a job; Docker mounts the channel itself."""
    for folder in ("input/config", "model", "output"):
        (ml / folder).mkdir(parents=True)
    documents = {
        "hyperparameters": dict(hyperparameters),
        "inputdataconfig": {"train": {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated"}},
        "resourceconfig": {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "eth0"},
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


@pytest.fixture(scope="session")
def trained(image: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The folder of a finished job that was started with no command at all, and its log."""
    ml = tmp_path_factory.mktemp("ml")
    return ml, run_job(image, ml, data, QUICK, [])


def trouble(log: str) -> list[str]:
    return [line for line in log.splitlines() if TROUBLE.search(line)]


def test_no_command_trains_and_leaves_a_bundle(trained: tuple[Path, Result]) -> None:
    ml, result = trained
    assert result.code == 0, result.log
    bundle = json.loads((ml / "model" / "bundle.json").read_text())
    assert [label["name"] for label in bundle["labels"]] == ["Circle", "Square", "Triangle"]
    assert "test_accuracy" in bundle["metrics"]
    assert (ml / "model" / "model.safetensors").stat().st_size > 0
    assert (ml / "output" / "data" / "insight" / "report.html").is_file()
    assert not (ml / "output" / "failure").exists()


def test_a_good_job_warns_of_nothing(trained: tuple[Path, Result]) -> None:
    assert trouble(trained[1].log) == []


def test_a_bad_hyperparameter_is_exit_code_1_and_the_failure_reason(image: str, data: Path, tmp_path: Path) -> None:
    result = run_job(image, tmp_path, data, QUICK | {"lr": "fast"}, ["train"])
    assert result.code == 1
    assert "lr='fast' is not allowed" in (tmp_path / "output" / "failure").read_text()
    assert "Traceback" not in result.log
    assert not (tmp_path / "model" / "bundle.json").exists()


def test_a_stopped_job_keeps_its_best_epoch(image: str, data: Path, tmp_path: Path) -> None:
    lay_out(tmp_path, QUICK | {"epochs": "1000", "patience": "0"})
    name = container_name()
    docker("run", "--detach", "--name", name, *mounts(tmp_path, data), image, "train")
    try:
        wait_for(lambda: "epoch=1;" in docker("logs", name).log, 120)
        docker("stop", "--time=120", name)
        log = docker("logs", name).log
        assert exit_code(name) == 0, log
        assert json.loads((tmp_path / "model" / "bundle.json").read_text())["facts"]["best_epoch"] >= 1
        assert trouble(log) == []
    finally:
        docker("rm", "--force", name)


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


@pytest.fixture
def endpoint(image: str, trained: tuple[Path, Result]) -> Iterator[Endpoint]:
    """A server on a port of its choice, with everything read-only but /tmp, as SageMaker mounts the model."""
    name = container_name()
    port = free_port()
    docker(
        *("run", "--detach", "--name", name, "--read-only", "--tmpfs=/tmp"),
        *("--publish", f"127.0.0.1:{port}:9000", "--env=SAGEMAKER_BIND_TO_PORT=9000"),
        f"--mount=type=bind,source={trained[0] / 'model'},target=/opt/ml/model,readonly",
        *(image, "serve"),
    )
    endpoint = Endpoint(name, f"http://127.0.0.1:{port}")
    try:
        wait_for(lambda: endpoint.ask("/ping")[0] == 200, 120)
        yield endpoint
    finally:
        docker("rm", "--force", name)


def test_it_serves_answers_and_stops_in_time(endpoint: Endpoint, data: Path) -> None:
    photo = sorted((data / "test").glob("*/*.jpg"))[0].read_bytes()
    status, text = endpoint.ask("/invocations", photo)
    assert status == 200, text
    assert json.loads(text)["predictions"][0]["label"] in {"Circle", "Square", "Triangle"}

    status, text = endpoint.ask("/invocations", b"no image")
    assert status == 400
    assert json.loads(text)["error"]["code"] == "unreadable_image"
    assert endpoint.ask("/")[0] == 404, "the page is for local use only"

    began = time.monotonic()
    docker("stop", f"--time={SERVING_STOP_GRACE_S}", endpoint.name)
    assert time.monotonic() - began < SERVING_STOP_GRACE_S
    log = docker("logs", endpoint.name).log
    assert exit_code(endpoint.name) == 0, log
    assert trouble(log) == []


def test_python_is_process_1(endpoint: Endpoint) -> None:
    first = docker("exec", endpoint.name, "cat", "/proc/1/cmdline").log.split("\0")
    assert Path(first[0]).name.startswith("python"), "a shell as process 1 keeps SIGTERM from the program"
    assert first[1:4] == ["-m", "dogbreed", "serve"]


def test_what_the_platform_reads_of_the_image(image: str) -> None:
    config = json.loads(docker("image", "inspect", image).log)[0]["Config"]
    assert config["Entrypoint"] == ["python", "-m", "dogbreed"]
    assert config["Cmd"] == ["train"]
    assert config["Labels"]["com.amazonaws.sagemaker.capabilities.accept-bind-to-port"] == "true"
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert "8080/tcp" in config["ExposedPorts"]
    assert config["User"] in {"", "root", "0"}
    variables = dict(entry.split("=", 1) for entry in config["Env"])
    assert variables["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"


@pytest.mark.parametrize("tool", ["gcc", "cc", "g++", "make"])
def test_no_compiler_is_shipped(image: str, tool: str) -> None:
    found = docker("run", "--rm", "--entrypoint=bash", image, "-c", f"command -v {tool}", check=False)
    assert found.code == 1, found.log


@pytest.mark.parametrize("command", ["train", "serve"])
def test_both_commands_are_on_path(image: str, command: str) -> None:
    """For a caller that replaces the entry point, such as ContainerEntrypoint=["train"]."""
    docker("run", "--rm", "--entrypoint=bash", image, "-c", f"command -v {command}")


def test_an_unknown_command_is_refused(image: str) -> None:
    refused = docker("run", "--rm", image, "tarin", check=False)
    assert refused.code == 2
    assert refused.log.startswith("usage: ")


def test_bytecode_was_written_at_build_time(image: str) -> None:
    """A container starts with a read-only file system or a cold one; compiling torch again would take seconds."""
    look = (
        "import importlib.util, pathlib, dogbreed, flask, torch\n"
        "for module in (dogbreed, flask, torch):\n"
        "    cached = pathlib.Path(importlib.util.cache_from_source(module.__file__))\n"
        "    source = int(pathlib.Path(module.__file__).stat().st_mtime)\n"
        "    assert int.from_bytes(cached.read_bytes()[8:12], 'little') == source, cached"
    )
    docker("run", "--rm", "--entrypoint=python", image, "-c", look)


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
