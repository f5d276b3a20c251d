"""What stands for the platform's side of a pipe: RecordIO, and threads that write it into named pipes."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterable
from pathlib import Path

MAGIC = b"\x0a\x23\xd7\xce"


def record(data: bytes) -> bytes:
    """One record, cut where the magic number stands in it at a multiple of four, as dmlc-core writes it."""
    cuts = [place for place in range(0, len(data) - 3, 4) if data[place : place + 4] == MAGIC]
    starts, ends = [0, *(cut + 4 for cut in cuts)], [*cuts, len(data)]
    written = b""
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        flag = 0 if not cuts else 1 if number == 0 else 3 if end == len(data) and number == len(cuts) else 2
        part = data[start:end]
        written += MAGIC + struct.pack("<I", flag << 29 | len(part)) + part + b"\0" * (-len(part) % 4)
    return written


def im2rec(image: bytes, *labels: float) -> bytes:
    """A record as MXNet's im2rec packs it: one label stands in the header, several behind it."""
    if len(labels) == 1:
        return record(struct.pack("<IfQQ", 0, labels[0], 7, 0) + image)
    return record(struct.pack(f"<IfQQ{len(labels)}f", len(labels), 0.0, 7, 0, *labels) + image)


def feed(pipe: Path, chunks: Iterable[bytes]) -> threading.Thread:
    """Makes a named pipe and writes into it, in a thread, as soon as somebody reads there."""
    os.mkfifo(pipe)

    def write() -> None:
        with pipe.open("wb") as stream:
            for chunk in chunks:
                stream.write(chunk)

    thread = threading.Thread(target=write, daemon=True, name=f"writer of {pipe.name}")
    thread.start()
    return thread
