"""The page, and the command that makes it of answers that are there."""

from __future__ import annotations

import html
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from dogbreed.evaluation import __main__ as command
from dogbreed.evaluation import answers, figures, page
from dogbreed.evaluation.answers import Row, Run

LABELS = ("cat", "dog", "<b>emu</b>")


def results(name: str, data: Path, *, wrong: int = 3) -> tuple[Run, list[Row]]:
    """Ten images of each class; the first of each class are taken for the next one."""
    rows = []
    for place, label in enumerate(LABELS):
        for index in range(10):
            answer = LABELS[(place + 1) % 3] if index < wrong else label
            top = ((answer, 0.7 + index / 50), (label, 0.1))
            rows.append(Row(f"{place}/{index}.jpg", label, answer, top[0][1], top, 0.4, 0.2, 0.01 * (index + 1)))
    rows.append(Row("0/broken.jpg", "cat", error="unreadable_image: <none>"))
    return Run(name, "the server", str(data), "2026-11-21T13:00:00+00:00", 3.0, 4, LABELS), rows


def visible(text: str) -> str:
    """What is read on a page."""
    return html.unescape(
        re.sub(r"\s+", " ", re.sub("<style>.*?</style>|<[^>]*>", " ", text.replace("<wbr>", ""), flags=re.DOTALL))
    )


def test_the_page_tells_the_figures_and_needs_nothing_else(tmp_path: Path) -> None:
    photo = tmp_path / "0" / "2.jpg"
    photo.parent.mkdir()
    Image.new("RGB", (300, 200), "red").save(photo)
    run, rows = results("first", tmp_path)
    text = page.render(run, rows, figures.evaluate(run, rows))
    seen = visible(text)
    assert "70.0 % of the answers are right" in seen
    assert "21 of 30 images; with 95% confidence 52.1 % to 83.3 % of images like these" in seen
    assert "1 image of 31 could not be answered" in seen
    assert "0/broken.jpg: unreadable_image: <none>" in seen
    assert "cat dog 3 of 10" in seen
    assert text.count("data:image/jpeg;base64,") == 1
    assert "<b>emu" not in text
    assert not re.search(r"<(script|link)\b|(src|href)=\"http", text)


def test_a_comparison_has_its_table(tmp_path: Path) -> None:
    better, worse = results("better", tmp_path, wrong=0), results("worse", tmp_path, wrong=4)
    compared = figures.compare(worse, better)
    seen = visible(page.render(*better, figures.evaluate(*better), compared))
    assert "Against worse better is significantly better than worse" in seen
    assert "worse right 18 0 worse wrong 12 0" in seen


def test_many_classes_have_no_matrix(tmp_path: Path) -> None:
    labels = tuple(f"class {index}" for index in range(61))
    run = replace(results("many", tmp_path)[0], labels=labels)
    rows = [Row(f"{label}/a", label, label, 0.9, ((label, 0.9),), 0.1, 0.1, 0.1) for label in labels]
    assert 'aria-label="Confusion matrix"' not in page.render(run, rows, figures.evaluate(run, rows))
    few = replace(run, labels=labels[:60])
    assert 'aria-label="Confusion matrix"' in page.render(few, rows, figures.evaluate(few, rows))


def test_the_command_writes_both_files_and_prints_the_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers.write(*results("first", tmp_path), tmp_path / "first")
    answers.write(*results("second", tmp_path, wrong=0), tmp_path / "second")
    assert command.main([str(tmp_path / "second"), str(tmp_path / "first")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "top-1 accuracy  100.0% (30 of 30; 95% interval 88.6% to 100.0%)"
    assert any(line.startswith("second is significantly better than first: 100.0% against 70.0%") for line in out)
    assert out[-1] == str(tmp_path / "second" / command.PAGE_FILE)
    document = json.loads((tmp_path / "second" / command.FIGURES_FILE).read_text())
    assert document["comparison"]["test"]["only_second"] == 9
    assert "Against first" in (tmp_path / "second" / command.PAGE_FILE).read_text()


@pytest.mark.parametrize(
    ("argv", "code", "said"), [([], 2, "usage"), (["a", "b", "c"], 2, "usage"), (["-h"], 2, "usage")]
)
def test_a_wrong_command_line_is_one_sentence(
    capsys: pytest.CaptureFixture[str], argv: list[str], code: int, said: str
) -> None:
    assert command.main(argv) == code
    assert said in capsys.readouterr().err


def test_results_that_cannot_be_used_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"{tmp_path} holds no run.json; give a folder that `launch.py evaluate` has written\n"
    )
    run, rows = results("first", tmp_path)
    answers.write(run, rows[-1:], tmp_path / "none")
    assert command.main([str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err == f"{tmp_path / 'none'}: no image was answered whose class the model knows\n"


def test_without_templates_there_are_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers.write(*results("first", tmp_path), tmp_path)
    monkeypatch.delitem(sys.modules, "dogbreed.evaluation.page")
    monkeypatch.delattr("dogbreed.evaluation.page")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert command.main([str(tmp_path)]) == 1
    ended = capsys.readouterr()
    assert "top-1 accuracy" in ended.out
    assert ended.err == (
        f"the figures are in {command.FIGURES_FILE}, but the page needs jinja2, which is not installed: run "
        f"`make install`\n"
    )
    assert (tmp_path / command.FIGURES_FILE).is_file()
