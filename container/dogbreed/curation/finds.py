"""What to look at in a data set: likely label errors, copies, classes that could be merged, and unreadable images.

Puts `copies`, `noise` and `overlaps` together, says of each find what to do, and gives all of them as a JSON document
and as rows of a table. Is handed features, and what judges images that it has not learned from; knows neither networks
nor pages.

Legend: N images, F features, K classes.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dogbreed.curation import copies, noise, overlaps
from dogbreed.curation.copies import Group
from dogbreed.curation.overlaps import Overlap

SCHEMA_VERSION = 1
TRAIN = "train"
"""The split that heads learn from."""

_COLUMNS = ("kind", "number", "path", "split", "label", "likely", "score", "advice")

Judge = Callable[[Sequence[Group]], tuple[NDArray[np.float32], NDArray[np.bool_]] | None]
"""Groups of copies -> probabilities [N, K] by models that have learned from none of an image's copies, and which rows
mean something, bool [N]; None when a stop was requested."""


@dataclass(frozen=True, slots=True)
class Photo:
    """One image file.

    Attributes:
        path: of the file.
        split: ``train``, ``validation`` or ``test``.
        index: of its class.
    """

    path: Path
    split: str
    index: int


@dataclass(frozen=True, slots=True)
class LabelError:
    """An image whose label is likely wrong.

    Attributes:
        photo: with its label.
        likely: class index that it looks like.
        given_probability: of its label, in [0, 1].
        likely_probability: of the other class.
    """

    photo: Photo
    likely: int
    given_probability: float
    likely_probability: float


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An image that could not be looked at.

    Attributes:
        photo: with its label.
        reason: why not.
    """

    photo: Photo
    reason: str

    @property
    def advice(self) -> str:
        """What to do about it."""
        return f"It cannot be read, and training leaves it out as well: repair or remove it ({self.reason})."


@dataclass(frozen=True, slots=True)
class Copies:
    """Images that are copies of each other.

    Attributes:
        photos: two or more.
        similarity: the least of the correlations that hold them together, in [0, 1].
    """

    photos: tuple[Photo, ...]
    similarity: float

    @property
    def two_labels(self) -> bool:
        """Not all have the same label."""
        return len({photo.index for photo in self.photos}) > 1

    @property
    def across_splits(self) -> bool:
        """Not all are in the same split."""
        return len({photo.split for photo in self.photos}) > 1

    @property
    def kind(self) -> str:
        """In words, what is wrong with them."""
        if self.two_labels:
            return "one picture, two labels"
        return "across splits" if self.across_splits else "within a split"

    @property
    def advice(self) -> str:
        """What to do."""
        if self.two_labels:
            return "At most one of its labels is right: keep the photo that has it, and remove the others."
        if self.across_splits:
            return (
                "Keep it in one split: on a photo that it has learned from, a model looks better than it is. Remove it "
                "from train, so that the test stays as it is."
            )
        return "Keep one: each copy makes the same picture count once more."


