"""gunicorn's threaded worker, which takes connections only when no other worker would serve them better.

Of several workers, one that is still loading, has failed or is stuck leaves connections to those that are ready; where
none is ready each takes them, so that somebody says why. Of those that are ready, one that has more connections than
another leaves it the next: left to themselves, the first to wake takes all that a client opens at once.

A request gets a thread when its head is there, and not before: a client that is slow with it, or connects and says
nothing, costs a buffer. gunicorn alone would give each of them a thread, and a hundred of them take `/ping` away from
everybody else. Where the app is full, a request gets no thread at all: it is refused by its head, and its body thrown
away as it comes. In a thread that is several times the work, which those lack who are served. A client that keeps a
connection open which has been ended is waited for beside all others, where gunicorn's loop would stop for up to two
seconds. What is left of a body that nobody wants is thrown away there too, and a client that does not read its answers
gets no thread for the next one. Where there are as many connections as may be, the one that has been idle longest makes
room for the next; gunicorn would accept none, `/ping` included, until one of them had timed out.

A thread that has answered stays with the connection for a second, as long as not too many do: through gunicorn's loop
the client's next request would cost three changes of threads, two of them before it is begun. Where too many stay, it
waits a moment: most often the next request is on its way. Knows gunicorn's worker; not what is served.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import select
import selectors
import socket
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import islice
from types import FrameType
from typing import Any

from gunicorn.http import get_parser
from gunicorn.http.body import ChunkedReader
from gunicorn.http.errors import (
    ExpectationFailed,
    InvalidResponseHeader,
    InvalidResponseHeaderName,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
    UnsupportedTransferCoding,
)
from gunicorn.workers.gthread import ThreadWorker

from dogbreed.serving import plain
from dogbreed.serving.plain import READ_BYTES, PlainPost, is_whole

# A connection waits so long for the worker with fewer of them; then whoever sees it takes it.
_LEFT_TO_OTHERS_S = 0.02
_PAUSE_S = 0.0005
STAYING_THREADS = 16
"""Threads beyond all others that may stay with a connection on which nothing is asked at the moment."""

# How long one of them stays, and any other waits for its client's next request. On one machine it comes within 1 ms.
_STAYS_MS = 1000
_NEXT_REQUEST_MS = 5

# A request's head must be there so long after its first byte.
_HEAD_PATIENCE_S = 20.0
# What a head may hold of the server's memory while it is not whole; the platform's are below 4 KiB.
_MAX_HEAD_BYTES = 64 * 1024
# The body of a request that was refused, and what a client says after the end, are thrown away for so long at most.
_BODY_PATIENCE_S = 20.0
_LINGER_S = 2.0
_DISCARD_BYTES = 1024 * 1024
# How many of the connections that were idle longest are looked at for one on which nothing has come just now.
_LOOKED_AT = 64
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
# A client takes its answers off the connection within so long, or gets no further one.
_ANSWER_PATIENCE_S = 20.0
# Connections that are taken in one pass of the loop, which answers much else in each.
_ACCEPTED_AT_ONCE = 64
_REFUSED: dict[type[BaseException], int] = {
    LimitRequestLine: 414,
    ExpectationFailed: 417,
    LimitRequestHeaders: 431,
    UnsupportedTransferCoding: 501,
}
"""What gunicorn's parser refuses, but for 400."""


