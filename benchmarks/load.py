"""Sends requests to a server and measures it from outside; a process of its own, on raw sockets, to cost little.

    python benchmarks/load.py --port 8080 --body photos --clients 8 --seconds 10
    python benchmarks/load.py --port 8080 --body photos --rate 50 --seconds 10

Closed loop: so many clients, each with a connection of its own, each sending its next request when the last one is
answered. Open loop: requests come at a rate, whether the last ones are answered or not, each at its time; latency is
counted from that time, so that a stalled server cannot hide its stall. Prints one JSON object.

It shares the cores with the server that it measures, so what it costs is measured too (`generator_cpu_ms`): one loop
over epoll, without asyncio, whose streams took three times as much.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import select
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TIMEOUT_S = 70.0
"""What AWS advises a client to wait."""

_PING = b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
_PING_EVERY_S = 0.5
# A client that was refused comes back after this.
_PAUSE_S = 0.01
_READ_BYTES = 65536
# A photo fits, so that most requests leave in one call.
_SEND_BUFFER_BYTES = 262_144


@dataclass
class Seen:
    """What came back.

    Attributes:
        latencies_s: of answers with 200.
        statuses: how many answers had which status; 0 is none at all.
        pings_s: of /ping, asked twice a second meanwhile.
    """

    latencies_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    pings_s: list[float] = field(default_factory=list)

    def count(self, status: int, latency_s: float) -> None:
        """One answer to a request."""
        self.statuses[status] += 1
        if status == 200:
            self.latencies_s.append(latency_s)


class _Broken(Exception):
    """The connection has ended before the answer, or what came is no answer."""


class _Connection:
    """One keep-alive connection, with at most one request on it; opens anew what the server has closed."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._socket: socket.socket | None = None
        self._fresh = True
        self._request = b""
        self._unsent = memoryview(b"")
        self._arrived = b""
        self._answered: Callable[[int], None] | None = None
        self._deadline = 0.0

    def ask(self, request: bytes, answered: Callable[[int], None]) -> None:
        """Sends a request; `answered` is called with the status, 0 when there was no answer."""
        self._request, self._answered = request, answered
        self._deadline = time.perf_counter() + TIMEOUT_S
        self._send()

    def is_late(self, now: float) -> bool:
        """Whether its answer has not come in time."""
        return self._answered is not None and now > self._deadline

    def give_up(self) -> None:
        """There will be no answer."""
        self._finish(0)

    def close(self) -> None:
        """Drops the connection."""
        if self._socket is not None:
            self._loop.forget(self._socket)
            self._socket.close()
            self._socket = None

    def on_event(self, event: int) -> None:
        """Called by the loop when the socket can be read or written."""
        if self._socket is None:
            return
        try:
            if event & ~select.EPOLLOUT:
                self._read(self._socket)
            if self._unsent and self._socket is not None:
                self._write(self._socket)
                self._look()
        except (OSError, _Broken):
            self.close()
            if self._fresh or self._answered is None:
                self._finish(0)
            else:  # once more: an idle connection turned out to be closed
                self._send()

    def _send(self) -> None:
        self._unsent, self._arrived = memoryview(self._request), b""
        self._fresh = self._socket is None
        if self._socket is None:
            self._socket = self._loop.connect(self)
            return
        try:
            self._write(self._socket)
        except OSError:
            self.close()
            self._send()

    def _write(self, opened: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            self._unsent = self._unsent[opened.send(self._unsent) :]
        self._loop.watch(opened, writes=bool(self._unsent))

    def _read(self, opened: socket.socket) -> None:
        try:
            arrived = opened.recv(_READ_BYTES)
        except BlockingIOError:
            return
        if not arrived or self._answered is None:
            raise _Broken
        self._arrived += arrived
        self._look()

    def _look(self) -> None:
        """Whether the answer is whole. It may be there before the request is; most clients look when that is sent."""
        if self._unsent:
            return
        head, ended, body = self._arrived.partition(b"\r\n\r\n")
        if not ended:
            return
        head = head.lower()
        length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
        if length and len(body) < int(length):
            return
        try:
            status = int(head.split(b" ", 2)[1])
        except (IndexError, ValueError):
            raise _Broken from None
        if not length or b"connection: close" in head:
            self.close()
        self._finish(status)

    def _finish(self, status: int) -> None:
        answered, self._answered = self._answered, None
        if status == 0:
            self.close()
        if answered is not None:
            answered(status)


class Loop:
    """Connections to one port, and what is to happen when; nothing else."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._poll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        self._watched: dict[int, int] = {}
        self._due: list[tuple[float, Callable[[], None]]] = []
        self._looked_s = time.perf_counter()

    def connection(self) -> _Connection:
        """A new one, opened by its first request."""
        return _Connection(self)

    def connect(self, connection: _Connection) -> socket.socket:
        """Begins to open a connection's socket; it can be written to when it is open."""
        opened = socket.socket()
        opened.setblocking(False)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._connections[opened.fileno()] = connection
        self._watched[opened.fileno()] = select.EPOLLIN | select.EPOLLOUT
        opened.connect_ex(("127.0.0.1", self._port))
        self._poll.register(opened, select.EPOLLIN | select.EPOLLOUT)
        return opened

    def watch(self, opened: socket.socket, *, writes: bool) -> None:
        """Whether a socket is asked for room to write, too."""
        wanted = select.EPOLLIN | (select.EPOLLOUT if writes else 0)
        if self._watched[opened.fileno()] != wanted:
            self._watched[opened.fileno()] = wanted
            self._poll.modify(opened, wanted)

    def forget(self, opened: socket.socket) -> None:
        """Watches a socket no more."""
        self._poll.unregister(opened)
        del self._connections[opened.fileno()], self._watched[opened.fileno()]

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Calls something after so many seconds; for few things at a time."""
        self._due.append((time.perf_counter() + seconds, call))

    def turn(self, until: float) -> None:
        """Waits for what comes next, at most until that time, and does it."""
        now = time.perf_counter()
        wait_s = min([until, *(due for due, _ in self._due)]) - now
        for descriptor, event in self._poll.poll(max(0.0, min(wait_s, 1.0))):
            connection = self._connections.get(descriptor)
            if connection is not None:
                connection.on_event(event)
        now = time.perf_counter()
        ready = [call for due, call in self._due if due <= now]
        if ready:
            self._due = [(due, call) for due, call in self._due if due > now]
            for call in ready:
                call()
        if now > self._looked_s + 1:
            self._looked_s = now
            for connection in list(self._connections.values()):
                if connection.is_late(now):
                    connection.give_up()


def post(body: bytes) -> bytes:
    """A request with one image."""
    head = f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def closed_loop(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> Seen:
    """Clients that wait for their answers."""
    seen, loop = Seen(), Loop(port)
    end = time.perf_counter() + seconds
    running = clients

    def client(turn: int, connection: _Connection) -> None:
        nonlocal running
        began = time.perf_counter()
        if began >= end:
            running -= 1
            connection.close()
            return

        def answered(status: int) -> None:
            seen.count(status, time.perf_counter() - began)
            if status == 200:
                client(turn + clients, connection)
            else:
                loop.later(_PAUSE_S, lambda: client(turn + clients, connection))

        connection.ask(requests[turn % len(requests)], answered)

    pings = _Pings(loop, seen, end)
    for number in range(clients):
        client(number, loop.connection())
    while running or pings.unanswered:
        loop.turn(math.inf)
    return seen


def open_loop(port: int, requests: Sequence[bytes], rate: float, seconds: float) -> Seen:
    """Requests that come when they come: a Poisson process, always the same one."""
    seen, loop = Seen(), Loop(port)
    source = random.Random(0)
    idle: list[_Connection] = []
    sent = 0

    def one(request: bytes, due: float) -> None:
        connection = idle.pop() if idle else loop.connection()

        def answered(status: int) -> None:
            seen.count(status, time.perf_counter() - due)
            idle.append(connection)

        connection.ask(request, answered)

    began = time.perf_counter()
    end = began + seconds
    pings = _Pings(loop, seen, end)
    due = began + source.expovariate(rate)
    while due < end:
        if time.perf_counter() < due:
            loop.turn(due)
            continue
        one(requests[sent % len(requests)], due)
        sent += 1
        due += source.expovariate(rate)
    while seen.statuses.total() < sent or pings.unanswered:
        loop.turn(math.inf)
    return seen


class _Pings:
    """Asks /ping on connections of its own, as the platform does.

    Attributes:
        unanswered: pings that have been sent.
    """

    def __init__(self, loop: Loop, seen: Seen, end: float) -> None:
        self._loop, self._seen, self._end = loop, seen, end
        self.unanswered = 0
        self._ask()

    def _ask(self) -> None:
        began = time.perf_counter()
        if began < self._end:
            self.unanswered += 1
            connection = self._loop.connection()
            connection.ask(_PING, lambda status: self._hear(status, time.perf_counter() - began))

    def _hear(self, status: int, latency_s: float) -> None:
        self.unanswered -= 1
        if status == 200:
            self._seen.pings_s.append(latency_s)
        self._loop.later(_PING_EVERY_S, self._ask)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank; NaN of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def main() -> int:
    """Runs one loop and prints what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--body", type=Path, required=True, help="folder of images")
    parser.add_argument("--clients", type=int)
    parser.add_argument("--rate", type=float, help="requests per second")
    parser.add_argument("--seconds", type=float, default=10)
    chosen = parser.parse_args()
    requests = [post(file.read_bytes()) for file in sorted(chosen.body.rglob("*.jpg"))]
    began, used_s = time.perf_counter(), time.process_time()
    if chosen.rate:
        seen = open_loop(chosen.port, requests, chosen.rate, chosen.seconds)
    else:
        seen = closed_loop(chosen.port, requests, chosen.clients or 1, chosen.seconds)
    took_s, used_s = time.perf_counter() - began, time.process_time() - used_s
    print(
        json.dumps(
            {
                "answered": len(seen.latencies_s),
                "statuses": {str(status): count for status, count in sorted(seen.statuses.items())},
                "requests_per_s": len(seen.latencies_s) / took_s,
                "mean_ms": 1000 * statistics.fmean(seen.latencies_s) if seen.latencies_s else None,
                "p50_ms": 1000 * percentile(seen.latencies_s, 0.5),
                "p99_ms": 1000 * percentile(seen.latencies_s, 0.99),
                "p999_ms": 1000 * percentile(seen.latencies_s, 0.999),
                "ping_max_ms": 1000 * max(seen.pings_s, default=float("nan")),
                "generator_cpu_ms": 1000 * used_s / max(1, seen.statuses.total()),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
