from __future__ import annotations

import errno
import os
from collections.abc import Callable
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


def names(folder: Path) -> list[str]:
    return sorted(file.name.split(".")[0] + "".join(file.suffixes[2:]) for file in folder.iterdir())


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def age(file: Path) -> None:
    torch.save({**torch.load(file, weights_only=True), "format": 1}, file)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (truncate, "is not a whole checkpoint and is passed over (RuntimeError)"),
        (age, "has another version's format, 1, and is passed over"),
    ],
)
def test_a_job_that_starts_over_keeps_its_own_checkpoints_beside_unusable_newer_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None], reason: str
) -> None:
    keep(Checkpoints(tmp_path, IDENTITY), 5, 6)
    for file in list(tmp_path.iterdir()):
        spoil(file)
    again = Checkpoints(tmp_path, IDENTITY)
    assert again.newest() is None
    assert f"{reason}" in caplog.text
    assert "it stays as 00006-0000000.checkpoint.pt.unusable until you delete it" in caplog.text
    aside = ["00005-0000000.unusable", "00006-0000000.unusable"]
    for epochs, left in ([1], ["00001-0000000"]), ([2, 3, 4], ["00003-0000000", "00004-0000000"]):
        keep(again, *epochs)
        assert names(tmp_path) == left + aside
    assert newest(tmp_path) == 4
    assert "unusable-1" not in "".join(names(tmp_path)), "what is set aside is not looked at again"


def test_what_is_set_aside_twice_under_one_name_is_there_twice(tmp_path: Path) -> None:
    for _ in range(3):
        keep(Checkpoints(tmp_path, IDENTITY), 1)
        truncate(tmp_path / "00001-0000000.checkpoint.pt")
        assert newest(tmp_path) is None
    assert names(tmp_path) == ["00001-0000000.unusable", "00001-0000000.unusable-1", "00001-0000000.unusable-2"]


def test_what_cannot_be_renamed_does_not_count_and_is_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keep(Checkpoints(tmp_path, IDENTITY), 5, 6)
    truncate(tmp_path / "00006-0000000.checkpoint.pt")
    again = Checkpoints(tmp_path, IDENTITY)
    with monkeypatch.context() as patched:

        def refuse(*_paths: Path) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        patched.setattr(Path, "replace", refuse)
        found = again.newest()
    assert found is not None
    assert found["epoch"] == 5
    assert "it cannot be renamed: [Errno 13] Permission denied" in caplog.text
    again.keep(State(5, 1))  # type: ignore[arg-type]
    again.keep(State(5, 2))  # type: ignore[arg-type]
    assert names(tmp_path) == ["00005-0000001", "00005-0000002", "00006-0000000"]


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


def test_a_refusal_leaves_all_files_as_they_are(tmp_path: Path) -> None:
    keep(Checkpoints(tmp_path, IDENTITY), 1, 2)
    truncate(tmp_path / "00002-0000000.checkpoint.pt")
    with pytest.raises(ConfigurationError, match="is of another job"):
        Checkpoints(tmp_path, {**IDENTITY, "lr": "0.1"}).newest()
    assert names(tmp_path) == ["00001-0000000", "00002-0000000"]


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
