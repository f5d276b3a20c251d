from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from local_test.simulator.hosting.events import Events


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def events(tmp_path: Path, stream: io.StringIO) -> Events:
    return Events(tmp_path / "events.jsonl", stream, now=lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))


def ask(told: Events, outcome: str, seconds: float, instance: str = "i-0001") -> None:
    told.request("0123456789", outcome, instance=instance, seconds=seconds, sent=1234, got=5, told="no\nimage")


def test_a_line_for_people_and_one_for_programs(tmp_path: Path) -> None:
    stream = io.StringIO()
    ask(events(tmp_path, stream), "ModelError(400)", 0.0421)
    assert stream.getvalue().split(" ", 1)[1] == (
        "request 01234567 ModelError(400) 42 ms at i-0001, 1,234 bytes in, 5 out: no image\n"
    )
    [line] = (tmp_path / "events.jsonl").read_text().splitlines()
    written = json.loads(line)
    assert (written["event"], written["outcome"], written["seconds"]) == ("request", "ModelError(400)", 0.0421)
    assert written["time"] == "2026-01-02T03:04:05.000+00:00"


@pytest.mark.parametrize(("stream", "coloured"), [(io.StringIO(), False), (Terminal(), True)])
def test_colours_are_for_terminals(tmp_path: Path, stream: io.StringIO, coloured: bool) -> None:
    events(tmp_path, stream).tell("failed", "bad news", good=False)
    assert ("\033[31m" in stream.getvalue()) is coloured


def test_lines_may_go_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[tuple[str, bool | None]] = []
    told = Events(tmp_path / "events.jsonl", say=lambda text, good: said.append((text[9:], good)))
    told.tell("failed", "bad news", good=False)
    assert said == [("bad news", False)]
    assert capsys.readouterr().err == ""


def test_the_summary_counts_outcomes_and_measures_answers_only(tmp_path: Path) -> None:
    told = events(tmp_path, io.StringIO())
    assert told.summary() == "no request"
    for seconds in (0.010, 0.020, 0.030):
        ask(told, "200", seconds)
    ask(told, "ModelError(0)", 60.0, "i-0002")
    ask(told, "413", 0.0, "")
    assert told.summary().splitlines() == [
        "5 requests: 3 x 200, 1 x 413, 1 x ModelError(0)",
        "latency of the answered: median 20 ms, p95 30 ms, max 30 ms",
        "by instance: i-0001 3, i-0002 1, none 1",
    ]
