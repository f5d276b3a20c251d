"""A stop that comes before a program is able to end well: it leaves at once, in one line.

The imports of a job or a server take seconds. Python answers Ctrl-C during them with a traceback of whatever module it
is in, and SIGTERM with a death by signal; a container's first process does not even get a signal that it has no handler
for (pid_namespaces(7)). Nothing is lost by leaving then: nothing has been begun.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells have it."""


def leave_on(number: signal.Signals, line: str, code: int, clean: Callable[[], None] = lambda: None) -> None:
    """From now on a signal ends this process at once; one that is ignored, as in the background, stays so.

    Args:
        number: of the signal.
        line: said on standard error.
        code: exit code.
        clean: called before the end.
    """

    def leave(_number: int, _frame: FrameType | None) -> None:
        # Past streams, which cannot be re-entered, and threads, which may be anywhere in native code.
        os.write(2, f"{line}\n".encode())
        clean()
        os._exit(code)

    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, leave)


def leave_on_stops() -> None:
    """Until a program has handlers of its own: Ctrl-C is `INTERRUPTED`, and SIGTERM a good end, as it is later on."""
    leave_on(signal.SIGINT, "interrupted", INTERRUPTED)
    leave_on(signal.SIGTERM, "SIGTERM: ended before anything was begun", 0)


@contextlib.contextmanager
def leaving_on_interrupt(clean: Callable[[], None] = lambda: None) -> Iterator[None]:
    """For this while Ctrl-C ends the process at once, after ``clean``."""
    before = signal.getsignal(signal.SIGINT)
    leave_on(signal.SIGINT, "interrupted", INTERRUPTED, clean)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
