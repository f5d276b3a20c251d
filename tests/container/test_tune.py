"""`launch.py tune --local --image`: trials in containers of a real Docker engine, which share what is computed once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
TINY = ("model=tiny", "pretrained=false", "image-size=32", "epochs=2", "batch-size=8")


def test_two_trials_in_containers_share_the_features_and_leave_the_best(image: str, data: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "launch.py"), "tune", "--local", "--image", image]
    command += ["--data", str(data), "--hp", *TINY, "--range", "lr=0.001:0.1:log", "--trials", "2", "--name", "boxed"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    best = json.loads((tmp_path / "build" / "tuning" / "boxed.json").read_text())
    folder = tmp_path / "build" / "tuning" / "boxed"
    bundle = folder / best["trial"] / "model" / "bundle.json"
    assert json.loads(bundle.read_text())["metrics"]["validation_accuracy"] == best["value"]
    assert bundle.stat().st_uid == os.getuid()
    logs = [(folder / f"trial-00{number}" / "log").read_text() for number in (0, 1)]
    assert "found stored outputs" not in logs[0]
    assert "found stored outputs of 36 images in /tmp/dogbreed" in logs[1]
    left = subprocess.run(["docker", "ps", "--all", "--format", "{{.Names}}"], capture_output=True, text=True)
    assert "dogbreed-trial-00" not in left.stdout
