"""Waiting for something that AWS does, and showing that it goes on.

Knows neither AWS nor a command: it is given a question to ask and a way to sleep. Time is counted in what was slept, so
that tests need no clock.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TextIO

_REPEAT_S = 60.0


class Progress:
    """One line of progress: rewritten in place on a terminal; elsewhere said anew when it changes, or each minute.

    Args:
        title: what is waited for.
        stream: where it is shown; default the standard error of the moment.
    """

    def __init__(self, title: str, stream: TextIO | None = None) -> None:
        self._title = title
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._state = ""
        self._said_s = 0.0

    def show(self, state: str, elapsed_s: float) -> None:
        """Shows the state."""
        text = f"{self._title}: {state}, {int(elapsed_s) // 60}:{int(elapsed_s) % 60:02d}"
        if self._terminal:
            self._stream.write(f"\r{text}\x1b[K")
        elif state != self._state or elapsed_s - self._said_s >= _REPEAT_S:
            self._stream.write(text + "\n")
            self._said_s = elapsed_s
        self._state = state
        self._stream.flush()

    def close(self) -> None:
        """Leaves the last state standing on a line of its own."""
        if self._terminal and self._state:
            self._stream.write("\n")
            self._stream.flush()


def wait(ask: Callable[[], str | None], progress: Progress, sleep: Callable[[float], None], *, every_s: float) -> None:
    """Asks until the answer is None.

    Args:
        ask: returns the state to show, or None when there is nothing more to wait for; may raise.
        progress: closed at the end, whatever happens.
        sleep: takes seconds.
        every_s: seconds between questions.
    """
    elapsed_s = 0.0
    try:
        while (state := ask()) is not None:
            progress.show(state, elapsed_s)
            sleep(every_s)
            elapsed_s += every_s
    finally:
        progress.close()
