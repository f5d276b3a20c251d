"""What a check is: one sentence of the container contract, and a function that holds a subject to it.

A check's function is given a `Context` and returns an `Outcome`, or raises one of two exceptions that stand for one:
`NotApplicableError` where the sentence does not concern this subject, and `BlockedError` where an earlier sentence
already failed, so that there is nothing to look at. Nothing here knows how subjects are started.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from local_test.simulator.checks.context import Context


class Status(StrEnum):
    """What came of a check."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Outcome:
    """What came of a check.

    Args:
        status: what came of it.
        detail: evidence of a failure, the reason why it is not applicable, or what a passed one saw; may be empty.
    """

    status: Status
    detail: str = ""


class NotApplicableError(Exception):
    """The sentence does not concern this subject; the message says why."""


class BlockedError(NotApplicableError):
    """Nothing can be looked at because another check fails; the message names it."""


@dataclass(frozen=True)
class Page:
    """Where AWS says so.

    Args:
        title: as people find it.
        url: of the page.
    """

    title: str
    url: str


@dataclass(frozen=True)
class Check:
    """One named check.

    Args:
        name: ``train.sigterm``; its first word is the side.
        title: what holds when it passes, as a sentence without a full stop.
        page: what it stands on.
        group: checks of a group share their starts.
        run: looks, and tells.
    """

    name: str
    title: str
    page: Page
    group: str
    run: Callable[[Context], Outcome]

    @property
    def side(self) -> str:
        """``train`` or ``serve``."""
        return self.name.partition(".")[0]


def check(name: str, title: str, page: Page, group: str) -> Callable[[Callable[[Context], Outcome]], Check]:
    """Makes a function a `Check`."""
    return lambda run: Check(name, title, page, group, run)


def passed(detail: str = "") -> Outcome:
    """It holds; ``detail`` tells what was seen, where that is worth telling."""
    return Outcome(Status.PASSED, detail)


def failed(evidence: str) -> Outcome:
    """It does not hold; ``evidence`` says what was seen instead."""
    return Outcome(Status.FAILED, evidence)


def judge(problem: str | None, detail: str = "") -> Outcome:
    """Failed with the problem where there is one."""
    return failed(problem) if problem else passed(detail)
