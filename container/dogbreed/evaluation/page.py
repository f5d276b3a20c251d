"""The evaluation as a page that needs nothing but a browser: style and pictures inside, no script, no network.

Figures in, HTML out; opens the wrongly answered photos for their thumbnails, and nothing else. The style is that of
the reports of jobs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dogbreed import statistics
from dogbreed.evaluation.answers import Row, Run
from dogbreed.evaluation.figures import Comparison, Evaluation, Share, judged_rows
from dogbreed.insight.charts import column_chart, heat_map, reliability_diagram
from dogbreed.insight.formats import FILTERS, percent, short
from dogbreed.insight.photos import WrongPhoto, wrong_photo
from dogbreed.statistics import ClassScores

# A matrix of more classes is unreadable, and the table of pairs tells what matters.
_MAX_MATRIX_CLASSES = 60
_MAX_PHOTOS = 18
_MAX_FAILED = 50


@dataclass(frozen=True, slots=True)
class _ClassRow:
    label: str
    scores: ClassScores
    low: float
    high: float


def render(
    run: Run,
    rows: Sequence[Row],
    evaluation: Evaluation,
    comparison: Comparison | None = None,
    folder: Path | None = None,
) -> str:
    """The page as HTML.

    Args:
        run: what was asked.
        rows: one per image.
        evaluation: the figures of them.
        comparison: with another model, where there is one.
        folder: where the images are; default that of the run. Photos that are not there any more have no thumbnail.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("dogbreed.evaluation"), PackageLoader("dogbreed.insight")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    failed = [row for row in rows if row.error]
    return environment.get_template("evaluation.html.j2").render(
        run=run,
        headline=f"{percent(evaluation.top1.value)} of the answers are right",
        span=_span(evaluation.top1),
        tiles=_tiles(run, evaluation),
        evaluation=evaluation,
        comparison=comparison,
        classes=_class_rows(evaluation.classes),
        matrix=_matrix(evaluation),
        calibration=_calibration(evaluation),
        diagrams=_diagrams(evaluation),
        familiarity=_familiarity(evaluation),
        photos=_photos(run, rows, folder or Path(run.data)),
        failed=failed[:_MAX_FAILED],
        failed_count=len(failed),
        started=run.started[:16].replace("T", " "),
    )


def _span(share: Share) -> str:
    return f"{percent(share.interval.low)} to {percent(share.interval.high)}"


def _tiles(run: Run, one: Evaluation) -> list[tuple[str, str]]:
    tiles = [
        ("among the first five", f"{percent(one.top5.value)}"),
        ("images", f"{one.images}"),
        ("calibration error", percent(one.calibration_error)),
        ("log loss", short(one.log_loss)),
        ("images per second", short(one.images_per_s)),
        ("latency, median", _milliseconds(one.latency_p50_s)),
        ("latency, 99th percentile", _milliseconds(one.latency_p99_s)),
    ]
    if one.known is not None:
        tiles.insert(4, ("taken as known", percent(one.known.value)))
    return [*tiles, ("not answered", str(one.failed))] if one.failed else tiles


def _milliseconds(seconds: float) -> str:
    return f"{short(seconds * 1000)} ms" if math.isfinite(seconds) else "n/a"


def _class_rows(classes: Mapping[str, ClassScores]) -> list[_ClassRow]:
    """Worst F1 first; classes without images last."""
    rows = []
    for label, scores in classes.items():
        interval = statistics.wilson(scores.right, scores.support)
        rows.append(_ClassRow(label, scores, interval.low, interval.high))
    return sorted(rows, key=lambda row: (row.scores.support == 0, row.scores.f1, row.label))


def _matrix(one: Evaluation) -> Markup | None:
    names = list(one.classes)
    if len(names) > _MAX_MATRIX_CLASSES:
        return None
    counts = [[one.confusion.get(true, {}).get(predicted, 0) for predicted in names] for true in names]
    return heat_map(f"Confusion matrix of {len(names)} classes; the tables give the figures", names, counts)


def _calibration(one: Evaluation) -> str:
    """What the diagram means."""
    gap = one.confidence - one.top1.value
    leaning = "as sure as it is right" if abs(gap) < 0.02 else "too sure" if gap > 0 else "not sure enough"
    return (
        f"On the average the model was {percent(one.confidence)} sure and {percent(one.top1.value)} right: it is "
        f"{leaning}. The expected calibration error is {percent(one.calibration_error)}, the Brier score "
        f"{short(one.brier)} (0 is perfect, 2 the worst), the log loss {short(one.log_loss)} nats."
    )


def _familiarity(one: Evaluation) -> str:
    """What the model took for one of its classes; empty where it does not say."""
    if one.known is None:
        return ""
    said = (
        f"It took {one.known.right} of {one.known.count} images of its own classes for one of them: "
        f"{percent(one.known.value)}, with 95% confidence {_span(one.known)}."
    )
    if one.others_known is None:
        return f"{said} The folder holds no other classes, so nothing is said of how many of those would pass."
    return (
        f"{said} Of {one.others_known.count} images of classes that it does not know {one.others_known.right} passed: "
        f"{percent(one.others_known.value)}, {_span(one.others_known)}; fewer are better."
    )


def _diagrams(one: Evaluation) -> list[tuple[str, str, Markup]]:
    """Heading, caption and picture."""
    bins = [(found.low, found.high, found.count, found.confidence, found.accuracy) for found in one.bins]
    edges = [found.low for found in one.bins] + [one.bins[-1].high]
    counts = [found.count for found in one.bins]
    return [
        (
            "Reliability",
            "Columns below their mark: the model was surer than it was right. Few answers in a column say little.",
            reliability_diagram(
                f"Reliability diagram with {len(bins)} bins; expected calibration error "
                f"{percent(one.calibration_error)}",
                bins,
            ),
        ),
        (
            "How sure it was",
            "Images by the probability of their answer.",
            column_chart(
                "Histogram of the probabilities of the answers", edges, counts, x_label="probability of the answer"
            ),
        ),
    ]


def _photos(run: Run, rows: Sequence[Row], folder: Path) -> list[WrongPhoto]:
    wrong = sorted((row for row in judged_rows(run, rows) if not row.right), key=lambda row: -row.probability)
    return [
        wrong_photo(folder / row.path, true=row.label, predicted=row.prediction, confidence=row.probability)
        for row in wrong[:_MAX_PHOTOS]
    ]
