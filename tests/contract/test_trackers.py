"""What a job tells the trackers that AWS names in the place of Debugger, read back as they read it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.conftest import OptMl

from dogbreed.training import job

QUICK = {
    "model": "tiny",
    "pretrained": "false",
    "trainable": "all",
    "image-size": "32",
    "batch-size": "8",
    "epochs": "2",
    "lr": "0.01",
    "num-workers": "0",
}


def run(opt_ml: OptMl, data: Path, **more: str) -> None:
    opt_ml.hyperparameters({**QUICK, **more})
    opt_ml.channels(train=data / "train", validation=data / "valid", test=data / "test")
    assert job.main() == 0, opt_ml.failure.read_text()


def test_tensorboard_shows_a_job_that_asks_for_it(in_process: OptMl, drawn_data: Path) -> None:
    reason = "TensorBoard's own reader is not installed"
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason=reason)
    run(in_process, drawn_data, tensorboard="true")
    found = events.EventAccumulator(str(in_process.root / "output" / "tensorboard")).Reload()
    record = json.loads((in_process.root / "output" / "data" / "insight" / "record.json").read_text())
    for name in ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy"):
        shown = {one.step: one.value for one in found.Scalars(f"epoch/{name}")}
        assert shown == pytest.approx({one["epoch"]: one["metrics"][name] for one in record["epochs"]})
    assert [one.value for one in found.Scalars("epoch/learning_rate")] == pytest.approx(
        [one["learning_rate"] for one in record["epochs"]]
    )
    assert all(one.value > 0 for one in found.Scalars("epoch/images_per_s"))
    (tested,) = found.Scalars("epoch/test_accuracy")
    assert tested.value == pytest.approx(record["metrics"]["test_accuracy"])
    assert found.Scalars("step/train_loss")[0].step == 0
    histograms = found.Tags()["histograms"]
    assert any(name.startswith("weights/") for name in histograms)
    assert any(name.startswith("gradients/") for name in histograms)


def test_tensorboard_writes_where_the_platform_says(in_process: OptMl, drawn_data: Path, tmp_path: Path) -> None:
    in_process.write("tensorboardoutputconfig.json", {"S3OutputPath": "s3://b/t", "LocalPath": str(tmp_path / "tb")})
    run(in_process, drawn_data)
    (file,) = (tmp_path / "tb").iterdir()
    assert file.name.startswith("events.out.tfevents.")
    assert b"epoch/validation_accuracy" in file.read_bytes()


def test_without_being_asked_nothing_is_written_for_tensorboard(in_process: OptMl, drawn_data: Path) -> None:
    run(in_process, drawn_data)
    assert not (in_process.root / "output" / "tensorboard").exists()
