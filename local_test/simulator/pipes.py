"""Pipe mode: objects written into one named pipe per epoch, for as long as the job runs.

Sources: AWS docs, your-algorithms-training-algo-running-container (CHANNEL_EPOCH, epochs from 0, read in order),
augmented-manifest-stream (the attributes in turn, each in a record); API reference, Channel (CompressionType);
dmlc-core, recordio.h.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import random
import select
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from local_test.simulator.channels import Channel, RequestError

_MAGIC = struct.pack("<I", 0xCED7230A)
_POLL_S = 0.02
_PATIENCE_S = 0.2
_CHUNK_BYTES = 1024**2


def record(data: bytes) -> bytes:
    """One RecordIO record. Where the magic number stands in the data at a multiple of four, the data is cut there.

    The number itself is left out, and the reader puts it back between parts: flag 0 is a whole record, 1 the first
    part, 2 one in the middle, 3 the last.
    """
    parts, begin = [], 0
    for place in range(0, len(data) - len(_MAGIC) + 1, 4):
        if data[place : place + 4] == _MAGIC:
            parts.append(data[begin:place])
            begin = place + 4
    parts.append(data[begin:])
    flags = [0] if len(parts) == 1 else [1, *[2] * (len(parts) - 2), 3]
    return b"".join(
        _MAGIC + struct.pack("<I", flag << 29 | len(part)) + part + bytes(-len(part) % 4)
        for flag, part in zip(flags, parts, strict=True)
    )


class Feeder:
    """Feeds the pipes of one channel of one host, in a thread of its own.

    Args:
        channel: in Pipe mode.
        folder: input/data of the host.
        host, hosts: which share of a sharded channel.
    """

    def __init__(self, channel: Channel, folder: Path, host: int = 0, hosts: int = 1) -> None:
        self._channel = channel
        self._folder = folder
        self._stop = threading.Event()
        if channel.attributes:
            lines = [line for line in channel.source.read_text(encoding="utf-8").splitlines() if line.strip()]
            self._objects: Sequence[str] = lines[host::hosts] if channel.sharded else lines
            for line in self._objects:
                self._check(line)
        else:
            self._objects = channel.objects(host, hosts)
            if channel.gzipped:
                for key in self._objects:
                    self._check_compressed(key)
        folder.mkdir(parents=True, exist_ok=True)
        self._epoch = 0
        # The first pipe is there before the subject starts.
        os.mkfifo(self._pipe())
        self._thread = threading.Thread(target=self._feed, daemon=True, name=f"pipe {channel.name}")
        self._thread.start()

    def close(self) -> None:
        """Ends it; the subject has ended."""
        self._stop.set()
        self._thread.join()
        self._pipe().unlink(missing_ok=True)

    def _pipe(self) -> Path:
        return self._folder / f"{self._channel.name}_{self._epoch}"

    def _feed(self) -> None:
        while (descriptor := self._opened()) is not None:
            try:
                with os.fdopen(descriptor, "wb", buffering=0) as stream:
                    for chunk in self._chunks():
                        _write(stream.fileno(), chunk, self._stop)
            except BrokenPipeError:
                # Who closes early has had enough of this epoch.
                pass
            if self._stop.is_set():
                return
            done = self._pipe()
            self._epoch += 1
            os.mkfifo(self._pipe())
            done.unlink(missing_ok=True)

    def _opened(self) -> int | None:
        """The pipe, once somebody reads there; None when the job is over."""
        while not self._stop.wait(_POLL_S):
            try:
                return os.open(self._pipe(), os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
        return None

    def _chunks(self) -> Iterator[bytes]:
        objects = list(self._objects)
        if self._channel.shuffle_seed is not None:
            random.Random(self._channel.shuffle_seed + self._epoch).shuffle(objects)
        for one in objects:
            if self._channel.attributes:
                yield from (record(part) for part in self._attributes(json.loads(one)))
            elif self._channel.recordio:
                with self._open(one) as file:
                    yield record(file.read())
            else:
                with self._open(one) as file:
                    while chunk := file.read(_CHUNK_BYTES):
                        yield chunk

    def _open(self, key: str) -> BinaryIO:
        file = self._channel.base / key
        return cast(BinaryIO, gzip.open(file)) if self._channel.gzipped else file.open("rb")

    def _attributes(self, line: dict[str, object]) -> Iterator[bytes]:
        for name in self._channel.attributes:
            value = line[name]
            if name.endswith("-ref"):
                yield self._referred(str(value)).read_bytes()
            else:
                yield (value if isinstance(value, str) else json.dumps(value)).encode()

    def _referred(self, reference: str) -> Path:
        """A file that a manifest names: relative to it; of an S3 address, what remains of it below the manifest."""
        folder = self._channel.source.parent
        if not reference.startswith("s3://"):
            return folder / reference
        parts = reference.removeprefix("s3://").split("/")
        return next(
            (file for start in range(1, len(parts)) if (file := folder.joinpath(*parts[start:])).is_file()),
            folder / parts[-1],
        )

    def _check_compressed(self, key: str) -> None:
        """Reads it once: a stream that broke off would leave its reader waiting."""
        try:
            with self._open(key) as file:
                while file.read(_CHUNK_BYTES):
                    pass
        except (OSError, EOFError, zlib.error) as error:
            told = f"{self._channel.base / key} cannot be decompressed ({error})"
            raise RequestError(
                f"channel {self._channel.name}: {told}; with compression=Gzip every object is a whole .gz file"
            ) from error

    def _check(self, text: str) -> None:
        where = f"channel {self._channel.name}: {self._channel.source}, line {text[:80]!r}"
        try:
            line = json.loads(text)
        except ValueError as error:
            raise RequestError(f"{where} is not JSON: {error}") from error
        for name in self._channel.attributes:
            if not isinstance(line, dict) or name not in line:
                raise RequestError(f"{where} has no attribute {name}; the attributes given are those of every line")
            if name.endswith("-ref") and not self._referred(str(line[name])).is_file():
                raise RequestError(f"{where}: there is no file {self._referred(str(line[name]))}")


def _write(descriptor: int, data: bytes, stop: threading.Event) -> None:
    """Writes all of it, and gives up when the job is over: its processes may hold the pipe without reading."""
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            select.select([], [descriptor], [], _PATIENCE_S)
            if stop.is_set():
                raise BrokenPipeError from None
