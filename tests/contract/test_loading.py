"""What loading must not change: the number of threads, or an unreadable photo among them, gives the same model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from tests.conftest import OptMl

from dogbreed import artifacts
from dogbreed.training import job


def run(opt_ml: OptMl, workers: int) -> dict[str, torch.Tensor]:
    settings = {"model": "tiny", "pretrained": "false", "trainable": "all", "image-size": "32", "batch-size": "4"}
    settings |= {"epochs": "2", "augment": "crop", "dropout": "0.5", "num-workers": str(workers)}
    opt_ml.hyperparameters({**settings, "max-corrupt-fraction": "0.2"})
    assert job.main() == 0, opt_ml.failure.read_text()
    assert json.loads((opt_ml.model / "bundle.json").read_text())["facts"]["corrupt_images"] == 1
    return artifacts.load(opt_ml.model).weights


def test_the_number_of_loader_threads_changes_nothing(in_process: OptMl, drawn_data: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(drawn_data, tmp_path / "data"))
    sorted((data / "train").rglob("*.jpg"))[7].write_bytes(b"\xff\xd8\xff no photo")
    in_process.channels(train=data)
    alone, threads = run(in_process, 0), run(in_process, 3)
    assert alone.keys() == threads.keys()
    assert all(torch.equal(alone[name], threads[name]) for name in alone)
