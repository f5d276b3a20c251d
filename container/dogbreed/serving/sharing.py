"""The parts of one call, shared with threads that have nothing else to do. Knows threads; not what is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Helpers:
    """Threads that help whoever has many items; who calls works as well, and never waits for a helper to be free.

    Args:
        count: of them, for all calls together; 0 lets every call do its own work.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="helper") if count else None

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """The results of all items, in order; the items are begun in order too.

        Raises:
            Exception: what the function raised for the first item that it raised for; later ones are not begun then.
        """
        if self._pool is None or len(items) < 2:
            return [function(item) for item in items]
        results: dict[int, R] = {}
        errors: dict[int, BaseException] = {}
        places = iter(range(len(items)))  # `next` of it is one step for Python's lock

        def work() -> None:
            for place in places:
                if errors:
                    return
                try:
                    results[place] = function(items[place])
                except BaseException as error:
                    errors[place] = error

        helping = [self._pool.submit(work) for _ in range(min(self.count, len(items) - 1))]
        work()
        for one in helping:
            # Those that were busy with other calls until now are too late.
            if not one.cancel():
                one.result()
        if errors:
            raise errors[min(errors)]
        return [results[place] for place in range(len(items))]
