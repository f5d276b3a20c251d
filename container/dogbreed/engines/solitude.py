"""Whether a call is alone with what computes, and is likely to stay so: then it may be given all CPUs.

Knows threads; not what is computed.
"""

from __future__ import annotations

import threading

_WEIGHT = 1 / 8  # of the newest observation: the mean forgets a burst within some dozen calls


class Solitude:
    """Counts calls in and out; several threads may.

    A call that is given all CPUs ends sooner, but takes more of their time in all, and where another one joins it both
    are slower than side by side. So whoever begins alone is watched: did it stay alone until its end? Two clients that
    ask without a pause find the CPUs free now and then, and never for long.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._joined = False  # the call that began alone is not alone any more
        self._company = 0.0  # share of the calls that began alone and were joined, an exponential mean

    @property
    def lasts(self) -> bool:
        """Whether most calls that began alone lately were left alone; true before the first."""
        return self._company < 0.5

    def begin(self) -> bool:
        """Counts a call in; returns whether it is alone."""
        with self._lock:
            alone = self._inside == 0
            self._joined = not alone
            self._inside += 1
            return alone

    def end(self, *, alone: bool) -> None:
        """Counts a call out.

        Args:
            alone: what `begin` said of it.
        """
        with self._lock:
            self._inside -= 1
            if alone:
                self._company += (self._joined - self._company) * _WEIGHT
