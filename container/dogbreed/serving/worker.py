"""gunicorn's threaded worker, which takes connections only when no other worker would serve them better.

Of several workers, one that is still loading, has failed or is stuck leaves connections to those that are ready; where
none is ready each takes them, so that somebody says why. Of those that are ready, one that has more connections than
another leaves it the next: left to themselves, the first to wake takes all that a client opens at once.

A request gets a thread when its head is there, and not before: a client that is slow with it, or connects and says
nothing, costs a buffer. gunicorn alone would give each of them a thread, and a hundred of them take `/ping` away from
everybody else. A thread that has answered waits a moment for the client's next request, which most often is on its
way: through gunicorn's loop it would cost three changes of threads. Knows gunicorn's worker; not what is served.
"""

from __future__ import annotations

import contextlib
import mmap
import re
import select
import selectors
import socket
import threading
import time
from functools import partial
from typing import Any

from gunicorn import http
from gunicorn.workers.gthread import ThreadWorker

# Workers live at once; gunicorn numbers them through, so that the same number is not met twice.
_PLACES = 1024
_PLACE_BYTES = 2  # an unsigned short
_MOST_CONNECTIONS = 2**16 - 2

# A connection waits so long for the worker with fewer of them; then whoever sees it takes it.
_LEFT_TO_OTHERS_S = 0.02
_PAUSE_S = 0.0005
# How long a thread that has answered waits for the same client's next request. On one machine it comes within 1 ms.
_NEXT_REQUEST_MS = 5

# A request's head must be there so long after its first byte.
_HEAD_PATIENCE_S = 20.0
# What a head may hold of the server's memory while it is not whole; the platform's are below 4 KiB.
_MAX_HEAD_BYTES = 64 * 1024
_READ_BYTES = 8192  # more than gunicorn lets a first line have
_FIRST_LINE = re.compile(rb"\S+ \S+ HTTP/\d\.\d")
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


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


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Asks its application before it takes connections; the application has `board` and `is_ready`.

    Attributes:
        gpu: the only one that it uses, as CUDA_VISIBLE_DEVICES names it; None is any.
    """

    gpu: str | None = None

    def __init__(self, *arguments: Any, **settings: Any) -> None:  # noqa: ANN401  gunicorn has no types
        super().__init__(*arguments, **settings)
        self._begun: dict[Any, float] = {}  # connections with a part of a head, and when it began
        self._counting = threading.Lock()
        self._unserved = 0  # requests that were given to the threads, and that none has begun yet
        self._left_since = self._left_last = 0.0

    def accept(self, listener: Any) -> None:  # noqa: ANN401  gunicorn has no types
        """Called by gunicorn's loop when a connection waits, again and again until somebody has taken it."""
        if self._leaves_to_others():
            time.sleep(_PAUSE_S)  # the other one is waking up
        else:
            super().accept(listener)

    def _leaves_to_others(self) -> bool:
        if self.cfg.workers == 1 or not self.app.board.other_is_ready(self.age, connections_below=self.nr_conns):
            return False
        now = time.monotonic()
        if now - self._left_last > _LEFT_TO_OTHERS_S:  # the one that was left before has been taken
            self._left_since = now
        self._left_last = now
        return now - self._left_since < _LEFT_TO_OTHERS_S

    def enqueue_req(self, conn: Any) -> None:  # noqa: ANN401  gunicorn has no types
        """Called by gunicorn's loop for a connection, new or kept alive, on which there may be a request."""
        if self._has_head(conn):
            self._begun.pop(conn, None)
            conn.data_ready = True  # a thread need not wait for it
            with self._counting:
                self._unserved += 1
            super().enqueue_req(conn)
            return
        held, now = len(_held(conn)), time.monotonic()
        if held > _MAX_HEAD_BYTES:
            self._end(conn, _TOO_LARGE)
            return
        if held:
            conn.timeout = self._begun.setdefault(conn, now) + _HEAD_PATIENCE_S
        else:
            conn.timeout = now + self.cfg.keepalive
        conn.sock.setblocking(False)
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def handle(self, conn: Any) -> Any:  # noqa: ANN401  gunicorn has no types
        """Called by gunicorn in a thread, for a request whose head is there; goes on with the client's next ones."""
        with self._counting:
            self._unserved -= 1
        keeps = super().handle(conn)
        while keeps is True and self._next_is_near(conn):
            keeps = super().handle(conn)
        return keeps

    def _next_is_near(self, conn: Any) -> bool:  # noqa: ANN401  gunicorn has no types
        """Whether the head of the connection's next request comes within a moment, and no other waits for a thread."""
        if not self.alive or self._unserved:
            return False
        if not _held(conn):
            waiting = select.poll()
            waiting.register(conn.sock, select.POLLIN)
            if not waiting.poll(_NEXT_REQUEST_MS):
                return False
        # What is there of a head that is not whole is in the parser's buffer, and the loop goes on with it.
        return self._has_head(conn)

    def murder_pending(self) -> None:
        """Called by gunicorn's loop at least once a second: ends connections whose request is not coming."""
        now = time.monotonic()
        for conn in [conn for conn in self.pending_conns if conn.timeout <= now]:
            self.pending_conns.remove(conn)
            self.poller.unregister(conn.sock)
            self._end(conn, _TOO_SLOW if _held(conn) else b"")

    def _end(self, conn: Any, answer: bytes) -> None:  # noqa: ANN401  gunicorn has no types
        """Closes a connection that no thread has, and says why if the client still listens."""
        self._begun.pop(conn, None)
        self.nr_conns -= 1
        with contextlib.suppress(OSError):
            conn.sock.send(answer)
        conn.close()

    def _cap_keepalive(self, deadline: float) -> None:
        """Called by gunicorn once, when it stops: nobody waits longer for a request that has not come yet."""
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    def _has_head(self, conn: Any) -> bool:  # noqa: ANN401  gunicorn has no types
        """Whether a thread can go on without waiting: a whole head is there, or what never becomes one.

        A whole head stays where it is; of one that is not whole, what is there goes into the parser's buffer, or the
        poller would wake for it for ever.
        """
        while len(held := _held(conn)) <= _MAX_HEAD_BYTES:
            try:
                arrived = conn.sock.recv(_READ_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:
                return _is_for_the_parser(held)
            except OSError:
                return True  # gunicorn closes it
            if not arrived or _is_for_the_parser(held + arrived):
                return True
            conn.sock.recv(len(arrived))
            if conn.parser is None:
                conn.parser = http.get_parser(self.cfg, conn.sock, conn.client)
            conn.parser.unreader.take_buffered()
            conn.parser.unreader.unread(held + arrived)
        return False

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
        self.app.board.write(self.age, ready, self.nr_conns)
        return ready or not self.app.board.other_is_ready(self.age)


def _held(conn: Any) -> bytes:  # noqa: ANN401  gunicorn has no types
    """What of the next request is in the parser's buffer."""
    return b"" if conn.parser is None else bytes(conn.parser.unreader.buf.getvalue())


def _is_for_the_parser(head: bytes) -> bool:
    """Whether these first bytes of a request are a whole head, or one that will be refused."""
    first_line, ended, _ = head.partition(b"\r\n")
    if not ended:
        return len(head) >= _READ_BYTES
    return b"\r\n\r\n" in head or _FIRST_LINE.fullmatch(first_line) is None
