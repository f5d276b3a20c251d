"""The build arguments: weights in the image, and torch from an index of CPU wheels."""

from __future__ import annotations

import functools
import http.server
import json
import re
import subprocess
import threading
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from tests.container.conftest import ROOT, alone, build
from tests.container.engine import QUICK, docker, run_job, trouble

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1500)]


@pytest.fixture
def tag(image: str) -> Iterator[str]:
    """A name for an image of the test's own, which is removed at the end; the one under test is built before it."""
    name = f"dogbreed-test-{uuid.uuid4().hex[:12]}:latest"
    yield name
    docker("image", "rm", "--force", name, check=False)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder with a backbone's file, as WEIGHTS_DIR names it."""
    folder = tmp_path / "weights"
    folder.mkdir()
    torch.manual_seed(0)
    torch.save(torchvision.models.get_model("mobilenet_v2").state_dict(), folder / "mobilenet_v2.pth")
    return folder


def test_a_job_without_a_network_finds_the_baked_weights(tag: str, weights: Path, data: Path, tmp_path: Path) -> None:
    build(tag, BACKBONES="mobilenet_v2", WEIGHTS_DIR=str(weights))
    wanted = QUICK | {"model": "mobilenet_v2", "pretrained": "true", "trainable": "head", "epochs": "1"}
    result = run_job(tag, tmp_path / "ml", data, wanted, ["train"])
    assert result.code == 0, result.log
    assert "image, mobilenet_v2.safetensors" in result.log
    assert trouble(result.log) == []


@pytest.mark.parametrize(
    ("backbones", "said"),
    [
        ("mobilenet_v2 resnt50", "bake: model='resnt50' is unknown; did you mean resnet50"),
        ("resnet18", "bake: the weights are not those of model=resnet18"),
    ],
)
def test_what_cannot_be_baked_ends_the_build_with_the_reason(
    image: str, weights: Path, backbones: str, said: str
) -> None:
    (weights / "resnet18.pth").write_bytes((weights / "mobilenet_v2.pth").read_bytes())
    settings = [f"BACKBONES={backbones}", f"WEIGHTS_DIR={weights}", "TAG=dogbreed-test:never"]
    with alone():
        done = subprocess.run(["make", "build", *settings], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert said in done.stdout + done.stderr


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """An index (PEP 503, as http.server lists folders) of wheels that stand for torch's CPU wheels: they import."""
    folder = tmp_path / "index"
    lock = (ROOT / "requirements" / "runtime.txt").read_text()
    for name, version in re.findall(r"(?m)^(torch|torchvision)==([0-9.]+)", lock):
        (folder / name).mkdir(parents=True)
        information = f"{name}-{version}+cpu.dist-info"
        with zipfile.ZipFile(folder / name / f"{name}-{version}+cpu-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", "")
            wheel.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}+cpu\n")
            wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{information}/RECORD", "")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_the_cpu_image_has_torch_of_the_named_index_and_no_cuda(tag: str, index: str) -> None:
    build(tag, TORCH_INDEX=index, DOCKER_BUILD_FLAGS="--network host")
    listed = docker("run", "--rm", "--entrypoint=pip", tag, "list", "--format=freeze").log.lower().split()
    lock = (ROOT / "requirements" / "runtime.txt").read_text()
    for name, version in re.findall(r"(?m)^(torch|torchvision)==([0-9.]+)", lock):
        assert f"{name}=={version}+cpu" in listed
    assert any(line.startswith("flask==") for line in listed)
    assert not [line for line in listed if line.startswith(("nvidia", "cuda", "triton"))]
    config = json.loads(docker("image", "inspect", tag).log)[0]["Config"]
    assert config["Labels"]["dogbreed.variant"] == "cpu"
    assert index not in docker("history", "--no-trunc", tag).log, "its address may hold a password"
