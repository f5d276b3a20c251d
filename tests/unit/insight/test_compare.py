from dataclasses import replace

import pytest
from tests.unit.insight.test_report import make_record, make_verdict

from dogbreed.insight import compare
from dogbreed.insight.verdicts import Status


@pytest.fixture
def jobs():
    first = make_record()
    second = replace(
        first,
        metrics={**first.metrics, "test_accuracy": 0.9, "validation_loss": 0.7},
        hyperparameters={**first.hyperparameters, "lr": 0.01, "epochs": 5},
        verdicts=(make_verdict("Quiet", Status.ISSUES_FOUND),),
    )
    return {"first": first, "<second>": second}


def test_the_best_value_of_each_row_is_marked(jobs):
    rows = {row.name: row for row in compare.results(jobs)}
    assert rows["test accuracy"].values == ("75.0 %", "90.0 %")
    assert rows["test accuracy"].best == {1}
    assert rows["validation loss"].best == {0}, "of losses the lowest"
    assert rows["duration"].best == frozenset(), "equal values have no best"


def test_a_metric_that_a_job_lacks_is_not_the_best(jobs):
    jobs["third"] = replace(jobs["first"], metrics={})
    row = next(row for row in compare.results(jobs) if row.name == "validation loss")
    assert row.values[2] == "n/a"
    assert 2 not in row.best


def test_only_hyperparameters_that_differ_are_listed(jobs):
    assert [(row.name, row.values) for row in compare.differences(jobs)] == [
        ("lr", ("0.001", "0.01")),
        ("epochs", ("not set", "5")),
    ]


def test_rules_that_found_an_issue_anywhere_are_compared(jobs):
    assert [(row.name, row.values) for row in compare.verdicts(jobs)] == [
        ("Loud", ("Issues found", "not evaluated")),
        ("Quiet", ("No issues found", "Issues found")),
    ]


def test_the_page_names_every_job_escaped_and_draws_a_line_for_each(jobs):
    page = compare.render(jobs)
    assert "&lt;second&gt;" in page
    assert "<second>" not in page
    assert page.count('class="line k1"') == page.count('class="line k2"') == 4
    assert "http" not in page


def test_the_markdown_holds_the_same_tables(jobs):
    text = compare.markdown(jobs)
    assert "| test accuracy | 75.0 % | **90.0 %** |" in text
    assert "| lr | 0.001 | 0.01 |" in text
