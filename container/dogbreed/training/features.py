"""The frozen part runs once.

What does not learn does not change, and neither does its output for an image: it is computed once per view, stored, and
every epoch trains only the rest on it. With a frozen backbone the plain loop spends 93 to 98% of its time repeating
that forward pass.

A store is a mapped float16 file and a JSON file beside it, which is written last and holds the checksum: without it, or
with another checksum, there is no store. Its name is a digest of everything that its content depends on, so that jobs
and trials share stores and never mistake one for another. Every writer has a file of its own and renames it.

Legend: N samples, V views, B batch, D shape of one output (features, or channels and pixels of a map).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import random
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dogbreed.training.data import Batch

logger = logging.getLogger(__name__)

_FORMAT = 1
_CHUNK_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """The frozen part's outputs for one split.

    Attributes:
        outputs: float16 [V, N, *D], mapped from a file.
        indices: int64 [N], class indices.
        corrupt: images that could not be decoded, with reasons; they are not among the N.
    """

    outputs: NDArray[np.float16]
    indices: NDArray[np.int64]
    corrupt: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoreKey:
    """Everything that a store's content depends on.

    Attributes:
        samples: digest of the split's names, sizes and classes.
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
    """

    def __init__(self, store: FeatureStore, *, batch_size: int, seed: int, shuffle: bool, device: torch.device) -> None:
        self._store = store
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
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
            chosen = [generator.randrange(views) for _ in order]
        for first in range(start * self._batch_size, self._used, self._batch_size):
            rows = order[first : min(first + self._batch_size, self._used)]
            view = chosen[first : first + len(rows)]
            if self._resident is not None:
                outputs = self._resident[view, rows]
            else:
                outputs = torch.from_numpy(self._store.outputs[view, rows])
            yield Batch(outputs, self._indices[rows], ())


def open_store(folder: Path, key: StoreKey) -> FeatureStore | None:
    """The stored outputs of a key, or None when there are none that are whole."""
    try:
        description = json.loads((folder / f"{key.digest}.json").read_text(encoding="utf-8"))
        file = folder / f"{key.digest}.f16"
        shape = tuple(int(size) for size in description["shape"])
        if file.stat().st_size != 2 * int(np.prod(shape)) or _checksum(file) != description["crc32"]:
            raise ValueError("its size or checksum is not the one on record")
        # Copy on write: torch wants writable arrays, and nothing that is written to one reaches the file.
        outputs = np.memmap(file, dtype=np.float16, mode="c", shape=shape)
        return FeatureStore(outputs, np.array(description["indices"], dtype=np.int64), tuple(description["corrupt"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("the stored features %s are not usable and are computed again: %s", key.digest, error)
        return None


def write_store(
    folder: Path, key: StoreKey, views: Sequence[Callable[[], Iterator[tuple[Tensor, Batch]]]], count: int
) -> FeatureStore | None:
    """Computes and stores the outputs of all views.

    Args:
        folder: made when missing.
        key: names the store.
        views: per view, yields outputs [B, *D] with the batch that they were computed from, in one order for all.
        count: number of samples, an upper limit of N.

    Returns:
        The store; None when a view ended early, because of a stop signal.

    Raises:
        OSError: the folder cannot be written, or the disk is full; nothing is left behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{key.digest}.{uuid.uuid4().hex}.partial"
    indices: list[int] = []
    corrupt: dict[str, None] = {}
    shape: tuple[int, ...] = ()
    try:
        with partial.open("wb") as stream:
            for number, view in enumerate(views):
                seen = 0
                for outputs, batch in view():
                    seen += len(batch.indices) + len(batch.corrupt)
                    if number == 0:
                        indices += batch.indices.tolist()
                    corrupt.update(dict.fromkeys(batch.corrupt))
                    if len(batch.indices):
                        shape = tuple(outputs.shape[1:])
                        stream.write(outputs.to("cpu", torch.float16).contiguous().numpy().tobytes())
                if seen < count:
                    return None
            stream.flush()
            os.fsync(stream.fileno())
        file = folder / f"{key.digest}.f16"
        description = {
            "shape": [len(views), len(indices), *shape],
            "crc32": _checksum(partial),
            "indices": indices,
            "corrupt": list(corrupt),
        }
        partial.replace(file)
        _write_text(folder / f"{key.digest}.json", json.dumps(description))
    finally:
        partial.unlink(missing_ok=True)
    return open_store(folder, key)


def digest_weights(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of a state dict, names, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.numpy().tobytes())  # in C order, whatever the memory format
    return digest.hexdigest()


def _fits(store: FeatureStore, device: torch.device) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    return store.outputs.nbytes < free // 4


def _checksum(file: Path) -> int:
    value = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            value = zlib.crc32(chunk, value)
    return value


def _write_text(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
