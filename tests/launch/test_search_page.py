"""The page of a search: what stands on it, whoever searched, and what it makes of odd searches."""

import json
import re
from dataclasses import replace

import pytest
from tests.launch import searched

from dogbreed.hyperparameters import SearchRange
from scripts.launcher.search import page
from scripts.launcher.search.axes import Axis, axes_of, objective_axis
from scripts.launcher.search.importance import importances
from scripts.launcher.search.trials import Trial, objective, ranked


def test_the_page_tells_all_trials_the_best_and_what_failed():
    report = searched.report()
    text = page.render(report)
    best = ranked(report.trials, report.objective)[0]
    assert f"<h1>{best.value:.4g} validation accuracy</h1>" in text
    assert all(one.name in text for one in report.trials)
    rows = re.findall(r'<th scope="row">(dogs-search-\d+-\w+)</th>.*?<td>(\w+)', text, re.DOTALL)
    assert rows[0] == (best.name, "Completed")
    assert [status for _, status in rows[-2:]] == ["Failed", "Failed"]
    assert "lower batch-size &lt;b&gt;" in text, "a reason is a text, not markup"
    assert "<script" not in text
    assert text.count('<circle class="dot k8"') > 5, "those that were stopped have a colour of their own"


def test_the_running_best_only_rises_or_only_falls():
    for metric, better in (("validation_accuracy", max), ("validation_loss", min)):
        report = searched.report(metric=metric, failed=0)
        values = [one.value for one in report.trials]
        steps = [better(values[: place + 1]) for place in range(len(values))]
        path = re.search(r'<path class="line k2" d="M\S+ (\S+?)(H.*?)"/>', page.render(report))
        assert path
        heights = [float(path.group(1)), *(float(y) for y in re.findall(r"V([\d.]+)", path.group(2)))]
        axis = objective_axis(metric, values)
        assert heights == pytest.approx([226 - axis.at(repr(value)) * (226 - 34) for value in steps], abs=0.1)


@pytest.mark.parametrize("metric", ["validation_accuracy", "validation_loss"])
def test_importance_finds_what_the_objective_depends_on(metric):
    report = searched.report(80, metric=metric)
    found = importances(report.trials, report.ranges, report.objective)
    assert next(iter(found)) == "lr"
    assert found["lr"] > 0.5
    assert sum(found.values()) == pytest.approx(1)
    assert set(found) == set(searched.RANGES)


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_few_trials_make_a_page_too(count):
    report = searched.report(count, failed=0)
    text = page.render(report)
    assert ("What it depended on" in text) == (count == 5)
    assert ("No trial has a result" in text) == (count == 0)


def test_equal_trials_and_only_failed_ones_make_a_page():
    report = searched.report(6, failed=6)
    assert "None of 6 trials" in page.render(report)
    same = [replace(one, status="Completed", value=0.5) for one in report.trials]
    text = page.render(replace(report, trials=same))
    assert "What it depended on" not in text, "nothing can be told from equal results"


def test_what_was_searched_is_guessed_where_nobody_says():
    trials = [
        Trial("a", "Completed", 0.5, {"lr": "0.0001", "optimizer": "sgd", "dropout": "0.1"}),
        Trial("b", "Completed", 0.6, {"lr": "0.1", "optimizer": "adam", "dropout": "0.3"}),
    ]
    found = {one.name: one for one in axes_of(trials, {})}
    assert found["lr"].log
    assert not found["dropout"].log
    assert found["optimizer"].choices == ("adam", "sgd")
    assert "lr, powers of ten" in page.render(replace(searched.report(), trials=trials, ranges={}))


@pytest.mark.parametrize(
    ("axis", "value", "share"),
    [
        (Axis("lr", 0.001, 0.1, log=True), "0.01", 0.5),
        (Axis("lr", 0.001, 0.1, log=True), "1", 1.0),
        (Axis("lr", 0.001, 0.1, log=True), "0", None),
        (Axis("dropout", 0.0, 0.5), "0.1", 0.2),
        (Axis("dropout", 0.5, 0.5), "0.5", 0.5),
        (Axis("dropout", 0.0, 0.5), "nan", None),
        (Axis("model", 0, 1, choices=("a", "b")), "b", 0.75),
        (Axis("model", 0, 1, choices=("a", "b")), "c", None),
    ],
)
def test_where_a_value_lies(axis, value, share):
    assert axis.at(value) == (share if share is None else pytest.approx(share))


def test_a_whole_number_that_a_tuner_drew_is_on_its_axis():
    ranges = {"batch-size": SearchRange(low=16, high=64)}
    trials = [Trial(f"t{n}", "Completed", n / 9, {"batch-size": str(16 + 8 * n)}) for n in range(6)]
    found = importances(trials, ranges, objective("validation_accuracy"))
    assert found == {"batch-size": pytest.approx(1.0)}


def test_the_style_is_that_of_the_reports():
    assert "--page: #f7f6f3" in page.render(searched.report())
    json.dumps(page._content(searched.report())["tiles"])
