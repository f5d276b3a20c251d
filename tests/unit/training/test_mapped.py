from __future__ import annotations

import os
from pathlib import Path
from typing import IO

import pytest
import torch

from dogbreed.training import mapped


def test_a_small_file_is_there_or_not(tmp_path: Path) -> None:
    file = tmp_path / "made" / "file"
    mapped.write_whole(file, b"one")
    mapped.write_whole(file, b"two")
    assert file.read_bytes() == b"two"
    assert [path.name for path in file.parent.iterdir()] == ["file"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "child").touch()
    with pytest.raises(OSError, match="folder"):
        mapped.write_whole(tmp_path / "folder", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_what_lost_processes_left_is_removed_and_work_in_progress_is_not(tmp_path: Path) -> None:
    def make(*, minutes_old: int, lost: bool) -> Path:
        file, stream = mapped.begin(tmp_path)
        if lost:
            stream.close()
        else:
            streams.append(stream)
        os.utime(file, times=(0, file.stat().st_mtime - 60 * minutes_old))
        return file

    streams: list[IO[bytes]] = []
    lost, fresh = make(minutes_old=9, lost=True), make(minutes_old=0, lost=True)
    working = make(minutes_old=9, lost=False)
    (tmp_path / "other").touch()
    mapped.remove_abandoned(tmp_path)
    assert not lost.exists()
    assert fresh.exists()
    assert working.exists()
    assert (tmp_path / "other").exists()
    mapped.remove_abandoned(tmp_path / "absent")
    streams[0].close()


def test_bytes_are_mapped_and_changes_stay_here(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes([1, 2, 3]))
    found = mapped.map_bytes(tmp_path / "file")
    found[0] = 9
    assert found.tolist() == [9, 2, 3]
    assert found.dtype is torch.uint8
    assert (tmp_path / "file").read_bytes() == bytes([1, 2, 3])


def test_an_empty_file_cannot_be_mapped(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="empty"):
        mapped.map_bytes(tmp_path / "file")
