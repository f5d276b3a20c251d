"""All checks, in the order in which they are run: those that share a start stand together."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from local_test.simulator.checks import (
    serve_answers,
    serve_load,
    serve_models,
    serve_start,
    train_failures,
    train_hosts,
    train_inputs,
    train_plain,
    train_stops,
)
from local_test.simulator.checks.check import Check

CHECKS: Sequence[Check] = (
    *train_plain.CHECKS,
    *train_inputs.CHECKS,
    *train_failures.CHECKS,
    *train_stops.CHECKS,
    *train_hosts.CHECKS,
    *serve_start.CHECKS,
    *serve_answers.CHECKS,
    *serve_load.CHECKS,
    *serve_start.CHECKS_APART,
    *serve_load.CHECKS_APART,
    *serve_models.CHECKS,
)


def select(patterns: Sequence[str]) -> list[Check]:
    """The checks whose names match one of the patterns, as in a shell; all without patterns.

    Raises:
        KeyError: a pattern matches none; its argument is that pattern.
    """
    for pattern in patterns:
        if not any(fnmatchcase(one.name, pattern) for one in CHECKS):
            raise KeyError(pattern)
    return [one for one in CHECKS if not patterns or any(fnmatchcase(one.name, pattern) for pattern in patterns)]
