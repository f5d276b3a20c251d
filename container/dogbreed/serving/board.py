"""What the worker processes of one server tell each other."""

from __future__ import annotations

import mmap

# Workers live at once; gunicorn numbers them through, so that the same number is not met twice.
_PLACES = 1024
_PLACE_BYTES = 2  # an unsigned short
_MOST_CONNECTIONS = 2**16 - 2


class Board:
    """What workers tell each other: who is ready, and how many connections each has.

    Shared memory, one place for each worker, made before they are forked. Each writes its own place alone, so there is
    nothing to lock.
    """

    def __init__(self) -> None:
        self._places = memoryview(mmap.mmap(-1, _PLACE_BYTES * _PLACES)).cast("H")

    def write(self, worker: int, ready: bool, connections: int = 0) -> None:
        """Says of the worker with that number whether it is ready, and how many connections it has."""
        self._places[worker % _PLACES] = 1 + min(connections, _MOST_CONNECTIONS) if ready else 0

    def other_is_ready(self, worker: int, *, connections_below: int = _MOST_CONNECTIONS + 1) -> bool:
        """Whether any other one is, and has fewer connections than so many."""
        places = self._places.tolist()
        places[worker % _PLACES] = 0
        return any(0 < place <= connections_below for place in places)
