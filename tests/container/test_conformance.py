"""The conformance checks with a real Docker engine: the small subjects of tests/subjects as images."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from local_test.simulator.checks.check import Status
from local_test.simulator.checks.context import Context
from local_test.simulator.checks.patience import Patience
from local_test.simulator.checks.registry import CHECKS, select
from local_test.simulator.checks.running import run
from local_test.simulator.containers import ImageSubject
from tests.container.engine import docker, wait_for
from tests.contract.conformance import PATIENCE, SUBJECTS, profile

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(600),
    # docker-py leaves sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

DOCKERFILE = """\
FROM {base}
ENTRYPOINT {entrypoint}
ENV PATH=/opt/program:$PATH
COPY . /opt/program
"""


@pytest.fixture
def outside(image: str) -> Iterator[str]:
    """Host and port of a container that listens on the engine's default network, as the world outside would."""
    run = ["docker", "run", "--detach", "--rm", "--label", "local_test", "--entrypoint", "python", image]
    name = subprocess.run([*run, "-m", "http.server", "80"], check=True, capture_output=True, text=True).stdout.strip()
    address = "{{.NetworkSettings.Networks.bridge.IPAddress}}"
    found = subprocess.run(["docker", "inspect", "--format", address, name], check=True, capture_output=True, text=True)
    wait_for(lambda: _listens(name), 60)
    yield f"{found.stdout.strip()} 80"
    subprocess.run(["docker", "kill", name], check=True, capture_output=True)


@pytest.fixture
def built(image: str, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Builds the faithful subject with a fault on the image under test, for its Python and its labels."""
    tags: list[str] = []

    def build(fault: str, entrypoint: str = "[]", outside: str = "") -> str:
        folder = tmp_path / "context"
        shutil.copytree(SUBJECTS / "faithful", folder)
        (folder / "fault").write_text(fault)
        (folder / "outside").write_text(outside)
        (folder / "Dockerfile").write_text(DOCKERFILE.format(base=image, entrypoint=entrypoint))
        tags.append(f"local-test-conformance:{os.getpid()}-{len(tags)}")
        subprocess.run(["docker", "build", "--quiet", "--tag", tags[-1], str(folder)], check=True, capture_output=True)
        return tags[-1]

    yield build
    for tag in tags:
        subprocess.run(["docker", "image", "rm", "--force", tag], check=True, capture_output=True)


def _listens(name: str) -> bool:
    """Whether somebody listens on port 80 in the container; what it prints it may print late."""
    return ":0050 00000000:0000 0A" in docker("exec", name, "cat", "/proc/net/tcp").log


def failing(tag: str, folder: Path, *names: str, patience: Patience = PATIENCE) -> dict[str, str]:
    """Name -> evidence of the checks that the image fails."""
    given = folder / "given"
    given.mkdir()
    context = Context(ImageSubject(tag), profile(given), folder / "work", contained=True, patience=patience)
    results = run(select(names), context)
    assert not [result.check.name for result in results if result.outcome.status is Status.NOT_APPLICABLE]
    return {result.check.name: result.outcome.detail for result in results if result.outcome.status is Status.FAILED}


def test_an_image_that_keeps_the_contract_passes_every_check(built: Callable[..., str], tmp_path: Path) -> None:
    assert failing(built(""), tmp_path, *(check.name for check in CHECKS)) == {}


@pytest.mark.parametrize("fault", ["train.isolated", "serve.isolated"])
def test_who_needs_a_network_is_found_out(fault: str, built: Callable[..., str], outside: str, tmp_path: Path) -> None:
    """It reaches the outside where it may, and does not start where it may not."""
    side = fault.partition(".")[0]

    found = failing(
        built(fault, outside=outside), tmp_path, fault, "train.starts" if side == "train" else "serve.ready"
    )

    assert set(found) == {fault}


def test_a_port_that_is_not_honoured_is_found_out_and_so_is_the_label(
    built: Callable[..., str], tmp_path: Path
) -> None:
    hurried = dataclasses.replace(PATIENCE, ready_s=20)

    found = failing(built("serve.bind-to-port"), tmp_path, "serve.ready", "serve.bind-*", patience=hurried)

    assert set(found) == {"serve.bind-to-port", "serve.bind-label"}


def test_a_shell_in_front_keeps_sigterm_to_itself(built: Callable[..., str], tmp_path: Path) -> None:
    """The entry point in shell form, of which AWS's page warns."""
    # The shell stays, because it has something left to do.
    entrypoint = '["/bin/sh", "-c", "$0; exit $?"]'
    hurried = dataclasses.replace(PATIENCE, stop_train_s=5)

    found = failing(
        built("", entrypoint), tmp_path, "train.starts", "train.first-process", "train.sigterm", patience=hurried
    )

    assert set(found) == {"train.first-process", "train.sigterm"}
    assert "exec form" in found["train.sigterm"]
