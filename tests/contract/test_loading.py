"""What loading must not change: the number of threads, or an unreadable photo among them, gives the same model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from tests.conftest import OptMl

from dogbreed import artifacts

TRAIN = Path(__file__).resolve().parents[2] / "container" / "train"


def run(opt_ml: OptMl, workers: int) -> dict[str, torch.Tensor]:
    settings = {"model": "tiny", "pretrained": "false", "trainable": "all", "image-size": "32", "batch-size": "4"}
    settings |= {"epochs": "2", "augment": "crop", "dropout": "0.5", "num-workers": str(workers)}
    opt_ml.hyperparameters({**settings, "max-corrupt-fraction": "0.2"})
    environ = {**os.environ, "SAGEMAKER_BASE_DIR": str(opt_ml.root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(TRAIN)], env=environ, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((opt_ml.model / "bundle.json").read_text())["facts"]["corrupt_images"] == 1
    return artifacts.load(opt_ml.model).weights


def test_the_number_of_loader_threads_changes_nothing(opt_ml: OptMl, drawn_data: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(drawn_data, tmp_path / "data"))
    sorted((data / "train").rglob("*.jpg"))[7].write_bytes(b"\xff\xd8\xff no photo")
    opt_ml.channels(train=data)
    alone, threads = run(opt_ml, 0), run(opt_ml, 3)
    assert alone.keys() == threads.keys()
    assert all(torch.equal(alone[name], threads[name]) for name in alone)
