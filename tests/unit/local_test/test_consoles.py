from __future__ import annotations

from pathlib import Path

import pytest
from local_test.simulator.consoles import Plain, Terminal, rows, table
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


def test_the_table_stands_in_columns(scraper):
    text = table(("metric", "last", "lowest", "highest", "values"), rows(scraper))
    assert text.splitlines() == [
        "metric  last  lowest  highest  values",
        "loss       1     0.5        2       3",
    ]
