"""Runs checks one after another; what goes wrong in one is its failure and nobody else's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from local_test.simulator.checks.check import Check, NotApplicableError, Outcome, Status, failed
from local_test.simulator.checks.context import Context
from local_test.simulator.subjects import SubjectError


@dataclass(frozen=True)
class Result:
    """One check that was run.

    Args:
        check: that was run.
        outcome: what came of it.
        seconds: that it took, the starts that it was the first to need included.
    """

    check: Check
    outcome: Outcome
    seconds: float


def run(
    checks: Iterable[Check], context: Context, tell: Callable[[Result], None] = lambda result: None
) -> Sequence[Result]:
    """Runs the checks.

    Args:
        checks: in this order.
        context: is closed at the end.
        tell: is given every result at once.
    """
    results = []
    try:
        for check in checks:
            began = time.monotonic()
            result = Result(check, _outcome(check, context), time.monotonic() - began)
            tell(result)
            results.append(result)
    finally:
        context.close()
    return results


def _outcome(check: Check, context: Context) -> Outcome:
    try:
        return check.run(context)
    except NotApplicableError as error:
        return Outcome(Status.NOT_APPLICABLE, str(error))
    except SubjectError as error:
        return failed(f"it cannot be started: {error}")
