"""What the tests with a real Docker engine share: the client, the image under test, and a registry."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
CONFIGURATION = """\
version: 0.1
log: {{level: warn, accesslog: {{disabled: false}}}}
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: 127.0.0.1:{port}}}
"""

# `make test-image` runs two files at a time. These begin, for they last longest: one pushes and pulls gigabytes, and
# the other builds images.
FIRST = ("test_pulled", "test_build")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first."""
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))


class Registry(NamedTuple):
    host: str
    log: Path

    def writes(self) -> list[str]:
        """The requests that changed something, from its log."""
        lines = self.log.read_text().splitlines()
        return [line for line in lines if any(f'"{verb} /v2/' in line for verb in ("POST", "PUT", "PATCH"))]


@pytest.fixture(scope="session")
def engine() -> None:
    """Skips what needs a Docker engine where there is none, and says why."""
    if shutil.which("docker") is None:
        pytest.skip("there is no docker client")
    info = subprocess.run(["docker", "info"], capture_output=True, text=True)
    if info.returncode:
        pytest.skip(f"no Docker engine answers: {(info.stdout + info.stderr).strip().splitlines()[-1]}")


@pytest.fixture(scope="session")
def image(engine: None) -> str:
    """Tag of the image under test."""
    given = os.environ.get("DOGBREED_TEST_IMAGE")
    return given or build("dogbreed:test")


def build(tag: str, **variables: str) -> str:
    """Builds the image through `make build`."""
    settings = [f"{name}={value}" for name, value in variables.items()]
    with alone():
        built = subprocess.run(["make", "build", f"TAG={tag}", *settings], capture_output=True, text=True, cwd=ROOT)
    if built.returncode:
        pytest.fail(f"make build failed:\n{built.stdout[-3000:]}{built.stderr[-3000:]}")
    return tag


@contextmanager
def alone() -> Iterator[None]:
    """For `make build`: two at once would take each other's weights, which it puts into one folder of the checkout."""
    lock = ROOT / "build" / "test-image.lock"
    lock.parent.mkdir(exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few drawn photos of three classes."""
    folder = tmp_path_factory.mktemp("drawn")
    script = ROOT / "local_test" / "make_data.py"
    options = ["--classes", "3", "--train", "12", "--valid", "6", "--test", "6", "--size", "48"]
    subprocess.run([sys.executable, str(script), str(folder), *options], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def registry(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """An empty registry that lives as long as this module's tests."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("there is no docker-registry to push to (Debian: apt-get install docker-registry)")
    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    configuration = folder / "registry.yml"
    configuration.write_text(CONFIGURATION.format(folder=folder / "storage", port=port))
    found = Registry(f"127.0.0.1:{port}", folder / "log")
    with found.log.open("w") as log:
        process = subprocess.Popen([program, "serve", str(configuration)], stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for(f"http://{found.host}/v2/", process, found.log)
            yield found
        finally:
            process.terminate()
            process.wait(timeout=20)
            # Pytest keeps the folders of three runs; a pushed image is gigabytes.
            shutil.rmtree(folder / "storage", ignore_errors=True)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until a registry answers; fails when it ends or after 30 s."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the registry does not answer:\n{log.read_text()}")
            time.sleep(0.1)
