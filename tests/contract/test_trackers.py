"""What a job tells the trackers that AWS names in the place of Debugger, read back as they read it."""

from __future__ import annotations

import importlib.util
import json
from itertools import pairwise
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


def test_the_platforms_profiler_configuration_decides_where_and_how_often(
    in_process: OptMl, drawn_data: Path, tmp_path: Path
) -> None:
    parameters = {"LocalPath": str(tmp_path / "profile")}
    config = {"ProfilingIntervalInMilliseconds": "100", "ProfilingParameters": parameters, "S3OutputPath": "s3://b/p"}
    in_process.write("profilerconfig.json", config)
    run(in_process, drawn_data, epochs="6")
    lines = [line for file in (tmp_path / "profile").rglob("*.json") for line in file.read_text().splitlines()]
    times = sorted({json.loads(line)["Timestamp"] for line in lines})
    assert min(later - earlier for earlier, later in pairwise(times)) < 0.4, "that is not our own interval, 0.5 s"
    assert not (in_process.root / "output" / "profiler").exists()


def test_without_being_asked_nothing_is_written_for_tensorboard(in_process: OptMl, drawn_data: Path) -> None:
    run(in_process, drawn_data)
    assert not (in_process.root / "output" / "tensorboard").exists()


@pytest.mark.filterwarnings("ignore")  # MLflow and what it imports warn of much
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="MLflow is not installed")
def test_mlflow_is_told_of_a_job(
    in_process: OptMl, drawn_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = (tmp_path / "store").as_uri()
    for name, value in {"TRACKING_URI": store, "EXPERIMENT_NAME": "dogs", "ALLOW_FILE_STORE": "true"}.items():
        monkeypatch.setenv(f"MLFLOW_{name}", value)
    monkeypatch.setenv("TRAINING_JOB_NAME", "dogs-1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    run(in_process, drawn_data)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(store)
    (told,) = client.search_runs([client.get_experiment_by_name("dogs").experiment_id])
    assert told.data.tags["mlflow.runName"] == "dogs-1"
    assert told.info.status == "FINISHED"
    assert told.data.params["lr"] == "0.01"
    record = json.loads((in_process.root / "output" / "data" / "insight" / "record.json").read_text())
    history = client.get_metric_history(told.info.run_id, "validation_loss")
    assert {one.step: one.value for one in history} == pytest.approx(
        {one["epoch"]: one["metrics"]["validation_loss"] for one in record["epochs"]}
    )
    assert told.data.metrics["test_accuracy"] == pytest.approx(record["metrics"]["test_accuracy"])
    kept = {one.path for folder in ("insight", "model") for one in client.list_artifacts(told.info.run_id, folder)}
    assert {"insight/report.html", "model/bundle.json", "model/model.safetensors"} <= kept


def test_without_insight_a_job_is_not_watched_and_tensorboard_still_has_its_epochs(
    in_process: OptMl, drawn_data: Path
) -> None:
    run(in_process, drawn_data, insight="false", tensorboard="true")
    output = in_process.root / "output"
    assert sorted(one.name for one in output.iterdir()) == ["tensorboard"]
    (file,) = (output / "tensorboard").iterdir()
    assert b"epoch/validation_accuracy" in file.read_bytes()
    assert b"weights/" not in file.read_bytes()
