"""Channels -> samples.

A class is a folder of images; a channel is a folder of classes, or of images that a list in a channel of its own
(`train_lst`) names. Reads names and lists only, and writes nothing beside the data (FastFile is a read-only stream).
Knows nothing of pixels.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dogbreed.errors import DataError
from dogbreed.labels import Labels
from dogbreed.preprocessing import is_image_file

TRAIN_NAMES = ("train", "training")
VALIDATION_NAMES = ("validation", "valid", "val")
TEST_NAMES = ("test", "testing")
# Channels that bring something else than images.
_OTHER_CHANNELS = frozenset({"pretrained", "model"})
# Of the channels that hold lists: train_lst belongs to train.
_LIST_SUFFIX = "_lst"
_SPLITS = {"train": TRAIN_NAMES, "validation": VALIDATION_NAMES, "test": TEST_NAMES}


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

    def of_host(self, host: int, hosts: int, sharded: Mapping[str, bool]) -> Splits:
        """The samples that one of several hosts works on: all that it alone has, and a part of what every host has.

        Args:
            host: from 0.
            hosts: number of them.
            sharded: channel -> whether each host holds other objects of it.
        """
        of_train = next((sharded[name] for name in TRAIN_NAMES if name in sharded), any(sharded.values()))

        def own(samples: tuple[Sample, ...], names: Sequence[str]) -> tuple[Sample, ...]:
            # A split without a channel of its own lies in that of the training images.
            if next((sharded[name] for name in names if name in sharded), of_train):
                return samples
            return samples[len(samples) * host // hosts : len(samples) * (host + 1) // hosts]

        return replace(
            self,
            train=own(self.train, TRAIN_NAMES),
            validation=own(self.validation, TRAIN_NAMES if self.held_out else VALIDATION_NAMES),
            test=None if self.test is None else own(self.test, TEST_NAMES),
        )


def find_splits(
    channels: Mapping[str, Path], *, validation_fraction: float, seed: int, labels: Labels | None = None
) -> Splits:
    """Finds the samples of all splits in the job's channels, given as name -> folder.

    Either each split is a channel (`train`; `validation`, `valid` or `val`; `test`), or one channel holds folders of
    these names, as the Udacity archive does. Without validation images, a share of each class is held out.

    Where there is a `train_lst` channel, lists name the images, as for SageMaker's built-in image classification: each
    line holds a number, the label, which is a whole number, and a path in the split's channel, separated by tabs. The
    classes are in the order of their labels. They are called like the folders of their images if each label has one
    folder, and a folder of its own; else like the labels.

    Args:
        channels: name -> folder.
        validation_fraction: in (0, 1).
        seed: of what is held out.
        labels: the classes that the hosts agreed on, see `merge_labels`; some may have no images here. Lists bring
            their own.

    Raises:
        DataError: a channel, list or class is missing, empty or unknown; names the folder and what was found.
    """
    if any(name.endswith(_LIST_SUFFIX) for name in channels):
        return _find_listed(channels, validation_fraction, seed)
    folders = _split_folders(channels)
    train_folder = folders["train"]
    if labels is None:
        labels = _read_labels(train_folder)
        train = _samples(train_folder, labels)
        _check_every_class_has_images(train_folder, labels, train)
    else:
        train = _labelled(train_folder, labels, "train")
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


def class_folders(channels: Mapping[str, Path]) -> list[str]:
    """The class folders of the train channel on this host, sorted; none where lists name the images.

    Raises:
        DataError: there is no train channel.
    """
    if any(name.endswith(_LIST_SUFFIX) for name in channels):
        return []
    return _class_folders(_split_folders(channels)["train"])


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


def _read_labels(folder: Path) -> Labels:
    classes = _class_folders(folder)
    if len(classes) < 2:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise DataError(
            f"{folder} must hold one folder per class, at least two, but holds {len(classes)} (found: {found})"
        )
    return Labels.from_folders(classes)


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
    """Names, sizes and classes only: reading every byte would stream the whole channel once more."""
    digest = hashlib.sha256()
    for sample in samples:
        name = f"{sample.path.relative_to(folder)}\0{sample.path.stat().st_size}\0{sample.index}\n"
        digest.update(name.encode(errors="surrogateescape"))
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class _Listed:
    """One line of a list.

    Attributes:
        label: the number that stands for the class.
        path: of the image.
        folder: name of the folder inside the channel that holds it; empty when there is none.
    """

    label: int
    path: Path
    folder: str


def _find_listed(channels: Mapping[str, Path], fraction: float, seed: int) -> Splits:
    lists = {split: listed for split in _SPLITS if (listed := _read_split_list(channels, split)) is not None}
    if "train" not in lists:
        raise DataError(f"no `train_lst` channel beside the other lists; found channels: {', '.join(sorted(channels))}")
    numbers = sorted({line.label for line in lists["train"]})
    if len(numbers) < 2:
        raise DataError(f"the list of the train channel has only the label {numbers[0]}; give at least two")
    position = {number: index for index, number in enumerate(numbers)}
    splits = {}
    for split, listed in lists.items():
        unknown = sorted({line.label for line in listed} - position.keys())
        if unknown:
            raise DataError(
                f"the list of the {split} channel has the label {unknown[0]}, which the list of the train channel does "
                f"not have; its labels are {numbers[0]} to {numbers[-1]}"
            )
        splits[split] = tuple(Sample(line.path, position[line.label]) for line in listed)
    train = splits["train"]
    fingerprint = _fingerprint(_channel_folder(channels, "train"), train)
    held_out = "validation" not in splits
    validation = splits.get("validation", ())
    if held_out:
        train, validation = _hold_out(train, len(numbers), fraction, seed)
    return Splits(_listed_labels(lists["train"], numbers), train, validation, splits.get("test"), fingerprint, held_out)


def _listed_labels(listed: Sequence[_Listed], numbers: Sequence[int]) -> Labels:
    """Folder names where they name the classes as the numbers do; else the numbers."""
    by_number: dict[int, set[str]] = {number: set() for number in numbers}
    for line in listed:
        by_number[line.label].add(line.folder)
    folders = tuple(min(by_number[number]) for number in numbers)
    if any(len(names) > 1 for names in by_number.values()) or len(set(folders)) < len(folders) or "" in folders:
        texts = tuple(str(number) for number in numbers)
        return Labels(texts, texts)
    sorted_labels = Labels.from_folders(folders)
    names = dict(zip(sorted_labels.folders, sorted_labels.names, strict=True))
    return Labels(folders, tuple(names[folder] for folder in folders))


def _read_split_list(channels: Mapping[str, Path], split: str) -> tuple[_Listed, ...] | None:
    """The lines of a split's list; None when the split has neither list nor images."""
    found = [channels[name + _LIST_SUFFIX] for name in _SPLITS[split] if name + _LIST_SUFFIX in channels]
    if not found:
        if any(name in channels for name in _SPLITS[split]):
            raise DataError(f"the {split} channel has no list while others have; give it in a `{split}_lst` channel")
        return None
    images = _channel_folder(channels, split)
    files = sorted(path for path in found[0].glob("*") if path.is_file() and not path.name.startswith("."))
    if len(files) != 1:
        names = ", ".join(path.name for path in files[:5]) or "nothing"
        raise DataError(f"{found[0]} must hold one list, a single file, but holds {len(files)} (found: {names})")
    return _read_list(files[0], images)


