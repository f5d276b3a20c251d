from __future__ import annotations

import io
from pathlib import Path

import pytest
from local_test.simulator.consoles import Plain, Screen, Terminal, rows, table
from local_test.simulator.metrics import Scraper
from local_test.simulator.records import Record


@pytest.fixture
def record(tmp_path: Path) -> Record:
    made = Record.create(tmp_path, "job-1", "us-east-1", {})
    made.move("Interrupted", "attempt 1 lost all its instances")
    return made


@pytest.fixture
def scraper() -> Scraper:
    made = Scraper({"loss": r"loss=([0-9.]+)"})
    made.read("loss=0.5 loss=2 loss=1")
    return made


@pytest.mark.parametrize("kind", [Plain, Terminal])
def test_lines_come_with_their_host_and_statuses_with_their_reason(kind, record, scraper, capsys):
    with kind() as console:
        console.line("algo-2", "[bold]as it is[/bold]")
        console.status(record)
        console.metrics(record, scraper)
    err = capsys.readouterr().err
    assert "algo-2 | [bold]as it is[/bold]\n" in err
    assert "job-1 Interrupted: attempt 1 lost all its instances\n" in err


def test_a_screen_draws_a_table_in_styles(monkeypatch):
    """A terminal of stderr: a table that is drawn in place, and gone at the end."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", stream)
    with Screen() as screen:
        screen.draw("dogs", ("instance", "state"), [("i-0001", "InService")], {"InService": "green"})
        screen.say(("hello", "red"))
    text = stream.getvalue()
    assert "\033[32mInService" in text
    assert "\033[31mhello\033[0m\n" in text
    assert "dogs" in text
    assert text.rindex("\033[2K") > text.rindex("InService"), "the last one is wiped"


def test_the_table_stands_in_columns(scraper):
    text = table(("metric", "last", "lowest", "highest", "values"), rows(scraper))
    assert text.splitlines() == [
        "metric  last  lowest  highest  values",
        "loss       1     0.5        2       3",
    ]
