"""This project's `train` on the local platform, as a bare process: interruptions, streams, and a tuner's values."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from local_test.cli import main

pytestmark = pytest.mark.timeout(900)

QUICK = "model=tiny pretrained=false image-size=32 batch-size=6 num-workers=0 patience=0 insight=false"


def names(archive: Path) -> list[str]:
    with tarfile.open(archive) as packed:
        return sorted(packed.getnames())


def test_two_hosts_interrupted_anywhere_end_with_the_weights_of_an_uninterrupted_job(
    drawn_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After two epochs here. docs/local-platform.md tells of twenty moments; test_jobs.py has two, of a small job.

    The moment is early in what is left: a machine that has become quicker must not have ended the job before it.
    Its loss falls to the end, so that the weights that count are those of after the interruption.
    """
    options = ["--hosts", "2", "--checkpoints", "--checkpoint-every", "0.1", "--times", "1", "--seed", "1"]
    hyperparameters = f"{QUICK} trainable=all epochs=12 dropout=0.5 checkpoint-seconds=0 objective=validation_loss"
    where = ["--process", "--data", str(drawn_data), "--folder", str(tmp_path), "--name", "spot"]
    code = main(["spot", *where, *options, "--hp", hyperparameters, "--from", "epoch=2;"])
    out = capsys.readouterr().out
    assert code == 0, out
    assert out.splitlines()[-1].startswith("1 of 1 equal; interrupted: 1 "), out
    assert "compared: model.safetensors" in out
    record = json.loads((tmp_path / "spot-001" / "job.json").read_text())
    assert record["Local"]["Attempts"] == 2
    logs = "".join(file.read_text() for file in (tmp_path / "spot-001" / "logs").iterdir())
    assert "going on from" in logs, "the second attempt began at a checkpoint, not at the beginning"
    assert names(tmp_path / "spot-001" / "output" / "model.tar.gz")[1:] == ["bundle.json", "model.safetensors"]


def test_a_manifest_through_a_pipe(drawn_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tmp_path / "train.manifest"
    manifest.write_text(
        "".join(
            json.dumps({"source-ref": str(file), "breed": file.parent.name}) + "\n"
            for file in sorted((drawn_data / "train").rglob("*.jpg"))
        )
    )
    channel = [f"train={manifest}", "mode=Pipe", "wrapper=RecordIO", "attributes=source-ref,breed", "shuffle=1"]
    where = ["--process", "--folder", str(tmp_path / "jobs"), "--name", "piped"]
    code = main(["train", *where, "--channel", *channel, "--hp", f"{QUICK} trainable=head epochs=1", "--quote", "json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "piped: Completed" in out
    assert "read from its pipe" in err
    assert "validation_accuracy" in out, "its metrics are found without being named"


def test_a_reason_is_the_one_of_the_failure_file(drawn_data: Path, tmp_path: Path) -> None:
    where = ["--process", "--data", str(drawn_data), "--folder", str(tmp_path), "--name", "failed"]
    assert main(["train", *where, "--hp", "lr=fast"]) == 1
    record = json.loads((tmp_path / "failed" / "job.json").read_text())
    assert record["TrainingJobStatus"] == "Failed"
    assert "lr='fast'" in record["FailureReason"]
    assert "Traceback" not in record["FailureReason"]


def test_a_tuners_values(drawn_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--process", "--data", str(drawn_data), "--folder", str(tmp_path), "--name", "search"]
    ranges = ["--float", "lr=1e-4..1e-2:log", "--choice", "optimizer=adam,sgd"]
    search = ["--objective", "validation_loss", "--minimize", "--max-jobs", "2", "--quote", "json", "--seed", "1"]
    code = main(["tune", *where, *ranges, *search, "--hp", f"{QUICK} trainable=head epochs=1"])
    out, err = capsys.readouterr()
    assert code == 0, err
    rows = [line.split() for line in out.splitlines()[1:]]
    assert sorted(row[:2] for row in rows) == [["search-001", "Completed"], ["search-002", "Completed"]]
    assert float(rows[0][2]) <= float(rows[1][2])
