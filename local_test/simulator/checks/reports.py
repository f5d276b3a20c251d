"""What a run of checks looks like: on a terminal, and as JUnit XML, JSON and Markdown: functions of the results."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree  # only written, never read

from local_test.simulator.checks.check import Check, Status
from local_test.simulator.checks.running import Result

_COLOURS = {Status.PASSED: "32", Status.FAILED: "1;31", Status.NOT_APPLICABLE: "33"}
_WORDS = {Status.PASSED: "passed", Status.FAILED: "FAILED", Status.NOT_APPLICABLE: "n/a"}


def line(result: Result, *, colour: bool) -> str:
    """One result for a terminal; evidence, reason and source of what did not pass stand below it."""
    status, detail = result.outcome.status, result.outcome.detail
    text = f"  {_painted(f'{_WORDS[status]:6}', status, colour)}  {result.check.name:26}  {result.check.title}"
    match status:
        case Status.FAILED:
            return f"{text}\n          {detail}\n          {result.check.page.url}"
        case Status.NOT_APPLICABLE:
            return f"{text}\n          {detail}"
        case _:
            return text


def heading(check: Check) -> str:
    """Above the results of a group."""
    return f"\n{check.side}: {check.group}"


def summary(results: Sequence[Result]) -> str:
    """Counts and time: ``70 passed, 1 failed, 2 not applicable in 63 s``."""
    counts = Counter(result.outcome.status for result in results)
    told = ", ".join(f"{counts[status]} {status}" for status in Status)
    return f"{told} in {sum(result.seconds for result in results):.0f} s"


def listing(checks: Sequence[Check]) -> str:
    """Names, titles and pages of checks."""
    width = max(len(check.name) for check in checks)
    return "\n".join(f"{check.name:{width}}  {check.title} ({check.page.title})" for check in checks)


def junit(results: Sequence[Result], title: str) -> str:
    """XML as CI systems read it; what is not applicable is skipped."""
    counts = Counter(result.outcome.status for result in results)
    suite = ElementTree.Element(
        "testsuite",
        name=f"conformance of {title}",
        tests=str(len(results)),
        failures=str(counts[Status.FAILED]),
        skipped=str(counts[Status.NOT_APPLICABLE]),
        time=f"{sum(result.seconds for result in results):.3f}",
    )
    for result in results:
        side, _, name = result.check.name.partition(".")
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"conformance.{side}", name=name, time=f"{result.seconds:.3f}"
        )
        detail = _printable(result.outcome.detail)
        if result.outcome.status is Status.FAILED:
            failure = ElementTree.SubElement(case, "failure", message=detail)
            failure.text = f"{result.check.title}\n{result.check.page.url}"
        elif result.outcome.status is Status.NOT_APPLICABLE:
            ElementTree.SubElement(case, "skipped", message=detail)
        elif detail:
            ElementTree.SubElement(case, "system-out").text = detail
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def as_json(results: Sequence[Result], title: str) -> str:
    """One object: subject, counts, checks."""
    counts = Counter(result.outcome.status for result in results)
    document = {
        "subject": title,
        "counts": {status.value: counts[status] for status in Status},
        "checks": [
            {
                "name": result.check.name,
                "title": result.check.title,
                "group": result.check.group,
                "page": result.check.page.url,
                "status": result.outcome.status.value,
                "detail": result.outcome.detail,
                "seconds": round(result.seconds, 3),
            }
            for result in results
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def markdown(results: Sequence[Result], title: str, command: str, date: str) -> str:
    """Tables of what failed, of what is not applicable, and of what passed.

    Args:
        results: of a run.
        title: of the subject.
        command: that printed it.
        date: of the run.
    """
    parts = [f"### {title[:1].upper()}{title[1:]}", f"`{command}`, {date}: **{summary(results)}**."]
    for status, head in ((Status.FAILED, "evidence"), (Status.NOT_APPLICABLE, "why"), (Status.PASSED, "seen")):
        chosen = [result for result in results if result.outcome.status is status]
        if not chosen:
            continue
        rows = [
            f"| [`{one.check.name}`]({one.check.page.url}) | {one.check.title} | {_cell(one.outcome.detail)} |"
            for one in chosen
        ]
        parts.append("\n".join([f"| {status} | what | {head} |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _painted(text: str, status: Status, colour: bool) -> str:
    return f"\x1b[{_COLOURS[status]}m{text}\x1b[0m" if colour else text


def _printable(text: str) -> str:
    """Without what XML cannot hold."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _cell(text: str) -> str:
    escaped = _printable(text)[:300].replace("|", "\\|").replace("<", "&lt;")
    return escaped.replace("*", "\\*").replace("_", "\\_")
