"""Pipe mode: streams of records -> folders with a manifest.

A pipe gives its images once per opening, in its own order. Training needs them in random order, and after a stop in
the same one again, so each pipe is read once, to its end, into a folder with an augmented manifest: a copy on the disk,
after which the channel is one like all others. What a name tells of an image elsewhere, its content tells here: files
are called by their place in the stream and a digest.

Two kinds of streams have labels. Of an augmented manifest the platform streams the listed attributes in turn, each in a
record of its own: the image, its label, and perhaps the label's metadata. Their names are not told, so that the first
records must show which is which. The records of im2rec hold image and label together.

Sources: AWS docs, your-algorithms-training-algo-running-container (Pipe mode), augmented-manifest-stream,
image-classification; API reference, Channel and S3DataSource; Linux, pipe(7) and poll(2).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import itertools
import json
import logging
import os
import re
import select
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from dogbreed.environment import Channel, TrainingEnvironment
from dogbreed.errors import ConfigurationError, DataError, JobError
from dogbreed.training import lists, recordio
from dogbreed.training.distributed import Team
from dogbreed.training.lists import Label
from dogbreed.training.sources import LIST_SUFFIX, OTHER_CHANNELS

logger = logging.getLogger(__name__)

_RESERVE_BYTES = 2 * 1024**3
_PATIENCE_S = 60.0
_POLL_S = 0.2
_BUFFER_BYTES = 1024**2
_FILES_PER_FOLDER = 1000
_LOCK = ".lock"
# Between the making of a folder and its lock.
_JUST_BEGUN_S = 60
# Members of AttributeNames, beside the image (API reference: S3DataSource).
_MAX_ATTRIBUTES = 15
_MAX_ATTRIBUTE_BYTES = 64 * 1024

# What files in `preprocessing.FORMATS` begin with, and the suffix to store them under.
_SIGNATURES = (
    (re.compile(rb"\xff\xd8\xff"), ".jpg"),
    (re.compile(rb"\x89PNG\r\n"), ".png"),
    (re.compile(rb"GIF8[79]a"), ".gif"),
    (re.compile(rb"BM.{4}\0{4}", re.DOTALL), ".bmp"),
    (re.compile(rb"II\*\0|MM\0\*"), ".tif"),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), ".webp"),
)

StopRequested = Callable[[], bool]


class StoppedEarlyError(JobError):
    """The job was asked to stop before its data had come; nothing is lost, and there is nothing to keep."""


@contextlib.contextmanager
def as_folders(
    environment: TrainingEnvironment,
    team: Team,
    stop_requested: StopRequested,
    *,
    reserve_bytes: int = _RESERVE_BYTES,
    patience_s: float = _PATIENCE_S,
) -> Iterator[TrainingEnvironment]:
    """The environment with a folder in the place of each pipe, for as long as the context lasts.

    One process of each host reads its pipes, one after the other; all of them must come here.

    Args:
        environment: its cache folder takes the copies.
        team: the processes of the job.
        stop_requested: asked all the time.
        reserve_bytes: are left free on the disk.
        patience_s: after so long without data the log says what is waited for.

    Raises:
        ConfigurationError: a channel without images is a pipe.
        DataError: a stream is not RecordIO, has no labels or is cut off, or the disk is too small for it.
        StoppedEarlyError: a stop was requested first, here or on another host.
    """
    piped = [channel for channel in environment.channels.values() if channel.piped]
    if not piped:
        yield environment
        return
    _check_channels(piped)
    with contextlib.ExitStack() as stack:
        folder, stopped = Path(), False
        if team.local_rank == 0:
            folder = stack.enter_context(_own_folder(environment.cache / "piped"))
            try:
                for channel in piped:
                    _spool(channel, folder / channel.name, stop_requested, reserve_bytes, patience_s)
            except StoppedEarlyError:
                stopped = True
        everyone = team.gather((folder, stopped))
        if any(stopped for _, stopped in everyone):
            raise StoppedEarlyError("the job was stopped before its data had come; there is no model")
        folder = everyone[team.rank - team.local_rank][0]
        read = {channel.name: replace(channel, path=folder / channel.name, piped=False) for channel in piped}
        yield replace(environment, channels={**environment.channels, **read})


def _check_channels(piped: Iterable[Channel]) -> None:
    for channel in piped:
        if channel.name in OTHER_CHANNELS or channel.name.endswith(LIST_SUFFIX):
            raise ConfigurationError(
                f"channel {channel.name!r} comes in Pipe mode, which is for images; give this one InputMode=File"
            )


def _spool(
    channel: Channel, folder: Path, stop_requested: StopRequested, reserve_bytes: int, patience_s: float
) -> None:
    """Reads a channel's pipe to its end into a new folder."""
    store = _Store(folder, channel.name, reserve_bytes)
    started = time.monotonic()
    try:
        with store, io.BufferedReader(_Pipe(channel, stop_requested, patience_s), _BUFFER_BYTES) as stream:
            for image, label in _samples(recordio.read_records(stream)):
                store.add(image, label)
    except recordio.CutOffError as error:
        raise DataError(
            f"channel {channel.name!r}: the stream was cut off: {error}; start the job again, and look for a cause in "
            f"the S3 objects if that does not help"
        ) from error
    except recordio.RecordError as error:
        hint = "" if channel.wrapped else "; set RecordWrapperType=RecordIO where the data is not RecordIO already"
        raise DataError(f"channel {channel.name!r}: the stream is not RecordIO: {error}{hint}") from error
    except ValueError as error:
        raise DataError(f"channel {channel.name!r}, image {store.images + 1}: {error}") from error
    except OSError as error:
        raise DataError(f"channel {channel.name!r} cannot be read into {folder}: {error}") from error
    if not store.images:
        raise DataError(f"channel {channel.name!r}: the stream is empty; its S3 URI must name a manifest with images")
    logger.info(
        "channel %r: %d images, %.1f MB, read from its pipe into %s in %.0f s",
        channel.name, store.images, store.bytes / 1e6, folder, time.monotonic() - started,
    )  # fmt: skip


