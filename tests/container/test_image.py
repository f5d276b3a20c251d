"""The image, in a real Docker engine: train, serve, stop, and what stands in it. `make test-image` runs this.

Builds the image through `make build`, or tests the one that DOGBREED_TEST_IMAGE names. A run's log is read as well: a
job that exits 0 with a warning in its log has not passed.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.container.engine import (
    QUICK,
    Endpoint,
    Result,
    container_name,
    docker,
    exit_code,
    lay_out,
    mounts,
    run_job,
    serving,
    trouble,
    wait_for,
)

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1500)]

# SIGKILL comes after this for an endpoint (your-algorithms-inference-code).
SERVING_STOP_GRACE_S = 30


@pytest.fixture(scope="session")
def trained(image: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The folder of a finished job that was started with no command at all, and its log."""
    ml = tmp_path_factory.mktemp("ml")
    return ml, run_job(image, ml, data, QUICK, [])


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


@pytest.fixture
def endpoint(image: str, trained: tuple[Path, Result]) -> Iterator[Endpoint]:
    with serving(image, trained[0] / "model") as found:
        yield found


def test_it_serves_answers_and_stops_in_time(endpoint: Endpoint, data: Path) -> None:
    photo = sorted((data / "test").glob("*/*.jpg"))[0].read_bytes()
    status, text = endpoint.ask("/invocations", photo)
    assert status == 200, text
    assert json.loads(text)["predictions"][0]["label"] in {"Circle", "Square", "Triangle"}

    # With what is left of Captum and OpenVINO in the image.
    status, text = endpoint.ask("/invocations?return=heatmap", photo)
    assert status == 200, text
    assert json.loads(text)["predictions"][0]["heat_map"]

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
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?", config["Labels"]["org.opencontainers.image.revision"])
    assert "8080/tcp" in config["ExposedPorts"]
    assert config["User"] in {"", "root", "0"}
    variables = dict(entry.split("=", 1) for entry in config["Env"])
    assert variables["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert variables["NVIDIA_VISIBLE_DEVICES"] == "all"


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


def test_nothing_of_cuda_is_missing(image: str) -> None:
    """What the build removed is what no library needs; libcuda is the driver's, which the host brings."""
    look = (
        "import importlib.util, pathlib, subprocess\n"
        "packages = pathlib.Path(importlib.util.find_spec('torch').origin).parents[1]\n"
        "libraries = [*packages.glob('torch/lib/*.so'), *packages.glob('torch/_C.*.so')]\n"
        "for library in libraries:\n"
        "    for line in subprocess.run(['ldd', library], capture_output=True, text=True).stdout.splitlines():\n"
        "        if 'not found' in line:\n"
        "            print(line.split()[0])"
    )
    missing = docker("run", "--rm", "--entrypoint=python", image, "-c", look).log.split()
    assert set(missing) <= {"libcuda.so.1"}


def test_nothing_of_a_compiler_is_left(image: str) -> None:
    look = (
        "cd /opt/venv && find . -name '*.a' -size +100k -path '*/nvidia/*' -o -path '*/torch/include' -o -name triton"
    )
    assert docker("run", "--rm", "--entrypoint=bash", image, "-c", look).log == ""
