import importlib.util
import logging
import re
import socket
import sys
import threading
import time

import pytest

from dogbreed.insight.tracking import Run, Tracker

# MLflow and what it imports warn of much; none of it is ours.
pytestmark = pytest.mark.filterwarnings("ignore")

needs_mlflow = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="MLflow is not installed")


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A file store, which MLflow 3 only opens when it is told that it may."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return (tmp_path / "store").as_uri()


@pytest.fixture
def unused_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def runs_of(uri, experiment="dogbreed"):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    return client, client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


@needs_mlflow
def test_a_job_is_told_with_parameters_metrics_and_files(store, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "bundle.json").write_text("{}")
    tracker = Tracker(Run(store, "dogs", name="job-1"), {"lr": 0.01, "model": "tiny", "rules": "x" * 600})
    tracker.metrics(1, {"train_loss": 0.5, "validation_accuracy": 0.25})
    tracker.metrics(2, {"train_loss": 0.4})
    tracker.finish({"model": tmp_path / "model", "insight": tmp_path / "absent"}, failed=False)
    client, (run,) = runs_of(store, "dogs")
    assert run.data.params == {"lr": "0.01", "model": "tiny", "rules": "x" * 250}
    assert run.data.metrics == {"train_loss": 0.4, "validation_accuracy": 0.25}
    history = client.get_metric_history(run.info.run_id, "train_loss")
    assert [(one.step, one.value) for one in history] == [(1, 0.5), (2, 0.4)]
    assert [one.path for one in client.list_artifacts(run.info.run_id, "model")] == ["model/bundle.json"]
    assert [one.path for one in client.list_artifacts(run.info.run_id)] == ["model"]
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.runName"] == "job-1"


@needs_mlflow
def test_a_failed_job_is_a_failed_run(store):
    Tracker(Run(store), {}).finish({}, failed=True)
    _, (run,) = runs_of(store)
    assert run.info.status == "FAILED"


@needs_mlflow
def test_a_run_that_exists_goes_on(store):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(store)
    given = client.create_run(client.create_experiment("theirs")).info.run_id
    tracker = Tracker(Run(store, "dogs", run_id=given), {"lr": 1})
    tracker.metrics(1, {"train_loss": 1.0})
    tracker.finish({}, failed=False)
    assert client.get_run(given).data.metrics == {"train_loss": 1.0}
    assert client.get_experiment_by_name("dogs") is None


@needs_mlflow
def test_a_server_that_is_away_costs_one_warning(caplog, monkeypatch, unused_port):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with caplog.at_level(logging.WARNING):
        tracker = Tracker(Run(f"http://127.0.0.1:{unused_port}"), {"lr": 1}, patience_s=(5, 60))
        for epoch in range(3):
            tracker.metrics(epoch, {"train_loss": 1.0})
        tracker.finish({}, failed=False)
    # MLflow 3 gives up at once, as it was told; MLflow 1 read how often to try when it was imported.
    (record,) = caplog.records
    assert re.match(
        rf"MLflow at http://127.0.0.1:{unused_port} (is told nothing more: |takes too long)", record.message
    )


def test_a_server_that_never_answers_is_left_after_a_while(caplog, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(Tracker, "_begin", lambda self: ended.wait(60))
    with caplog.at_level(logging.WARNING):
        began = time.monotonic()
        tracker = Tracker(Run("http://slow"), {}, patience_s=(0.05, 60))
        tracker.metrics(1, {"train_loss": 1.0})
        tracker.finish({}, failed=False)
    waited = time.monotonic() - began
    ended.set()
    assert waited < 30
    assert "MLflow at http://slow takes too long" in caplog.text


def test_without_the_library_there_is_one_sentence(caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow.entities", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with caplog.at_level(logging.WARNING):
        tracker = Tracker(Run("http://any"), {})
        tracker.metrics(1, {"train_loss": 1.0})
        tracker.finish({}, failed=False)
    assert caplog.text.count("install mlflow-skinny, see docs/insight.md") == 1