class _Store(contextlib.AbstractContextManager["_Store", None]):
    """A folder that takes the images of a channel, with their manifest."""

    def __init__(self, folder: Path, channel: str, reserve_bytes: int) -> None:
        folder.mkdir()
        self._folder = folder
        self._channel = channel
        self._reserve_bytes = reserve_bytes
        self._manifest = (folder / f"pipe{lists.MANIFEST_SUFFIX}").open("x", encoding="utf-8")
        self.images = 0
        self.bytes = 0

    def add(self, image: bytes, label: Label) -> None:
        """Keeps one image. Raises DataError when the disk is too small, or OSError."""
        free = shutil.disk_usage(self._folder).free
        if free < self._reserve_bytes + len(image):
            raise DataError(
                f"channel {self._channel!r}: after {self.images} images ({self.bytes / 1e9:.1f} GB) only "
                f"{free / 1e9:.1f} GB are free in {self._folder.parent}, of which {self._reserve_bytes / 1e9:.1f} GB "
                f"stay free; Pipe mode needs disk for one copy of the images: raise VolumeSizeInGB, name another "
                f"folder in DOGBREED_CACHE_DIR, or use FastFile mode"
            )
        digest = hashlib.blake2b(image, digest_size=8).hexdigest()
        name = f"{self.images:07d}-{digest}{_suffix(image)}"
        path = PurePosixPath(f"{self.images // _FILES_PER_FOLDER:05d}", name)
        (self._folder / path.parent).mkdir(exist_ok=True)
        (self._folder / path).write_bytes(image)
        self._manifest.write(lists.write_line(path, label))
        self.images += 1
        self.bytes += len(image)

    def __exit__(self, *_: object) -> None:
        self._manifest.close()


def _samples(records: Iterator[bytes]) -> Iterator[tuple[bytes, Label]]:
    """The images of a stream with their labels.

    Raises:
        ValueError: they have no labels, or not as expected.
        recordio.RecordError: see there.
    """
    layout = _read_layout(records)
    if layout is None:
        return
    records = itertools.chain(layout.first, records)
    if layout.period == 0:
        for record in records:
            labels, image = recordio.unpack_image(record)
            yield image, lists.read_label(labels)
        return
    while group := list(itertools.islice(records, layout.period)):
        if len(group) < layout.period:
            raise recordio.CutOffError(f"the last image has {len(group)} records instead of {layout.period}")
        image = group.pop(layout.image)
        yield image, lists.read_label([_read_attribute(record) for record in group])


@dataclass(frozen=True, slots=True)
class _Layout:
    """What the records of a stream are.

    Attributes:
        period: records of one image; 0 where im2rec put image and label into one.
        image: place of the image among them.
        first: the records that were read to find out.
    """

    period: int
    image: int
    first: tuple[bytes, ...]


def _read_layout(records: Iterator[bytes]) -> _Layout | None:
    """Reads up to the second image; None when the stream is empty. Raises ValueError when there are no labels."""
    first: list[bytes] = []
    images: list[int] = []
    for record in records:
        if record.startswith(recordio.MAGIC):
            raise ValueError(
                "a record holds RecordIO itself; leave RecordWrapperType out for objects that are RecordIO already"
            )
        first.append(record)
        if not _is_attribute(record):
            images.append(len(first) - 1)
        if len(images) == 2 or len(first) > 2 * (_MAX_ATTRIBUTES + 1):
            break
    if not first:
        return None
    if any(_is_im2rec(first[place]) for place in images):
        return _Layout(0, 0, tuple(first))
    period = images[1] - images[0] if len(images) == 2 else len(first)
    if not images or images[0] >= period or period > _MAX_ATTRIBUTES + 1:
        raise ValueError(
            "the records are not images with labels in turn; AttributeNames must name source-ref and a label"
        )
    if period == 1:
        raise ValueError(
            "it comes without a label, because in Pipe mode files have no names or folders; give an augmented manifest "
            "(S3DataType=AugmentedManifestFile, AttributeNames such as source-ref and class), RecordIO files made by "
            "im2rec, or the same data in File or FastFile mode"
        )
    return _Layout(period, images[0], tuple(first))


