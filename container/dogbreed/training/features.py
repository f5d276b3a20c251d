"""The frozen part runs once.

What does not learn does not change, and neither does its output for an image: it is computed once per view, stored, and
every epoch trains only the rest on it. With a frozen backbone the plain loop spends 93 to 98% of its time repeating
that forward pass.

A store is one file: the outputs in float16, which are mapped, then a description in JSON with their checksum, then its
length. Where the file is cut short or the checksum is another, there is no store. Its name is a digest of everything
that its content depends on, so that jobs and trials share stores and never mistake one for another. Every writer has a
file of its own and renames it when it is whole: of two that write one store the last one's stays, and each is whole.

Legend: N samples, V views, B batch, D shape of one output (features, or channels and pixels of a map).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import IO, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dogbreed.errors import HyperparameterError
from dogbreed.training import mapped
from dogbreed.training.data import Batch, turn
from dogbreed.training.distributed import ALONE, Team

logger = logging.getLogger(__name__)

_FORMAT = 2
_CHUNK_BYTES = 16 * 1024 * 1024
# The last bytes of a store: how many bytes before them its description is.
_LENGTH = struct.Struct("<Q")


class Stopped(Enum):
    """What comes in the place of a store when a stop signal ended its making; None is a store that is not there."""

    STOPPED = "stop signal"


STOPPED: Final = Stopped.STOPPED


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """The frozen part's outputs for one split.

    Attributes:
        outputs: float16 [V, N, *D], mapped from a file.
        indices: int64 [N], class indices.
        corrupt: images that could not be decoded, with reasons; they are not among the N.
        digest: of the key.
        unread: images whose files could not be read for every view, likewise; another job may be able to.
    """

    outputs: NDArray[np.float16]
    indices: NDArray[np.int64]
    corrupt: tuple[str, ...]
    digest: str
    unread: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """All images that are not among the N, with reasons."""
        return self.corrupt + self.unread


@dataclass(frozen=True, slots=True)
class StoreKey:
    """Everything that a store's content depends on.

    Attributes:
        samples: digest of the split's files and classes.
        network: model name and where it was cut.
        weights: digest of the frozen weights.
        preprocessing: of the bundle, in words.
        views: names and seeds of the views.
        arithmetic: precision and library versions.
    """

    samples: str
    network: str
    weights: str
    preprocessing: str
    views: str
    arithmetic: str

    @property
    def digest(self) -> str:
        """Names the files of the store."""
        parts = (str(_FORMAT), *(getattr(self, name) for name in self.__slots__))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


class FeatureBatches:
    """Batches of stored outputs, for the loop: a new order and new views each epoch.

    Args:
        store: of a split.
        batch_size: B.
        seed: of the order and the choice of views.
        shuffle: for training; else the order of the samples and the first view.
        device: small stores are held there, so that an epoch copies nothing.
        team: each process takes its share of every batch.
        mirror: mirrors half of the maps [C, H, W] of a store of one view, which stands for a view of mirrored images.
    """

    def __init__(
        self,
        store: FeatureStore,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        device: torch.device,
        team: Team = ALONE,
        mirror: bool = False,
    ) -> None:
        self._store = store
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._team = team
        self._mirror = mirror
        count = len(store.indices)
        # As in `data.make_loader`: a training batch of one breaks BatchNorm.
        lonely = shuffle and batch_size > 1 and count > batch_size and count % batch_size == 1
        self._used = count - 1 if lonely else count
        self._resident = (
            torch.from_numpy(np.asarray(store.outputs)).to(device)
            if device.type == "cuda" and _fits(store, device)
            else None
        )
        self._indices = torch.from_numpy(store.indices).to(device)

    def __len__(self) -> int:
        return math.ceil(self._used / self._batch_size)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number ``start`` on; the order depends on the seed and the epoch alone."""
        views, count = self._store.outputs.shape[:2]
        generator = random.Random(f"{self._seed}/{number}")
        order = list(range(count))
        chosen = [0] * count
        if self._shuffle:
            generator.shuffle(order)
            chosen = [generator.randrange(2 if self._mirror else views) for _ in order]
        for first in range(start * self._batch_size, self._used, self._batch_size):
            end = min(first + self._batch_size, self._used)
            own = turn(end - first, self._team.rank, self._team.size)
            rows, view = order[first:end][own], chosen[first:end][own]
            outputs = self._take([0] * len(rows), rows) if self._mirror else self._take(view, rows)
            if self._mirror:
                mirrored = [place for place, drawn in enumerate(view) if drawn]
                outputs[mirrored] = outputs[mirrored].flip(-1)
            yield Batch(outputs, self._indices[rows], ())

    def _take(self, view: Sequence[int], rows: Sequence[int]) -> Tensor:
        """A copy of some outputs, float16 [B, *D]."""
        if self._resident is not None:
            return self._resident[view, rows]
        return torch.from_numpy(self._store.outputs[view, rows])


