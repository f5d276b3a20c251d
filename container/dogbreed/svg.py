"""What every picture of the pages is made of: an SVG element, its texts, and a plane with rulings and axes.

Numbers in, markup out: every text is escaped here, so a template may print the result as it is. Colours are left to the
page's style sheet through classes, which is how one picture serves light and dark. Units are those of the view box; the
page scales it to the width that it has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 480, 270
"""Of a picture with axes."""

LEFT, RIGHT, BOTTOM = 64, 16, 44
"""Its margins; above it has one of its own."""

LEGEND = 34
"""The margin above where a legend is."""


@dataclass(frozen=True, slots=True)
class Plane:
    """Two axes, on which places are shares in [0, 1].

    Attributes:
        top: margin above.
        inset: by which the axis across is shorter at both ends, where dots at its ends are to be seen whole.
    """

    top: int = LEGEND
    inset: int = 0

    def across(self, share: float) -> float:
        """From left to right."""
        return round(LEFT + self.inset + share * (WIDTH - LEFT - RIGHT - 2 * self.inset), 1)

    def down(self, share: float) -> float:
        """From the bottom up."""
        return round(HEIGHT - BOTTOM - share * (HEIGHT - self.top - BOTTOM), 1)

    def frame(
        self, upwards: Iterable[tuple[float, str]], sideways: Iterable[tuple[float, str]], below: str
    ) -> list[Markup]:
        """Rulings, and what is written at both axes.

        Args:
            upwards: share and text of each tick of the axis that goes up.
            sideways: of the other one's.
            below: what that one counts.
        """
        parts = []
        for share, label in upwards:
            y = self.down(share)
            parts.append(
                Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH - RIGHT, y, y)
            )
            parts.append(text(LEFT - 8, y + 4, label, "tick", "end"))
        parts += [text(self.across(share), HEIGHT - BOTTOM + 19, label, "tick", "middle") for share, label in sideways]
        parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, below, "axis", "middle"))
        return parts


def text(x: float, y: float, words: str, kind: str, anchor: str) -> Markup:
    """One line of text.

    Args:
        x: of its anchor.
        y: of its base line.
        words: any.
        kind: class of the style sheet.
        anchor: start, middle or end.
    """
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        kind, round(x, 1), round(y, 1), anchor, words
    )


def picture(kind: str, width: int, height: int, title: str, parts: Sequence[Markup], *, fixed: bool = False) -> Markup:
    """The `svg` element.

    Args:
        kind: class of the style sheet.
        width: of the view box.
        height: of the view box.
        title: read by screen readers, and shown when the mouse rests.
        parts: what is drawn, the last on top.
        fixed: it keeps this size, to be scrolled where it does not fit.
    """
    size = Markup(' width="{}" height="{}"').format(width, height) if fixed else Markup("")
    return Markup('<svg class="{}" role="img" aria-label="{}" viewBox="0 0 {} {}"{}><title>{}</title>{}</svg>').format(
        kind, title, width, height, size, title, Markup("").join(parts)
    )


def shortened(words: str, characters: int) -> str:
    """The same where it is short enough, else its beginning and an ellipsis."""
    return words if len(words) <= characters else words[: characters - 1] + "…"


def share_of(value: float, low: float, high: float) -> float:
    """Where a value lies between two others; between equal ones in the middle."""
    return (value - low) / (high - low) if high > low else 0.5


def nice_ticks(low: float, high: float, *, at_most: float = math.inf) -> list[float]:
    """Four to eight round numbers (steps of 1, 2 or 5) that enclose low and high, in rising order."""
    if high <= low:
        pad = abs(low) * 0.1 or 0.1
        low, high = (low - pad if low else 0.0), high + pad
    high = min(high, at_most)
    if high <= low:
        low = high - (abs(high) * 0.1 or 0.1)
    raw = (high - low) / 5
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw * 0.99)
    # A hair of tolerance, so that 0.3 / 0.1 is 3.
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step)) + 1)
    return [round(index * step, digits) for index in range(first, last + 1)]
