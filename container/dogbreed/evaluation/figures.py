"""Rows -> figures: how good a model is on a labelled folder, and whether another is better.

Pure: values in, values out. Images that could not be answered, and images of classes that the model does not know, are
counted and left out of every other figure; sentences say so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from dogbreed import statistics
from dogbreed.evaluation.answers import Row, Run
from dogbreed.statistics import Bin, ClassScores, Interval, McNemar, without_nan

SIGNIFICANT = 0.05
"""Differences that chance alone would bring about more seldom are called significant."""

_MAX_PAIRS = 20
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Share:
    """So many of so many, with a 95% confidence interval of the share."""

    right: int
    count: int

    @property
    def value(self) -> float:
        """In [0, 1]; NaN of none."""
        return self.right / self.count if self.count else math.nan

    @property
    def interval(self) -> Interval:
        """By Wilson."""
        return statistics.wilson(self.right, self.count)


@dataclass(frozen=True, slots=True)
class Pair:
    """Images of one class that were answered as another."""

    true: str
    predicted: str
    count: int
    images: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All figures of one model on one folder.

    Attributes:
        images: in the folder.
        failed: that were not answered.
        left_out: answered images of classes that the model does not know.
        top1: answers that were right.
        top5: images whose class was among the five most probable.
        classes: label -> scores, in the model's order; only classes that were there or answered.
        confusion: true label -> predicted label -> images, where there are any.
        pairs: the most frequent mistakes.
        bins: of the reliability diagram.
        calibration_error: expected calibration error over the bins, in [0, 1].
        confidence: mean probability of the answers.
        log_loss: mean, in nats.
        brier: mean, in [0, 2].
        images_per_s: answered images by the time of the whole run.
        latency_p50_s: of one request.
        latency_p99_s: likewise.
        notes: sentences that a reader of the figures must know.
        known: images of the model's classes that it took for one of them; None where it does not say.
        others_known: images of other classes that it took for one of its own; None likewise, and without any.
    """

    images: int
    failed: int
    left_out: int
    top1: Share
    top5: Share
    classes: Mapping[str, ClassScores]
    confusion: Mapping[str, Mapping[str, int]]
    pairs: Sequence[Pair]
    bins: Sequence[Bin]
    calibration_error: float
    confidence: float
    log_loss: float
    brier: float
    images_per_s: float
    latency_p50_s: float
    latency_p99_s: float
    notes: Sequence[str]
    known: Share | None = None
    others_known: Share | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the same images.

    Attributes:
        first, second: names of the results.
        images: that both answered and whose class both know.
        first_right: of them.
        second_right: of them.
        test: McNemar's.
        difference: 95% interval of (accuracy of the second - accuracy of the first).
        sentence: the verdict.
        notes: what the comparison left out.
    """

    first: str
    second: str
    images: int
    first_right: int
    second_right: int
    test: McNemar
    difference: Interval
    sentence: str
    notes: Sequence[str] = ()

    @property
    def significant(self) -> bool:
        """Whether chance is a poor explanation."""
        return self.test.p_value < SIGNIFICANT


def evaluate(run: Run, rows: Sequence[Row]) -> Evaluation:
    """Counts and averages.

    Raises:
        ValueError: no row was answered with a class that the model knows.
    """
    answered = [row for row in rows if not row.error]
    judged = judged_rows(run, rows)
    if not judged:
        raise ValueError("no image was answered whose class the model knows")
    counts = Counter((row.label, row.prediction) for row in judged)
    order = {label: index for index, label in enumerate(run.labels)}
    confusion: dict[str, dict[str, int]] = {}
    for true, predicted in sorted(counts, key=lambda pair: (order[pair[0]], order[pair[1]])):
        confusion.setdefault(true, {})[predicted] = counts[true, predicted]
    right = [row.right for row in judged]
    probabilities = [row.probability for row in judged]
    bins = statistics.reliability(probabilities, right)
    seconds = [row.seconds for row in answered]
    return Evaluation(
        images=len(rows),
        failed=len(rows) - len(answered),
        left_out=len(answered) - len(judged),
        top1=Share(sum(right), len(judged)),
        top5=Share(sum(row.in_top for row in judged), len(judged)),
        classes=_classes(run.labels, confusion),
        confusion=confusion,
        pairs=_pairs(confusion),
        bins=bins,
        calibration_error=statistics.expected_calibration_error(bins),
        confidence=_mean(probabilities),
        log_loss=_mean([row.log_loss for row in judged]),
        brier=_mean([row.brier for row in judged]),
        images_per_s=len(answered) / run.seconds if run.seconds > 0 else math.nan,
        latency_p50_s=statistics.percentile(seconds, 0.5),
        latency_p99_s=statistics.percentile(seconds, 0.99),
        notes=_notes(run, rows),
        known=_known(judged),
        others_known=_known([row for row in answered if row.label in run.unknown]),
    )


def _known(rows: Sequence[Row]) -> Share | None:
    said = [row.known for row in rows if row.known is not None]
    return Share(sum(said), len(said)) if said else None


def judged_rows(run: Run, rows: Sequence[Row]) -> list[Row]:
    """Those that were answered and whose class the model knows."""
    known = set(run.labels)
    return [row for row in rows if not row.error and row.label in known]


def compare(first: tuple[Run, Sequence[Row]], second: tuple[Run, Sequence[Row]]) -> Comparison:
    """Holds two models against each other, image by image.

    Raises:
        ValueError: they have no image in common.
    """
    names = (first[0].name, second[0].name)
    ones, others = ({row.path: row for row in judged_rows(*side)} for side in (first, second))
    paths = ones.keys() & others.keys()
    if not paths:
        raise ValueError(
            f"{names[0]} ({first[0].data}) and {names[1]} ({second[0].data}) have no image in common that both "
            f"answered; evaluate both on the same folder"
        )
    only_first = sum(ones[path].right and not others[path].right for path in paths)
    only_second = sum(others[path].right and not ones[path].right for path in paths)
    both = sum(ones[path].right and others[path].right for path in paths)
    test = statistics.mcnemar(only_first, only_second)
    difference = statistics.paired_difference(only_first, only_second, len(paths))
    rights = (both + only_first, both + only_second)
    notes = []
    beside = len(ones.keys() | others.keys()) - len(paths)
    if beside:
        notes.append(f"{_images(beside)} that only one of the two was judged on took no part.")
    if first[0].data != second[0].data:
        notes.append(
            f"The folders were {first[0].data} and {second[0].data}; images are matched by their paths in them."
        )
    sentence = _verdict(names, rights, len(paths), test, difference)
    return Comparison(*names, len(paths), *rights, test, difference, sentence, tuple(notes))


def as_document(run: Run, evaluation: Evaluation, comparison: Comparison | None = None) -> dict[str, object]:
    """The figures as JSON takes them; numbers that are not known are null."""
    one = evaluation
    document: dict[str, object] = {
        "run": asdict(run),
        "images": one.images,
        "failed": one.failed,
        "left_out": one.left_out,
        "top1": _share(one.top1),
        "top5": _share(one.top5),
        "classes": {
            label: {
                **asdict(scores),
                "precision": scores.precision,
                "recall": scores.recall,
                "recall_interval": asdict(statistics.wilson(scores.right, scores.support)),
                "f1": scores.f1,
            }
            for label, scores in one.classes.items()
        },
        "confusion": one.confusion,
        "pairs": [asdict(pair) for pair in one.pairs],
        "calibration": {
            "expected_calibration_error": one.calibration_error,
            "mean_probability": one.confidence,
            "bins": [asdict(found) for found in one.bins],
        },
        "known": None if one.known is None else _share(one.known),
        "others_known": None if one.others_known is None else _share(one.others_known),
        "log_loss": one.log_loss,
        "brier": one.brier,
        "speed": {
            "images_per_s": one.images_per_s,
            "latency_p50_s": one.latency_p50_s,
            "latency_p99_s": one.latency_p99_s,
            "parallel": run.parallel,
        },
        "notes": list(one.notes),
    }
    if comparison is not None:
        document["comparison"] = {**asdict(comparison), "significant": comparison.significant}
    return {name: without_nan(value) for name, value in document.items()}


def _classes(labels: Sequence[str], confusion: Mapping[str, Mapping[str, int]]) -> dict[str, ClassScores]:
    met = {*confusion, *(predicted for row in confusion.values() for predicted in row)}
    kept = [label for label in labels if label in met]
    matrix = [[confusion.get(true, {}).get(predicted, 0) for predicted in kept] for true in kept]
    return dict(zip(kept, statistics.class_scores(matrix), strict=True))


def _pairs(confusion: Mapping[str, Mapping[str, int]]) -> list[Pair]:
    """The most frequent mistakes; of equally frequent ones those of the rarer class first."""
    found = [
        Pair(true, predicted, count, sum(row.values()))
        for true, row in confusion.items()
        for predicted, count in row.items()
        if true != predicted
    ]
    return sorted(found, key=lambda pair: (-pair.count, pair.images, pair.true, pair.predicted))[:_MAX_PAIRS]


def _notes(run: Run, rows: Sequence[Row]) -> tuple[str, ...]:
    notes = []
    failed = sum(bool(row.error) for row in rows)
    if failed:
        notes.append(
            f"{_images(failed)} of {len(rows)} could not be answered; they are listed below and count nowhere."
        )
    if run.unknown:
        outside = sum(row.label in run.unknown for row in rows)
        notes.append(
            f"The model does not know {_classes_named(run.unknown)} of the folder: the {_images(outside)} of it count "
            f"nowhere. Rename a folder to the model's own name if it is the same class."
        )
    there = {row.label for row in rows}
    missing = [label for label in run.labels if label not in there]
    if missing:
        notes.append(
            f"The folder has no image of {_classes_named(missing)} that the model knows: nothing is said of how well "
            f"they are recognised, and the accuracy holds for the other {len(run.labels) - len(missing)} classes."
        )
    return tuple(notes)


def _classes_named(labels: Sequence[str]) -> str:
    """`the class Pug`, `3 classes (Pug, ...)`."""
    if len(labels) == 1:
        return f"the class {labels[0]}"
    rest = ", ..." if len(labels) > _NAMED else ""
    return f"{len(labels)} classes ({', '.join(labels[:_NAMED])}{rest})"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _verdict(names: tuple[str, str], rights: tuple[int, int], images: int, test: McNemar, difference: Interval) -> str:
    first, second = names
    shares = f"{rights[1] / images:.1%} against {rights[0] / images:.1%} on the same {_images(images)}"
    alone = f"{second} alone is right on {test.only_second} of them, {first} alone on {test.only_first}"
    how = "exact" if test.exact else "chi-squared"
    span = f"95% interval of the difference {100 * difference.low:+.1f} to {100 * difference.high:+.1f} points"
    figures = f"{shares}; {alone}; {span} (McNemar's test, {how}, p = {test.p_value:.2g})."
    if not test.only_first + test.only_second:
        return f"{first} and {second} are right and wrong about the very same images: {figures}"
    if test.p_value < SIGNIFICANT:
        winner, loser = (second, first) if rights[1] > rights[0] else (first, second)
        return f"{winner} is significantly better than {loser}: {figures}"
    return f"The difference between {first} and {second} is not significant; chance explains it as well: {figures}"


def _share(share: Share) -> dict[str, object]:
    return {**asdict(share), "value": share.value, "interval": asdict(share.interval)}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
