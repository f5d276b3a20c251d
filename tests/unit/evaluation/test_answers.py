"""Answers as files: what is written is read back, and what is damaged is named."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from dogbreed.evaluation import answers
from dogbreed.evaluation.answers import ResultError, Row, Run

RUN = Run("a", "the server", "/data", "2026-11-21T13:00:00+00:00", 2.5, 4, ("cat", "dög"), ("fox",))
ROWS = [
    Row("dög/a, b.jpg", "dög", "cat", 0.1 + 0.2, (("cat", 0.3), ("dög", 0.25)), 1.5, 0.7, 0.01),
    Row("cat/b.jpg", "cat", error='unreadable_image: "no"\nimage'),
    Row("fox/c.jpg", "fox", "cat", 0.9, (("cat", 0.9),), seconds=0.02, known=False),
]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    answers.write(RUN, ROWS, tmp_path / "new")
    run, rows = answers.read(tmp_path / "new")
    assert run == RUN
    # NaN is not itself; its text is.
    assert list(map(repr, rows)) == list(map(repr, ROWS))
    assert rows[0].probability == 0.1 + 0.2


def test_a_spreadsheet_finds_one_row_per_image_and_empty_cells(tmp_path: Path) -> None:
    answers.write(RUN, ROWS, tmp_path)
    with (tmp_path / answers.ANSWERS_FILE).open(encoding="utf-8", newline="") as file:
        first, second, third = csv.DictReader(file)
    assert (first["path"], first["right"], first["top5"]) == ("dög/a, b.jpg", "false", '[["cat", 0.3], ["dög", 0.25]]')
    assert (second["prediction"], second["probability"], second["right"], second["log_loss"]) == ("", "", "", "")
    assert third["log_loss"] == ""


def test_rows_know_what_is_right() -> None:
    right = Row("x", "cat", "cat", top=(("cat", 0.9),))
    assert right.right
    assert not ROWS[0].right
    assert ROWS[0].in_top
    assert not ROWS[2].in_top
    assert not Row("x", "", error="refused").right
    assert math.isnan(ROWS[1].seconds)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (answers.RUN_FILE, None, "holds no run.json; give a folder that `launch.py evaluate` has written"),
        (answers.ANSWERS_FILE, None, "holds no answers.csv"),
        (answers.RUN_FILE, "{", "damaged"),
        (answers.RUN_FILE, "[]", "damaged"),
        (answers.RUN_FILE, '{"schema_version": 1}', "damaged: KeyError 'name'"),
        (answers.RUN_FILE, '{"schema_version": 7}', "schema version 7, but this version of dogbreed reads 1"),
        (answers.ANSWERS_FILE, "path,label\na,b\n", "damaged: KeyError 'prediction'"),
    ],
)
def test_damaged_results_are_named(tmp_path: Path, file: str, content: str | None, message: str) -> None:
    answers.write(RUN, ROWS, tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(ResultError) as error:
        answers.read(tmp_path)
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)
