"""Channels -> samples.

A class is a folder of images; a channel is a folder of classes, or of images that a list names. Reads names and lists
only, and writes nothing beside the data (FastFile is a read-only stream). Knows nothing of pixels.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dogbreed.errors import DataError
from dogbreed.labels import Labels
from dogbreed.preprocessing import is_image_file

TRAIN_NAMES = ("train", "training")
VALIDATION_NAMES = ("validation", "valid", "val")
TEST_NAMES = ("test", "testing")
# Channels that bring something else than images.
_OTHER_CHANNELS = frozenset({"pretrained", "model"})


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


def digest_samples(samples: Sequence[Sample]) -> str:
    """SHA-256 over names and sizes, in this order: names what is computed from the images' pixels by position."""
    digest = hashlib.sha256()
    for sample in samples:
        path = sample.path
        digest.update(f"{path.parent.name}/{path.name}\0{path.stat().st_size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def merge_labels(folders_per_host: Iterable[Iterable[str]]) -> Labels:
    """The classes of a job whose hosts hold different parts of the data: those that any host has.

    Args:
        folders_per_host: names of class folders, see `class_folders`.
    """
    return Labels.from_folders({name for folders in folders_per_host for name in folders})


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
