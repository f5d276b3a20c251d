"""Numbers, names and durations as people read them, for pages and tables."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from markupsafe import Markup


def percent(share: float) -> str:
    """A share as 12.3 %."""
    return f"{share * 100:.1f} %" if math.isfinite(share) else "n/a"


def round_percent(share: float) -> str:
    """As `percent`, but 80 % for 80.0 %: an axis on a phone has no room to spare."""
    return f"{round(share * 100, 1):g} %"


def short(number: float) -> str:
    """Four digits."""
    return f"{number:.4g}" if math.isfinite(number) else "n/a"


def shown(value: object) -> str:
    """A setting as a user writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return short(value) if isinstance(value, float) else str(value)


def words(name: str) -> str:
    """A name in words."""
    return name.replace("_", " ")


def duration(seconds: float) -> str:
    """Seconds in the units that a person would use."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def wrappable(name: object) -> Markup:
    """Class names and paths may break after an underscore or a slash, where a browser would not."""
    return Markup("<wbr>").join(re.findall(r"[^_/]*[_/]?", str(name)))


FILTERS: Mapping[str, Callable[..., object]] = {
    "percent": percent,
    "value": shown,
    "words": words,
    "wrap": wrappable,
    "duration": duration,
}
"""By the names that the templates use."""
