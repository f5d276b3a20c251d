"""A bounded gate: so many calls run, so many more wait in order, and the next is refused at once.

Knows threads and time; not what the calls do. A server that queues without bound answers nobody in time: a client
that is refused now can go elsewhere, one that is refused after a minute cannot.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType

from dogbreed.errors import ClientGoneError, ServerBusyError, WaitedTooLongError


class Gate:
    """``with gate.turn():`` runs the block when its turn comes. Thread-safe; first come, first served.

    Args:
        slots: calls that may run at once, at least 1.
        waiting: calls that may wait beyond those.
        patience_s: a call that has waited longer than this is refused when its turn comes, or when the time is up:
            its answer would come too late. None waits as long as it takes.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        slots: int,
        waiting: int,
        *,
        patience_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if slots < 1 or waiting < 0:
            raise ValueError(f"slots={slots} must be at least 1 and waiting={waiting} at least 0")
        self._slots = slots
        self._waiting = waiting
        self._patience_s = patience_s
        self._clock = clock
        self._lock = threading.Lock()
        self._running = 0
        # Of those who wait, in order: each has a lock of its own, which is released when its turn has come. A condition
        # that all wait for would wake all of them at every change, to fight for the interpreter.
        self._queue: deque[threading.Lock] = deque()
        self._refused = 0

    @property
    def patience_s(self) -> float | None:
        """Seconds that a call may wait; None is any number."""
        return self._patience_s

    @property
    def slots(self) -> int:
        """Calls that may run at once."""
        with self._lock:
            return self._slots

    @property
    def running(self) -> int:
        """Calls inside the gate now."""
        with self._lock:
            return self._running

    @property
    def waiting(self) -> int:
        """Calls in the queue now."""
        with self._lock:
            return len(self._queue)

    @property
    def refused(self) -> int:
        """Calls turned away so far, whatever the reason."""
        with self._lock:
            return self._refused

    def is_full(self, coming: int = 0) -> bool:
        """Whether a call would be refused now, after so many others that are on their way. Never waits."""
        return self._running + len(self._queue) + coming >= self._slots + self._waiting

    def turn_away(self) -> ServerBusyError:
        """Counts a call that is refused before it gets here; returns what it is to be told."""
        with self._lock:
            return self._refuse()

    def widen(self, slots: int) -> None:
        """Lets so many calls run at once from now on, at least as many as before."""
        with self._lock:
            self._slots = max(self._slots, slots)
            while self._queue and self._running < self._slots:
                self._running += 1
                self._queue.popleft().release()

    def turn(self, wanted: Callable[[], bool] = lambda: True) -> AbstractContextManager[None]:
        """Waits for a slot and holds it.

        Args:
            wanted: asked when the turn has come; a call that nobody wants any more costs nothing further.

        Raises:
            ServerBusyError: the queue is full.
            WaitedTooLongError: this call has waited longer than its patience.
            ClientGoneError: it is not wanted any more.
        """
        return _Turn(self, wanted)

    def __enter__(self) -> Gate:
        """Takes a slot; see `turn`.

        Raises:
            ServerBusyError: the queue is full.
            WaitedTooLongError: this call has waited longer than its patience.
        """
        with self._lock:
            if self._running < self._slots and not self._queue:
                self._running += 1
                return self
            if len(self._queue) >= self._waiting:
                raise self._refuse()
            ticket = threading.Lock()
            ticket.acquire()
            self._queue.append(ticket)
        self._wait(ticket)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._hand_over()

    def _refuse(self) -> ServerBusyError:
        self._refused += 1
        return ServerBusyError(f"{self._running} requests run and {len(self._queue)} wait; try again later")

    def _wait(self, ticket: threading.Lock) -> None:
        """Returns when the slot of another has been handed over to this call."""
        arrived = self._clock()
        taken = False
        try:
            ticket.acquire(timeout=-1 if self._patience_s is None else self._patience_s)
            waited_s = self._clock() - arrived
            with self._lock:
                in_time = self._patience_s is None or waited_s < self._patience_s
                taken = in_time and ticket not in self._queue
                if not taken:
                    self._refused += 1
                    raise WaitedTooLongError(f"no turn within {waited_s:.0f} seconds; try again later")
        finally:
            if not taken:
                with self._lock:
                    self._give_up(ticket)

    def _give_up(self, ticket: threading.Lock) -> None:
        """Leaves the queue, or passes on what has been handed over in the meantime."""
        if ticket in self._queue:
            self._queue.remove(ticket)
        else:
            self._hand_over()

    def _hand_over(self) -> None:
        """Gives a slot that has come free to whoever has waited longest, and wakes nobody else."""
        if self._queue:
            self._queue.popleft().release()
        else:
            self._running -= 1


class _Turn(AbstractContextManager[None]):
    """See `Gate.turn`."""

    __slots__ = ("_gate", "_wanted")

    def __init__(self, gate: Gate, wanted: Callable[[], bool]) -> None:
        self._gate = gate
        self._wanted = wanted

    def __enter__(self) -> None:
        self._gate.__enter__()
        try:
            if not self._wanted():
                raise ClientGoneError("the client has closed its connection")
        except BaseException as error:
            self._gate.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate.__exit__(kind, error, trace)


class Budget:
    """An amount that calls share: ``with budget.take(5):`` waits until so much is free. Thread-safe; in order.

    Args:
        total: that may be taken at once. A call that wants more gets all of it.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._taken = 0
        self._changed = threading.Condition()
        # Held by the one that waits: a large amount would never be free if smaller ones went past.
        self._first = threading.Lock()

    @contextmanager
    def take(self, amount: int) -> Iterator[None]:
        """Waits for so much and holds it."""
        amount = min(amount, self._total)
        with self._first, self._changed:
            self._changed.wait_for(lambda: self._taken + amount <= self._total)
            self._taken += amount
        try:
            yield
        finally:
            with self._changed:
                self._taken -= amount
                self._changed.notify_all()
