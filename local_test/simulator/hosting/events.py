"""What happens at an endpoint or in a job: a line for people, a line of JSON for programs, and counts for the end.

Any thread may tell. Knows how to write; not what it means.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

_RED, _GREEN, _PLAIN = "\033[31m", "\033[32m", "\033[0m"


class Events:
    """Writes events as they come.

    Args:
        file: gets a JSON object per line; its folder exists.
        stream: gets the lines for people; default stderr. In colours when it is a terminal.
        now: the clock.
    """

    def __init__(
        self, file: Path, stream: TextIO | None = None, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._file = file
        self._stream = stream if stream is not None else sys.stderr
        self._colours = self._stream.isatty()
        self._now = now
        self._lock = threading.Lock()
        self._outcomes: Counter[str] = Counter()
        self._latencies_s: list[float] = []
        self._instances: Counter[str] = Counter()
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
            print(f"{moment.astimezone():%H:%M:%S} {self._painted(text, good)}", file=self._stream, flush=True)

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
            self._instances[instance or "none"] += 1
            if good:
                self._latencies_s.append(seconds)
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
            lines.append("by instance: " + ", ".join(f"{name} {number}" for name, number in _sorted(self._instances)))
            return "\n".join(lines)

    def _painted(self, text: str, good: bool | None) -> str:
        if not self._colours or good is None:
            return text
        return f"{_GREEN if good else _RED}{text}{_PLAIN}"


def _sorted(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items())


def _spread(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    last = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return (
        f"median {statistics.median(ordered) * 1000:.0f} ms, p95 {last * 1000:.0f} ms, max {ordered[-1] * 1000:.0f} ms"
    )
