"""Several jobs on one page: what they came to, how they learned, and in which hyperparameters they differ.

Records in, text out; knows no folders. A page needs nothing but a browser, like that of `report`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dogbreed.insight.charts import Line, line_chart
from dogbreed.insight.formats import FILTERS, duration, percent, round_percent, short, shown, words
from dogbreed.insight.report import STATUS_WORDS, JobRecord
from dogbreed.insight.verdicts import Status

_CURVES = ("validation_accuracy", "validation_loss", "train_accuracy", "train_loss")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table.

    Attributes:
        name: what it tells.
        values: one text per job.
        best: places of the best jobs; empty where there is no better and worse.
    """

    name: str
    values: tuple[str, ...]
    best: frozenset[int] = frozenset()


def render(jobs: Mapping[str, JobRecord]) -> str:
    """The page as HTML; jobs are shown in their order, under their names."""
    environment = Environment(
        loader=PackageLoader("dogbreed.insight"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    return environment.get_template("compare.html.j2").render(
        names=list(jobs),
        results=results(jobs),
        differences=differences(jobs),
        equal=_equal(jobs),
        charts=_charts(jobs),
        verdicts=verdicts(jobs),
    )


def markdown(jobs: Mapping[str, JobRecord]) -> str:
    """The same tables as Markdown, the best values in bold."""
    lines = [f"# {len(jobs)} jobs compared"]
    for heading, rows in (
        ("Results", results(jobs)),
        ("Hyperparameters that differ", differences(jobs)),
        ("Verdicts", verdicts(jobs)),
    ):
        if rows:
            lines += ["", f"## {heading}", "", f"| | {' | '.join(jobs)} |", "|---" * (len(jobs) + 1) + "|"]
            lines += [
                f"| {row.name} | "
                + " | ".join(f"**{one}**" if place in row.best else one for place, one in enumerate(row.values))
                + " |"
                for row in rows
            ]
    return "\n".join(lines) + "\n"


def results(jobs: Mapping[str, JobRecord]) -> list[Row]:
    """Metrics and times."""
    records = list(jobs.values())
    names = dict.fromkeys(name for record in records for name in record.metrics)
    rows = []
    for name in sorted(names, key=lambda one: (not one.startswith("test"), one.startswith("train"), one)):
        values = [record.metrics.get(name, math.nan) for record in records]
        show = percent if name.endswith("accuracy") else short
        rows.append(Row(words(name), tuple(map(show, values)), _best(values, most=name.endswith("accuracy"))))
    seconds = [(record.ended - record.started).total_seconds() for record in records]
    rows.append(Row("duration", tuple(map(duration, seconds)), _best(seconds, most=False)))
    rows.append(Row("best epoch", tuple(f"{record.best_epoch} of {len(record.epochs)}" for record in records)))
    rows.append(Row("network", tuple(record.backbone for record in records)))
    rows.append(Row("trained", tuple(words(record.trainable) for record in records)))
    return rows


def differences(jobs: Mapping[str, JobRecord]) -> list[Row]:
    """Hyperparameters that are not the same in all jobs."""
    rows = []
    for name in dict.fromkeys(name for record in jobs.values() for name in record.hyperparameters):
        values = tuple(
            shown(record.hyperparameters[name]) if name in record.hyperparameters else "not set"
            for record in jobs.values()
        )
        if len(set(values)) > 1:
            rows.append(Row(name, values))
    return rows


def verdicts(jobs: Mapping[str, JobRecord]) -> list[Row]:
    """Rules that found an issue in some job, and what they came to in each."""
    found = [{one.rule: one.status for one in record.verdicts} for record in jobs.values()]
    names = dict.fromkeys(rule for one in found for rule, status in one.items() if status is Status.ISSUES_FOUND)
    return [
        Row(name, tuple(STATUS_WORDS[one[name]] if name in one else "not evaluated" for one in found)) for name in names
    ]


def _equal(jobs: Mapping[str, JobRecord]) -> dict[str, object]:
    """Hyperparameters that are the same in all jobs."""
    differing = {row.name for row in differences(jobs)}
    first = next(iter(jobs.values()))
    return {name: value for name, value in first.hyperparameters.items() if name not in differing}


def _charts(jobs: Mapping[str, JobRecord]) -> list[tuple[str, Markup]]:
    charts = []
    for metric in _CURVES:
        lines = [
            Line(name, [(one.epoch, one.metrics.get(metric, math.nan)) for one in record.epochs])
            for name, record in jobs.items()
        ]
        accuracy = metric.endswith("accuracy")
        picture = line_chart(
            f"{words(metric).capitalize()} per epoch of {len(jobs)} jobs; the tables give the figures",
            lines,
            x_label="epoch",
            show=round_percent if accuracy else short,
            from_zero=not accuracy,
            at_most=1.0 if accuracy else math.inf,
            legend=False,
        )
        if picture:
            charts.append((words(metric).capitalize(), picture))
    return charts


def _best(values: list[float], *, most: bool) -> frozenset[int]:
    known = [value for value in values if math.isfinite(value)]
    if len(set(known)) < 2:
        return frozenset()
    best = max(known) if most else min(known)
    return frozenset(place for place, value in enumerate(values) if value == best)
