"""Small SVG charts for the pages: lines over epochs, a confusion matrix, histograms, calibration.

Colours are left to the page's style sheet, through these classes and the variables named beside them:

    .grid .axis .tick .key .best    rulings, axis titles, numbers, legend, the line of the best epoch
    .line .dot with .tone1 .tone2   a series (--tone1, --tone2); the last one is tone2, the one before it tone1 and
                                    dashed, so colour is not all
    .k1 ... .k8                     one of three series or more, a slice of a ring (--k1 ... --k8)
    .column .mark                   a bar of a histogram, and a level drawn across it
    .hit .miss .on-strong           cells on and off the diagonal, and numbers on a dark cell

Knows nothing of jobs or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dogbreed.svg import HEIGHT, LEFT, LEGEND, WIDTH, Plane, nice_ticks, picture, share_of, shortened, text

# More points than this are a line without dots.
_MAX_DOTS = 60

_CELL = 21
_LABEL_CHARACTERS = 24
_CHARACTER = 6.4
"""Width of a letter at the label's size; a guess on the safe side for every system font."""


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a line chart.

    Attributes:
        name: for the legend.
        points: (x, y); a y that is not finite leaves a gap.
    """

    name: str
    points: Sequence[tuple[float, float]]


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    show: Callable[[float], str],
    best_x: int | None = None,
    from_zero: bool = False,
    at_most: float = math.inf,
    legend: bool = True,
) -> Markup:
    """Lines over whole numbers, with axes and a mark at the best one.

    Args:
        title: read by screen readers, and shown when the mouse rests.
        lines: up to eight series; with a legend they have tones, without one the colours k1, k2, ...
        x_label: what x counts.
        show: text of a y value.
        best_x: where to draw the mark, or None.
        from_zero: the y axis begins at 0.
        at_most: the y axis ends here at the latest.
        legend: name the lines above them; there is room for two.

    Returns:
        An `svg` element; empty when no point is finite.
    """
    finite = [(x, y) for line in lines for x, y in line.points if math.isfinite(y)]
    if not finite:
        return Markup("")
    lowest = 0.0 if from_zero else min(y for _, y in finite)
    y_ticks = nice_ticks(lowest, max(y for _, y in finite), at_most=at_most)
    first, last = min(x for x, _ in finite), max(x for x, _ in finite)

    plane = Plane()

    def across(x: float) -> float:
        return plane.across(share_of(x, first, last))

    def down(y: float) -> float:
        return plane.down(share_of(y, y_ticks[0], y_ticks[-1]))

    parts = plane.frame(
        [(share_of(y, y_ticks[0], y_ticks[-1]), show(y)) for y in y_ticks],
        [(share_of(x, first, last), str(x)) for x in _whole_ticks(round(first), round(last))],
        x_label,
    )
    if best_x is not None and first <= best_x <= last:
        parts.append(
            Markup('<line class="best" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
                across(best_x), across(best_x), LEGEND - 6, plane.down(0)
            )
        )
    legend_x = float(LEFT)
    tones = [f"tone{3 - len(lines) + place}" if legend else f"k{place % 8 + 1}" for place in range(len(lines))]
    for tone, line in zip(tones, lines, strict=True):
        parts += _drawn(line, tone, across=across, down=down, x_label=x_label, show=show)
        if not legend:
            continue
        parts.append(
            Markup('<line class="line {}" x1="{}" x2="{}" y1="12" y2="12"/>').format(tone, legend_x, legend_x + 22)
            + text(legend_x + 28, 16, line.name, "key", "start")
        )
        legend_x += 28 + len(line.name) * 8 + 22
    if best_x is not None and first <= best_x <= last:
        parts.append(
            Markup('<line class="best" x1="{}" x2="{}" y1="12" y2="12"/>').format(legend_x, legend_x + 22)
            + text(legend_x + 28, 16, f"best, {x_label} {best_x}", "key", "start")
        )
    return picture("chart", WIDTH, HEIGHT, title, parts)


def heat_map(title: str, names: Sequence[str], counts: Sequence[Sequence[int]]) -> Markup:
    """A confusion matrix: rows are the true classes, columns the answers.

    A cell's strength is its share of the row, as a square root off the diagonal, where a tenth matters.

    Args:
        title: read by screen readers.
        names: of the K classes.
        counts: K x K, ``counts[true][predicted]``.

    Returns:
        An `svg` element of a fixed size, to be scrolled where it does not fit.
    """
    labels = [shortened(name, _LABEL_CHARACTERS) for name in names]
    margin = max(map(len, labels)) * _CHARACTER + 14
    left, top = margin + 20, margin + 20
    side = len(names) * _CELL
    width, height = math.ceil(left + side + 6), math.ceil(top + side + 6)
    parts = [
        text(left + side / 2, 13, "answer of the model", "axis", "middle"),
        Markup(
            '<text class="axis" text-anchor="middle" transform="translate(13 {}) rotate(-90)">true class</text>'
        ).format(round(top + side / 2, 1)),
    ]
    for index, label in enumerate(labels):
        middle = round((index + 0.5) * _CELL + 4, 1)
        parts.append(text(left - 7, top + middle, label, "tick", "end"))
        parts.append(
            Markup('<text class="tick" transform="translate({} {}) rotate(-90)">{}</text>').format(
                round(left + middle, 1), round(top - 7, 1), label
            )
        )
    for index in range(len(names) + 1):
        at = index * _CELL
        parts.append(
            Markup('<path class="grid" d="M{x0} {y}H{x1}M{x} {y0}V{y1}"/>').format(
                x0=round(left, 1),
                x1=round(left + side, 1),
                y=round(top + at, 1),
                x=round(left + at, 1),
                y0=round(top, 1),
                y1=round(top + side, 1),
            )
        )
    for true, row in enumerate(counts):
        total = sum(row)
        for predicted, count in enumerate(row):
            if count:
                x, y = round(left + predicted * _CELL, 1), round(top + true * _CELL, 1)
                parts.append(_cell(x, y, count=count, total=total, true=names[true], predicted=names[predicted]))
    return picture("matrix", width, height, title, parts, fixed=True)


def column_chart(title: str, edges: Sequence[float], counts: Sequence[int], *, x_label: str) -> Markup:
    """A histogram.

    Args:
        title: read by screen readers.
        edges: one more than counts, rising.
        counts: of the bins.
        x_label: what the edges are.

    Returns:
        An `svg` element; empty without counts.
    """
    if not counts or edges[-1] <= edges[0]:
        return Markup("")
    x_ticks = [tick for tick in nice_ticks(edges[0], edges[-1]) if edges[0] <= tick <= edges[-1]]
    y_ticks = nice_ticks(0, max(counts))

    plane = Plane(top=12)

    def across(x: float) -> float:
        return plane.across(share_of(x, edges[0], edges[-1]))

    def down(y: float) -> float:
        return plane.down(y / y_ticks[-1])

    parts = plane.frame(
        [(y / y_ticks[-1], f"{y:g}") for y in y_ticks if y == int(y)],
        [(share_of(x, edges[0], edges[-1]), f"{x:g}") for x in x_ticks],
        x_label,
    )
    for left, right, count in zip(edges, edges[1:], counts, strict=False):
        if count:
            parts.append(
                Markup(
                    '<rect class="column" x="{}" y="{}" width="{}" height="{}">'
                    "<title>{:.4g} to {:.4g}: {}</title></rect>"
                ).format(
                    across(left) + 0.5,
                    down(count),
                    round(max(1.0, across(right) - across(left) - 1), 1),
                    round(down(0) - down(count), 1),
                    left,
                    right,
                    count,
                )
            )
    return picture("chart", WIDTH, HEIGHT, title, parts)


def reliability_diagram(title: str, bins: Sequence[tuple[float, float, int, float, float]]) -> Markup:
    """How often answers of each probability are right: columns, and a mark where their probability is.

    Args:
        title: read by screen readers.
        bins: low and high edge, answers, their mean probability and accuracy, all but the number in [0, 1]; a bin
            without answers is left out.

    Returns:
        An `svg` element; empty when every bin is.
    """
    filled = [one for one in bins if one[2]]
    if not filled:
        return Markup("")
    plane = Plane()
    across, down = plane.across, plane.down
    ticks = [(index / 5, f"{index / 5:.0%}") for index in range(6)]
    parts = plane.frame(ticks, ticks, "probability of the answer")
    for low, high, count, confidence, accuracy in filled:
        parts.append(
            Markup(
                '<g><title>{} answers: {:.1%} sure, {:.1%} right</title><rect class="column" x="{}" y="{}" width="{}" '
                'height="{}"/><line class="mark" x1="{}" x2="{}" y1="{}" y2="{}"/></g>'
            ).format(
                count,
                confidence,
                accuracy,
                across(low) + 1,
                down(accuracy),
                round(across(high) - across(low) - 2, 1),
                round(down(0) - down(accuracy), 1),
                across(low) + 1,
                across(high) - 1,
                down(confidence),
                down(confidence),
            )
        )
    parts.append(
        Markup('<line class="best" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(across(0), across(1), down(0), down(1))
    )
    parts.append(
        Markup('<rect class="column" x="{}" y="6" width="22" height="11"/>').format(LEFT)
        + text(LEFT + 28, 16, "right", "key", "start")
        + Markup('<line class="mark" x1="{}" x2="{}" y1="12" y2="12"/>').format(LEFT + 88, LEFT + 110)
        + text(LEFT + 116, 16, "how sure it was", "key", "start")
        + Markup('<line class="best" x1="{}" x2="{}" y1="12" y2="12"/>').format(LEFT + 244, LEFT + 266)
        + text(LEFT + 272, 16, "if both agreed", "key", "start")
    )
    return picture("chart", WIDTH, HEIGHT, title, parts)


def ring(title: str, slices: Sequence[tuple[str, float]]) -> Markup:
    """A pie with a hole; its legend is the page's.

    Args:
        title: read by screen readers.
        slices: name and share of each, in the order of the classes k1, k2, ...; shares add up to 1.

    Returns:
        An `svg` element of a fixed size; empty without slices.
    """
    if not slices:
        return Markup("")
    middle, radius = 90, 66
    round_length = 2 * math.pi * radius
    parts, done = [], 0.0
    for place, (name, share) in enumerate(slices):
        length = share * round_length
        gap = 1.5 if len(slices) > 1 and length > 3 else 0.0
        parts.append(
            Markup(
                '<circle class="slice k{}" cx="{m}" cy="{m}" r="{r}" stroke-dasharray="{:.2f} {:.2f}" '
                'stroke-dashoffset="{:.2f}" transform="rotate(-90 {m} {m})"><title>{}: {:.1f} %</title></circle>'
            ).format(
                place % 8 + 1,
                length - gap,
                round_length - length + gap,
                -done * round_length,
                name,
                share * 100,
                m=middle,
                r=radius,
            )
        )
        done += share
    return picture("ring", 2 * middle, 2 * middle, title, parts, fixed=True)


def _whole_ticks(first: int, last: int) -> list[int]:
    """Up to a dozen whole numbers, with the first and the last where there is room."""
    step = next(step for step in _whole_steps() if (last - first) / step <= 11)
    inner = [x for x in range(first, last + 1) if x % step == 0] if step > 1 else list(range(first, last + 1))
    return inner or [first]


def _whole_steps() -> Sequence[int]:
    return [factor * 10**power for power in range(9) for factor in (1, 2, 5)]


def _drawn(
    line: Line,
    tone: str,
    *,
    across: Callable[[float], float],
    down: Callable[[float], float],
    x_label: str,
    show: Callable[[float], str],
) -> list[Markup]:
    stretches: list[list[tuple[float, float]]] = [[]]
    for x, y in line.points:
        if math.isfinite(y):
            stretches[-1].append((x, y))
        elif stretches[-1]:
            stretches.append([])
    parts = [
        Markup('<polyline class="line {}" points="{}"/>').format(
            tone, " ".join(f"{across(x)},{down(y)}" for x, y in stretch)
        )
        for stretch in stretches
        if len(stretch) > 1
    ]
    points = [point for stretch in stretches for point in stretch]
    if len(points) <= _MAX_DOTS:
        parts += [
            Markup('<circle class="dot {}" cx="{}" cy="{}" r="3.2"><title>{} {}: {} {}</title></circle>').format(
                tone, across(x), down(y), x_label, x, line.name, show(y)
            )
            for x, y in points
        ]
    return parts


def _cell(x: float, y: float, *, count: int, total: int, true: str, predicted: str) -> Markup:
    share = count / total
    hit = true == predicted
    strength = 0.12 + 0.83 * (share if hit else math.sqrt(share))
    said = f"{true}: {count} of {total} right" if hit else f"{true} taken for {predicted}: {count} of {total}"
    return Markup(
        '<g><title>{said}</title><rect class="{kind}" x="{x}" y="{y}" width="{side}" height="{side}" '
        'fill-opacity="{strength:.2f}"/><text class="count{strong}" x="{cx}" y="{cy}">{count}</text></g>'
    ).format(
        said=said,
        kind="hit" if hit else "miss",
        x=x,
        y=y,
        side=_CELL,
        strength=strength,
        strong=" on-strong" if strength > 0.6 else "",
        cx=round(x + _CELL / 2, 1),
        cy=round(y + _CELL / 2 + 3.2, 1),
        count=count,
    )