@dataclass(frozen=True, slots=True)
class _Unread:
    """A connection goes on behind so many bytes of a body that the app has not read."""

    count: int


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Asks before it takes connections and requests.

    gunicorn's application, `self.app`, has `board`, `is_ready` and `is_loading`; what it loads, `self.wsgi`, is an
    `app.App`.

    Attributes:
        gpu: the only one that it uses, as CUDA_VISIBLE_DEVICES names it; None is any.
    """

    gpu: str | None = None

    def __init__(self, *arguments: Any, **settings: Any) -> None:  # noqa: ANN401  gunicorn has no types
        super().__init__(*arguments, **settings)
        self._begun: dict[Any, float] = {}  # connections with a part of a head, and when it began
        self._counting = threading.Lock()
        self._unserved = 0  # requests that were given to the threads, and that none has begun yet
        self._staying = 0  # threads that wait for the next request of a connection, and may for long
        self._stopped: socket.socket | None = None  # can be read from when the worker stops
        self._stops: socket.socket | None = None
        self._left_since = self._left_last = 0.0
        self._scrap = bytearray(_DISCARD_BYTES)  # Linux never writes to it

    def init_process(self) -> None:
        """Called by gunicorn in the new process, before there are other threads; they inherit what is set here."""
        if hasattr(os, "SCHED_BATCH"):
            # Linux: a thread that wakes does not take the core from one that computes (sched(7)). Decoding the next
            # image can wait for some milliseconds; so computing is interrupted less than half as often.
            with contextlib.suppress(OSError):
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        self._stopped, self._stops = socket.socketpair()
        super().init_process()

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """Called by gunicorn in the middle of whatever runs, for SIGINT and SIGQUIT: ends the worker now.

        gunicorn does so by an exception. Ctrl-C is a signal from the terminal and one from the first process: of two
        exceptions in the middle of a start one ends it in a traceback, and the first process takes it for a failure.
        Nothing is lost with the process: its log is written line by line, its file is unlinked.
        """
        if not self.booted or self.app.is_loading():
            os._exit(0)
        super().handle_quit(sig, frame)

    def accept(self, listener: Any) -> None:  # noqa: ANN401  gunicorn has no types
        """Called by gunicorn's loop when connections wait, again and again until somebody has taken them."""
        for _ in range(_ACCEPTED_AT_ONCE):
            if self._leaves_to_others():
                time.sleep(_PAUSE_S)  # the other one is waking up
                return
            before = self.nr_conns
            try:
                super().accept(listener)
            except OSError as error:
                if error.errno not in _NO_DESCRIPTOR:
                    raise
                self._make_room()
                time.sleep(_PAUSE_S)
            if self.nr_conns <= before or self.nr_conns >= self.worker_connections:
                return

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
            if not _is_writable(conn):
                self._wait(conn, selectors.EVENT_WRITE, time.monotonic() + _ANSWER_PATIENCE_S)
                return
            if self.wsgi.is_full(self._unserved) and self._turn_away(conn):
                return
            conn.data_ready = True  # a thread need not wait for it
            with self._counting:
                self._unserved += 1
            super().enqueue_req(conn)
            return
        held, now = len(_held(conn)), time.monotonic()
        if held > _MAX_HEAD_BYTES:
            self._end(conn, self._refusal(431, f"the request's head has more than {_MAX_HEAD_BYTES} bytes"))
            return
        patience_end = self._begun.setdefault(conn, now) + _HEAD_PATIENCE_S if held else now + self.cfg.keepalive
        self._wait(conn, selectors.EVENT_READ, patience_end)

    def _wait(self, conn: Any, event: int, until: float) -> None:  # noqa: ANN401  gunicorn has no types
        """Leaves a connection to the loop until it can be read from, or written to, or its time is over."""
        conn.timeout = until
        conn.sock.setblocking(False)
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, event, partial(self.on_pending_socket_readable, conn))

    def handle(self, conn: Any) -> Any:  # noqa: ANN401  gunicorn has no types
        """Called by gunicorn in a thread, for a request whose head is there; goes on with the client's next ones."""
        with self._counting:
            self._unserved -= 1
        keeps = self._answer(conn)
        while keeps is True and self._next_is_near(conn):
            keeps = self._answer(conn)
        return keeps

    def _answer(self, conn: Any) -> Any:  # noqa: ANN401  gunicorn has no types
        """Answers the request whose head is there; returns whether the connection goes on."""
        request = _peek(conn)
        if request is None or not self.wsgi.answers_in_one_piece(request.path, request.headers):
            return super().handle(conn)
        try:
            conn.sock.setblocking(True)
            conn.init()
            conn.sock.recv(request.head_bytes)
            keeps = request.keeps and self._may_keep()
            answer, keeps = plain.answer(self.wsgi, request, conn.sock, conn.client, keeps=keeps)
            conn.sock.sendall(answer)
        except OSError as error:  # the client has gone
            self.log.debug("Ignored a client that left: %s", error)
            return False
        except Exception as error:  # as gunicorn does for its own
            self.handle_error(None, conn.sock, conn.client, error)
            return False
        return keeps

    def _may_keep(self) -> bool:
        """Whether a connection may go on after an answer, as gunicorn decides it."""
        return bool(self.alive and len(self.keepalived_conns) < self.max_keepalived)

    def _keepalive_after(self, conn: Any, keepalive: bool) -> Any:  # noqa: ANN401  gunicorn has no types
        """Called by gunicorn in a thread after an answer: whether, and where, the connection goes on.

        gunicorn would read what the app has left of the body here, and wait for it for up to five seconds.
        """
        body = conn.parser.mesg.body
        if not keepalive or body.failed:
            return False
        if isinstance(body.reader, ChunkedReader):  # how much is left nobody knows
            return body.reader.parser is None
        left, body.reader.length, body.buf = body.reader.length, 0, io.BytesIO()
        arrived = conn.parser.unreader.take_buffered()
        conn.parser.unreader.unread(arrived[left:])
        return _Unread(left - len(arrived)) if left > len(arrived) else True

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:  # noqa: ANN401
        """Called by gunicorn in a thread for a request that its parser refuses, or in which something went wrong.

        gunicorn would answer with a page for people.
        """
        ours = isinstance(exc, InvalidResponseHeader | InvalidResponseHeaderName) or not isinstance(exc, ParseException)
        if ours:
            self.log.error("Error handling request %s", getattr(req, "uri", "(not read)"), exc_info=exc)
            answer = self._refusal(500, "something went wrong here; the server's log tells more")
        else:
            self.log.warning("Invalid request from ip=%s: %s", addr[0] if addr else "", exc)
            answer = self._refusal(_REFUSED.get(type(exc), 400), f"the request cannot be read: {exc}")
        with contextlib.suppress(OSError):
            client.send(answer)

    def _refusal(self, status: int, message: str) -> bytes:
        return plain.frame(*self.wsgi.refuse(status, message), keeps=False)

    def _next_is_near(self, conn: Any) -> bool:  # noqa: ANN401  gunicorn has no types
        """Whether the head of the connection's next request comes while the thread may wait for it."""
        if not self.alive or self._unserved or self.wsgi.is_full():
            return False
        # The loop refuses without a thread what comes when the app is full. What is there of a head that is not whole
        # is in the parser's buffer, and the loop goes on with it.
        comes = bool(_held(conn)) or self._waits_for(conn)
        return comes and not self.wsgi.is_full() and self._has_head(conn) and _is_writable(conn)

    def _waits_for(self, conn: Any) -> bool:  # noqa: ANN401  gunicorn has no types
        """Waits until something comes on a connection: for long where not too many threads do, or else for a moment."""
        with self._counting:
            stopped = self._stopped if self._staying < STAYING_THREADS else None
            stays = stopped is not None
            self._staying += stays
        try:
            waiting = select.poll()
            waiting.register(conn.sock, select.POLLIN)
            if stopped is not None:
                waiting.register(stopped, select.POLLIN)
            found = waiting.poll(_STAYS_MS if stays else _NEXT_REQUEST_MS)
        finally:
            with self._counting:
                self._staying -= stays
        return any(descriptor == conn.sock.fileno() for descriptor, _ in found)

    def _turn_away(self, conn: Any) -> bool:  # noqa: ANN401  gunicorn has no types
        """Refuses a request by its head; False where that cannot be done here, and a thread must."""
        request = _peek(conn) if self.alive else None
        refusal = None if request is None else self.wsgi.turn_away(request.path, request.headers)
        if request is None or refusal is None:
            return False
        keeps = request.keeps and self._may_keep()
        answer = plain.frame(*refusal, keeps=keeps)
        conn.sock.setblocking(False)
        try:
            conn.sock.recv(request.head_bytes)
            sent = conn.sock.send(answer)
        except OSError:
            sent = 0
        if sent < len(answer):  # a client that has gone, or that reads no answers
            self._end(conn, b"")
        elif keeps:
            conn.timeout = time.monotonic() + _BODY_PATIENCE_S
            self._throw_away(conn, request.body_bytes)
        else:
            self._linger(conn)
        return True

    def finish_request(self, conn: Any, done: Any) -> None:  # noqa: ANN401  gunicorn has no types
        """Called by gunicorn's loop when a thread has done with a connection."""
        keeps = None if done.cancelled() or done.exception() is not None else done.result()
        if isinstance(keeps, _Unread):
            conn.sock.setblocking(False)
            conn.timeout = time.monotonic() + _BODY_PATIENCE_S
            self._throw_away(conn, keeps.count)
        elif keeps is False:
            self._linger(conn)
        else:
            super().finish_request(conn, done)

    def _linger(self, conn: Any) -> None:  # noqa: ANN401  gunicorn has no types
        """Ends a connection when its client has, or after a while: ended at once, the answer may be lost on its way."""
        try:
            conn.sock.shutdown(socket.SHUT_WR)
            conn.sock.setblocking(False)
        except OSError:
            self._end(conn, b"")
            return
        conn.timeout = time.monotonic() + _LINGER_S
        self._throw_away(conn, math.inf)

    def _throw_away(self, conn: Any, count: float) -> None:  # noqa: ANN401  gunicorn has no types
        """Takes so many bytes off a connection as they come, and lets it go on behind them."""
        try:
            # Linux forgets what has arrived without copying it (tcp(7), MSG_TRUNC).
            gone = conn.sock.recv_into(self._scrap, min(count, _DISCARD_BYTES), socket.MSG_TRUNC) if count else 0
            ended = count > 0 and gone == 0
        except BlockingIOError:
            gone, ended = 0, False
        except OSError:
            gone, ended = 0, True
        count -= gone
        if ended:
            self._end(conn, b"")
        elif count:
            self.pending_conns.append(conn)
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._on_unwanted, conn, count))
        else:
            self._keep(conn)

    def _on_unwanted(self, conn: Any, count: float, client: Any) -> None:  # noqa: ANN401  gunicorn has no types
        self.poller.unregister(client)
        self.pending_conns.remove(conn)
        self._throw_away(conn, count)

    def _keep(self, conn: Any) -> None:  # noqa: ANN401  gunicorn has no types
        """Waits for a connection's next request, as after one that a thread has answered."""
        if conn.parser is None:
            conn.parser = get_parser(self.cfg, conn.sock, conn.client)
        answered: Future[bool] = Future()
        answered.set_result(True)
        super().finish_request(conn, answered)

    def murder_pending(self) -> None:
        """Called by gunicorn's loop at least once a second: ends connections whose request is not coming."""
        now = time.monotonic()
        for conn in [conn for conn in self.pending_conns if conn.timeout <= now]:
            self.pending_conns.remove(conn)
            self.poller.unregister(conn.sock)
            late = f"the request's head did not come within {_HEAD_PATIENCE_S:g} s"
            self._end(conn, self._refusal(408, late) if conn in self._begun else b"")

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
        if self._stops is not None:
            self._stops.close()  # wakes all threads that stay
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    def _has_head(self, conn: Any) -> bool:  # noqa: ANN401  gunicorn has no types
        """Whether a thread can go on without waiting: a whole head is there, or what never becomes one.

        A whole head stays where it is; of one that is not whole, what is there goes into the parser's buffer, or the
        poller would wake for it for ever.
        """
        while len(held := _held(conn)) <= _MAX_HEAD_BYTES:
            try:
                arrived = conn.sock.recv(READ_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:
                return is_whole(held)
            except OSError:
                return True  # gunicorn closes it
            if not arrived or is_whole(held + arrived):
                return True
            conn.sock.recv(len(arrived))
            if conn.parser is None:
                conn.parser = get_parser(self.cfg, conn.sock, conn.client)
            conn.parser.unreader.take_buffered()
            conn.parser.unreader.unread(held + arrived)
        return False

    def _make_room(self) -> None:
        """Ends the connection that has been idle longest, on which nothing has come.

        First of those that have been answered; then of those that have not said a whole request since they opened, or
        still send what is thrown away.
        """
        for waiting in (self.keepalived_conns, self.pending_conns):
            for conn in islice(waiting, _LOOKED_AT):
                if not _has_news(conn):
                    waiting.remove(conn)
                    self.poller.unregister(conn.sock)
                    self._end(conn, b"")
                    return

    def set_accept_enabled(self, enabled: bool) -> None:
        """Called by gunicorn's loop at least once a second while it does not accept but might."""
        super().set_accept_enabled(enabled and self._is_of_use())

    def notify(self) -> None:
        """Called by gunicorn's loop at least once a second."""
        super().notify()
        if self.alive and self._accepting and not self._is_of_use():
            super().set_accept_enabled(False)
        if self.alive and self.nr_conns >= self.worker_connections:
            self._make_room()

    def _is_of_use(self) -> bool:
        ready = self.app.is_ready()
        self.app.board.write(self.age, ready, self.nr_conns)
        return ready or not self.app.board.other_is_ready(self.age)


def _held(conn: Any) -> bytes:  # noqa: ANN401  gunicorn has no types
    """What of the next request is in the parser's buffer."""
    return b"" if conn.parser is None else bytes(conn.parser.unreader.buf.getvalue())


def _is_writable(conn: Any) -> bool:  # noqa: ANN401  gunicorn has no types
    """Whether there is room for an answer: a client that does not read leaves none, and a thread would wait for it."""
    waiting = select.poll()
    waiting.register(conn.sock, select.POLLOUT)
    return bool(waiting.poll(0))


def _has_news(conn: Any) -> bool:  # noqa: ANN401  gunicorn has no types
    """Whether something has come on a connection, its end included, that the loop has not seen yet."""
    try:
        conn.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


def _peek(conn: Any) -> PlainPost | None:  # noqa: ANN401  gunicorn has no types
    """The plain request that is next on a connection, if it is one; takes nothing away."""
    if _held(conn):
        return None
    try:
        return plain.read_plain_post(conn.sock.recv(READ_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        return None
