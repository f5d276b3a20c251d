"""Channels -> samples.

A class is a folder of images; a channel is a folder of classes, or of images that a list names: an augmented manifest
among them, or a list in a channel of its own (`train_lst`). Finds samples by names and lists alone, and writes nothing
beside the data (FastFile is a read-only stream). Knows nothing of pixels, but tells files with others apart.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from dogbreed.errors import DataError
from dogbreed.imagefiles import Walk, is_image_file, objection_to_names, size_bytes
from dogbreed.labels import Labels
from dogbreed.training.lists import Label, Listed, find_manifest, read_list

TRAIN_NAMES = ("train", "training")
VALIDATION_NAMES = ("validation", "valid", "val")
TEST_NAMES = ("test", "testing")
OTHER_CHANNELS = frozenset({"pretrained", "model"})
"""Channels that bring something else than images."""

LIST_SUFFIX = "_lst"
"""Of the channels that hold lists: `train_lst` belongs to `train`."""

# They wait for a disk or a network and compute next to nothing.
_READERS = 16
_PLACE_BYTES = 4096

_SHOWN = 5
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
        notes: sentences on what was left out of what was found, for the log.
    """

    labels: Labels
    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    test: tuple[Sample, ...] | None
    fingerprint: str
    held_out: bool
    notes: tuple[str, ...] = ()

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
    channels: Mapping[str, Path], *, validation_fraction: float, seed: int, classes: Iterable[Label] | None = None
) -> Splits:
    """Finds the samples of all splits in the job's channels, given as name -> folder.

    Either each split is a channel (`train`; `validation`, `valid` or `val`; `test`), or one channel holds folders of
    these names, as the Udacity archive does. Without validation images, a share of each class is held out.

    Where there is a `train_lst` channel, or an augmented manifest in a channel, lists name the images, see `lists`.
    Classes with numbers are in the order of these. They are called by the names that a manifest gives them, or like the
    folders of the images in an LST file, if each number has one name, and a name of its own; else like the numbers.
    Classes without numbers are sorted by name, as folders are.

    Args:
        channels: name -> folder.
        validation_fraction: in (0, 1).
        seed: of what is held out.
        classes: those of all hosts, see `find_classes`; some may have no images here.

    Raises:
        DataError: a channel, list or class is missing, empty or unknown, or a name is not UTF-8; names the folder and
            what was found.
    """
    if _has_lists(channels):
        return _find_listed(channels, validation_fraction, seed, classes)
    folders, doubled = _split_folders(channels)
    train_folder = folders["train"]
    listing = _Listing(folders, doubled)
    if classes is None:
        labels = _read_labels(train_folder)
        train = listing.samples("train", labels)
        _check_every_class_has_images(train_folder, labels, train)
    else:
        labels = Labels.from_folders({found.name for found in classes if found.name is not None})
        train = listing.labelled("train", labels)
    fingerprint = _fingerprint(train_folder, train)
    if "validation" in folders:
        validation = listing.labelled("validation", labels)
    else:
        train, validation = _hold_out(train, len(labels), validation_fraction, seed)
    return Splits(
        labels=labels,
        train=train,
        validation=validation,
        test=listing.labelled("test", labels) if "test" in folders else None,
        fingerprint=fingerprint,
        held_out="validation" not in folders,
        notes=tuple(listing.notes),
    )


def find_classes(channels: Mapping[str, Path]) -> set[Label]:
    """The classes of the train channel on this host; those of all hosts together are the job's.

    Raises:
        DataError: there is no train channel, or its list is not one.
    """
    if _has_lists(channels):
        return {line.label for line in _read_split_list(_listed_channels(channels), "train") or ()}
    return {Label(None, folder) for folder in _class_folders(_split_folders(channels)[0]["train"])}


