"""A job that tries heads before it trains one: its log, its files, and what a stop leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.conftest import OptMl

from dogbreed import artifacts, logs
from dogbreed.hyperparameters import Hyperparameters
from dogbreed.training import job
from scripts.launcher.search import trials

TRAIN = Path(__file__).resolve().parents[2] / "container" / "train"

SEARCH = {
    "model": "tiny",
    "pretrained": "false",
    "image-size": "32",
    "batch-size": "8",
    "epochs": "6",
    "lr": "0.000001",
    "num-workers": "0",
    "search-trials": "9",
    "search-over": "lr+weight-decay+hidden-units+dropout",
}


def test_a_job_that_searches_looks_like_any_other_and_says_what_it_found(
    in_process: OptMl, drawn_data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    in_process.hyperparameters(SEARCH)
    in_process.channels(train=drawn_data / "train", validation=drawn_data / "valid", test=drawn_data / "test")
    assert job.main() == 0
    output = capfd.readouterr().out

    read = [(line, logs.read_metrics(line)) for line in output.splitlines() if logs.read_metrics(line)]
    epochs = [line for line, _ in read if "epoch=" in line]
    bundle = artifacts.load(in_process.model)
    assert len(epochs) == bundle.facts["epochs_run"], "the epochs of one head, which is what a tuner is to see"
    (best,) = [metrics for line, metrics in read if "best: " in line]
    assert best["validation_accuracy"] == pytest.approx(bundle.metrics["validation_accuracy"], rel=1e-5)
    assert len([line for line in output.splitlines() if " head " in line and " in epoch " in line]) == 9

    file = in_process.root / "output" / "data" / "search.json"
    found = json.loads(file.read_text())
    assert len(found["trials"]) == 9
    assert bundle.facts["search_trials"] == 9
    assert bundle.facts["search_best_trial"] == found["trial"]
    given = Hyperparameters.parse(trials.read(file).hyperparameters)
    assert given.as_dict() == bundle.hyperparameters, "what train --from-best trains with is what the bundle has"
    assert given.search_trials == 0
    assert given.lr > 0.000001
    assert bundle.head.hidden_units == given.hidden_units
    assert bundle.head.dropout == given.dropout
    logits = bundle.build()(torch.zeros(1, 3, 32, 32))
    assert logits.shape == (1, 3)
    record = json.loads((in_process.root / "output" / "data" / "insight" / "record.json").read_text())
    assert record["hyperparameters"]["lr"] == given.lr


def test_a_job_that_fine_tunes_searches_for_the_head_it_starts_from(
    in_process: OptMl, drawn_data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = {"trainable": "last_stage", "head-epochs": "6", "epochs": "2", "search-over": "all"}
    in_process.hyperparameters({**SEARCH, **more})
    in_process.channels(train=drawn_data)
    assert job.main() == 0, in_process.failure.read_text()
    output = capfd.readouterr().out
    assert len([line for line in output.splitlines() if " head " in line and " in epoch " in line]) == 9
    bundle = artifacts.load(in_process.model)
    file = in_process.root / "output" / "data" / "search.json"
    found = json.loads(file.read_text())
    assert bundle.facts["search_trials"] == len(found["trials"]) == 9
    assert bundle.facts["search_best_trial"] == found["trial"]
    assert bundle.facts["head_validation_accuracy"] == pytest.approx(found["value"])
    given = Hyperparameters.parse(trials.read(file).hyperparameters)
    assert given.as_dict() == bundle.hyperparameters, "train --from-best makes this job again, the search included"
    assert given.search_trials == 9


def test_sigterm_in_the_search_keeps_the_best_head_so_far(opt_ml: OptMl, drawn_data: Path) -> None:
    opt_ml.hyperparameters({**SEARCH, "epochs": "1000", "patience": "0", "search-over": "lr"})
    opt_ml.channels(train=drawn_data)
    environ = {**os.environ, "SAGEMAKER_BASE_DIR": str(opt_ml.root), "SM_LOG_LEVEL": "10"}
    process = subprocess.Popen(
        [sys.executable, str(TRAIN)], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if "search: epoch 3 is done, 9 heads" in line:
            process.send_signal(signal.SIGTERM)
            break
    output += process.communicate(timeout=200)[0]
    assert process.returncode == 0, output
    bundle = artifacts.load(opt_ml.model)
    assert bundle.facts["ended_by"] == "stop signal"
    assert bundle.facts["epochs_run"] == 0
    assert bundle.metrics["validation_accuracy"] > 0
    found = json.loads((opt_ml.root / "output" / "data" / "search.json").read_text())
    assert {trial["ended_by"] for trial in found["trials"]} == {"stop signal"}
    assert not opt_ml.failure.exists()
    (best,) = [logs.read_metrics(line) for line in output.splitlines() if "best: " in line]
    assert best["validation_accuracy"] == pytest.approx(bundle.metrics["validation_accuracy"], rel=1e-5)


def test_trials_of_a_tuner_share_a_checkpoint_folder_and_no_checkpoints(
    in_process: OptMl,
    drawn_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    in_process.channels(train=drawn_data)
    in_process.write("checkpointconfig.json", {"LocalPath": str(tmp_path / "checkpoints")})
    for name, lr in (("dogs-001", "0.01"), ("dogs-002", "0.02"), ("dogs-001", "0.01")):
        plain = {**SEARCH, "search-trials": "0", "lr": lr, "epochs": "1"}
        in_process.hyperparameters({**plain, "_tuning_objective_metric": "validation_accuracy"})
        monkeypatch.setenv("TRAINING_JOB_NAME", name)
        assert job.main() == 0, in_process.failure.read_text()
        output = capfd.readouterr().out
    assert "going on from" in output, "the first trial once more, as after an interruption"
    assert sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir()) == ["dogs-001", "dogs-002"]


def test_two_processes_take_the_best_head_of_the_one_that_leads(opt_ml: OptMl, drawn_data: Path) -> None:
    opt_ml.hyperparameters({**SEARCH, "search-over": "lr+hidden-units"})
    opt_ml.channels(train=drawn_data)
    environ = {**os.environ, "SAGEMAKER_BASE_DIR": str(opt_ml.root), "DOGBREED_PROCESSES": "2"}
    done = subprocess.run(
        [sys.executable, str(TRAIN)], env=environ, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    bundle = artifacts.load(opt_ml.model)
    assert bundle.facts["search_trials"] == 9
    assert bundle.build()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