def _is_im2rec(record: bytes) -> bool:
    if _suffix(record):
        return False
    try:
        return bool(_suffix(recordio.unpack_image(record)[1]))
    except recordio.RecordError:
        return False


def _is_attribute(record: bytes) -> bool:
    try:
        _read_attribute(record)
    except ValueError:
        return False
    return True


def _read_attribute(record: bytes) -> object:
    """The value of an attribute, as JSON or as plain text. Raises ValueError when it is neither."""
    if _suffix(record) or len(record) > _MAX_ATTRIBUTE_BYTES:
        raise ValueError(f"a record of {len(record)} bytes stands where a label should be")
    try:
        text = record.decode()
    except UnicodeDecodeError:
        raise ValueError(f"a record of {len(record)} bytes that are no text stands where a label should be") from None
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("a label is nested too deeply") from None
    except ValueError:
        if not text.isprintable() or not text.strip():
            raise ValueError(f"the label {text[:40]!r} is neither JSON nor a name") from None
        return text


def _suffix(image: bytes) -> str:
    """Of a file with these bytes; empty when they are no image by their beginning."""
    return next((suffix for signature, suffix in _SIGNATURES if signature.match(image)), "")


class _Pipe(io.RawIOBase):
    """A channel's named pipe, or a file in its place, from its first byte to its last.

    It is opened without waiting for a writer, and every wait is a short one, so that a stop is seen.
    """

    def __init__(self, channel: Channel, stop_requested: StopRequested, patience_s: float) -> None:
        super().__init__()
        self._file = channel.pipe()
        self._channel = channel.name
        self._stop_requested = stop_requested
        self._patience_s = patience_s
        self._bytes = 0
        self._since = time.monotonic()
        logger.info("channel %r: reading %s", channel.name, self._file)
        while not self._file.exists():
            self._wait_on("does not exist")
            time.sleep(_POLL_S)
        self._descriptor = os.open(self._file, os.O_RDONLY | os.O_NONBLOCK)
        self._poll = select.poll()
        # Until a writer has come there is no event; when the last one has gone there is POLLHUP.
        self._poll.register(self._descriptor, select.POLLIN)
        self._since = time.monotonic()

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed's Buffer has no name in 3.11
        """Fills a part of the buffer; 0 at the end.

        Raises:
            StoppedEarlyError: a stop was requested.
            OSError: the pipe cannot be read.
        """
        while True:
            self._check_stop()
            while not self._poll.poll(_POLL_S * 1000):
                self._wait_on("brings nothing" if self._bytes else "has no writer, or one that writes nothing")
            with contextlib.suppress(BlockingIOError):
                count = os.readv(self._descriptor, [buffer])
                self._bytes += count
                self._since = time.monotonic()
                return count

    def close(self) -> None:
        """Closes the pipe; its writer is told when it writes again."""
        if not self.closed and hasattr(self, "_descriptor"):
            os.close(self._descriptor)
        super().close()

    def _check_stop(self) -> None:
        if self._stop_requested():
            raise StoppedEarlyError

    def _wait_on(self, state: str) -> None:
        self._check_stop()
        if time.monotonic() - self._since >= self._patience_s:
            self._since = time.monotonic()
            logger.warning(
                "channel %r: for %.0f s the pipe %s %s (%.1f MB so far); still waiting for the platform to stream the "
                "data, until the job is stopped",
                self._channel, self._patience_s, self._file, state, self._bytes / 1e6,
            )  # fmt: skip


@contextlib.contextmanager
def _own_folder(parent: Path) -> Iterator[Path]:
    """A new folder that is removed at the end; also those that lost jobs left there are removed."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(parent)
        folder = Path(tempfile.mkdtemp(dir=parent))
        lock = (folder / _LOCK).open("xb")
    except OSError as error:
        raise DataError(
            f"the images of the pipes cannot be stored in {parent}: {error}; name another folder in DOGBREED_CACHE_DIR"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # some network file systems know no locks; then nothing is ever removed there
            logger.debug("%s cannot be locked: %s", folder, error)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Removes the folders of jobs that were lost: not locked, where a lock can be had, and not just begun."""
    for file in parent.glob(f"*/{_LOCK}"):
        try:
            if time.time() - file.stat().st_mtime < _JUST_BEGUN_S:
                continue
            with file.open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(file.parent, ignore_errors=True)
        except OSError:
            continue
