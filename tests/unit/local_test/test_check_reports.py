"""Reports of conformance checks: the same results on a terminal, as XML, JSON and Markdown."""

from __future__ import annotations

import json
from xml.etree import ElementTree

from local_test.simulator.checks import reports
from local_test.simulator.checks.check import Check, Outcome, Page, Status, passed
from local_test.simulator.checks.running import Result

PAGE = Page("a-page", "https://docs.example/a-page.html")


def result(name: str, status: Status, detail: str = "", seconds: float = 0.5) -> Result:
    check = Check(name, f"Does {name}", PAGE, "a group", lambda context: passed())
    return Result(check, Outcome(status, detail), seconds)


RESULTS = [
    result("train.one", Status.PASSED, "1 | 2"),
    result("train.two", Status.FAILED, "said '<html>' and \x1b[31mred\x1b[0m"),
    result("serve.three", Status.NOT_APPLICABLE, "nobody asked"),
]


def test_a_failure_tells_its_evidence_and_its_page_on_a_terminal() -> None:
    text = reports.line(RESULTS[1], colour=False)

    assert "FAILED" in text
    assert "train.two" in text
    assert "said '<html>'" in text
    assert PAGE.url in text


def test_the_reason_stands_below_what_is_not_applicable_and_nothing_below_what_passed() -> None:
    assert "nobody asked" in reports.line(RESULTS[2], colour=False)
    assert "\n" not in reports.line(RESULTS[0], colour=False)


def test_colours_are_there_only_when_asked_for() -> None:
    assert "\x1b[32m" in reports.line(RESULTS[0], colour=True)
    assert "\x1b" not in reports.line(RESULTS[0], colour=False)


def test_the_summary_counts() -> None:
    assert reports.summary(RESULTS) == "1 passed, 1 failed, 1 not applicable in 2 s"


def test_junit_is_xml_with_counts_and_evidence() -> None:
    suite = ElementTree.fromstring(reports.junit(RESULTS, "process x/"))

    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    failure = suite.find("testcase[@name='two']/failure")
    assert failure is not None
    assert "<html>" in failure.get("message", "")
    assert PAGE.url in (failure.text or "")
    skipped = suite.find("testcase[@name='three']/skipped")
    assert skipped is not None
    assert skipped.get("message") == "nobody asked"


def test_json_holds_every_check_with_its_page() -> None:
    document = json.loads(reports.as_json(RESULTS, "process x/"))

    assert document["counts"] == {"passed": 1, "failed": 1, "not applicable": 1}
    assert [check["status"] for check in document["checks"]] == ["passed", "failed", "not applicable"]
    assert document["checks"][0]["page"] == PAGE.url


def test_markdown_puts_failures_first_and_escapes_what_would_break_a_table() -> None:
    text = reports.markdown(RESULTS, "process x/", "the command", "2026-11-21")

    assert text.index("train.two") < text.index("serve.three") < text.index("train.one")
    assert "1 \\| 2" in text
    assert "&lt;html>" in text
    assert "\x1b" not in text
    assert "`the command`, 2026-11-21: **1 passed, 1 failed, 1 not applicable in 2 s**" in text
