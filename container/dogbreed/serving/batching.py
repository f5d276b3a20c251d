"""Calls that wait for the same thing are computed together: whoever gets a lane takes along what waits.

There is no thread and no delay: with nobody else waiting a call computes itself, at once, in the thread that it came
in. Bounded by whoever calls (`admission.Gate`). Knows threads; not what is computed.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(eq=False)
class _Call(Generic[T, R]):
    items: Sequence[T]
    results: list[R | Exception] = field(default_factory=list)
    taken: bool = False
    # Held until the results are there: a lock is C, an event is a Python object with a lock and a queue.
    pending: threading.Lock = field(default_factory=threading.Lock)


class Batcher(Generic[T, R]):
    """Called by many threads with a few items each; returns their results in order.

    Args:
        compute: items -> as many results, in order.
        cap: items that are computed together, at least 1; a call with more is computed alone.
        lanes: batches that are computed side by side.
    """

    def __init__(self, compute: Callable[[Sequence[T]], Sequence[R]], *, cap: int, lanes: int = 1) -> None:
        if cap < 1 or lanes < 1:
            raise ValueError(f"cap={cap} and lanes={lanes} must be at least 1")
        self._compute = compute
        self._cap = cap
        self._lanes: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(lanes):
            self._lanes.put(None)
        self._lock = threading.Lock()
        self._queue: deque[_Call[T, R]] = deque()

    def __call__(self, items: Sequence[T]) -> list[R]:
        """The results of some items.

        Raises:
            Exception: what `compute` raises for one of these items, tried alone. Those of other calls are not in it.
        """
        call: _Call[T, R] = _Call(items)
        call.pending.acquire()
        with self._lock:
            self._queue.append(call)
        self._lanes.get()
        try:
            # First come, first served: those before it may fill a batch or two.
            while batch := self._take_until(call):
                self._run(batch)
        finally:
            self._lanes.put(None)
        # In another lane, where it is being computed.
        call.pending.acquire()
        results: list[R] = []
        for result in call.results:
            if isinstance(result, Exception):
                raise result
            results.append(result)
        return results

    def _take_until(self, call: _Call[T, R]) -> list[_Call[T, R]]:
        """The next batch, or nothing when the call has been taken already."""
        with self._lock:
            if call.taken:
                return []
            batch: list[_Call[T, R]] = []
            free = self._cap
            while self._queue and (not batch or len(self._queue[0].items) <= free):
                batch.append(self._queue.popleft())
                batch[-1].taken = True
                free -= len(batch[-1].items)
            return batch

    def _run(self, batch: Sequence[_Call[T, R]]) -> None:
        results: list[R | Exception] = []
        try:
            results = self._try([item for call in batch for item in call.items])
        finally:
            # Whatever happens: those who wait are never left waiting.
            lost = RuntimeError("the thread that computed this batch was ended")
            start = 0
            for call in batch:
                end = start + len(call.items)
                call.results = results[start:end] or [lost for _ in call.items]
                start = end
                call.pending.release()

    def _try(self, items: Sequence[T]) -> list[R | Exception]:
        """Computes all together; what fails is tried in halves, which need less memory, down to the one at fault."""
        try:
            return list(self._compute(items))
        except Exception as error:
            if len(items) <= 1:
                return [error for _ in items]
        middle = len(items) // 2
        return [*self._try(items[:middle]), *self._try(items[middle:])]