def digest_files(samples: Sequence[Sample]) -> tuple[str, ...]:
    """What tells each sample's file from others, in their order: names what is computed from the images' pixels.

    The first half of a SHA-256 over the names of the file and its folder, its size, and what stands at its beginning,
    middle and end, 4 KiB each: files of one size are common among uncompressed images, and reading every byte would
    stream the whole channel once more. The time of a change says nothing, because a job that downloads its channels
    gives all files new ones. 10,000 photos take 1 s, or 2 to 6 s when none is in the page cache (two busy cores, a
    local disk). A file that cannot be read is told apart by its names alone.
    """
    readers = min(_READERS, len(samples))
    if not readers:
        return ()
    with ThreadPoolExecutor(readers, thread_name_prefix="digest") as pool:
        bounds = [len(samples) * number // readers for number in range(readers + 1)]
        parts = pool.map(lambda first, end: [_digest_file(one.path) for one in samples[first:end]], bounds, bounds[1:])
        return tuple(digest for part in parts for digest in part)


def _digest_file(file: Path) -> str:
    digest = hashlib.sha256(f"{file.parent.name}/{file.name}\0".encode(errors="surrogateescape"))
    try:
        if size_bytes(file) < 0:  # whoever opens a pipe waits
            raise FileNotFoundError(file)
        with file.open("rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            middle, end = max(0, (size - _PLACE_BYTES) // 2), max(0, size - _PLACE_BYTES)
            places = [os.pread(stream.fileno(), _PLACE_BYTES, start) for start in sorted({0, middle, end})]
        digest.update(f"{size}\0".encode() + b"".join(places))
    except OSError:
        digest.update(b"unread")
    return digest.hexdigest()[:32]


def find_corrupt(samples: Sequence[Sample], problems: Iterable[str], *, parts: int = 0) -> dict[Sample, str]:
    """The samples that problems tell of, each with its reason.

    Args:
        samples: of a split.
        problems: each a path and a reason in brackets, of this split where ``parts`` is given, else of any; paths may
            hold brackets too.
        parts: how many of a path's last parts are compared; 0 is all.
    """
    known = {sample.path.parts[-parts:]: sample for sample in samples}
    found = {}
    for problem in problems:
        end = problem.find(" (")
        while end >= 0:
            sample = known.get(Path(problem[:end]).parts[-parts:])
            if sample is not None:
                found[sample] = problem[end + len(" (") :].removesuffix(")")
            end = problem.find(" (", end + 1)
    return found


def _split_folders(channels: Mapping[str, Path]) -> tuple[dict[str, Path], list[str]]:
    """Split -> folder, from channels named so or from one that holds folders named so; and notes on what is left."""
    data = {name: folder for name, folder in channels.items() if name not in OTHER_CHANNELS}
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
    return folders, _doubled(data)


def _doubled(found: Collection[str], suffix: str = "") -> list[str]:
    """Notes on splits that are there under two names, of which one is taken."""
    there = [[name + suffix for name in names if name + suffix in found] for names in _SPLITS.values()]
    return [
        f"{' and '.join(names)} are there for the same split: {names[0]} is taken, and nothing else; leave one, or put "
        f"the images together"
        for names in there
        if len(names) > 1
    ]


def _read_labels(folder: Path) -> Labels:
    classes = _class_folders(folder)
    if len(classes) < 2:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise DataError(
            f"{folder} must hold one folder per class, at least two, but holds {len(classes)} (found: {found})"
        )
    return Labels.from_folders(classes)


def _class_folders(folder: Path) -> list[str]:
    """Raises DataError for a name that cannot be a label."""
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    _check_names(folder / name for name in found)
    return found


def _check_names(names: Iterable[Path | str]) -> None:
    """Raises DataError for the first that is not UTF-8: better now than when the bundle or the report is written."""
    objection = objection_to_names(names)
    if objection is not None:
        raise DataError(objection)


class _Listing:
    """Lists the images of the splits.

    Args:
        folders: split -> folder of its class folders.
        notes: what is known already.

    Attributes:
        notes: sentences on what is not listed.
    """

    def __init__(self, folders: Mapping[str, Path], notes: Iterable[str]) -> None:
        self._folders = folders
        self.notes = list(notes)

    def samples(self, split: str, labels: Labels) -> tuple[Sample, ...]:
        """All image files below the class folders of a split, in a stable order.

        Raises:
            DataError: a class folder is a link to another one, or to a folder above; a name is not UTF-8.
        """
        folder = self._folders[split]
        classes = [folder / name for name in labels.folders]
        _check_links(folder, classes)
        walk = Walk(classes, (other for name, other in self._folders.items() if name != split))
        found = tuple(Sample(path, index) for index, of_class in enumerate(classes) for path in walk.images(of_class))
        _check_names(sample.path for sample in found)
        hidden = [path.name for path in sorted(folder.iterdir()) if path.name.startswith(".") and _holds_images(path)]
        if hidden:
            self.notes.append(
                f"{_some(hidden)} in {folder}: left out, because a name with a leading dot is that of no class; rename "
                f"what is one"
            )
        if walk.passed_over:
            self.notes.append(
                f"{_some(walk.passed_over)} among the {split} images: passed over, because such a link leads to a "
                f"folder that is listed anyway, or to one above"
            )
        return found

    def labelled(self, split: str, labels: Labels) -> tuple[Sample, ...]:
        """Samples of another split, whose classes must be classes of the training split.

        Raises:
            DataError: it has other classes, or no images.
        """
        folder = self._folders[split]
        unknown = sorted(set(_class_folders(folder)) - set(labels.folders))
        if unknown:
            raise DataError(
                f"{folder} has class folders that the train channel does not have: {_some(unknown)}; a {split} label "
                f"must be among the {len(labels)} train labels"
            )
        samples = self.samples(split, labels)
        if not samples:
            raise DataError(f"{folder} holds no images; give {split} images in one folder per class, or leave it out")
        return samples


def _holds_images(folder: Path) -> bool:
    """Whether images lie in what may be a folder."""
    try:
        return folder.is_dir() and any(map(is_image_file, folder.iterdir()))
    except OSError:
        return False


def _check_links(folder: Path, classes: Sequence[Path]) -> None:
    """Raises DataError where two classes are one folder, or a class holds the others."""
    holds = Path(os.path.realpath(folder))
    known: dict[Path, Path] = {}
    for path in classes:
        real = Path(os.path.realpath(path))
        if holds.is_relative_to(real):
            raise DataError(f"the class folder {path} is a link to {real}, which holds the classes; remove the link")
        if real in known:
            raise DataError(
                f"the class folders {known[real].name} and {path.name} of {folder} are links to one folder, {real}; "
                f"remove one of them"
            )
        known[real] = path


def _some(found: Sequence[object]) -> str:
    """The first few, for a sentence."""
    return ", ".join(map(str, found[:_SHOWN])) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")


def _check_every_class_has_images(folder: Path, labels: Labels, samples: Sequence[Sample]) -> None:
    present = {sample.index for sample in samples}
    empty = [name for index, name in enumerate(labels.folders) if index not in present]
    if empty:
        raise DataError(
            f"{len(empty)} of {len(labels)} class folders in {folder} hold no image ({_some(empty)}); add "
            f"images with a suffix such as .jpg or .png, or remove the folders"
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
        name = f"{sample.path.relative_to(folder)}\0{size_bytes(sample.path)}\0{sample.index}\n"
        digest.update(name.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _has_lists(channels: Mapping[str, Path]) -> bool:
    return any(
        name.endswith(LIST_SUFFIX) or (name not in OTHER_CHANNELS and find_manifest(path) is not None)
        for name, path in channels.items()
    )


def _listed_channels(channels: Mapping[str, Path]) -> dict[str, Path]:
    """The channels with images and lists; the only one with images is `train`, whatever its name."""
    found = {name: path for name, path in channels.items() if name not in OTHER_CHANNELS}
    only = next(iter(found))
    return {"train": found[only]} if len(found) == 1 and not only.endswith(LIST_SUFFIX) else found


def _find_listed(channels: Mapping[str, Path], fraction: float, seed: int, classes: Iterable[Label] | None) -> Splits:
    channels = _listed_channels(channels)
    lists = {split: listed for split in _SPLITS if (listed := _read_split_list(channels, split)) is not None}
    if "train" not in lists:
        raise DataError(f"no `train_lst` channel beside the other lists; found channels: {', '.join(sorted(channels))}")
    labels, keys = _listed_labels({line.label for line in lists["train"]} if classes is None else classes)
    _check_names(labels.folders)
    _check_names(line.path for listed in lists.values() for line in listed)
    position = {key: index for index, key in enumerate(keys)}
    splits = {}
    for split, listed in lists.items():
        unknown = sorted({str(_key(line.label)) for line in listed if _key(line.label) not in position})
        if unknown:
            raise DataError(
                f"the list of the {split} channel has the label {unknown[0]}, which the list of the train channel does "
                f"not have; its labels are {keys[0]} to {keys[-1]}"
            )
        splits[split] = tuple(Sample(line.path, position[_key(line.label)]) for line in listed)
    train = splits["train"]
    fingerprint = _fingerprint(_channel_folder(channels, "train"), train)
    held_out = "validation" not in splits
    validation = splits.get("validation", ())
    if held_out:
        train, validation = _hold_out(train, len(labels), fraction, seed)
    notes = (*_doubled(channels), *_doubled(channels, LIST_SUFFIX))
    return Splits(labels, train, validation, splits.get("test"), fingerprint, held_out, notes)


def _key(label: Label) -> int | str:
    """What tells a class from others: its number, else its name."""
    return label.name or "" if label.number is None else label.number


def _listed_labels(found: Iterable[Label]) -> tuple[Labels, tuple[int | str, ...]]:
    """The classes, and what tells them from others, in the same order.

    Raises:
        DataError: there are fewer than two, or only some have numbers.
    """
    found = set(found)
    numbers = sorted({label.number for label in found if label.number is not None})
    names = sorted({label.name for label in found if label.number is None and label.name is not None})
    if numbers and names:
        raise DataError(
            f"some images have the label {numbers[0]}, others {names[0]!r}; give all of them numbers, or all names"
        )
    if len(numbers) + len(names) < 2:
        only = [*numbers, *names]
        raise DataError(f"the list of the train channel has only the label {only[0]}; give at least two")
    if names:
        labels = Labels.from_folders(names)
        return labels, labels.folders
    by_number: dict[int, set[str]] = {number: set() for number in numbers}
    for label in found:
        if label.number is not None and label.name is not None:
            by_number[label.number].add(label.name)
    folders = tuple(min(by_number[number], default="") for number in numbers)
    if any(len(called) > 1 for called in by_number.values()) or len(set(folders)) < len(folders) or "" in folders:
        texts = tuple(str(number) for number in numbers)
        return Labels(texts, texts), tuple(numbers)
    sorted_labels = Labels.from_folders(folders)
    short = dict(zip(sorted_labels.folders, sorted_labels.names, strict=True))
    return Labels(folders, tuple(short[folder] for folder in folders)), tuple(numbers)


def _read_split_list(channels: Mapping[str, Path], split: str) -> tuple[Listed, ...] | None:
    """The lines of a split's list; None when the split has neither list nor images."""
    found = [channels[name + LIST_SUFFIX] for name in _SPLITS[split] if name + LIST_SUFFIX in channels]
    if not found:
        if not any(name in channels for name in _SPLITS[split]):
            return None
        images = _channel_folder(channels, split)
        manifest = find_manifest(images)
        if manifest is None:
            raise DataError(
                f"the {split} channel has no list while others have; give it in a `{split}_lst` channel, or a manifest "
                f"in the channel itself"
            )
        return read_list(manifest, images)
    images = _channel_folder(channels, split)
    files = sorted(path for path in found[0].glob("*") if path.is_file() and not path.name.startswith("."))
    if len(files) != 1:
        names = ", ".join(path.name for path in files[:5]) or "nothing"
        raise DataError(f"{found[0]} must hold one list, a single file, but holds {len(files)} (found: {names})")
    return read_list(files[0], images)


def _channel_folder(channels: Mapping[str, Path], split: str) -> Path:
    folder = next((channels[name] for name in _SPLITS[split] if name in channels), None)
    if folder is None:
        raise DataError(f"no `{split}` channel with the images that the `{split}_lst` channel names")
    if not folder.is_dir():
        raise DataError(f"the {split} channel's folder {folder} does not exist or is not a folder")
    return folder
