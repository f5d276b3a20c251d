"""Pushing to a registry that is really there: Debian's docker-registry on a free port, and a tiny image."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.container.conftest import Registry

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
SCRIPT = "scripts/build_and_push.sh"


class Result(NamedTuple):
    code: int
    out: str
    err: str


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"docker {' '.join(arguments)} exited with {done.returncode}:\n{done.stderr}")
    return done.stdout.strip()


class Checkout:
    """A git checkout with the script in it, and a tiny image of its own."""

    def __init__(self, folder: Path, registry: Registry) -> None:
        self.folder = folder / "checkout"
        self.registry = registry
        self.name = f"test-{uuid.uuid4().hex[:12]}"
        (self.folder / "scripts").mkdir(parents=True)
        shutil.copy(ROOT / SCRIPT, self.folder / SCRIPT)
        self.git("init", "--quiet")
        self.commit()
        context = folder / "context"
        context.mkdir()
        (context / "hello").write_text(self.name)
        (context / "Dockerfile").write_text("FROM scratch\nCOPY hello /hello\n")
        docker("build", "--quiet", "--tag", f"{self.name}:latest", str(context))
        self.pushed: list[str] = []

    def git(self, *arguments: str) -> str:
        identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=self.folder, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def commit(self) -> None:
        self.git("add", ".")
        self.git("commit", "--quiet", "--allow-empty", "--message", "all")

    def push(self, *arguments: str, host: str | None = None) -> Result:
        """Pushes the tiny image, without anything of AWS in the environment."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        done = subprocess.run(
            [SCRIPT, "--no-build", "--registry", host or self.registry.host, "--repository", self.name, *arguments],
            **{"cwd": self.folder, "capture_output": True, "text": True, "timeout": 120},
            env={**variables, "TAG": f"{self.name}:latest"},
        )
        if done.returncode == 0:
            self.pushed.append(f"{self.remote}:{self.git('rev-parse', 'HEAD')}")
        return Result(done.returncode, done.stdout.strip(), done.stderr)

    @property
    def remote(self) -> str:
        return f"{self.registry.host}/{self.name}"

    def forget(self) -> None:
        """Removes every name that the engine has for the image, and with the last the image."""
        for name in (*self.pushed, f"{self.name}:latest"):
            subprocess.run(["docker", "image", "rm", "--force", name], capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path, registry: Registry) -> Iterator[Checkout]:
    made = Checkout(tmp_path, registry)
    try:
        yield made
    finally:
        made.forget()


def test_the_printed_digest_pulls_the_image_that_was_pushed(checkout: Checkout) -> None:
    image_id = docker("image", "inspect", "--format={{.Id}}", f"{checkout.name}:latest")
    result = checkout.push()
    assert result.code == 0, result.err
    assert result.out.startswith(f"{checkout.remote}@sha256:")
    checkout.forget()
    assert image_id not in docker("image", "ls", "--all", "--quiet", "--no-trunc").splitlines()

    docker("pull", result.out)
    assert docker("image", "inspect", "--format={{.Id}}", result.out) == image_id
    docker("image", "rm", result.out)


def test_the_tag_is_the_git_revision(checkout: Checkout) -> None:
    assert checkout.push().code == 0
    with urllib.request.urlopen(f"http://{checkout.registry.host}/v2/{checkout.name}/tags/list", timeout=10) as answer:
        assert checkout.git("rev-parse", "HEAD") in answer.read().decode()


def test_a_second_run_pushes_nothing_and_prints_the_same(checkout: Checkout) -> None:
    first = checkout.push()
    assert first.code == 0, first.err
    writes = checkout.registry.writes()
    assert any(checkout.name in line for line in writes), "the first run is not in the registry's log"

    second = checkout.push()
    assert (second.code, second.out) == (0, first.out)
    assert "nothing to push" in second.err
    assert checkout.registry.writes() == writes


def test_a_new_commit_of_the_same_image_is_a_tag_of_the_same_digest(checkout: Checkout) -> None:
    first = checkout.push()
    checkout.commit()
    second = checkout.push()
    assert (second.code, second.out) == (0, first.out)
    assert "pushed" in second.err


def test_a_checkout_with_changes_pushes_nothing(checkout: Checkout) -> None:
    (checkout.folder / "new.py").write_text("")
    writes = checkout.registry.writes()
    result = checkout.push()
    assert (result.code, result.out) == (1, "")
    assert "the checkout has changes" in result.err
    assert checkout.registry.writes() == writes


def test_a_registry_that_is_not_there_is_named(checkout: Checkout) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        result = checkout.push(host=host)
    assert (result.code, result.out) == (1, "")
    assert f"{host} does not tell what it holds" in result.err
    assert "connection refused" in result.err
