"""The README's AWS section up to the image: its lines are run as a shell runs them, against a registry that is there.

Only where to push is added to them, because ECR is not to be had; tests/launch/test_readme.py runs the lines after it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from tests.container.test_push import ROOT, Checkout, checkout, docker

__all__ = ["checkout"]  # a fixture

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

PUSH = "$(scripts/build_and_push.sh)"


def test_the_readme_s_lines_push_the_image_that_training_asks_for(checkout: Checkout) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"<!-- aws -->(.*)<!-- /aws -->", text, re.DOTALL)
    assert section is not None
    exports = re.findall(r"^export .*$", section[1], re.MULTILINE)
    assert sum(PUSH in line for line in exports) == 1, "the section does not push, or the test does not see it"
    where = f"$(scripts/build_and_push.sh --no-build --registry {checkout.registry.host} --repository {checkout.name})"
    script = "\n".join(["set -e", *(line.replace(PUSH, where) for line in exports), "env -0"])
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DOGBREED_"))}
    ended = subprocess.run(
        ["bash", "-c", script],
        cwd=checkout.folder,
        env={**variables, "TAG": f"{checkout.name}:latest"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    environ = dict(line.partition("=")[::2] for line in ended.stdout.split("\0") if line)
    image = environ["DOGBREED_IMAGE"]
    assert image.startswith(f"{checkout.remote}@sha256:")

    (train,) = re.findall(r"^\.venv/bin/python (scripts/launch\.py train .*)$", section[1], re.MULTILINE)
    planned = subprocess.run(
        ["bash", "-c", f'"$PYTHON" {train} --dry-run'],
        cwd=ROOT,
        env={**environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert planned.returncode == 0, planned.stderr
    (call,) = json.loads(planned.stdout)
    assert call["parameters"]["AlgorithmSpecification"]["TrainingImage"] == image

    docker("pull", "--quiet", image)
    docker("image", "rm", image)
