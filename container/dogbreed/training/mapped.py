"""Files that several processes and jobs share without ever writing to the same one.

A file is written under a name of its own and renamed when it is whole, so that a reader finds all of it or nothing. The
writer holds a lock on it until then, by which others tell work in progress from what a lost process left behind.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import time
import uuid
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_PARTIAL = ".partial"
# Between the making of a file and its lock.
_JUST_BEGUN_S = 60


def begin(folder: Path) -> tuple[Path, IO[bytes]]:
    """A new locked file in ``folder``, which is made when missing. Whoever closes it has renamed or removed it.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f".{uuid.uuid4().hex}{_PARTIAL}"
    stream = file.open("xb")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # some network file systems know no locks; then nothing is ever removed there
        logger.debug("%s cannot be locked: %s", file, error)
    return file, stream


def remove_abandoned(folder: Path) -> None:
    """Removes what lost processes left half written: unlocked, where a lock can be had, and not just begun."""
    for file in folder.glob(f".*{_PARTIAL}"):
        try:
            if time.time() - file.stat().st_mtime < _JUST_BEGUN_S:
                continue
            with file.open("rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.unlink()
        except OSError:
            continue


def write_whole(file: Path, data: bytes) -> None:
    """Writes a small file so that a reader sees all of it or what was there before. Raises OSError."""
    partial, stream = begin(file.parent)
    try:
        with stream:
            stream.write(data)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def map_bytes(file: Path) -> Tensor:
    """The bytes of a file as uint8 [size], read when they are touched; what is written to them stays in this process.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is empty.
    """
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        mapping = mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_COPY)
    return torch.frombuffer(mapping, dtype=torch.uint8)
