"""Sends requests to a server and measures it from outside; a process of its own, on raw sockets, to cost little.

    python benchmarks/load.py --port 8080 --body photos --clients 8 --seconds 10
    python benchmarks/load.py --port 8080 --body photos --rate 50 --seconds 10

Closed loop: so many clients, each with a connection of its own, each sending its next request when the last one is
answered. Open loop: requests come at a rate, whether the last ones are answered or not, each at its time; latency is
counted from that time, so that a stalled server cannot hide its stall. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

TIMEOUT_S = 70.0
"""What AWS advises a client to wait."""


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


class Connection:
    """One keep-alive connection; opens anew what the server has closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> int:
        """Status of the answer, 0 when there is none."""
        for _ in range(2):  # once more when an idle connection turns out to be closed
            fresh = self._streams is None
            try:
                if self._streams is None:
                    self._streams = await asyncio.open_connection("127.0.0.1", self._port)
                return await asyncio.wait_for(self._exchange(*self._streams, request), TIMEOUT_S)
            except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError):
                self.close()
                if fresh:
                    return 0
        return 0

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        status = int(head.split(b" ", 2)[1])
        length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
        if length:
            await reader.readexactly(int(length))
        if not length or b"connection: close" in head:
            self.close()
        return status

    def close(self) -> None:
        """Drops the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def post(body: bytes) -> bytes:
    """A request with one image."""
    head = f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def closed_loop(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> Seen:
    """Clients that wait for their answers."""
    seen = Seen()
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        connection = Connection(port)
        turn = number
        while (began := time.perf_counter()) < end:
            status = await connection.ask(requests[turn % len(requests)])
            record(seen, status, time.perf_counter() - began)
            turn += clients
            if status != 200:
                await asyncio.sleep(0.01)
        connection.close()

    await asyncio.gather(pinging(port, seen, end), *(client(number) for number in range(clients)))
    return seen


async def open_loop(port: int, requests: Sequence[bytes], rate: float, seconds: float) -> Seen:
    """Requests that come when they come: a Poisson process, always the same one."""
    seen = Seen()
    source = random.Random(0)
    idle: list[Connection] = []
    began = time.perf_counter()
    end = began + seconds

    async def one(request: bytes, due: float) -> None:
        connection = idle.pop() if idle else Connection(port)
        status = await connection.ask(request)
        record(seen, status, time.perf_counter() - due)
        idle.append(connection)

    pings = asyncio.create_task(pinging(port, seen, end))
    tasks = []
    due = began
    while (due := due + source.expovariate(rate)) < end:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(requests[len(tasks) % len(requests)], due)))
    await asyncio.gather(pings, *tasks)
    return seen


async def pinging(port: int, seen: Seen, end: float) -> None:
    """Asks /ping on a connection of its own, as the platform does."""
    request = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
    while (began := time.perf_counter()) < end:
        connection = Connection(port)
        if await connection.ask(request) == 200:
            seen.pings_s.append(time.perf_counter() - began)
        connection.close()
        await asyncio.sleep(0.5)


def record(seen: Seen, status: int, latency_s: float) -> None:
    """Counts one answer."""
    seen.statuses[status] += 1
    if status == 200:
        seen.latencies_s.append(latency_s)


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
    began = time.perf_counter()
    if chosen.rate:
        seen = asyncio.run(open_loop(chosen.port, requests, chosen.rate, chosen.seconds))
    else:
        seen = asyncio.run(closed_loop(chosen.port, requests, chosen.clients or 1, chosen.seconds))
    took_s = time.perf_counter() - began
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
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
