"""The table of an endpoint."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from types import SimpleNamespace

from local_test.simulator.hosting.board import HEADER, Board, rows
from local_test.simulator.hosting.events import Events
from local_test.simulator.hosting.fleet import Instance
from local_test.simulator.hosting.health import Course, Phase


def instance(name: str, phase: Phase, memory_bytes: int | None, outstanding: int = 0) -> Instance:
    running = SimpleNamespace(memory_bytes=lambda: memory_bytes)
    return Instance(name, SimpleNamespace(running=running), Course(phase), outstanding)  # type: ignore[arg-type]


def test_a_row_for_each_instance_and_one_for_all_requests(tmp_path: Path) -> None:
    events = Events(tmp_path / "events.jsonl", io.StringIO())
    for milliseconds in range(1, 101):
        events.request("x", "200", instance="i-0002", seconds=milliseconds / 1000, sent=1, got=1)
    events.request("x", "ModelError(500)", instance="i-0002", seconds=9.0, sent=1, got=1)
    events.request("x", "200", instance="i-0001", seconds=5.0, sent=1, got=1)  # it has been replaced
    events.request("x", "ValidationError", instance="", seconds=0.0, sent=1, got=0)
    there = [
        instance("i-0002", Phase.IN_SERVICE, 1_234_000_000, 3),
        instance("i-0003", Phase.STARTING, None),
    ]
    requests = "100 x 200, 1 x ModelError(500)"
    together = "101 x 200, 1 x ModelError(500), 1 x ValidationError"
    assert rows(there, events.counts()) == [
        ("i-0002", "InService", "3", requests, "51.0", "100.0", "1,234"),
        ("i-0003", "Starting", "0", "0", "", "", ""),
        ("all", "1 of 2", "3", together, "51.0", "100.0", ""),
    ]
    assert all(len(row) == len(HEADER) for row in rows(there, events.counts()))


def test_an_endpoint_without_requests(tmp_path: Path) -> None:
    [one] = rows([], Events(tmp_path / "events.jsonl", io.StringIO()).counts())
    assert one == ("all", "0 of 0", "0", "0", "", "", "")


def test_times_are_of_the_last_thousand(tmp_path: Path) -> None:
    events = Events(tmp_path / "events.jsonl", io.StringIO())
    for seconds in [9.0] * 500 + [0.1] * 1000:
        events.request("x", "200", instance="i-0001", seconds=seconds, sent=1, got=1)
    counts = events.counts()["i-0001"]
    assert (counts.outcomes["200"], counts.percentile_s(0.99)) == (1500, 0.1)


def test_it_is_drawn_again_and_again() -> None:
    drawn = threading.Semaphore(0)
    with Board(drawn.release, every_s=0.01):
        for _ in range(3):
            assert drawn.acquire(timeout=60)
