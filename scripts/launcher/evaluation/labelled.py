"""A folder of class folders -> images with their classes, and what an answer makes of one.

Knows folders and the shape of an answer; nothing of servers or statistics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dogbreed import imagefiles, statistics
from dogbreed.evaluation.answers import CANDIDATES, Row
from dogbreed.labels import Labels
from scripts.launcher import hosting
from scripts.launcher.errors import SettingError

_TEST_NAMES = ("test", "testing")
_TRAIN_NAMES = ("train", "training")


@dataclass(frozen=True, slots=True)
class Image:
    """A file, and the folder of its class."""

    file: Path
    folder: str


def find(data: Path) -> tuple[Path, list[Image]]:
    """The images of a labelled folder, by class and name.

    Args:
        data: one folder per class; or train, valid and test, of which test is taken.

    Returns:
        The folder that holds the class folders, and the images in it.

    Raises:
        SettingError: it holds no class folders with images, or a name is not UTF-8.
    """
    if not data.is_dir():
        raise SettingError(f"DATA={data} is not a folder; name one that holds a folder of images for each class")
    inside = {path.name.lower(): path for path in data.iterdir() if path.is_dir()}
    if any(name in inside for name in _TRAIN_NAMES):
        tests = [inside[name] for name in _TEST_NAMES if name in inside]
        if not tests:
            raise SettingError(
                f"{data} holds {', '.join(sorted(inside))}: the model has learned from train; name the folder of a "
                f"split that it has not seen, {data}/{min(inside)} say"
            )
        data = tests[0]
    folders = sorted(path for path in data.iterdir() if path.is_dir() and not path.name.startswith("."))
    walk = imagefiles.Walk(folders)
    images = [Image(file, folder.name) for folder in folders for file in walk.images(folder)]
    if not images:
        loose = "its images lie outside of class folders" if imagefiles.images_below(data) else "it holds no image"
        raise SettingError(
            f"{data} is no labelled folder: {loose}; it must hold one folder per class, named like the class, with "
            f"images ({', '.join(imagefiles.SUFFIXES)}) in it"
        )
    hosting.check_names(image.file for image in images)
    return data, images


def known_as(folder: str, labels: Sequence[str]) -> str | None:
    """The model's name for the class of a folder, or None when it does not know it.

    Models drop prefixes that only sort: `003.Beagle` is their `Beagle`, unless two classes would be called so.
    """
    if folder in labels:
        return folder
    (short,) = Labels.from_folders([folder]).names
    return short if short in labels else None


def labels_of(prediction: Mapping[str, Any]) -> tuple[str, ...]:
    """The model's classes in its order, of a prediction that lists all of them.

    Raises:
        ValueError: it is no prediction of this project's container, or does not list all.
    """
    try:
        names = {int(one["index"]): str(one["label"]) for one in prediction["top_k"]}
        logarithms = prediction["log_probabilities"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("the answer holds no log probabilities; was it made by this project's container?") from error
    if sorted(names) != list(range(len(logarithms))):
        raise ValueError(f"the answer names {len(names)} of {len(logarithms)} classes")
    return tuple(names[index] for index in range(len(names)))


def row(path: str, folder: str, prediction: Mapping[str, Any], labels: Sequence[str], seconds: float) -> Row:
    """One answer against the truth.

    Args:
        path: of the image below the data.
        folder: of its class.
        prediction: with all classes and their log probabilities.
        labels: of the model, see `labels_of`.
        seconds: that the answer took.
    """
    label = known_as(folder, labels)
    logarithms = [float(value) for value in prediction["log_probabilities"]]
    true = None if label is None else labels.index(label)
    best = prediction["top_k"][:CANDIDATES]
    return Row(
        path=path,
        label=folder if label is None else label,
        prediction=str(prediction["label"]),
        probability=float(prediction["probability"]),
        top=tuple((str(one["label"]), float(one["probability"])) for one in best),
        log_loss=math.nan if true is None else -logarithms[true],
        brier=math.nan if true is None else statistics.brier(logarithms, true),
        seconds=seconds,
        known=prediction.get("known"),
    )
