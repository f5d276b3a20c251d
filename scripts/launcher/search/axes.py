"""Where a value of a hyperparameter lies between the ends of what was searched: for pictures. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dogbreed.hyperparameters import SearchRange
from dogbreed.svg import nice_ticks, share_of
from scripts.launcher.search.space import text
from scripts.launcher.search.trials import Trial

# Values this far apart are looked at in powers of ten, where nobody has said how they were searched.
_MANY_TIMES = 50


@dataclass(frozen=True, slots=True)
class Axis:
    """One hyperparameter, or the objective.

    Attributes:
        name: of it.
        low: end of the axis; of choices 0.
        high: the other end; of choices the number of the last.
        log: whether equal distances are equal factors.
        choices: texts in their order; empty for numbers.
    """

    name: str
    low: float
    high: float
    log: bool = False
    choices: tuple[str, ...] = ()

    def at(self, value: str) -> float | None:
        """The share of the axis, in [0, 1], at which a value lies; None for what is not on it."""
        if self.choices:
            place = self.choices.index(value) if value in self.choices else None
            return None if place is None else (place + 0.5) / len(self.choices)
        try:
            number = float(value)
        except ValueError:
            return None
        if not math.isfinite(number) or (self.log and number <= 0):
            return None
        if self.log:
            share = share_of(math.log(number), math.log(self.low), math.log(self.high))
        else:
            share = share_of(number, self.low, self.high)
        return min(1.0, max(0.0, share))

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Shares of the axis with what to write there."""
        if self.choices:
            texts: Sequence[str] = self.choices
        elif self.log:
            powers = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            texts = [f"{10.0**power:g}" for power in powers]
            if len(texts) < 2:
                texts = [f"{self.low:.3g}", f"{self.high:.3g}"]
        else:
            inside = [tick for tick in nice_ticks(self.low, self.high) if self.low <= tick <= self.high]
            texts = [f"{tick:g}" for tick in inside]
        return [(share, one) for one in texts if (share := self.at(one)) is not None]


def axes_of(trials: Sequence[Trial], ranges: Mapping[str, SearchRange]) -> list[Axis]:
    """An axis for every hyperparameter that the trials differ in or that was searched, by name.

    Args:
        trials: of the search.
        ranges: what was searched, as far as it is known.
    """
    names = sorted({name for trial in trials for name in trial.hyperparameters} | set(ranges))
    found = []
    for name in names:
        values = [trial.hyperparameters[name] for trial in trials if name in trial.hyperparameters]
        one = ranges.get(name)
        if one is not None and one.choices:
            found.append(Axis(name, 0, len(one.choices) - 1, choices=tuple(text(choice) for choice in one.choices)))
        elif one is not None and one.low is not None and one.high is not None:
            found.append(Axis(name, float(one.low), float(one.high), log=one.scale == "log"))
        elif values:
            found.append(_guessed(name, values))
    return found


def objective_axis(name: str, values: Sequence[float]) -> Axis:
    """The axis of what the trials reached."""
    ticks = nice_ticks(min(values), max(values))
    return Axis(name, ticks[0], ticks[-1])


def _guessed(name: str, values: Sequence[str]) -> Axis:
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        choices = tuple(dict.fromkeys(sorted(values)))
        return Axis(name, 0, len(choices) - 1, choices=choices)
    low, high = min(numbers), max(numbers)
    return Axis(name, low, high, log=low > 0 and high / low >= _MANY_TIMES)
