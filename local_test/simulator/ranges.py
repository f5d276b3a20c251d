"""Ranges of hyperparameters, and what a tuner makes of them: random values, or a grid.

For testing what an image does with a tuner's values, not for searching well.

Sources: API reference, ContinuousParameterRange, IntegerParameterRange, CategoricalParameterRange; AWS docs,
automatic-model-tuning-early-stopping (the median rule).
"""

from __future__ import annotations

import itertools
import math
import random
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from local_test.simulator.channels import RequestError

_SPAN = re.compile(r"(?P<low>[^:]+?)\.\.(?P<high>[^:]+?)(?::(?P<scale>log|linear))?")
_MAX_RANGES = 30
_MAX_VALUES = 30
# Of a grid over a range without steps.
_GRID_POINTS = 3


@dataclass(frozen=True)
class Span:
    """Numbers from ``low`` to ``high``, both included.

    Args:
        low, high: bounds.
        whole: integers only.
        logarithmic: spread evenly in the logarithm.
    """

    low: float
    high: float
    whole: bool = False
    logarithmic: bool = False

    def at(self, share: float) -> str:
        """The value at a share of the way from low to high, in [0, 1], as the tuner writes it."""
        if self.logarithmic:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        value = min(max(value, self.low), self.high)
        return str(round(value)) if self.whole else repr(value)


Range = Span | tuple[str, ...]
"""A span, or the values of a categorical parameter."""


def parse(floats: Mapping[str, str], integers: Mapping[str, str], choices: Mapping[str, str]) -> Mapping[str, Range]:
    """Ranges as the command line gives them: ``LOW..HIGH[:log]``, and ``a,b,c``.

    Raises:
        RequestError: a range that the service would refuse; names it.
    """
    found: dict[str, Range] = {}
    for name, text in floats.items():
        found[name] = _span(name, text, whole=False)
    for name, text in integers.items():
        found[name] = _span(name, text, whole=True)
    for name, text in choices.items():
        values = tuple(text.split(","))
        if len(set(values)) < len(values) or "" in values or len(values) > _MAX_VALUES:
            raise RequestError(f"--choice {name}={text!r}: 1 to {_MAX_VALUES} different values with commas between")
        found[name] = values
    if not 1 <= len(found) <= _MAX_RANGES:
        raise RequestError(f"{len(found)} ranges; a search has 1 to {_MAX_RANGES}: --float, --int, --choice")
    return found


def drawn(ranges: Mapping[str, Range], seed: int) -> Iterator[Mapping[str, str]]:
    """Random values without end."""
    generator = random.Random(seed)
    while True:
        yield {
            name: one.at(generator.random()) if isinstance(one, Span) else generator.choice(one)
            for name, one in ranges.items()
        }


def grid(ranges: Mapping[str, Range]) -> Sequence[Mapping[str, str]]:
    """All combinations. The service takes only categories in a grid; of a span, both ends and the middle are taken."""
    values = []
    for one in ranges.values():
        points = one if isinstance(one, tuple) else [one.at(n / (_GRID_POINTS - 1)) for n in range(_GRID_POINTS)]
        values.append(list(dict.fromkeys(points)))
    return [dict(zip(ranges, combination, strict=True)) for combination in itertools.product(*values)]


def is_hopeless(values: Sequence[float], others: Sequence[Sequence[float]], *, maximize: bool) -> bool:
    """The median rule: worse now than the median of the others' running averages up to the same epoch.

    Args:
        values: of the objective so far, one per epoch.
        others: the same of jobs that have completed.
        maximize: whether more is better.
    """
    if not values:
        return False
    epoch = len(values)
    averages = [statistics.fmean(other[:epoch]) for other in others if len(other) >= epoch]
    if not averages:
        return False
    median = statistics.median(averages)
    return values[-1] < median if maximize else values[-1] > median


def _span(name: str, text: str, *, whole: bool) -> Span:
    option = "--int" if whole else "--float"
    match = _SPAN.fullmatch(text)
    try:
        low, high = (float(match[side]) for side in ("low", "high")) if match else (math.nan, math.nan)
    except ValueError:
        low = high = math.nan
    if match is None or not low < high or (whole and not (low.is_integer() and high.is_integer())):
        kind = "whole numbers" if whole else "numbers"
        raise RequestError(f"{option} {name}={text!r}: write LOW..HIGH or LOW..HIGH:log, {kind}, the lower one first")
    if match["scale"] == "log" and low <= 0:
        raise RequestError(f"{option} {name}={text!r}: a logarithmic range begins above 0")
    return Span(low, high, whole, match["scale"] == "log")
