"""The way that an image takes: pushed to a registry, gone from the engine, pulled by the digest that the push printed.

Then a job and an endpoint run from what was pulled. The image is a child of the one under test, so that its name can be
removed without taking the other tests' image away; what the engine may still hold of its layers proves nothing, so the
registry's own blobs are read and checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.container.conftest import Registry
from tests.container.engine import QUICK, docker, exit_code, run_job, serving, trouble

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


def push(tag: str, registry: Registry) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return subprocess.run(
        ["scripts/build_and_push.sh", "--no-build", "--allow-dirty", "--registry", registry.host],
        **{"cwd": ROOT, "capture_output": True, "text": True},
        env={**variables, "TAG": tag},
    )


@pytest.fixture(scope="module")
def pulled(image: str, registry: Registry) -> Iterator[str]:
    """The image by its digest, after it was pushed, removed and pulled; it is removed again at the end."""
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    child = f"dogbreed-test-{uuid.uuid4().hex[:12]}:latest"
    label = f"org.opencontainers.image.revision={revision.stdout.strip()}"
    recipe = f"FROM {image}\nLABEL {label} test={uuid.uuid4().hex}\n"
    subprocess.run(["docker", "build", "--quiet", "--tag", child, "-"], input=recipe, text=True, check=True)
    began = time.monotonic()
    try:
        done = push(child, registry)
        assert done.returncode == 0, done.stderr
        digest = done.stdout.strip()
        print(f"pushed in {time.monotonic() - began:.0f} s")
        remote = docker("image", "ls", "--format={{.Repository}}:{{.Tag}}").log.splitlines()
        docker("image", "rm", child, *(name for name in remote if name.startswith(f"{registry.host}/")))
        assert docker("image", "inspect", digest, check=False).code == 1, "the image is still there"
        docker("pull", digest)
        yield digest
    finally:
        docker("image", "rm", "--force", child, check=False)
    docker("image", "rm", digest)


def test_the_registry_holds_every_byte(pulled: str, registry: Registry) -> None:
    repository, digest = pulled.removeprefix(f"{registry.host}/").split("@")
    address = f"http://{registry.host}/v2/{repository}"
    wanted = urllib.request.Request(f"{address}/manifests/{digest}", headers={"Accept": MANIFEST})
    with urllib.request.urlopen(wanted, timeout=30) as answer:
        manifest = json.load(answer)
    for blob in (manifest["config"], *manifest["layers"]):
        with urllib.request.urlopen(f"{address}/blobs/{blob['digest']}", timeout=60) as answer:
            assert f"sha256:{hashlib.file_digest(answer, 'sha256').hexdigest()}" == blob["digest"]


def test_the_pulled_image_trains_serves_answers_and_stops(pulled: str, data: Path, tmp_path: Path) -> None:
    job = run_job(pulled, tmp_path, data, QUICK, ["train"])
    assert job.code == 0, job.log
    assert trouble(job.log) == []

    photo = sorted((data / "test").glob("*/*.jpg"))[0].read_bytes()
    with serving(pulled, tmp_path / "model") as endpoint:
        status, text = endpoint.ask("/invocations", photo)
        assert status == 200, text
        assert json.loads(text)["predictions"][0]["label"] in {"Circle", "Square", "Triangle"}
        docker("stop", "--time=30", endpoint.name)
        log = docker("logs", endpoint.name).log
        assert exit_code(endpoint.name) == 0, log
        assert trouble(log) == []
