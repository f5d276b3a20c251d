"""At which steps of a mode something is saved, by smdebug's collections and the rules' intervals.

Asked at every step of a training, so the answer is the next step and not a list. Knows smdebug's collections, and
imports nothing of it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dogbreed.insight.saveplan import FIRST_STEPS

NEVER = 1 << 62
"""A step that no training reaches."""

NOTHING: frozenset[Any] = frozenset()


@dataclass(frozen=True, slots=True)
class Schedule:
    """Says at which steps of a mode something is saved: at few of them.

    Attributes:
        collections: that are saved at some step of this mode.
        every: divides every interval; 0 where nothing is ever saved.
        steps: named one by one, in order.
        losses_alone: the collection of the losses, where they are saved at every step and nothing else is, as is usual
            in evaluations; else empty.
    """

    collections: tuple[Any, ...]
    every: int
    steps: tuple[int, ...]
    losses_alone: frozenset[Any]

    def next(self, step: int) -> int:
        """The first step from this one on at which something may be saved."""
        place = bisect_left(self.steps, step)
        named = self.steps[place] if place < len(self.steps) else NEVER
        return min(named, -(-step // self.every) * self.every) if self.every else named


def make_schedule(collections: Sequence[Any], mode: Any, ours: Sequence[int] = ()) -> Schedule:  # noqa: ANN401  smdebug's
    """When collections, and our own intervals, may be saved in a mode.

    Args:
        collections: smdebug's, each with its `save_config`.
        mode: smdebug's `ModeKeys`.
        ours: intervals in steps at which rules want something, whatever the collections say; with any of them the first
            ten steps are among the steps.
    """
    configs = [(one, one.save_config.get_save_config(mode)) for one in collections]
    if mode.name in ("EVAL", "PREDICT"):
        # smdebug's own rule: there are no gradients then.
        configs = [(one, config) for one, config in configs if one.name != "gradients"]
    used = [(one, config) for one, config in configs if config.end_step != 0 or config.save_steps]
    steps = {step for _, config in used for step in config.save_steps}
    if ours:
        steps |= set(range(FIRST_STEPS))
    losses_alone = not ours and [
        (one.name, config.save_interval, config.start_step or 0, config.end_step) for one, config in used
    ] == [("losses", 1, 0, None)]
    names = tuple(one for one, _ in used)
    return Schedule(
        collections=names,
        every=math.gcd(*(config.save_interval for _, config in used), *ours),
        steps=tuple(sorted(steps)),
        losses_alone=frozenset(names) if losses_alone else NOTHING,
    )
