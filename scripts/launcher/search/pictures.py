"""The pictures of a search's page, in the colours of the style sheet that the pages of insight have.

Knows neither files nor who has searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dogbreed.svg import HEIGHT, LEFT, WIDTH, Plane, picture, share_of, shortened, text
from scripts.launcher.search.axes import Axis

_STEP, _DEPTH = 150, 320
_CHARACTERS = 20


@dataclass(frozen=True, slots=True)
class Point:
    """A trial that has a value.

    Attributes:
        number: from 1, in the order of the start.
        name: of the trial.
        value: of the objective.
        stopped: ended early by the search.
        values: hyperparameter -> text.
    """

    number: int
    name: str
    value: float
    stopped: bool
    values: dict[str, str]


def history(points: Sequence[Point], axis: Axis, *, maximise: bool) -> Markup:
    """The objective of each trial, and the best until then."""
    last = max(point.number for point in points)

    plane = Plane()

    def across(number: float) -> float:
        return plane.across(share_of(number, 1, last))

    best, steps = None, []
    for point in points:
        if best is None or (point.value > best if maximise else point.value < best):
            best = point.value
        steps.append((across(point.number), _down(axis, best)))
    path = f"M{steps[0][0]} {steps[0][1]}" + "".join(f"H{x}V{y}" for x, y in steps[1:])
    step = max(1, -(-last // 10))
    numbers = [(share_of(number, 1, last), str(number)) for number in range(step, last + 1, step)]
    parts = plane.frame(axis.ticks, numbers, "trial")
    parts.append(Markup('<path class="line k2" d="{}"/>').format(path))
    parts += [_dot(point, across(point.number), _down(axis, point.value), axis.name) for point in points]
    parts.append(
        Markup('<line class="line k2" x1="{}" x2="{}" y1="12" y2="12"/>').format(LEFT, LEFT + 22)
        + text(LEFT + 28, 16, "best until then", "key", "start")
        + Markup('<circle class="dot k1" cx="{}" cy="12" r="4"/>').format(LEFT + 150)
        + text(LEFT + 160, 16, "a trial", "key", "start")
    )
    if any(point.stopped for point in points):
        parts.append(
            Markup('<circle class="dot k8" cx="{}" cy="12" r="4"/>').format(LEFT + 230)
            + text(LEFT + 240, 16, "stopped early", "key", "start")
        )
    return picture("chart", WIDTH, HEIGHT, f"{axis.name} of {len(points)} trials in the order of their start", parts)


def slice_of(points: Sequence[Point], searched: Axis, axis: Axis) -> Markup:
    """The objective over one hyperparameter; empty when no trial has it."""
    plane = Plane(inset=6)
    placed = [(point, searched.at(point.values.get(searched.name, ""))) for point in points]
    dots = [
        _dot(
            point,
            plane.across(share),
            _down(axis, point.value),
            axis.name,
            f"{searched.name} {point.values[searched.name]}",
        )
        for point, share in placed
        if share is not None
    ]
    if not dots:
        return Markup("")
    parts = plane.frame(axis.ticks, searched.ticks, searched.name + (", powers of ten" if searched.log else ""))
    return picture("chart", WIDTH, HEIGHT, f"{axis.name} over {searched.name}", parts + dots)


def parallel(points: Sequence[Point], searched: Sequence[Axis], axis: Axis, *, maximise: bool) -> Markup:
    """A line per trial through its values and its objective; the better it is, the stronger; the best has a colour.

    Returns:
        An `svg` element of a fixed size, to be scrolled where it does not fit.
    """
    columns = [*searched, axis]
    left, top, depth = 70, 44, _DEPTH - 30
    width = left + _STEP * (len(columns) - 1) + 90

    def place(column: int, share: float) -> tuple[float, float]:
        return left + column * _STEP, round(top + (1 - share) * (depth - top), 1)

    parts, labels = [], []
    for number, column in enumerate(columns):
        x = left + number * _STEP
        parts.append(Markup('<path class="grid" d="M{} {}V{}"/>').format(x, top, depth))
        labels.append(text(x, 20, shortened(column.name, _CHARACTERS), "key", "middle"))
        for share, label in column.ticks:
            y = place(number, share)[1]
            parts.append(Markup('<path class="grid" d="M{} {}h8"/>').format(x - 4, y))
            labels.append(text(x - 8, y + 4, shortened(label, _CHARACTERS), "tick", "end"))
    ranked = sorted(points, key=lambda point: point.value, reverse=not maximise)
    for rank, point in enumerate(ranked):
        shares = [column.at(point.values.get(column.name, "")) for column in searched] + [axis.at(f"{point.value!r}")]
        coordinates = [place(number, share) for number, share in enumerate(shares) if share is not None]
        is_best = rank == len(ranked) - 1
        strength = 0.12 + 0.68 * (rank / max(1, len(ranked) - 1)) ** 2
        parts.append(
            Markup('<polyline class="line {}" stroke-opacity="{:.2f}" points="{}"><title>{}</title></polyline>').format(
                "k2" if is_best else "k1",
                1.0 if is_best else strength,
                " ".join(f"{x},{y}" for x, y in coordinates),
                f"{point.name}: {axis.name} {point.value:.6g}",
            )
        )
    said = f"the values of {len(points)} trials, the best {points[ranked_best(points, maximise=maximise)].name}"
    # The numbers lie on the lines, which the page's style keeps off them.
    return picture("parallel", width, _DEPTH, said, parts + labels, fixed=True)


def ranked_best(points: Sequence[Point], *, maximise: bool) -> int:
    """Place of the best point; the first of equals."""
    values = [point.value for point in points]
    return values.index(max(values) if maximise else min(values))


def _down(axis: Axis, value: float) -> float:
    return Plane().down(axis.at(f"{value!r}") or 0.0)


def _dot(point: Point, x: float, y: float, metric: str, more: str = "") -> Markup:
    said = f"{point.name}: {metric} {point.value:.6g}" + (f", {more}" if more else "")
    return Markup('<circle class="dot {}" cx="{}" cy="{}" r="4"><title>{}</title></circle>').format(
        "k8" if point.stopped else "k1", x, y, said
    )
