"""gunicorn's threaded worker, which takes connections only when no other worker would serve them better.

Of several workers, one that is still loading, has failed or is stuck leaves connections to those that are ready; where
none is ready each takes them, so that somebody says why. Knows gunicorn's worker; not what is served.
"""

from __future__ import annotations

import mmap

from gunicorn.workers.gthread import ThreadWorker

# Workers live at once; gunicorn numbers them through, so that the same number is not met twice.
_PLACES = 1024


class ReadyBoard:
    """Which workers are ready: shared memory, one byte for each, made before they are forked.

    Each worker writes its own place alone, so there is nothing to lock.
    """

    def __init__(self) -> None:
        self._places = mmap.mmap(-1, _PLACES)

    def write(self, worker: int, ready: bool) -> None:
        """Says whether the worker with that number is ready."""
        self._places[worker % _PLACES] = ready

    def other_is_ready(self, worker: int) -> bool:
        """Whether any other one is."""
        places = self._places[:]
        return any(places[: worker % _PLACES]) or any(places[worker % _PLACES + 1 :])


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Asks its application before it takes connections; the application has `board` and `is_ready`."""

    def set_accept_enabled(self, enabled: bool) -> None:
        """Called by gunicorn's loop at least once a second while it does not accept but might."""
        super().set_accept_enabled(enabled and self._is_of_use())

    def notify(self) -> None:
        """Called by gunicorn's loop at least once a second."""
        super().notify()
        if self.alive and self._accepting and not self._is_of_use():
            super().set_accept_enabled(False)

    def _is_of_use(self) -> bool:
        ready = self.app.is_ready()
        self.app.board.write(self.age, ready)
        return ready or not self.app.board.other_is_ready(self.age)
