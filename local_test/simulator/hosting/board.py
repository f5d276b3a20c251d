"""The table of an endpoint: its instances, their state, requests, times and memory.

Knows how it looks as text; not where it is drawn.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from local_test.simulator.hosting.events import Counts
from local_test.simulator.hosting.fleet import Instance
from local_test.simulator.hosting.health import Phase

HEADER = ("instance", "state", "under way", "requests", "p50 ms", "p99 ms", "memory MB")
STYLES: Mapping[str, str] = {Phase.IN_SERVICE: "green", Phase.STARTING: "yellow", Phase.FAILED: "bold red"}
"""Of cells, by their text."""

_MB = 1_000_000


def rows(instances: Sequence[Instance], counts: Mapping[str, Counts]) -> list[tuple[str, ...]]:
    """A row for each instance that is there, and one for all requests, those of instances that are gone included."""
    nothing = Counts()
    body = []
    for one in instances:
        memory = one.launched.running.memory_bytes()
        told = "" if memory is None else f"{memory / _MB:,.0f}"
        numbers = _numbers(counts.get(one.name, nothing))
        body.append((one.name, str(one.course.phase), str(one.outstanding), *numbers, told))
    in_service = sum(one.course.phase is Phase.IN_SERVICE for one in instances)
    under_way = str(sum(one.outstanding for one in instances))
    return [*body, ("all", f"{in_service} of {len(instances)}", under_way, *_numbers(_together(counts)), "")]


class Board:
    """Has the table drawn again every second, in a thread of its own.

    Args:
        draw: the table of now.
        every_s: between two.
    """

    def __init__(self, draw: Callable[[], None], every_s: float = 1.0) -> None:
        self._draw = draw
        self._every_s = every_s
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="board")

    def __enter__(self) -> Board:
        """Begins."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends, when the last one is drawn."""
        self._ending.set()
        self._thread.join()

    def _keep(self) -> None:
        while True:
            self._draw()
            if self._ending.wait(self._every_s):
                return


def _numbers(counts: Counts) -> tuple[str, str, str]:
    outcomes = ", ".join(f"{number} x {what}" for what, number in sorted(counts.outcomes.items()))
    return (outcomes or "0", _milliseconds(counts.percentile_s(0.5)), _milliseconds(counts.percentile_s(0.99)))


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:.1f}"


def _together(counts: Mapping[str, Counts]) -> Counts:
    outcomes: Counter[str] = Counter()
    recent_s: deque[float] = deque()
    for one in counts.values():
        outcomes += one.outcomes
        recent_s += one.recent_s
    return Counts(outcomes, recent_s)
