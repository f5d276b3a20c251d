from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from dogbreed.errors import ConfigurationError
from dogbreed.training.checkpoint import Checkpoints, identity_of

IDENTITY = identity_of({"lr": 0.001, "epochs": 5, "num-workers": 2}, ("a", "b"), "f" * 64)


class State:
    """As much of a `FitState` as checkpoints know."""

    def __init__(self, epoch: int, batch: int = 0) -> None:
        self.epoch, self.batch = epoch, batch

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "batch": self.batch, "weights": torch.full((50,), float(self.epoch))}


def keep(checkpoints: Checkpoints, *epochs: int) -> None:
    for epoch in epochs:
        checkpoints.keep(State(epoch))  # type: ignore[arg-type]


def newest(folder: Path) -> int | None:
    found = Checkpoints(folder, IDENTITY).newest()
    return None if found is None else int(found["epoch"])


def test_the_newest_checkpoint_is_found(tmp_path: Path) -> None:
    assert newest(tmp_path / "none yet") is None
    keep(Checkpoints(tmp_path, IDENTITY, keep=9), 9, 10, 2)
    assert newest(tmp_path) == 10


def test_only_the_last_few_stay_and_nothing_else_is_left(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    keep(Checkpoints(tmp_path, IDENTITY, keep=2), 1, 2, 3, 4)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "00003-0000000.checkpoint.pt",
        "00004-0000000.checkpoint.pt",
        "notes.txt",
    ]


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_half_a_file_is_passed_over_for_the_one_before(tmp_path: Path, size: int) -> None:
    keep(Checkpoints(tmp_path, IDENTITY), 1, 2)
    file = tmp_path / "00002-0000000.checkpoint.pt"
    file.write_bytes(file.read_bytes()[:size])
    assert newest(tmp_path) == 1


def test_a_file_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    keep(Checkpoints(tmp_path, IDENTITY), 1)
    torch.save(os.getcwd, tmp_path / "00002-0000000.checkpoint.pt")
    assert newest(tmp_path) == 1


@pytest.mark.parametrize(
    ("identity", "difference"),
    [
        (identity_of({"lr": 0.1, "epochs": 5}, ("a", "b"), "f" * 64), "lr was 0.001, is 0.1"),
        (identity_of({"lr": 0.001, "epochs": 5}, ("a", "c"), "f" * 64), "classes was 2"),
        (identity_of({"lr": 0.001, "epochs": 5}, ("a", "b"), "e" * 64), "images was ffffffffffff, is eeeeeeeeeeee"),
    ],
)
def test_a_checkpoint_of_another_job_is_refused(tmp_path: Path, identity: dict[str, str], difference: str) -> None:
    keep(Checkpoints(tmp_path, IDENTITY), 1)
    with pytest.raises(ConfigurationError, match=rf"is of another job \(.*{difference}.*an empty checkpoint folder"):
        Checkpoints(tmp_path, identity).newest()


def test_the_number_of_loader_processes_is_no_difference(tmp_path: Path) -> None:
    keep(Checkpoints(tmp_path, IDENTITY), 1)
    other = identity_of({"lr": 0.001, "epochs": 5, "num-workers": 0}, ("a", "b"), "f" * 64)
    assert Checkpoints(tmp_path, other).newest() is not None


def test_a_full_disk_costs_one_checkpoint_and_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    keep(checkpoints, 1)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    keep(checkpoints, 2)
    assert "no checkpoint of epoch 2 could be written" in caplog.text
    assert "No space left on device" in caplog.text
    assert [file.name for file in tmp_path.iterdir()] == ["00001-0000000.checkpoint.pt"]


def test_a_checkpoint_is_due_when_the_last_one_is_old_enough(tmp_path: Path) -> None:
    now = 0.0
    checkpoints = Checkpoints(tmp_path, IDENTITY, interval_s=60, keep=9, clock=lambda: now)
    for batch, now in enumerate([10.0, 59.0, 61.0, 100.0, 122.0]):  # noqa: B007  read by the clock
        if checkpoints.due():
            checkpoints.keep(State(1, batch))  # type: ignore[arg-type]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "00001-0000002.checkpoint.pt",
        "00001-0000004.checkpoint.pt",
    ]