def open_store(folder: Path, key: StoreKey) -> FeatureStore | None:
    """The stored outputs of a key, or None when there are none that are whole."""
    try:
        return read_store(_file(folder, key))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("the stored features %s are not usable: %s", key.digest, error)
        return None


def read_store(file: Path) -> FeatureStore:
    """The store in a file, all of it from the same one, whatever takes its name meanwhile.

    Raises:
        OSError: the file cannot be read.
        ValueError, KeyError, TypeError: it is no whole store.
    """
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        stream.seek(max(0, size - _LENGTH.size))
        tail = stream.read()
        (length,) = _LENGTH.unpack(tail) if len(tail) == _LENGTH.size else (size,)
        data_bytes = size - _LENGTH.size - length
        if data_bytes < 0:
            raise ValueError("it is cut short")
        stream.seek(data_bytes)
        description = json.loads(stream.read(length))
        shape = tuple(int(side) for side in description["shape"])
        stream.seek(0)
        if data_bytes != 2 * math.prod(shape) or _checksum(stream, data_bytes) != description["crc32"]:
            raise ValueError("its size or checksum is not the one on record")
        # Copy on write: torch wants writable arrays, and nothing that is written to one reaches the file.
        outputs = np.memmap(stream, dtype=np.float16, mode="c", shape=shape) if data_bytes else np.empty(shape, "f2")
        indices = np.array(description["indices"], dtype=np.int64)
        corrupt, unread = tuple(description["corrupt"]), tuple(description["unread"])
        return FeatureStore(outputs, indices, corrupt, file.stem, unread)


def write_store(
    folder: Path, key: StoreKey, views: Sequence[Callable[[], Iterator[tuple[Tensor, Batch]]]], count: int
) -> FeatureStore | Stopped:
    """Computes and stores the outputs of all views; an image that is left out of one of them is left out of all.

    Args:
        folder: made when missing.
        key: names the store.
        views: per view, yields outputs [B, *D] with the batch that they were computed from, in the samples' order.
        count: number of samples, an upper limit of N.

    Returns:
        The store; STOPPED when a view ended early, because of a stop signal.

    Raises:
        HyperparameterError: an output is too large for float16.
        OSError: the folder cannot be written, the disk is full, or what was written is not what is read; nothing is
            left behind.
    """
    indices = np.zeros(count, dtype=np.int64)
    left_out: dict[tuple[str, bool], None] = {}
    shape: tuple[int, ...] = ()
    # Per view the position of every row.
    written: list[list[int]] = []
    with _writing(folder, key) as writer:
        for view in views:
            positions: list[int] = []
            seen = 0
            for outputs, batch in view():
                end = seen + len(batch.indices) + len(batch.left_out)
                lost = {one.position for one in batch.left_out}
                rows = [position for position in range(seen, end) if position not in lost]
                indices[rows] = batch.indices.tolist()
                positions += rows
                left_out.update(dict.fromkeys((one.problem, one.unread) for one in batch.left_out))
                if rows:
                    shape = tuple(outputs.shape[1:])
                    writer.write(_halve(outputs).numpy().tobytes())
                seen = end
            if seen < count:
                return STOPPED
            written.append(positions)
        kept = sorted(set(written[0]).intersection(*written[1:]))
        writer.keep(written, kept, 2 * math.prod(shape))
        corrupt, unread = ([problem for problem, is_unread in left_out if is_unread is of] for of in (False, True))
        writer.finish((len(views), len(kept), *shape), indices[kept].tolist(), corrupt, unread)
    return _reopened(folder, key)


