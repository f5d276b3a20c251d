"""Channels -> splits -> batches.

A class is a folder of images; a channel is a folder of classes. Reads names only until a batch is asked for, writes
nothing beside the data (FastFile is a read-only stream), and treats an image that cannot be decoded as a fact about
the data: it is left out of its batch and reported with it.

Legend: N batch, S side of the network's input in pixels.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dogbreed.errors import DataError
from dogbreed.labels import Labels
from dogbreed.preprocessing import CorruptImageError, decode, is_image_file

TRAIN_NAMES = ("train", "training")
VALIDATION_NAMES = ("validation", "valid", "val")
TEST_NAMES = ("test", "testing")
# Channels that bring something else than images.
_OTHER_CHANNELS = frozenset({"pretrained", "model"})

_PREFETCHED_BATCHES = 2
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  torch's workers put batches there; nothing of ours is written to it

View = Callable[[Tensor], Tensor]
"""uint8 [3, H, W] -> uint8 [3, S, S]; draws from torch's global generator when it is random."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image file and the index of its class."""

    path: Path
    index: int


@dataclass(frozen=True, slots=True)
class Splits:
    """The samples of a job.

    Attributes:
        labels: the classes, from the training folders.
        test: None when there is no test channel.
        fingerprint: SHA-256 over the relative names and sizes of the training files.
        held_out: validation samples were taken from the training channel.
    """

    labels: Labels
    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    test: tuple[Sample, ...] | None
    fingerprint: str
    held_out: bool

    @property
    def images(self) -> int:
        """Number of images in all splits."""
        return len(self.train) + len(self.validation) + len(self.test or ())


class Batch(NamedTuple):
    """What the loop gets.

    Attributes:
        images: uint8 [N, 3, S, S]; N is smaller where images were corrupt, and may be 0.
        indices: int64 [N], class indices.
        corrupt: paths, with the reason, of the images that could not be decoded.
    """

    images: Tensor
    indices: Tensor
    corrupt: tuple[str, ...]


def find_splits(channels: Mapping[str, Path], *, validation_fraction: float, seed: int) -> Splits:
    """Finds the samples of all splits in the job's channels, given as name -> folder.

    Either each split is a channel (`train`; `validation`, `valid` or `val`; `test`), or one channel holds folders of
    these names, as the Udacity archive does. Without validation images, a share of each class is held out.

    Raises:
        DataError: a channel or class is missing, empty or unknown; names the folder and what was found.
    """
    folders = _split_folders(channels)
    train_folder = folders["train"]
    classes = _class_folders(train_folder)
    if len(classes) < 2:
        found = ", ".join(sorted(path.name for path in train_folder.iterdir())[:5]) or "nothing"
        raise DataError(
            f"{train_folder} must hold one folder per class, at least two, but holds {len(classes)} (found: {found})"
        )
    labels = Labels.from_folders(classes)
    train = _samples(train_folder, labels)
    _check_every_class_has_images(train_folder, labels, train)
    fingerprint = _fingerprint(train_folder, train)
    if "validation" in folders:
        validation = _labelled(folders["validation"], labels, "validation")
    else:
        train, validation = _hold_out(train, len(labels), validation_fraction, seed)
    return Splits(
        labels=labels,
        train=train,
        validation=validation,
        test=_labelled(folders["test"], labels, "test") if "test" in folders else None,
        fingerprint=fingerprint,
        held_out="validation" not in folders,
    )


def make_loader(
    samples: Sequence[Sample],
    view: View,
    *,
    batch_size: int,
    workers: int,
    seed: int,
    shuffle: bool,
    pin: bool,
    rank: int = 0,
    ranks: int = 1,
) -> EpochLoader:
    """Batches of one split; the same seed and epoch give the same batches, whatever the number of workers.

    Args:
        samples: the split.
        view: image -> network input.
        batch_size: N.
        workers: processes that decode; 0 decodes in the caller's.
        seed: of the order and of random views.
        shuffle: a new order each epoch.
        pin: page-locked batches, for copies to a GPU.
        rank: of this process among those that share every batch.
        ranks: number of them; a batch of this process holds each of their samples once, and may be empty.
    """
    batches = _EpochBatches(len(samples), batch_size, seed=seed, shuffle=shuffle, rank=rank, ranks=ranks)
    loader = DataLoader(
        _Images(samples, view),
        batch_sampler=batches,
        # Unused by us, but without one of its own the loader draws from the generator that dropout uses.
        generator=torch.Generator(),
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin,
        persistent_workers=workers > 0,
        prefetch_factor=_PREFETCHED_BATCHES if workers else None,
        worker_init_fn=_start_worker if workers else None,
    )
    # The collate function makes batches of the items, which DataLoader's type does not know.
    return EpochLoader(cast(Iterable[Batch], loader), batches)


