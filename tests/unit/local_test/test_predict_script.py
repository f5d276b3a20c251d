"""`make predict`: what is wrong with its arguments is one sentence."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "local_test" / "predict.sh"


@pytest.mark.parametrize("port", ["abc", "0", "65536", "080a", "-1", "8080 9"])
def test_what_is_no_port_is_one_sentence(port: str, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"-")
    environ = {**os.environ, "PORT": port}
    done = subprocess.run([SCRIPT, tmp_path / "photo.jpg"], env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"PORT={port} is not a port; give a number from 1 to 65535\n"