def gather_store(folder: Path, key: StoreKey, share: FeatureStore, team: Team) -> FeatureStore:
    """Puts the shares of all processes together, on every host.

    Args:
        folder: of this host.
        key: names the whole store.
        share: what this process has computed; its samples follow those of the process before.
        team: the processes.

    Returns:
        The whole store.

    Raises:
        OSError: the folder cannot hold it.
    """
    corrupt, unread = (
        [problem for problems in team.gather(own) for problem in problems] for own in (share.corrupt, share.unread)
    )
    indices = [index for found in team.gather(share.indices.tolist()) for index in found]
    shapes = team.gather(share.outputs.shape)
    # A share without one readable image knows no shape of an output.
    views, inner = next(((shape[0], shape[2:]) for shape in shapes if shape[1]), (shapes[0][0], ()))
    row_bytes = 2 * math.prod(inner)
    rows_at_once = max(1, _CHUNK_BYTES // max(1, row_bytes))
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(_writing(folder, key)) if team.local_rank == 0 else None
        for view in range(views):
            for source, shape in enumerate(shapes):
                for first in range(0, shape[1], rows_at_once):
                    rows = min(rows_at_once, shape[1] - first)
                    chunk = torch.empty((rows, *inner), dtype=torch.float16)
                    if source == team.rank:
                        chunk.copy_(torch.from_numpy(share.outputs[view, first : first + rows]))
                    # gloo has no float16 on every platform; bytes are bytes.
                    team.hand_out(chunk.view(torch.uint8), source)
                    if writer is not None:
                        writer.write(chunk.numpy().tobytes())
        if writer is not None:
            writer.finish((views, len(indices), *inner), indices, corrupt, unread)
    team.wait()
    return _reopened(folder, key)


def remove_store(folder: Path, key: StoreKey) -> None:
    """Deletes a store that is not needed any more, if it is there."""
    _file(folder, key).unlink(missing_ok=True)


def digest_weights(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of a state dict, names, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.numpy().tobytes())  # in C order, whatever the memory format
    return digest.hexdigest()


def _halve(outputs: Tensor) -> Tensor:
    """In float16 on the CPU, which pretrained networks stay far below the limits of."""
    halved = outputs.to("cpu", torch.float16).contiguous()
    if not halved.isfinite().all():
        raise HyperparameterError(
            f"an output of the frozen part is {float(outputs.abs().max()):.3g}, over the 65504 that can be stored; "
            f"random weights in a deep network do that: give pretrained weights, or set cache=false"
        )
    return halved


def _file(folder: Path, key: StoreKey) -> Path:
    return folder / f"{key.digest}.f16"


def _reopened(folder: Path, key: StoreKey) -> FeatureStore:
    """A store that has just been written. Raises OSError when it is not there, or damaged: that is no stop signal."""
    found = open_store(folder, key)
    if found is None:
        raise OSError(f"what was just written to {_file(folder, key)} is damaged or gone")
    return found


class _Writer:
    """Writes one store; see `_writing`."""

    def __init__(self, folder: Path, key: StoreKey, partial: Path, stream: IO[bytes]) -> None:
        self._folder = folder
        self._key = key
        self._partial = partial
        self._stream = stream
        self.write = stream.write

    def keep(self, written: Sequence[Sequence[int]], kept: Sequence[int], row_bytes: int) -> None:
        """Leaves of every view the rows of some positions, in place: none moves backwards.

        Args:
            written: per view the positions of its rows, in order.
            kept: positions that every view has, in order.
            row_bytes: size of a row.
        """
        if all(len(positions) == len(kept) for positions in written):
            return
        self._stream.flush()
        wanted = set(kept)
        rows = [position in wanted for positions in written for position in positions]
        with self._partial.open("r+b") as stream:
            end = 0
            for number, stays in enumerate(rows):
                if stays:
                    row = os.pread(stream.fileno(), row_bytes, number * row_bytes)
                    os.pwrite(stream.fileno(), row, end)
                    end += row_bytes
            stream.truncate(end)
        self._stream.seek(end)

    def finish(
        self, shape: Sequence[int], indices: Sequence[int], corrupt: Sequence[str], unread: Sequence[str]
    ) -> None:
        """Adds the description, and gives the file its name."""
        self._stream.flush()
        with self._partial.open("rb") as stream:
            checksum = _checksum(stream, self._stream.tell())
        description = {
            "shape": list(shape),
            "crc32": checksum,
            "indices": list(indices),
            "corrupt": list(corrupt),
            "unread": list(unread),
        }
        text = json.dumps(description).encode()
        self._stream.write(text + _LENGTH.pack(len(text)))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._partial.replace(_file(self._folder, self._key))


@contextlib.contextmanager
def _writing(folder: Path, key: StoreKey) -> Iterator[_Writer]:
    """A file of this writer's own; unless it is finished, nothing is left of it.

    What killed jobs have left half written is removed first: a job that computes needs the space.
    """
    mapped.remove_abandoned(folder)
    partial, stream = mapped.begin(folder)
    try:
        with stream:
            yield _Writer(folder, key, partial, stream)
    finally:
        partial.unlink(missing_ok=True)


def _fits(store: FeatureStore, device: torch.device) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    return store.outputs.nbytes < free // 4


def _checksum(stream: IO[bytes], size: int) -> int:
    """Of the next so many bytes, or of those that there are."""
    value = 0
    while size > 0 and (chunk := stream.read(min(size, _CHUNK_BYTES))):
        value = zlib.crc32(chunk, value)
        size -= len(chunk)
    return value