class EpochLoader:
    """Iterates over the batches of one epoch at a time; `len` is the number of batches."""

    def __init__(self, loader: Iterable[Batch], batches: _EpochBatches) -> None:
        self._loader = loader
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number ``start`` on; the order depends on the seed and the epoch alone."""
        self._batches.epoch, self._batches.start = number, start
        return iter(self._loader)


def choose_workers(
    requested: int, *, cpus: int, batches: int, batch_bytes: int, shared_memory: Path = _SHARED_MEMORY
) -> int:
    """Number of loader processes.

    Args:
        requested: -1 for as many as ``cpus``.
        cpus: CPUs that loading may use.
        batches: batches per epoch; more workers than that would idle.
        batch_bytes: size of one batch.
        shared_memory: where worker processes hand over batches; Docker gives it 64 MB by default, and a full one kills
            the process with a bus error, so too small a one means fewer workers.
    """
    wanted = min(cpus if requested < 0 else requested, batches)
    try:
        free = shutil.disk_usage(shared_memory).free
    except OSError:
        return 0
    # Every worker holds its prefetched batches, and the loop the one in hand.
    affordable = int((free * 0.8 / max(1, batch_bytes) - 1) // (_PREFETCHED_BATCHES + 1))
    return max(0, min(wanted, affordable))


class _Images(Dataset[tuple[Tensor | None, int, str]]):
    """Decodes and views single images; keys carry the seed of a random view."""

    def __init__(self, samples: Sequence[Sample], view: View) -> None:
        self._samples = samples
        self._view = view

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor | None, int, str]:
        position, view_seed = key
        sample = self._samples[position]
        try:
            image = decode(sample.path)
        except (CorruptImageError, OSError) as error:
            return None, sample.index, f"{sample.path} ({error})"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(view_seed)
            return self._view(image), sample.index, ""


class _EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of positions with the seed of each one's view: all follows from (seed, epoch, position)."""

    def __init__(self, samples: int, batch_size: int, *, seed: int, shuffle: bool, rank: int, ranks: int) -> None:
        self._samples = samples
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._rank = rank
        self._ranks = ranks
        # BatchNorm cannot learn from a single sample with 1x1 maps: a last batch of one sits out, another one each
        # epoch.
        lonely = shuffle and batch_size > 1 and samples > batch_size and samples % batch_size == 1
        self._used = samples - 1 if lonely else samples
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        return math.ceil(self._used / self._batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = random.Random(f"{self._seed}/{self.epoch}")
        order = list(range(self._samples))
        if self._shuffle:
            generator.shuffle(order)
        keys = [(position, generator.getrandbits(63)) for position in order]
        for first in range(self.start * self._batch_size, self._used, self._batch_size):
            batch = keys[first : min(first + self._batch_size, self._used)]
            yield batch[self._rank :: self._ranks]


def _collate(items: Sequence[tuple[Tensor | None, int, str]]) -> Batch:
    whole = [(image, index) for image, index, _ in items if image is not None]
    images = torch.stack([image for image, _ in whole]) if whole else torch.empty(0, 3, 0, 0, dtype=torch.uint8)
    indices = torch.tensor([index for _, index in whole], dtype=torch.int64)
    return Batch(images, indices, tuple(problem for _, _, problem in items if problem))


def _start_worker(_worker: int) -> None:
    # The workers are the parallelism; threads inside each of them only contend for the same cores.
    torch.set_num_threads(1)


def _split_folders(channels: Mapping[str, Path]) -> dict[str, Path]:
    """Split name -> folder, from channels of these names or from one channel that holds them."""
    data = {name: folder for name, folder in channels.items() if name not in _OTHER_CHANNELS}
    train = next((data[name] for name in TRAIN_NAMES if name in data), None)
    if train is None and len(data) == 1:
        train = next(iter(data.values()))
    if train is None:
        raise DataError(f"no `train` channel; found channels: {', '.join(sorted(data)) or 'none'}")
    if not train.is_dir():
        raise DataError(f"the train channel's folder {train} does not exist or is not a folder")
    folders = {"train": train}
    inside = {path.name.lower(): path for path in sorted(train.iterdir()) if path.is_dir()}
    nested = next((inside[name] for name in TRAIN_NAMES if name in inside and _class_folders(inside[name])), None)
    if nested is not None:
        folders = {"train": nested}
        data = {**inside, **{name: path for name, path in data.items() if path != train}}
    for split, names in (("validation", VALIDATION_NAMES), ("test", TEST_NAMES)):
        found = next((data[name] for name in names if name in data), None)
        if found is not None:
            if not found.is_dir():
                raise DataError(f"the {split} channel's folder {found} does not exist or is not a folder")
            folders[split] = found
    return folders


def _class_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _samples(folder: Path, labels: Labels) -> tuple[Sample, ...]:
    """All image files below the class folders, in a stable order."""
    return tuple(
        Sample(path, index) for index, name in enumerate(labels.folders) for path in _image_files(folder / name)
    )


def _image_files(folder: Path) -> list[Path]:
    """Image files at any depth; links are followed, because local channels are often links."""
    found = []
    for parent, _, files in os.walk(folder, followlinks=True):
        found += [path for name in files if is_image_file(path := Path(parent, name))]
    return sorted(found)


def _labelled(folder: Path, labels: Labels, split: str) -> tuple[Sample, ...]:
    """Samples of another split, whose classes must be classes of the training split."""
    unknown = sorted(set(_class_folders(folder)) - set(labels.folders))
    if unknown:
        raise DataError(
            f"{folder} has class folders that the train channel does not have: {', '.join(unknown[:5])}"
            f"{' ...' if len(unknown) > 5 else ''}; a {split} label must be among the {len(labels)} train labels"
        )
    samples = _samples(folder, labels)
    if not samples:
        raise DataError(f"{folder} holds no images; give {split} images in one folder per class, or leave it out")
    return samples


def _check_every_class_has_images(folder: Path, labels: Labels, samples: Sequence[Sample]) -> None:
    present = {sample.index for sample in samples}
    empty = [name for index, name in enumerate(labels.folders) if index not in present]
    if empty:
        raise DataError(
            f"{len(empty)} of {len(labels)} class folders in {folder} hold no image ({', '.join(empty[:5])}"
            f"{' ...' if len(empty) > 5 else ''}); add images with a suffix such as .jpg or .png, or remove the folders"
        )


def _hold_out(
    samples: Sequence[Sample], classes: int, fraction: float, seed: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """A stratified split: the same share of every class, at least one image of a class that has two."""
    by_class: list[list[Sample]] = [[] for _ in range(classes)]
    for sample in samples:
        by_class[sample.index].append(sample)
    train: list[Sample] = []
    held_out: list[Sample] = []
    for index, members in enumerate(by_class):
        shuffled = random.Random(f"{seed}/{index}").sample(members, len(members))
        count = min(len(members) - 1, max(1, round(fraction * len(members))))
        held_out += shuffled[:count]
        train += shuffled[count:]
    if not held_out:
        raise DataError("no class has two images, so none can be held out; add images or a `validation` channel")
    key = lambda sample: (sample.index, sample.path)  # noqa: E731  one order for both lists
    return tuple(sorted(train, key=key)), tuple(sorted(held_out, key=key))


def _fingerprint(folder: Path, samples: Sequence[Sample]) -> str:
    """Names and sizes only: reading every byte would stream the whole channel once more."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{sample.path.relative_to(folder)}\0{sample.path.stat().st_size}\n".encode())
    return digest.hexdigest()
