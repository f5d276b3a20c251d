"""Whether going on with a request still serves anybody: its time is not up, and its client is there.

A request may bring many images, each of which takes a second or more. Whoever computes it asks between any two of them;
what has begun is not interrupted. Knows time; not what is computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from dogbreed.errors import ClientGoneError, TookTooLongError

Check = Callable[[], None]
"""Asked before each image and each call of an engine; raises a `RequestError` when there is no use in going on."""


def unlimited() -> None:
    """The check of a call that has no deadline and no client."""


class Deadline:
    """The time of one request, which begins now.

    Args:
        limit_s: that it may take in all, waiting included.
        is_wanted: whether its client is still there.
        clock: seconds, monotonic.
    """

    def __init__(
        self, limit_s: float, is_wanted: Callable[[], bool], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit_s = limit_s
        self._is_wanted = is_wanted
        self._clock = clock
        self._ends_s = clock() + limit_s

    def renew(self) -> None:
        """Begins anew, for the next part of an answer that is sent in parts."""
        self._ends_s = self._clock() + self._limit_s

    def check(self) -> None:
        """Returns when there is use in going on; several threads may ask.

        Raises:
            TookTooLongError: the time is up.
            ClientGoneError: the client has closed its connection.
        """
        if self._clock() >= self._ends_s:
            raise TookTooLongError(
                f"not computed within {self._limit_s:g} seconds; send fewer or smaller images in one request"
            )
        if not self._is_wanted():
            raise ClientGoneError("the client has closed its connection")
