"""What happens at an endpoint or in a job: a line for people, a line of JSON for programs, and counts for the end.

Any thread may tell. Knows how to write; not what it means.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

_RED, _GREEN, _PLAIN = "\033[31m", "\033[32m", "\033[0m"
_RECENT = 1000


@dataclass
class Counts:
    """Requests of one instance, or of all.

    Args:
        outcomes: how often each.
        recent_s: times of the last 1,000 that were answered.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    recent_s: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def copy(self) -> Counts:
        """As it is now."""
        return Counts(Counter(self.outcomes), deque(self.recent_s, _RECENT))

    def percentile_s(self, share: float) -> float | None:
        """Time within which this share (0 to 1) of the recent answers came; None without one."""
        ordered = sorted(self.recent_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


class Events:
    """Writes events as they come.

    Args:
        file: gets a JSON object per line; its folder exists.
        stream: gets the lines for people; default stderr. In colours when it is a terminal.
        now: the clock.
        say: gets the lines instead of ``stream``, each with whether it is good news: True, False, or None for neither.
    """

    def __init__(
        self,
        file: Path,
        stream: TextIO | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        say: Callable[[str, bool | None], None] | None = None,
    ) -> None:
        self._file = file
        self._say = say or self._print
        self._stream = stream if stream is not None else sys.stderr
        self._colours = self._stream.isatty()
        self._now = now
        self._lock = threading.Lock()
        self._outcomes: Counter[str] = Counter()
        self._latencies_s: list[float] = []
        self._instances: dict[str, Counts] = {}
        self._happened: Counter[str] = Counter()

    def tell(self, event: str, text: str, *, good: bool | None = None, **fields: object) -> None:
        """Tells one event.

        Args:
            event: its kind, one word.
            text: for people.
            good: decides the colour; None is neither.
            fields: for programs.
        """
        moment = self._now()
        line = json.dumps({"time": moment.isoformat(timespec="milliseconds"), "event": event, "text": text, **fields})
        with self._lock:
            self._happened[event] += 1
            with self._file.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            self._say(f"{moment.astimezone():%H:%M:%S} {text}", good)

    def request(
        self, request_id: str, outcome: str, *, instance: str, seconds: float, sent: int, got: int, told: str = ""
    ) -> None:
        """Tells a request's end.

        Args:
            request_id: of the client's answer.
            outcome: ``200``, or the error's name with the container's status.
            instance: that answered; empty for none.
            seconds: from the client's request to the answer.
            sent: bytes of the request's body.
            got: bytes of the answer's.
            told: of an error, in one line.
        """
        good = outcome == "200"
        with self._lock:
            self._outcomes[outcome] += 1
            counts = self._instances.setdefault(instance or "none", Counts())
            counts.outcomes[outcome] += 1
            if good:
                self._latencies_s.append(seconds)
                counts.recent_s.append(seconds)
        where = f" at {instance}" if instance else ""
        why = f": {' '.join(told.split())[:200]}" if told else ""
        self.tell(
            "request",
            f"request {request_id[:8]} {outcome} {seconds * 1000:.0f} ms{where}, {sent:,} bytes in, {got:,} out{why}",
            good=None if good else False,
            request_id=request_id,
            outcome=outcome,
            instance=instance,
            seconds=round(seconds, 6),
            sent=sent,
            got=got,
        )

    def happened(self, event: str) -> int:
        """Times that an event was told."""
        with self._lock:
            return self._happened[event]

    def counts(self) -> Mapping[str, Counts]:
        """Requests so far by instance; ``none`` is for those that came to no instance."""
        with self._lock:
            return {name: counts.copy() for name, counts in self._instances.items()}

    def summary(self) -> str:
        """Of all requests so far, in a few lines."""
        with self._lock:
            count = sum(self._outcomes.values())
            if not count:
                return "no request"
            lines = [
                f"{count} requests: " + ", ".join(f"{number} x {what}" for what, number in _sorted(self._outcomes))
            ]
            if self._latencies_s:
                lines.append(f"latency of the answered: {_spread(self._latencies_s)}")
            served = sorted((name, counts.outcomes.total()) for name, counts in self._instances.items())
            lines.append("by instance: " + ", ".join(f"{name} {number}" for name, number in served))
            return "\n".join(lines)

    def _print(self, text: str, good: bool | None) -> None:
        if self._colours and good is not None:
            text = f"{_GREEN if good else _RED}{text}{_PLAIN}"
        print(text, file=self._stream, flush=True)


def _sorted(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items())


def _spread(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    last = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return (
        f"median {statistics.median(ordered) * 1000:.0f} ms, p95 {last * 1000:.0f} ms, max {ordered[-1] * 1000:.0f} ms"
    )
