"""The page of a search: what its trials reached, and what that depended on. One file, without scripts or network.

The style sheet is that of the reports of `dogbreed.insight`, read as a file, so that all pages look alike. Knows trials
and ranges, not who has searched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dogbreed.hyperparameters import SearchRange
from scripts.launcher.arguments import in_words
from scripts.launcher.search import pictures
from scripts.launcher.search.axes import axes_of, objective_axis
from scripts.launcher.search.importance import importances
from scripts.launcher.search.pictures import Point
from scripts.launcher.search.trials import Objective, Trial, ranked, short

_TEMPLATES = Path(__file__).parent / "templates"
_STYLE = Path(__file__).resolve().parents[3] / "container" / "dogbreed" / "insight" / "templates"


@dataclass(frozen=True, slots=True)
class Report:
    """What a page tells.

    Attributes:
        name: of the search.
        objective: what it is judged by.
        trials: in the order of their start.
        ranges: what was searched, as far as it is known.
        fixed: the same for every trial.
        strategy: of the search.
    """

    name: str
    objective: Objective
    trials: Sequence[Trial]
    ranges: Mapping[str, SearchRange]
    fixed: Mapping[str, str]
    strategy: str


def write(report: Report, file: Path) -> Path:
    """Writes the page; returns ``file``. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(render(report), encoding="utf-8")
    return file


def render(report: Report) -> str:
    """The page as HTML."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([_TEMPLATES, _STYLE]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("search.html.j2").render(**_content(report))


def _content(report: Report) -> dict[str, Any]:
    objective, trials = report.objective, report.trials
    best = ranked(trials, objective)
    counted = {one.name for one in best}
    points = [
        Point(number, one.name, one.value or 0.0, one.status == "Stopped", dict(one.hyperparameters))
        for number, one in enumerate(trials, 1)
        if one.name in counted
    ]
    names = sorted({name for one in trials for name in one.hyperparameters})
    maximise = objective.goal == "maximise"
    drawn: dict[str, Any] = {"history": "", "parallel": "", "slices": []}
    if points:
        searched = axes_of(trials, report.ranges)
        axis = objective_axis(objective.metric, [point.value for point in points])
        drawn["history"] = pictures.history(points, axis, maximise=maximise)
        drawn["parallel"] = pictures.parallel(points, searched, axis, maximise=maximise)
        drawn["slices"] = [(one.name, picture) for one in searched if (picture := pictures.slice_of(points, one, axis))]
    return {
        **drawn,
        "report": report,
        "words": objective.metric.replace("_", " "),
        "headline": f"{best[0].value:.4g} {objective.metric.replace('_', ' ')}" if best else "No trial has a result",
        "best": best[0] if best else None,
        "importances": importances(trials, report.ranges, objective),
        "names": names,
        "rows": [*best, *(one for one in trials if one.name not in counted)],
        "tiles": _tiles(report, best),
        "shown": short,
        "took": lambda seconds: "" if seconds is None else in_words(seconds),
    }


def _tiles(report: Report, best: Sequence[Trial]) -> list[tuple[str, str]]:
    stopped = sum(one.status == "Stopped" for one in report.trials)
    failed = sum(one.status == "Failed" for one in report.trials)
    seconds = [one.seconds for one in report.trials if one.seconds is not None]
    billed = [one.billed_seconds for one in report.trials if one.billed_seconds is not None]
    tiles = [("trials", str(len(report.trials))), ("stopped early", str(stopped)), ("failed", str(failed))]
    if seconds:
        tiles.append(("trained in all", in_words(sum(seconds))))
    if billed:
        tiles.append(("billed in all", in_words(sum(billed))))
    if len(best) > 1 and best[0].value is not None and best[-1].value is not None:
        tiles.append(("best and worst", f"{best[0].value:.4g}, {best[-1].value:.4g}"))
    return tiles