def _channel_folder(channels: Mapping[str, Path], split: str) -> Path:
    folder = next((channels[name] for name in _SPLITS[split] if name in channels), None)
    if folder is None:
        raise DataError(f"no `{split}` channel with the images that the `{split}_lst` channel names")
    if not folder.is_dir():
        raise DataError(f"the {split} channel's folder {folder} does not exist or is not a folder")
    return folder


def _read_list(file: Path, images: Path) -> tuple[_Listed, ...]:
    """Raises DataError, with the line, where the file is not a list of images in the folder."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the list {file} cannot be read: {error}") from error
    listed = []
    for number, text in enumerate(lines, start=1):
        if text.strip():
            try:
                listed.append(_read_line(text, images))
            except ValueError as error:
                raise DataError(f"{file}, line {number}: {error}") from None
    if not listed:
        raise DataError(f"the list {file} is empty; give one image per line: number, label and path, with tabs between")
    return tuple(listed)


def _read_line(text: str, images: Path) -> _Listed:
    """Raises ValueError with what is wrong."""
    fields = text.split("\t")
    if len(fields) != 3:
        raise ValueError(
            f"{text!r} has {len(fields)} fields; give three, separated by tabs: a number, one label and a path"
        )
    try:
        label = float(fields[1])  # im2rec writes 3.000000
        if not label.is_integer() or label < 0:
            raise ValueError
    except ValueError:
        raise ValueError(f"the label {fields[1]!r} is not a whole number from 0 on") from None
    relative = Path(fields[2].strip())
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"the path {fields[2]!r} leaves the channel; give one that is relative to its folder")
    path = images / relative
    if not path.is_file():
        raise ValueError(f"{fields[2]!r} is not in {images}; paths are relative to the channel's folder")
    return _Listed(int(label), path, relative.parent.name)