@dataclass(frozen=True, slots=True, kw_only=True)
class Curation:
    """All finds.

    Attributes:
        labels: class names.
        images: split -> number of images that were looked at.
        accuracy: of the out-of-sample answers, in [0, 1].
        not_judged: images whose class has too few others to be judged by.
        label_errors: the most suspicious first.
        copies: two labels first, then across splits, then the others.
        merges: pairs of classes, the worst first.
        root: folder that the images are below.
        unreadable: images that were not looked at.
        notes: sentences on what was left out.
    """

    labels: tuple[str, ...]
    images: Mapping[str, int]
    accuracy: float
    not_judged: int
    label_errors: tuple[LabelError, ...]
    copies: tuple[Copies, ...]
    merges: tuple[Overlap, ...]
    root: Path
    unreadable: tuple[Unreadable, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many of each kind were found."""
        return {
            "label_errors": len(self.label_errors),
            "copies": len(self.copies),
            "copies_across_splits": sum(one.across_splits for one in self.copies),
            "copies_with_two_labels": sum(one.two_labels for one in self.copies),
            "classes_to_merge": sum(one.inseparable for one in self.merges),
            "unreadable": len(self.unreadable),
        }

    @property
    def sentence(self) -> str:
        """The finds in one sentence."""
        count = self.counts
        return (
            f"{_count(count['label_errors'], 'label is', 'labels are')} likely wrong; "
            f"{_count(count['copies'], 'group', 'groups')} of copies, {count['copies_across_splits']} across splits; "
            f"{_count(count['classes_to_merge'], 'pair of classes', 'pairs of classes')} to merge"
        )


def curate(
    photos: Sequence[Photo],
    features_NF: NDArray[np.floating],
    labels: Sequence[str],
    judge: Judge,
    *,
    unreadable: Sequence[Unreadable] = (),
    root: Path | None = None,
    threads: int = 1,
    notes: Sequence[str] = (),
    stop_requested: Callable[[], bool] = lambda: False,
) -> Curation | None:
    """Looks for everything; None when a stop was requested.

    Args:
        photos: N of them; those that may be copies are read.
        features_NF: of a network that was trained on photos.
        labels: class names.
        judge: of the images.
        unreadable: images without features.
        root: folder that the images are below; None is the deepest such.
        threads: that read photos.
        notes: on what was left out.
        stop_requested: asked now and then.
    """
    pairs = copies.candidates(features_NF)
    thumbnails = _read(photos, sorted({position for pair in pairs for position in pair}), threads, stop_requested)
    groups = copies.group(copies.compare(pairs, thumbnails))
    judged = judge(groups)
    if judged is None or stop_requested():
        return None
    probabilities_NK, means_something_N = judged
    rows = np.flatnonzero(means_something_N)
    given = np.array([photo.index for photo in photos], dtype=np.int64)[rows]
    probabilities = probabilities_NK[rows]
    found = noise.find(probabilities, given)
    errors = [
        LabelError(
            photos[rows[position]],
            int(likely),
            float(probabilities[position, given[position]]),
            float(probabilities[position, likely]),
        )
        for position, likely in zip(found.suspects.tolist(), found.likely.tolist(), strict=True)
    ]
    if unreadable:
        every = len(photos) + len(unreadable)
        notes = (*notes, f"{len(unreadable)} of {every} images cannot be read and were not looked at; all are listed.")
    told = [Copies(tuple(photos[position] for position in one.members), one.similarity) for one in groups]
    return Curation(
        labels=tuple(labels),
        images={
            split: sum(photo.split == split for photo in photos) for split in dict.fromkeys(p.split for p in photos)
        },
        accuracy=float((probabilities.argmax(axis=1) == given).mean()) if len(rows) else float("nan"),
        not_judged=len(photos) - len(rows),
        label_errors=tuple(errors),
        # Sorted is stable: within a kind the most alike stay first.
        copies=tuple(sorted(told, key=lambda one: (not one.two_labels, not one.across_splits))),
        merges=tuple(overlaps.find(probabilities, given)),
        root=_common_root([*photos, *(one.photo for one in unreadable)]) if root is None else root,
        unreadable=tuple(unreadable),
        notes=tuple(notes),
    )


def label_error_advice(found: LabelError, labels: Sequence[str]) -> str:
    """What to do about one."""
    return (
        f"Look at it: move it to {labels[found.likely]} if that is what it shows; remove it if it shows neither; leave "
        f"it if {labels[found.photo.index]} is right."
    )


def merge_advice(found: Overlap, labels: Sequence[str]) -> str:
    """What to do about two classes, with the figure that speaks for it."""
    first, second = labels[found.first], labels[found.second]
    share = (
        f"asked which of the two an image is, the model is wrong {found.error:.0%} of the time "
        f"({found.interval.low:.0%} to {found.interval.high:.0%}; a coin 50%)"
    )
    if found.inseparable:
        return (
            f"Merge {first} and {second}, or look at what they are labelled by: {share}. As one class, "
            f"{found.accuracy_merged:.1%} of all answers would be right in the place of {found.accuracy:.1%}."
        )
    return f"Keep {first} and {second} apart, but look at their labels and add photos: {share}."


def as_document(found: Curation) -> dict[str, object]:
    """Everything as JSON values; paths are relative to the root."""

    def photo(one: Photo) -> dict[str, object]:
        return {"path": _relative(one.path, found.root), "split": one.split, "label": found.labels[one.index]}

    return {
        "schema_version": SCHEMA_VERSION,
        "root": str(found.root),
        "images": dict(found.images),
        "accuracy": found.accuracy if np.isfinite(found.accuracy) else None,
        "not_judged": found.not_judged,
        "notes": list(found.notes),
        "counts": found.counts,
        "label_errors": [
            {
                **photo(one.photo),
                "likely": found.labels[one.likely],
                "given_probability": one.given_probability,
                "likely_probability": one.likely_probability,
                "advice": label_error_advice(one, found.labels),
            }
            for one in found.label_errors
        ],
        "copies": [
            {
                "kind": one.kind,
                "similarity": one.similarity,
                "advice": one.advice,
                "photos": [photo(member) for member in one.photos],
            }
            for one in found.copies
        ],
        "merges": [
            {
                "first": found.labels[one.first],
                "second": found.labels[one.second],
                "images": list(one.images),
                "wrong": list(one.wrong),
                "error": one.error,
                "interval": [one.interval.low, one.interval.high],
                "inseparable": one.inseparable,
                "accuracy": one.accuracy,
                "accuracy_merged": one.accuracy_merged,
                "advice": merge_advice(one, found.labels),
            }
            for one in found.merges
        ],
        "unreadable": [{**photo(one.photo), "reason": one.reason, "advice": one.advice} for one in found.unreadable],
    }


def as_json(found: Curation) -> str:
    """The document as text."""
    return json.dumps(as_document(found), indent=2, ensure_ascii=False) + "\n"


def as_csv(found: Curation) -> str:
    """One row per photo of a find, per pair of classes and per unreadable image; `number` counts those of a kind."""
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(_COLUMNS)

    def photo(one: Photo) -> tuple[str, str, str]:
        return _relative(one.path, found.root), one.split, found.labels[one.index]

    for number, error in enumerate(found.label_errors, 1):
        advice = label_error_advice(error, found.labels)
        score = f"{error.given_probability:.4f}"
        table.writerow(("label error", number, *photo(error.photo), found.labels[error.likely], score, advice))
    for number, group in enumerate(found.copies, 1):
        for member in group.photos:
            table.writerow(
                (f"copies, {group.kind}", number, *photo(member), "", f"{group.similarity:.4f}", group.advice)
            )
    for number, pair in enumerate(found.merges, 1):
        kind = "classes to merge" if pair.inseparable else "classes to look at"
        names = found.labels[pair.first], found.labels[pair.second]
        table.writerow((kind, number, "", "", *names, f"{pair.error:.4f}", merge_advice(pair, found.labels)))
    for number, one in enumerate(found.unreadable, 1):
        table.writerow(("unreadable", number, *photo(one.photo), "", "", one.advice))
    return stream.getvalue()


def _common_root(photos: Sequence[Photo]) -> Path:
    """The deepest folder that all are below, from which their class folders can be seen."""
    folders = {str(photo.path.absolute().parent.parent) for photo in photos}
    return Path(os.path.commonpath(folders)) if folders else Path.cwd()


def _read(
    photos: Sequence[Photo], positions: Sequence[int], threads: int, stop_requested: Callable[[], bool]
) -> dict[int, NDArray[np.uint8]]:
    """The thumbnails of some photos; one that cannot be read is compared with none."""

    def read(position: int) -> NDArray[np.uint8] | None:
        if stop_requested():
            return None
        try:
            with Image.open(photos[position].path) as image:
                return copies.thumbnail(image)
        except (OSError, ValueError, Image.DecompressionBombError):
            return None

    with ThreadPoolExecutor(max(1, threads)) as pool:
        found = zip(positions, pool.map(read, positions), strict=True)
        return {position: picture for position, picture in found if picture is not None}


def _relative(path: Path, root: Path) -> str:
    path = path.absolute()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _count(number: int, one: str, more: str) -> str:
    return f"{number or 'no'} {one if number == 1 else more}"
