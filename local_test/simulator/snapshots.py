"""What a folder holds, to tell afterwards whether somebody wrote there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

Snapshot = Mapping[str, tuple[int, int, int, int]]


def take(source: Path) -> Snapshot:
    """Path below ``source`` -> inode, mode, size and time of change, in nanoseconds, of every file and folder.

    A file that was written and has its old size and time of modification again still has another time of change.
    """
    found = {"": _stamp(source.stat())}
    for folder, _, files in os.walk(source):
        for path in [Path(folder), *(Path(folder) / name for name in files)]:
            found[str(path.relative_to(source))] = _stamp(path.lstat())
    return found


def _stamp(state: os.stat_result) -> tuple[int, int, int, int]:
    return state.st_ino, state.st_mode, state.st_size, state.st_ctime_ns
